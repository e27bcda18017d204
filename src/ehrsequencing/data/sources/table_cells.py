"""Readers of cells as a mapping describes them: identifiers that are text, formats of time, decimal commas."""

from __future__ import annotations

import datetime
import hashlib

import polars as pl

from ehrsequencing.data.schema import DAYS_PER_YEAR
from ehrsequencing.data.sources.cells import READERS, Cells, Reader, stripped
from ehrsequencing.data.sources.identifiers import MEND_NUL, NO_NUL, with_nul
from ehrsequencing.data.sources.table_mapping import OFFSETS, Mapping, Where
from ehrsequencing.errors import DataError


def hashed(text: str) -> int:
    """The first 63 bits of BLAKE2b-64 of the text in UTF-8: a positive int64, the same on every machine.

    >>> hashed("patient-1")
    4136817775081223966
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class TextIdentifiers:
    """Reader of identifiers that are any text; remembers which text each number stands for, and refuses collisions."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.texts: dict[int, str] = {}

    def __call__(self, values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
        text = stripped(values.cast(pl.String))
        for name in text.drop_nulls().unique(maintain_order=True):
            if name in self.known:
                continue
            number = hashed(name)
            if number in self.texts:
                raise DataError(
                    f"identifiers {self.texts[number]!r} and {name!r} have the same hash", got=number,
                    remedy="number the subjects yourself and set ids = 'integer'",
                )  # fmt: skip
            self.known[name], self.texts[number] = number, name
        numbers = text.replace_strict(self.known, return_dtype=pl.Int64) if self.known else text.cast(pl.Int64)
        return numbers, with_nul(text)


def visit_identifiers(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Hashes of identifiers of visits, which need to differ within a subject only."""
    text = stripped(values.cast(pl.String))
    names = text.drop_nulls().unique()
    numbers = dict(zip(names, map(hashed, names), strict=True))
    return text.replace_strict(numbers, return_dtype=pl.Int64) if numbers else text.cast(pl.Int64), with_nul(text)


class CellReaders:
    """How columns are read under a mapping."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.subjects = TextIdentifiers()

    def subject(self, column: str) -> Cells:
        reader: Reader = self.subjects if self.mapping.ids == "text" else READERS["id"]
        return _identifier(column, reader, None if self.mapping.ids == "text" else "set ids = 'text' in the mapping")

    def visit(self, column: str) -> Cells:
        reader: Reader = visit_identifiers if self.mapping.visit_ids == "text" else READERS["id"]
        known = self.mapping.visit_ids == "text"
        return _identifier(column, reader, None if known else "set visit_ids = 'text' in the mapping")

    def text(self, column: str) -> Cells:
        return Cells("text", (column.lower(),), READERS["text"])

    def number(self, column: str, *, keep_text: bool = False) -> Cells:
        """Numbers; with `keep_text` what is none stands in a column of text beside them."""
        comma = self.mapping.decimal == ","
        remedy = f"set decimal = '{'.' if comma else ','}' or list the value in missing, in the mapping"
        reader: Reader = decimal_comma if comma else READERS["number"]
        return Cells("number", (column.lower(),), reader, keep_text, remedy=remedy)

    def time(self, columns: str | list[str], form: str | None) -> Cells:
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        reader: Reader = READERS["time"]
        expected, remedy = None, "state time_format in the mapping, for example time_format = '%d.%m.%Y %H:%M'"
        if form is not None:
            expected = f"numbers of {form} since origin" if form in OFFSETS else f"times such as {_example(form)}"
            remedy = f"mend time_format = '{form}', or list the value in missing, in the mapping"
        if form in OFFSETS:
            seconds, origin = OFFSETS[form], self.mapping.since()
            number = self.number("").read

            def reader(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
                return since(values, origin, seconds, number)

        elif form is not None:
            written = form

            def reader(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
                return formatted(values, written)

        return Cells("time", tuple(name.lower() for name in names), reader, expected=expected, remedy=remedy)

    def date_only(self, columns: str | list[str], form: str | None) -> Cells:
        """1 where a cell that `time` reads is a date without a time of day, else 0."""
        names = (columns,) if isinstance(columns, str) else tuple(columns)

        def reader(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
            return dates(values, form), None

        return Cells("number", tuple(name.lower() for name in names), reader)

    def age(self, column: str) -> Cells:
        """Births from ages in years at the origin."""
        seconds, origin, number = -DAYS_PER_YEAR * 86400, self.mapping.since(), self.number("").read
        return Cells(
            "time", (column.lower(),), lambda values: since(values, origin, seconds, number),
            expected="ages in years at origin", remedy="mend age, or list the value in missing, in the mapping",
        )  # fmt: skip


def _identifier(column: str, reader: Reader, remedy: str | None) -> Cells:
    """Whole numbers, with the remedy where they are none; any text but that of a damaged file without one."""
    expected = NO_NUL if remedy is None else None
    return Cells("id", (column.lower(),), reader, expected=expected, remedy=remedy or MEND_NUL)


def _example(form: str) -> str:
    return datetime.datetime(2020, 1, 31, 8, 5).strftime(form)


def dates(values: pl.Series, form: str | None) -> pl.Series:
    """1.0 where a time is written without a time of day, else 0.0.

    >>> dates(pl.Series(["2020-01-31", "2020-01-31 08:05"]), None).to_list()
    [1.0, 0.0]
    >>> dates(pl.Series(["31.01.2020", "31.01.2020 08:05"]), "%d.%m.%Y %H:%M").to_list()
    [1.0, 0.0]
    """
    if form in OFFSETS:
        return pl.repeat(0.0, len(values), eager=True)
    if form is None or values.dtype != pl.String:
        timed = values.cast(pl.String).str.contains(":", literal=True)
    elif has_clock(form):
        timed = stripped(values).str.to_datetime(form, time_unit="us", strict=False).is_not_null()
    else:
        return pl.repeat(1.0, len(values), eager=True)
    return (~timed).fill_null(False).cast(pl.Float64)


def has_clock(form: str) -> bool:
    """Whether a format of `strptime` has a time of day."""
    return any(part in form for part in ("%H", "%I", "%T", "%R", "%X", "%c", "%s", "%r"))


def formatted(values: pl.Series, form: str) -> tuple[pl.Series, pl.Series | None]:
    """Times in a format of `strptime`; a missing month or day is the first.

    >>> formatted(pl.Series(["31.01.2020 08:05", "1.2.", None]), "%d.%m.%Y %H:%M")[0].to_list()[0].isoformat()
    '2020-01-31T08:05:00'
    >>> formatted(pl.Series(["1960"]), "%Y")[0].to_list()[0].isoformat()
    '1960-01-01T00:00:00'
    """
    if values.dtype != pl.String and not values.dtype.is_integer():
        return READERS["time"](values)
    text = stripped(values.cast(pl.String))
    date, _, rest = form.partition(" ")
    days = formatted(text, date)[0] if has_clock(rest) and not has_clock(date) else None
    for part, known in (("-%m", ("%m", "%b", "%B", "%j", "%F")), ("-%d", ("%d", "%e", "%j", "%F"))):
        if not any(name in form for name in known):
            text, form = text + "-01", form + part
    try:
        typed = text.str.to_datetime(form, time_unit="us", strict=False)
    except pl.exceptions.ComputeError as problem:
        raise DataError("time_format is no format of strptime", got=f"{form}: {str(problem).splitlines()[0]}") from None
    if isinstance(typed.dtype, pl.Datetime) and typed.dtype.time_zone is not None:
        typed = typed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if days is not None:
        typed = typed.zip_with(typed.is_not_null(), days)
    return typed, typed.is_null() & text.is_not_null()


def since(
    values: pl.Series, origin: datetime.datetime, seconds: float, number: Reader
) -> tuple[pl.Series, pl.Series | None]:
    """Times that are numbers of so many seconds since the origin, to the second."""
    amount, bad = number(values)
    # A time that int64 cannot hold in microseconds, nor any year, is one that will be counted as implausible.
    offset = (amount * seconds).clip(-1e12, 1e12).round().cast(pl.Int64) * 1_000_000
    typed = pl.Series([origin], dtype=pl.Datetime("us")) + offset.cast(pl.Duration("us"))
    return typed, bad


def decimal_comma(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Numbers such as `1,5` and `1.234,5`; `1.5` is none, since it may mean 1500.

    >>> decimal_comma(pl.Series(["1,5", "1.234,5", "7", "1.5"]))[0].to_list()
    [1.5, 1234.5, 7.0, None]
    """
    if values.dtype != pl.String:
        return READERS["number"](values)
    text = stripped(values)
    plain = text.str.replace(r"^(-?\d{1,3}(\.\d{3})+),", "${1}:")
    whole = pl.select(
        pl.when(plain.str.contains(":", literal=True))
        .then(plain.str.replace_all(".", "", literal=True).str.replace(":", ".", literal=True))
        .when(~plain.str.contains(".", literal=True))
        .then(plain.str.replace(",", ".", literal=True))
    ).to_series()
    typed, _ = READERS["number"](whole)
    return typed, typed.is_null() & text.is_not_null()


def condition(where: Where, names: dict[str, str]) -> pl.Expr:
    """Rows whose cells equal one of the values stated for each column; numbers compare as numbers.

    Args:
        where: Column to a value or several.
        names: Column to its name in the frame, where it is text.
    """
    tests = [pl.lit(True)]
    for column, stated in where.items():
        cell = pl.col(names[column])
        values = stated if isinstance(stated, list) else [stated]
        texts = [str(value).lower() if isinstance(value, bool) else value for value in values]
        test = cell.is_in([text for text in texts if isinstance(text, str)])
        numbers = [float(value) for value in texts if not isinstance(value, str)]
        if numbers:
            test = test | cell.cast(pl.Float64, strict=False).is_in(numbers)
        tests.append(test.fill_null(False))
    return pl.all_horizontal(tests)
