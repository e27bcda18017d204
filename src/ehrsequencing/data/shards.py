"""Pieces of shards as arrays: codes and units as integers, everything else as numpy reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrsequencing.data.events import collect, normalise_events
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.errors import DataError

_PLAIN = {
    "subject_id": (pa.int64(),),
    "time": (pa.timestamp("us"),),
    "code": (pa.string(), pa.large_string()),
    "numeric_value": (pa.float32(),),
    "visit_id": (pa.int64(),),
    "unit": (pa.string(), pa.large_string()),
}
"""Types that need no conversion; files of other types go through `normalise_events`."""
_NAMES, _TABLES = ("code", "unit"), ("codes", "units")


@dataclass(frozen=True)
class Piece:
    """Rows `[start, stop)` of a shard, whose subjects have no row elsewhere.

    Attributes:
        file: Parquet file.
        split: Index into `SPLITS` of all its subjects; -1 where `subjects` says.
        subjects: int64, ascending, and uint8, the split of each; None where all have the same.
    """

    file: Path
    start: int
    stop: int
    split: int
    subjects: tuple[np.ndarray, np.ndarray] | None = None

    def splits_of(self, subject_ids: np.ndarray) -> np.ndarray:
        """Split of each subject, uint8, by index into `SPLITS`."""
        if self.subjects is None:
            return np.full(len(subject_ids), self.split, dtype=np.uint8)
        known, split = self.subjects
        return np.asarray(split[np.searchsorted(known, subject_ids)])


@dataclass(frozen=True)
class Columns:
    """Rows of a piece, in any order.

    Attributes:
        subject_id: int64 [n].
        time: int64 [n], microseconds; `STATIC_TIME` without one.
        code, unit: int32 [n], index into `codes` and `units`.
        value: float32 [n]; NaN without a number.
        visit_id: int64 [n]; anything where `stated` is False.
        stated: Bool [n], whether there is a `visit_id`.
        codes, units: Distinct names, each once; the unit of rows without one is "".
    """

    subject_id: np.ndarray
    time: np.ndarray
    code: np.ndarray
    unit: np.ndarray
    value: np.ndarray
    visit_id: np.ndarray
    stated: np.ndarray
    codes: list[str]
    units: list[str]

    def take(self, rows: np.ndarray | slice) -> Columns:
        """Some rows: a range, a mask, or positions in their new order."""
        columns = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name not in _TABLES}
        return replace(self, **columns)


def read_piece(piece: Piece) -> Columns:
    """Read a piece.

    Raises:
        DataError: it is no readable parquet.
    """
    table = _plain_table(piece)
    if table is None:
        events = normalise_events(pl.scan_parquet(piece.file), str(piece.file)).select(*_PLAIN)
        table = collect(events.slice(piece.start, piece.stop - piece.start), str(piece.file)).to_arrow()
    visit = _whole(table, "visit_id")
    codes, code = _numbered(table, "code")
    units, unit = _numbered(table, "unit")
    return Columns(
        subject_id=_filled(_whole(table, "subject_id"), 0),
        time=_filled(_whole(table, "time").cast(pa.int64()), STATIC_TIME),
        code=code,
        unit=unit,
        # Both zeros are one.
        value=_filled(_whole(table, "numeric_value"), np.nan) + np.float32(0),
        visit_id=_filled(visit, 0),
        stated=visit.is_valid().to_numpy(zero_copy_only=False),
        codes=codes,
        units=units,
    )


def _plain_table(piece: Piece) -> pa.Table | None:
    """The rows as the file has them, names as dictionaries; None where types need conversion."""
    try:
        with pq.ParquetFile(piece.file) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            metadata = file.metadata
        for name, plain in _PLAIN.items():
            found = types.get(name, plain[0])
            if (found.value_type if pa.types.is_dictionary(found) else found) not in plain:
                return None
        columns = [name for name in _PLAIN if name in types]
        ends = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
        groups = np.flatnonzero((ends[1:] > piece.start) & (ends[:-1] < piece.stop)).tolist()
        names = [name for name in _NAMES if name in types]
        with pq.ParquetFile(piece.file, metadata=metadata, read_dictionary=names) as file:
            table = file.read_row_groups(groups, columns=columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as problem:
        raise DataError(f"{piece.file} is not readable parquet", got=str(problem).splitlines()[0]) from None
    return table.slice(piece.start - int(ends[groups[0]]), piece.stop - piece.start)


def _whole(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, _PLAIN[name][0])
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _filled(array: pa.Array, missing: float) -> np.ndarray:
    return np.asarray((array.fill_null(missing) if array.null_count else array).to_numpy(zero_copy_only=False))


def _numbered(table: pa.Table, name: str) -> tuple[list[str], np.ndarray]:
    """Distinct names, each once, and the index of each row, int32; a missing name reads as ""."""
    array = _whole(table, name)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    listed = [known or "" for known in array.dictionary.to_pylist()]
    names = list(dict.fromkeys([*listed, *([""] if array.null_count else [])]))
    place = {known: index for index, known in enumerate(names)}
    index = _filled(array.indices, len(listed)).astype(np.int32, copy=False)
    if names[: len(listed)] == listed and place.get("", len(listed)) == len(listed):
        return names, index
    return names, np.array([*(place[known] for known in listed), place.get("", -1)], dtype=np.int32)[index]
