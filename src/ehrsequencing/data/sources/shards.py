"""Which subjects share a shard, and how far an import has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.splits import split_of

PROGRESS_BYTES = 16 << 20


def shards_of(subjects: pl.DataFrame, total: int) -> pl.DataFrame:
    """Columns `subject_id`, `split`, `number` (within the split), `shard` (over all), by ascending identifier."""
    ordered = subjects.select("subject_id").sort("subject_id")
    ordered = ordered.with_columns(split=pl.Series(split_of(ordered["subject_id"].to_numpy()), dtype=pl.String))
    parts, first = [], 0
    for split in SPLITS:
        rows = ordered.filter(pl.col("split") == split)
        count = min(len(rows), max(1, round(total * len(rows) / max(len(ordered), 1))))
        number = np.arange(len(rows)) * count // max(len(rows), 1)
        parts.append(
            rows.with_columns(number=pl.Series(number, dtype=pl.Int64), shard=pl.Series(number + first, dtype=pl.Int64))
        )
        first += count
    return pl.concat(parts)


class ImportProgress:
    """Pieces of 16 MiB read, then shards written."""

    def __init__(self, sizes: Mapping[Path, int], shards: int, tell: Callable[[int, int], None] | None) -> None:
        self.tell = tell
        self.read = dict.fromkeys(sizes, 0)
        self.of = {file: max(1, -(-size // PROGRESS_BYTES)) for file, size in sizes.items()}
        self.total = sum(self.of.values()) + shards
        self.written = self.told = 0

    def reading(self, file: Path, position: int) -> None:
        self.read[file] = min(self.of[file], -(-position // PROGRESS_BYTES))
        self._tell(sum(self.read.values()))

    def wrote(self) -> None:
        self.written += 1
        self._tell(sum(self.of.values()) + self.written)

    def _tell(self, done: int) -> None:
        if self.tell is not None and done > self.told:
            self.told = done
            self.tell(done, self.total)
