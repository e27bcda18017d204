"""What the first pass keeps of a shard, and what all shards together say about the codes and values of train."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.data.rows import TRAIN, Reading, read_rows, value_order
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, SPLITS
from ehrsequencing.data.shards import Piece
from ehrsequencing.data.values import ValueStatistics

_MAX_DISTINCT = 16_384
_DROPPED_BITS = 11  # of the 23 in a float32's mantissa
_BLOCK_VALUES = 1_000_000
SPOOLED = {"time": "<i8", "value": "<f4", "pair": "<i4", "visit": "<i4"}
COUNTED = {"key": "<i8", "count": "<i8"}


def is_event() -> pl.Expr:
    """Rows that become tokens: birth and death are times of the subject, not events of a history."""
    return ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE])


def number() -> pl.Expr:
    """The numeric value; NaN is missing, and both zeros are one."""
    return pl.col("numeric_value").fill_nan(None) + pl.lit(0.0, dtype=pl.Float32)


@dataclass(frozen=True)
class ScanTask:
    """One piece to read. `output` is the path of the files to write, without their endings."""

    piece: Piece
    how: Reading
    output: Path


@dataclass(frozen=True)
class Scanned:
    """A piece after the first pass; `spooled` reads its rows and its distinct values of train.

    Attributes:
        path: Path of the files without their endings.
        subject_id, split, rows, visits, birth_time, death_time: As in `Rows`.
        codes, units: Names [p] of the pairs, by kind of the code, code and unit.
        events: int64 [splits, p].
        bounds: int64 [p + 1], distinct values of each pair within the columns `key` and `count`.
    """

    path: Path
    subject_id: np.ndarray
    split: np.ndarray
    rows: np.ndarray
    visits: np.ndarray
    birth_time: np.ndarray
    death_time: np.ndarray
    codes: list[str]
    units: list[str]
    events: np.ndarray
    bounds: np.ndarray


def scan(task: ScanTask) -> None:
    """Read a piece and write what the later steps need; the file ".npz" comes last and makes the piece done.

    Raises:
        DataError: as `read_rows`.
    """
    rows = read_rows(task.piece, task.how)
    of_row = np.repeat(rows.split, rows.rows)
    bounds = np.searchsorted(of_row, np.arange(len(SPLITS) + 1))
    events = np.stack(
        [np.bincount(rows.pair[start:stop], minlength=len(rows.codes)) for start, stop in pairwise(bounds)]
    )
    key, count = distinct_values(
        rows.pair[bounds[TRAIN] : bounds[TRAIN + 1]], rows.value[bounds[TRAIN] : bounds[TRAIN + 1]]
    )
    columns = {**{name: getattr(rows, name) for name in SPOOLED}, "key": key, "count": count}
    for name, dtype in {**SPOOLED, **COUNTED}.items():
        columns[name] = np.ascontiguousarray(columns[name], dtype=dtype)
        with spool_file(task.output, name).open("wb") as stream:
            stream.write(columns[name].data)
    names = json.dumps([rows.codes, rows.units]).encode()
    save_mark(
        task.output.with_suffix(".npz"),
        subject_id=rows.subject_id, split=rows.split, rows=rows.rows, visits=rows.visits,
        birth_time=rows.birth_time, death_time=rows.death_time, events=events,
        bounds=np.searchsorted(key >> 32, np.arange(len(rows.codes) + 1)),
        names=np.frombuffer(names, dtype=np.uint8),
        written=np.array([word_sum(column) for column in columns.values()], dtype=np.uint64),
    )  # fmt: skip


def load_scan(path: Path, *, check: bool = False) -> Scanned | None:
    """What `scan` wrote; None where it did not finish or, with `check`, where its files are not what it wrote."""
    content = load_mark(path.with_suffix(".npz"))
    if content is None:
        return None
    if check and content["written"].tolist() != [word_sum(spooled(path, name)) for name in {**SPOOLED, **COUNTED}]:
        return None
    codes, units = json.loads(content["names"].tobytes())
    arrays = {name: content[name] for name in Scanned.__dataclass_fields__ if name in content}
    return Scanned(path=path, codes=codes, units=units, **arrays)


def spool_file(path: Path, column: str) -> Path:
    """File of a column of `SPOOLED` or `COUNTED`."""
    return path.with_suffix(f".{column}")


def spooled(path: Path, column: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Entries `[start, stop)` of a column of `SPOOLED` or `COUNTED`; empty where the file is missing."""
    dtype = np.dtype({**SPOOLED, **COUNTED}[column])
    file = spool_file(path, column)
    if not file.exists():
        return np.zeros(0, dtype=dtype)
    return np.fromfile(file, dtype=dtype, count=-1 if stop is None else stop - start, offset=start * dtype.itemsize)


