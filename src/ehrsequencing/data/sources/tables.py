"""Tables of raw records: CSV, CSV.gz or parquet, in pieces of typed columns; problems are named by file and row."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from ehrsequencing.errors import DataError

Kind = Literal["id", "time", "birth", "number", "text"]
"""What a column holds: whole numbers (also written as `6.0`), times or dates between `EARLIEST` and `LATEST`, births of
any year (publishers shift those of the oldest by centuries, which the source must mend), numbers, text."""
Advance = Callable[[Path, int], None]
"""Called with a file and how many of its bytes have been read."""

SUFFIXES = (".csv", ".csv.gz", ".parquet")
BLOCK_BYTES = 8 << 20
PARQUET_ROWS = 1 << 17
EARLIEST, LATEST = datetime(1850, 1, 1), datetime(2300, 1, 1)
"""Times outside are mistakes; publishers who shift dates stay before 2300."""
MAX_EXACT_FLOAT = 2**53
MAX_FLOAT32 = 3.4028234663852886e38
TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d",
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
class Piece:
    """Some rows of a table.

    Attributes:
        table: Name of the table.
        file: Where they come from.
        rows: The columns asked for and `row` (Int64): number within the file, from 1, header and blank lines apart.
        unreadable: Per column of numbers how many values are none that float32 can hold; these are null.
        implausible: Per column of times how many are before `EARLIEST` or after `LATEST`; these are null.
        absent: Optional columns that the file lacks; these are null.
    """

    table: str
    file: Path
    rows: pl.DataFrame
    unreadable: dict[str, int] = field(default_factory=dict)
    implausible: dict[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table, in one file or in several parts."""

    name: str
    files: tuple[Path, ...]

    def read(
        self, required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None, advance: Advance | None = None
    ) -> Iterator[Piece]:
        """Yield typed pieces; memory holds one.

        Args:
            required: Lower-case column names, whatever their case in the file, and what they hold.
            optional: Columns that are null where the file lacks them.
            advance: Progress.

        Raises:
            DataError: a file is empty, damaged, cut short or not UTF-8, lacks a required column, has rows of another
                width, or holds a value that is no identifier or time.
        """
        wanted = {**required, **(optional or {})}
        for file in self.files:
            found = _columns(file)
            if missing := [column for column in required if column not in found]:
                raise DataError(
                    f"{file} lacks {', '.join(missing)}",
                    got=f"columns {', '.join(found)}",
                    expected=f"columns {', '.join(required)}",
                )
            present = {column: found[column] for column in wanted if column in found}
            read = _parquet if file.suffix == ".parquet" else _csv
            first = 1
            for raw in read(file, list(present.values()), advance):
                renamed = raw.rename({given: column for column, given in present.items()})
                yield self._typed(renamed.with_row_index("row", offset=first), wanted, file)
                first += len(raw)

    def whole(self, required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Piece:
        """All rows in one piece, for small tables."""
        pieces = list(self.read(required, optional))
        schema = {
            "row": pl.Int64(),
            **{column: TYPES[kind] for column, kind in {**required, **(optional or {})}.items()},
        }
        if not pieces:
            return Piece(self.name, self.files[0], pl.DataFrame(schema=schema))
        rows = pl.concat([piece.rows for piece in pieces])
        several = len(self.files) > 1
        return Piece(
            self.name,
            self.files[0].parent if several else self.files[0],
            rows.with_columns(row=pl.int_range(1, pl.len() + 1)) if several else rows,
            dict(sum((Counter(piece.unreadable) for piece in pieces), Counter())),
            dict(sum((Counter(piece.implausible) for piece in pieces), Counter())),
            tuple(sorted({column for piece in pieces for column in piece.absent})),
        )

    def _typed(self, raw: pl.DataFrame, wanted: Mapping[str, Kind], file: Path) -> Piece:
        columns = [raw["row"].cast(pl.Int64)]
        counts: dict[str, dict[str, int]] = {"number": {}, "time": {}}
        absent = []
        for column, kind in wanted.items():
            if column not in raw.columns:
                absent.append(column)
                columns.append(_empty(column, kind, len(raw)))
                continue
            values = raw[column]
            typed, bad = _READERS[kind](values)
            if kind != "number":
                _refuse(bad, values, file, raw["row"], kind)
            if kind == "time":
                bad = ~typed.is_between(EARLIEST, LATEST).fill_null(True)
                typed = typed.set(bad, None) if bad.any() else typed
            if kind in counts and (count := int(bad.sum())):
                counts[kind][column] = count
            columns.append(typed.alias(column))
        return Piece(self.name, file, pl.DataFrame(columns), counts["number"], counts["time"], tuple(absent))


def find_tables(folder: Path) -> dict[str, Table]:
    """Tables that lie directly in a folder, by their lower-case name; a folder of parts is one table.

    Raises:
        DataError: the folder is missing, or a table is there twice.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing" if not folder.exists() else f"{folder} is no folder", expected="a folder"
        )
    found: dict[str, list[tuple[Path, ...]]] = {}
    for path in sorted(folder.iterdir()):
        name = _table_name(path)
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            parts = tuple(part for part in sorted(path.iterdir()) if _is_part(part))
            if parts:
                found.setdefault((name or path.name).lower(), []).append(parts)
        elif name is not None:
            found.setdefault(name.lower(), []).append((path,))
    for name, places in found.items():
        if len(places) > 1:
            raise DataError(
                f"{folder} has table {name} twice",
                got=" and ".join(str(place[0].relative_to(folder)) for place in places),
                expected="one file, or one folder of parts",
                remedy="remove the one not meant",
            )
    return {name: Table(name, places[0]) for name, places in found.items()}


def require_tables(tables: Mapping[str, Table], names: tuple[str, ...], where: Path) -> None:
    """DataError when a table without which there is nothing to import is missing."""
    if missing := [name for name in names if name not in tables]:
        raise DataError(
            f"{where} lacks table {', '.join(missing)}",
            got=", ".join(sorted(tables)) or "no table",
            expected=" or ".join(f"{missing[0]}{suffix}" for suffix in SUFFIXES),
        )


def keyed(piece: Piece, key: str) -> pl.DataFrame:
    """Rows of a table of subjects or visits that have the key.

    Raises:
        DataError: a key is repeated, or there is none.
    """
    rows = piece.rows.filter(pl.col(key).is_not_null())
    if rows.is_empty():
        raise DataError(f"{piece.file} has no {key}", got=f"{len(piece.rows)} rows", expected="at least one")
    if len(twice := rows.filter(pl.col(key).is_duplicated())):
        raise DataError(
            f"{piece.file} repeats values of {key}", got=f"{twice[key][0]}, first in row {twice['row'][0]}",
            expected="each once",
        )  # fmt: skip
    return rows


def _table_name(path: Path) -> str | None:
    """The name without a suffix that we read, for example `person` of `PERSON.csv.gz`; None for other files."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return None


def _is_part(path: Path) -> bool:
    return path.is_file() and not path.name.startswith((".", "_")) and _table_name(path) is not None


def _columns(file: Path) -> dict[str, str]:
    """Lower-case column names to the names as written."""
    if file.suffix == ".parquet":
        with _named_problems(file):
            names = pq.read_schema(file).names
    else:
        names = _header(file)[0]
    lower = [name.strip().lower() for name in names]
    if repeated := sorted({name for name in lower if lower.count(name) > 1}):
        raise DataError(f"{file} repeats columns", got=", ".join(repeated), expected="each name once")
    return dict(zip(lower, names, strict=True))


def _header(file: Path) -> tuple[list[str], str]:
    """Column names and the delimiter: a tab where the first line has tabs and no comma (OHDSI's vocabularies)."""
    opener: Callable[..., io.BufferedIOBase] = gzip.open if file.suffix == ".gz" else open  # type: ignore[assignment]
    with _named_problems(file), opener(file, "rb") as stream:
        line = stream.readline().decode("utf-8-sig").rstrip("\r\n")
    if not line:
        raise DataError(f"{file} is empty", expected="a header and rows")
    delimiter = "\t" if "\t" in line and "," not in line else ","
    return next(csv.reader([line], delimiter=delimiter)), delimiter


class _named_problems:  # noqa: N801
    """What the readers raise about a file, as one DataError that names it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError)):
            damaged = isinstance(problem, (OSError, EOFError, zlib.error))
            raise DataError(
                f"{self.file} is {'damaged or cut short' if damaged else 'malformed'}",
                got=str(problem).splitlines()[0][:300],
                expected="a parquet file" if self.file.suffix == ".parquet" else "a UTF-8 CSV file",
                remedy="compare its checksum with the publisher's" if damaged else None,
            ) from None


class _Counted(io.RawIOBase):
    """A stream that counts the quotation marks that it gives out."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream, self.quotes = stream, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        content: bytes = self.stream.read(size)
        self.quotes += content.count(b'"')
        return content


def _csv(file: Path, columns: list[str], advance: Advance | None) -> Iterator[pl.DataFrame]:
    _, delimiter = _header(file)
    rows = 0
    with _named_problems(file), file.open("rb", buffering=0) as raw:
        counted = _Counted(pa.input_stream(raw, compression="gzip" if file.suffix == ".gz" else None))
        reader = pc.open_csv(
            counted,
            # On one thread, errors say which row; decompression and conversion already run beside our own work.
            read_options=pc.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pc.ParseOptions(
                delimiter=delimiter, quote_char='"' if delimiter == "," else False, newlines_in_values=delimiter == ","
            ),
            convert_options=pc.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.large_string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        for batch in reader:
            rows += batch.num_rows
            if batch.num_rows:
                yield _frame(batch)
            if advance is not None:
                advance(file, raw.tell())
        if delimiter == "," and counted.quotes % 2:
            # The parser takes the rest of the file as one cell, and with it all rows therein.
            raise DataError(f"{file} has a quotation mark that is never closed", got=f"row {rows} to the end")


def _parquet(file: Path, columns: list[str], advance: Advance | None) -> Iterator[pl.DataFrame]:
    with _named_problems(file), pq.ParquetFile(file) as source:
        total, done, size = source.metadata.num_rows, 0, file.stat().st_size
        for batch in source.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            if batch.num_rows:
                yield _frame(batch)
            done += batch.num_rows
            if advance is not None:
                advance(file, size * done // max(total, 1))


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()


def _refuse(bad: pl.Series, values: pl.Series, file: Path, row: pl.Series, kind: Kind) -> None:
    if not bad.any():
        return
    first = bad.arg_true()[0]
    raise DataError(
        f"column {values.name} of {file} has {int(bad.sum())} values that are no "
        + ("whole numbers" if kind == "id" else "times"),
        got=f"{values[first]!r} in row {row[first]}",
        expected="such as 17 or 17.0" if kind == "id" else "such as 2020-01-31 08:00:00 or 2020-01-31",
    )


def _empty(name: str, kind: Kind, length: int) -> pl.Series:
    return pl.Series(name, [None], dtype=TYPES[kind]).new_from_index(0, length)


def _none(values: pl.Series) -> pl.Series:
    """No value is bad."""
    return pl.repeat(False, len(values), eager=True)


def _stripped(values: pl.Series) -> pl.Series:
    """Text without blanks around it; nothing else is missing."""
    values = values.str.strip_chars()
    return values.set(values == "", None)  # type: ignore[arg-type]


def _identifiers(values: pl.Series) -> tuple[pl.Series, pl.Series]:
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
            return typed, _none(values)
        text = _stripped(values)
        typed = text.str.replace(r"^(-?\d+)\.0*$", "$1").cast(pl.Int64, strict=False)
        return typed, typed.is_null() & text.is_not_null()
    return _empty(values.name, "id", len(values)), values.is_not_null()


def _times(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    if values.dtype == pl.String:
        typed = values.str.to_datetime(TIME_FORMATS[0], time_unit="us", strict=False)
        if typed.null_count() == values.null_count():
            return typed, _none(values)
        text = _stripped(values)
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
        return values.cast(pl.Datetime("us")), _none(values)
    if values.dtype in (pl.Date, pl.Null):
        return values.cast(pl.Datetime("us")), _none(values)
    return _empty(values.name, "time", len(values)), values.is_not_null()


def _numbers(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    given = _stripped(values) if values.dtype == pl.String else values
    number = given.cast(pl.Float64, strict=False)
    missing = given.is_null()
    if values.dtype != pl.String:
        missing |= number.is_nan().fill_null(False)
    fits = (number.abs() <= MAX_FLOAT32).fill_null(False) & number.is_not_nan().fill_null(False)
    return number.set(~fits, None), ~fits & ~missing


def _texts(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    typed = _stripped(values.cast(pl.String, strict=False))
    return typed, _none(values)


_READERS: dict[Kind, Callable[[pl.Series], tuple[pl.Series, pl.Series]]] = {
    "id": _identifiers, "time": _times, "birth": _times, "number": _numbers, "text": _texts,
}  # fmt: skip
