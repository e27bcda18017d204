"""Events of any MEDS writer brought to `EVENT_SCHEMA`; pure functions of frames."""

from __future__ import annotations

from typing import TypeVar

import polars as pl

from ehrsequencing.data.schema import CODE_SCHEMA, EVENT_SCHEMA, KINDS, kind_of_code
from ehrsequencing.errors import DataError

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
REQUIRED = ("subject_id", "time", "code")


def collect(frame: pl.LazyFrame, where: str) -> pl.DataFrame:
    """Read a lazy frame; a file damaged in its middle shows only now.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return frame.collect()
    except (pl.exceptions.ComputeError, OSError) as problem:
        raise DataError(f"{where} is not readable parquet", got=str(problem).splitlines()[0]) from None


def normalise_time(frame: Frame, column: str, where: str) -> Frame:
    """Make a column of times naive UTC microseconds; dates, other units, time zones and ISO strings are converted.

    Raises:
        DataError: neither a time nor a string, or a string that is no time.
    """
    found = frame.lazy().collect_schema()[column]
    time = pl.col(column)
    if isinstance(found, pl.Datetime) and found.time_zone is not None:
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    elif found == pl.String:
        time = time.str.to_datetime(time_unit="us", strict=False)
        bad = collect(frame.lazy().filter(pl.col(column).is_not_null() & time.is_null()).select(column), where)
        if len(bad):
            raise DataError(
                f"column {column} of {where} has values that are no times", got=f"{len(bad)}, first {bad.item(0, 0)!r}",
                expected="timestamps such as 2020-01-31T08:00:00",
            )  # fmt: skip
    elif not (isinstance(found, pl.Datetime) or found in (pl.Date, pl.Null)):
        raise DataError(f"column {column} of {where} has the wrong type", got=found, expected="a timestamp")
    return frame.with_columns(time.cast(pl.Datetime("us")))


def refuse_too_large(events: pl.LazyFrame, where: str) -> None:
    """DataError where a number of float64 has no place in the float32 of `EVENT_SCHEMA`; names a code and its value."""
    value = pl.col("numeric_value")
    lost = value.is_finite() & value.cast(pl.Float32).is_infinite()
    found = events.filter(lost).select(pl.col("code").cast(pl.String), "numeric_value").collect()
    if len(found):
        code, first = found.row(0)
        raise DataError(
            f"{where} has values too large for float32", got=f"{len(found)}, the first {first:g} of code {code}",
            expected="magnitudes up to 3.4e38", remedy="correct them, or make them null where they stand for missing",
        )  # fmt: skip


def normalise_events(events: pl.LazyFrame, where: str) -> pl.LazyFrame:
    """Bring events to `EVENT_SCHEMA`: cast what can be, add missing optional columns as null, drop extra ones.

    Args:
        events: At least `subject_id`, `time`, `code`.
        where: The file, for errors.

    Raises:
        DataError: a required column is missing, a column has the wrong type, a time does not parse, or a number is
            too large for float32.

    >>> frame = pl.LazyFrame({"subject_id": [1], "time": ["2020-01-31"], "code": ["A"], "ward": ["x"]})
    >>> normalise_events(frame, "a frame").collect().row(0)
    (1, datetime.datetime(2020, 1, 31, 0, 0), 'A', None, None, None, None)
    """
    found = events.collect_schema()
    if missing := [column for column in REQUIRED if column not in found]:
        raise DataError(
            f"{where} lacks {', '.join(missing)}", got=f"columns {', '.join(found)}", expected=", ".join(REQUIRED)
        )
    events = normalise_time(events, "time", where)
    columns = []
    for column, wanted in EVENT_SCHEMA.items():
        if column not in found:
            columns.append(pl.lit(None, dtype=wanted).alias(column))
            continue
        got = found[column]
        if wanted == pl.Int64:
            fits = got.is_integer()
        elif wanted == pl.Float32:
            fits = got.is_numeric()
        else:
            fits = column != "code" or got in (pl.String, pl.Categorical, pl.Enum)
        if not fits and got != pl.Null:
            raise DataError(f"column {column} of {where} has the wrong type", got=got, expected=wanted)
        if wanted == pl.Float32 and got == pl.Float64:
            refuse_too_large(events, where)
        columns.append(pl.col(column).cast(wanted))
    return events.select(columns)


def complete_codes(table: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Fill a code table to `CODE_SCHEMA`: codes seen in the data but not listed, kinds, and the numeric flag.

    Args:
        table: Column `code` and any of the others.
        seen: Columns `code`, `numeric` as found in the data.

    Raises:
        DataError: a code is listed twice or without a name, or a kind is unknown.

    >>> seen = pl.DataFrame({"code": ["LOINC//1"], "numeric": [True]})
    >>> complete_codes(pl.DataFrame({"code": ["LOINC//1"]}), seen).row(0)
    ('LOINC//1', None, 'lab', True)
    """
    wanted = {column: dtype for column, dtype in CODE_SCHEMA.items() if column in table.columns}
    table = table.select(pl.col(column).cast(dtype) for column, dtype in wanted.items())
    if table["code"].null_count() or table["code"].is_duplicated().any():
        twice = table.filter(pl.col("code").is_duplicated())["code"].unique().sort().to_list()
        raise DataError("the code table names a code twice or not at all", got=", ".join(map(str, twice[:5])))
    table = table.join(seen.rename({"numeric": "found_numeric"}), on="code", how="full", coalesce=True)
    for column, dtype in CODE_SCHEMA.items():
        if column not in table.columns:
            table = table.with_columns(pl.lit(None, dtype=dtype).alias(column))
    table = table.with_columns(
        kind=pl.coalesce("kind", pl.col("code").map_elements(kind_of_code, return_dtype=pl.String)),
        numeric=pl.coalesce("numeric", "found_numeric", pl.lit(False)),
    )
    if unknown := set(table["kind"]) - set(KINDS):
        raise DataError("the code table has unknown kinds", got=", ".join(sorted(unknown)), expected=", ".join(KINDS))
    return table.select(*CODE_SCHEMA)