_READING = threading.Lock()
"""numpy reads a header as a Python literal, at which two threads of Python 3.11 can fail with a SystemError."""


def save_mark(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays so that the file is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def load_mark(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays that `save_mark` wrote; None where they are missing or damaged (a zip file has checksums)."""
    try:
        with _READING, path.open("rb") as stream, np.load(stream) as content:
            return dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def word_sum(array: np.ndarray) -> int:
    """Sum of an array's words, from which a page that never reached the disk is told."""
    return int(array.view(f"<u{min(4, array.itemsize)}").sum(dtype=np.uint64) + np.uint64(len(array)))


def distinct_values(pair: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers of each pair, as int64 keys that ascend by pair, then value; and how often each comes, int64.

    >>> key, count = distinct_values(np.array([1, 0, 1]), np.float32([2.5, -1, 2.5]))
    >>> (key >> 32).tolist(), values_of(key).tolist(), count.tolist()
    ([0, 1], [-1.0, 2.5], [1, 2])
    """
    known = np.flatnonzero(~np.isnan(value))
    key = np.sort((pair[known].astype(np.int64) << 32) + (value_order(value[known]) + 2**31))
    return _reduced(key, np.ones(len(key), dtype=np.int64))


def values_of(key: np.ndarray) -> np.ndarray:
    """Numbers behind keys of `distinct_values`, float32."""
    bits = (key & 0xFFFFFFFF) - 2**31
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int32).view(np.float32)


def _reduced(key: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys without repetitions, counts added up."""
    first = np.flatnonzero(np.r_[len(key) > 0, key[1:] != key[:-1]])
    return key[first], np.add.reduceat(count, first) if len(first) else count


def merged_values(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of all parts.

    A pair with more than 16,384 distinct values is counted to 12 significant bits (0.02 %), so that percentiles are
    found in bounded memory.
    """
    key, count = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    order = np.argsort(key, kind="stable")
    key, count = _reduced(key[order], count[order])
    crowded = np.bincount(key >> 32) > _MAX_DISTINCT
    rough = np.flatnonzero(crowded[key >> 32]) if crowded.any() else np.zeros(0, dtype=np.int64)
    if not len(rough):
        return key, count
    # Cutting the last bits of a float32's mantissa rounds towards zero and keeps the order.
    bits = values_of(key[rough]).view(np.int32) & ~((1 << _DROPPED_BITS) - 1)
    key[rough] = (key[rough] >> 32 << 32) + value_order(bits.view(np.float32)) + 2**31
    return _reduced(key, count)


@dataclass(frozen=True)
class Pairs:
    """Codes and units of all pieces, by kind of the code, code and unit.

    Attributes:
        codes, units: Names [g].
        events: int64 [splits, g].
        numbers: int64 [g], distinct values of train over all pieces, repetitions between pieces included.
        of_piece: Per piece int32 [p], which of these each of its own is.
    """

    codes: list[str]
    units: list[str]
    events: np.ndarray
    numbers: np.ndarray
    of_piece: list[np.ndarray]

    @classmethod
    def of(cls, pieces: Sequence[Scanned], kinds: dict[str, int]) -> Pairs:
        """Pairs of all pieces; `kinds` of every code."""
        own = [list(zip(piece.codes, piece.units, strict=True)) for piece in pieces]
        ordered = sorted(set().union(*own), key=lambda pair: (kinds[pair[0]], *pair))
        place = {pair: index for index, pair in enumerate(ordered)}
        of_piece = [np.array([place[pair] for pair in pairs], dtype=np.int32) for pairs in own]
        events, numbers = np.zeros((len(SPLITS), len(ordered)), dtype=np.int64), np.zeros(len(ordered), dtype=np.int64)
        for piece, to in zip(pieces, of_piece, strict=True):
            events[:, to] += piece.events
            numbers[to] += np.diff(piece.bounds)
        return cls([code for code, _ in ordered], [unit for _, unit in ordered], events, numbers, of_piece)

    def blocks(self, at_least: int) -> Iterator[tuple[int, int]]:
        """Ranges of pairs with about a million values each, at least so many ranges as far as there are pairs."""
        before = np.cumsum(self.numbers) - self.numbers
        total = int(self.numbers.sum())
        size = max(1, min(_BLOCK_VALUES, -(-total // at_least)))
        cuts = np.flatnonzero(np.r_[True, np.diff(before // size) > 0]) if len(before) else np.zeros(1, dtype=np.int64)
        yield from zip(cuts.tolist(), [*cuts[1:].tolist(), len(self.codes)], strict=True)


@dataclass(frozen=True)
class FitTask:
    """Pairs `[start, stop)` to fit: per piece its path, the range of its values that is theirs, and the pair
    of each value."""

    names: list[tuple[str, str]]
    pieces: list[tuple[Path, int, int, np.ndarray]]
    reused: Path | None
    value_bins: int
    min_count: int
    max_discrete_bins: int


def fit_tasks(
    pieces: Sequence[Scanned], pairs: Pairs, at_least: int, reused: Path | None, **options: int
) -> list[FitTask]:
    """Tasks of `fit` for all pairs in order; memory of each is bounded by its distinct values."""
    tasks = []
    for start, stop in pairs.blocks(at_least):
        parts = []
        for piece, to in zip(pieces, pairs.of_piece, strict=True):
            first, last = np.searchsorted(to, [start, stop]).tolist()
            low, high = piece.bounds[[first, last]].tolist()
            if high > low:
                owner = np.repeat(to[first:last] - start, np.diff(piece.bounds[first : last + 1]))
                parts.append((piece.path, low, high, owner))
        names = list(zip(pairs.codes[start:stop], pairs.units[start:stop], strict=True))
        tasks.append(FitTask(names, parts, reused, **options))
    return tasks


def fit(task: FitTask) -> tuple[ValueStatistics, np.ndarray, list[np.ndarray]]:
    """Value statistics of the pairs of the task that train has a number of.

    Returns:
        The statistics; int64, which of the pairs they are; and per such pair the numbers of train in each bin, int64,
        by the statistics that will hold: those of `reused` where it has the pair.
    """
    parts = []
    for path, low, high, owner in task.pieces:
        key, count = (spooled(path, column, low, high) for column in COUNTED)
        parts.append(((key & 0xFFFFFFFF) + (owner.astype(np.int64) << 32), count))
    key, count = merged_values(parts) if parts else (np.zeros(0, dtype=np.int64),) * 2
    owner, value = key >> 32, values_of(key)
    present, first = np.unique(owner, return_index=True)
    starts = np.r_[first, len(key)].astype(np.int64)
    names = [task.names[index] for index in present.tolist()]
    statistics = ValueStatistics.fit(
        [code for code, _ in names], [unit for _, unit in names], starts, value, count,
        value_bins=task.value_bins, min_count=task.min_count, max_discrete_bins=task.max_discrete_bins,
    )  # fmt: skip
    holding = statistics if task.reused is None else ValueStatistics.load(task.reused).extend(statistics)
    row = holding.rows([code for code, _ in names], [unit for _, unit in names])
    bins = holding.bin(np.repeat(row, np.diff(starts)), value)
    in_bins = [
        np.bincount(bins[start:stop], weights=count[start:stop]).astype(np.int64)
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    return statistics, present, in_bins


def joined_statistics(parts: Sequence[ValueStatistics]) -> ValueStatistics:
    """Statistics of several parts, by code and unit."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.extend(part)
    return whole.reordered(sorted(range(len(whole)), key=lambda row: (whole.codes[row], whole.units[row])))
