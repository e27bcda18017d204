"""What a cell of a raw table holds: each reader returns the typed values and which of them are bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl

Kind = Literal["id", "time", "birth", "number", "text"]
"""What a column holds: whole numbers (also written as `6.0`), times or dates between `EARLIEST` and `LATEST`, births of
any year (publishers shift those of the oldest by centuries, which the source must mend), numbers, text."""
Reader = Callable[[pl.Series], tuple[pl.Series, pl.Series | None]]
"""From raw values to typed ones (null where missing or bad) and a mask of the bad ones, None where none is."""

EARLIEST, LATEST = datetime(1850, 1, 1), datetime(2300, 1, 1)
"""Times outside are mistakes; publishers who shift dates stay before 2300."""
MAX_EXACT_FLOAT = 2**53
MAX_FLOAT32 = 3.4028234663852886e38
PLAIN_TIME, PLAIN_DATE = "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"
USUAL_FORMATS = (PLAIN_TIME, PLAIN_DATE, "%Y-%m-%dT%H:%M:%SZ")
TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    PLAIN_DATE,
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
)
ZONED_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
TYPES: dict[Kind, pl.DataType] = {
    "id": pl.Int64(),
    "time": pl.Datetime("us"),
    "birth": pl.Datetime("us"),
    "number": pl.Float64(),
    "text": pl.String(),
}


@dataclass(frozen=True)
class Cells:
    """How a column of a table is read where its kind alone does not say.

    Attributes:
        kind: What it holds, and so what becomes of bad values: numbers are counted, others are refused.
        columns: Columns in the file (lower case); several are joined by a blank.
        read: The reader.
        keep_text: Of numbers: a column of text `text_beside` this one holds what is no number.
        expected, remedy: For messages about bad values, where the kind alone does not say.
    """

    kind: Kind
    columns: tuple[str, ...]
    read: Reader
    keep_text: bool = False
    expected: str | None = None
    remedy: str | None = None


def text_beside(name: str) -> str:
    """Name of the column with what is no number, see `Cells.keep_text`."""
    return f"{name}:text"


def cells_of(name: str, given: Kind | Cells) -> Cells:
    """How a column is read: as stated, or by its kind under its own name."""
    return given if isinstance(given, Cells) else Cells(given, (name,), READERS[given])


def empty_column(name: str, kind: Kind, length: int) -> pl.Series:
    return pl.Series(name, [None], dtype=TYPES[kind]).new_from_index(0, length)


def stripped(values: pl.Series) -> pl.Series:
    """Text without blanks around it; nothing else is missing."""
    values = values.str.strip_chars()
    empty = values == ""
    return values.set(empty, None) if empty.any() else values


def identifiers(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    if values.dtype.is_integer() or values.dtype.is_decimal():
        typed = values.cast(pl.Int64, strict=False)
        return typed, typed.is_null() & values.is_not_null()
    if values.dtype.is_float():
        values = values.cast(pl.Float64).fill_nan(None)
        exact = (values == values.round()) & (values.abs() <= MAX_EXACT_FLOAT)
        return values.set(~exact, None).cast(pl.Int64), ~exact.fill_null(True)
    if values.dtype == pl.String:
        typed = values.cast(pl.Int64, strict=False)
        if typed.null_count() == values.null_count():
            return typed, None
        text = stripped(values)
        typed = text.str.replace(r"^(-?\d+)\.0*$", "$1").cast(pl.Int64, strict=False)
        return typed, typed.is_null() & text.is_not_null()
    return empty_column(values.name, "id", len(values)), values.is_not_null()


def times(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    if values.dtype == pl.String:
        # Without fractions and without a cache of distinct values, parsing is several times as fast.
        first = values.drop_nulls().head(1)
        usual = (form for form in USUAL_FORMATS if first.str.to_datetime(form, strict=False).count())
        plain = next(usual, PLAIN_TIME)
        typed = values.str.to_datetime(plain, time_unit="us", strict=False, cache=False)
        if typed.null_count() == values.null_count():
            return typed, None
        text = stripped(values)
        for form in (*TIME_FORMATS, *ZONED_FORMATS):
            if typed.null_count() == text.null_count():
                break
            other = text.str.to_datetime(form, time_unit="us", strict=False)
            if form in ZONED_FORMATS:
                other = other.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            typed = typed.zip_with(typed.is_not_null(), other)
        return typed, typed.is_null() & text.is_not_null()
    if isinstance(values.dtype, pl.Datetime):
        if values.dtype.time_zone is not None:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return values.cast(pl.Datetime("us")), None
    if values.dtype in (pl.Date, pl.Null):
        return values.cast(pl.Datetime("us")), None
    return empty_column(values.name, "time", len(values)), values.is_not_null()


def numbers(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    if values.dtype.is_nested() or values.dtype.is_temporal():
        return empty_column(values.name, "number", len(values)), values.is_not_null()
    number = values.cast(pl.Float64, strict=False)
    if number.null_count() == values.null_count() and _all_fit(number):
        return number, None
    given = stripped(values) if values.dtype == pl.String else values
    number = given.cast(pl.Float64, strict=False)
    missing = given.is_null()
    if values.dtype != pl.String:
        missing |= number.is_nan().fill_null(False)
    fits = (number.abs() <= MAX_FLOAT32).fill_null(False) & number.is_not_nan().fill_null(False)
    return number.set(~fits, None), ~fits & ~missing


def _all_fit(number: pl.Series) -> bool:
    """Whether all that are there are finite in float32."""
    return bool((number.is_not_nan() & (number.abs() <= MAX_FLOAT32)).all())


def texts(values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    if values.dtype.is_nested():
        return empty_column(values.name, "text", len(values)), values.is_not_null()
    typed = stripped(values.cast(pl.String, strict=False))
    return typed, None


READERS: dict[Kind, Reader] = {
    "id": identifiers, "time": times, "birth": times, "number": numbers, "text": texts,
}  # fmt: skip
