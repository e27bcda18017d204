"""Numeric values: statistics per code and unit, bins for tokens, and the empirical distribution function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehrsequencing.errors import StoreError
from ehrsequencing.io import hash_bytes, read_json, write_text

VALUES_FILE = "values.json"
GRID_POINTS = 101
MAX_DISCRETE_BINS = 12
MIN_BIN_SHARE = 0.01
"""A value needs this share of the events (and `min_count` events) to have a bin of its own."""
_MOSTLY, _MAX_DISTINCT, _MAX_COMMON = 0.8, 256, 16
"""Values are few when there are at most 12, or when at most 16 of at most 256 have a bin's share and 80 % in all."""


class ValueStatistics:
    """What the values of each (code, unit) looked like in train. A row is one such pair; `rows` finds it.

    Attributes:
        codes, units: Names [r]; the unit is "" where the data state none.
        n: int64 [r], values seen.
        mean, sd: float64 [r]; the standard deviation of the population (divided by n).
        grid: float32 [r, 101]; 0th to 100th percentile, each a value that occurred.
        edges: float32 [r, w]; upper ends of all bins but the last, padded with infinity.
    """

    def __init__(
        self,
        codes: Sequence[str],
        units: Sequence[str],
        n: Sequence[int],
        mean: Sequence[float],
        sd: Sequence[float],
        grid: Sequence[Sequence[float]] | Sequence[np.ndarray],
        edges: Sequence[Sequence[float]],
    ) -> None:
        self.codes, self.units = tuple(codes), tuple(units)
        self.n = np.asarray(n, dtype=np.int64)
        self.mean = np.asarray(mean, dtype=np.float64)
        self.sd = np.asarray(sd, dtype=np.float64)
        self.grid = np.asarray(grid, dtype=np.float32).reshape(len(self.codes), GRID_POINTS)
        self.edges = np.full((len(self.codes), max(map(len, edges), default=0)), np.inf, dtype=np.float32)
        for row, inner in enumerate(edges):
            self.edges[row, : len(inner)] = inner
        self._rows = {pair: row for row, pair in enumerate(zip(self.codes, self.units, strict=True))}
        if len(self._rows) < len(self.codes):
            raise ValueError("a code and unit are listed twice")

    @classmethod
    def fit(
        cls,
        codes: Sequence[str],
        units: Sequence[str],
        starts: np.ndarray,
        values: np.ndarray,
        counts: np.ndarray,
        *,
        value_bins: int,
        min_count: int,
        max_discrete_bins: int = MAX_DISCRETE_BINS,
    ) -> ValueStatistics:
        """Fit from histograms of distinct values.

        Args:
            codes, units: Names [r] of the pairs.
            starts: int64 [r + 1]; values of pair i are `values[starts[i]:starts[i + 1]]`.
            values: float32, distinct and ascending within a pair, finite.
            counts: int64, events with that value.
            value_bins: Quantile bins of a code with many distinct values.
            min_count: Events that a bin of a code with few distinct values needs.
            max_discrete_bins: Bins at most of a code with few distinct values.
        """
        n, mean, sd, grid, edges = [], [], [], [], []
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            x, c = values[start:stop], counts[start:stop]
            total = int(c.sum())
            center = float(np.average(x.astype(np.float64), weights=c))
            n.append(total)
            mean.append(center)
            sd.append(float(np.sqrt(np.average((x.astype(np.float64) - center) ** 2, weights=c))))
            grid.append(_quantiles(x, c, np.arange(GRID_POINTS), GRID_POINTS - 1))
            edges.append(_bin_edges(x, c, value_bins, min_count, max_discrete_bins))
        return cls(codes, units, n, mean, sd, grid, edges)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def bins(self) -> int:
        """The largest number of bins of any row; 0 when there are no rows."""
        return self.edges.shape[1] + 1 if len(self) else 0

    def rows(self, codes: Sequence[str], units: Sequence[str]) -> np.ndarray:
        """Row of each (code, unit), int32 [n]; -1 where train had no value of that code in that unit."""
        pairs = zip(codes, units, strict=True)
        return np.fromiter((self._rows.get(pair, -1) for pair in pairs), dtype=np.int32, count=len(codes))

    def bin(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """1-based bin of each value, int32 [n]; 0 where the row is -1 or the value is NaN.

        Bin k holds the values above edge k - 1 and up to edge k, inclusive.
        """
        return bins_of(self.edges, np.asarray(rows), np.asarray(values, dtype=np.float32))

    def cdf(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Share of the train values of the row that are at most the value, float32 [n] in [0, 1].

        Interpolated between percentiles, so right to 0.01; NaN where the row is -1 or the value is NaN.
        """
        rows, values = np.asarray(rows), np.asarray(values, dtype=np.float32)
        known = np.flatnonzero((rows >= 0) & ~np.isnan(values))
        row, value = rows[known], values[known]
        # One search over the percentiles of all rows: those at or below each value, less those of earlier rows.
        low = np.searchsorted(self._grid_keys, _keys(row, value), side="right") - row.astype(np.int64) * GRID_POINTS
        inside = (low > 0) & (low < GRID_POINTS)
        left = self.grid[row, np.maximum(low - 1, 0)].astype(np.float64)
        right = self.grid[row, np.minimum(low, GRID_POINTS - 1)].astype(np.float64)
        step = np.where(inside, (value - left) / np.where(inside, right - left, 1.0), 0.0)
        share = np.clip((low - 1 + step) / (GRID_POINTS - 1), 0.0, 1.0)
        result = np.full(len(rows), np.nan, dtype=np.float32)
        result[known] = share
        return result

    def extend(self, other: ValueStatistics) -> ValueStatistics:
        """These statistics with the pairs of `other` that they lack appended; own rows stay as they are."""
        new = [row for row, pair in enumerate(zip(other.codes, other.units, strict=True)) if pair not in self._rows]
        edges = other._inner_edges()
        return ValueStatistics(
            [*self.codes, *(other.codes[row] for row in new)],
            [*self.units, *(other.units[row] for row in new)],
            np.concatenate([self.n, other.n[new]]).tolist(),
            np.concatenate([self.mean, other.mean[new]]).tolist(),
            np.concatenate([self.sd, other.sd[new]]).tolist(),
            np.concatenate([self.grid, other.grid[new]]).tolist(),
            [*self._inner_edges(), *(edges[row] for row in new)],
        )

    def reordered(self, rows: Sequence[int]) -> ValueStatistics:
        """These rows of the statistics, in this order."""
        edges, chosen = self._inner_edges(), np.asarray(rows, dtype=np.int64)
        return ValueStatistics(
            [self.codes[row] for row in rows], [self.units[row] for row in rows],
            self.n[chosen].tolist(), self.mean[chosen].tolist(), self.sd[chosen].tolist(), self.grid[chosen].tolist(),
            [edges[row] for row in rows],
        )  # fmt: skip

    @cached_property
    def _grid_keys(self) -> np.ndarray:
        return _keys(np.repeat(np.arange(len(self)), GRID_POINTS), self.grid.ravel())

    @cached_property
    def hash(self) -> str:
        """Hash of names, percentiles and bins: what decides tokens and distribution values."""
        names = "\n".join(f"{code}\t{unit}" for code, unit in zip(self.codes, self.units, strict=True))
        return hash_bytes(names.encode(), self.grid.tobytes(), json.dumps(self._inner_edges()).encode())

    def _inner_edges(self) -> list[list[float]]:
        finite = self.edges < np.inf
        known = iter(_shortest(self.edges[finite]))
        return [list(islice(known, count)) for count in finite.sum(axis=1).tolist()]

    def save(self, path: str | Path) -> None:
        """Write JSON, one (code, unit) a line."""
        edges, grid = self._inner_edges(), iter(_shortest(self.grid.ravel()))
        encode = json.JSONEncoder(ensure_ascii=False).encode
        lines = ",\n".join(
            encode(
                {
                    "code": code, "unit": self.units[row], "n": int(self.n[row]), "mean": float(self.mean[row]),
                    "sd": float(self.sd[row]), "edges": edges[row], "grid": list(islice(grid, GRID_POINTS)),
                }
            )
            for row, code in enumerate(self.codes)
        )  # fmt: skip
        write_text(path, f'{{"hash": "{self.hash}",\n"values": [\n{lines}\n]}}\n')

    @classmethod
    def load(cls, path: str | Path) -> ValueStatistics:
        """Read what `save` wrote.

        Raises:
            StoreError: missing, not JSON, of another layout, or changed since it was written.
        """
        remedy = "run `ehrseq prepare` again"
        content = read_json(path, StoreError, remedy)
        fields = ("code", "unit", "n", "mean", "sd", "grid", "edges")
        try:
            entries: list[dict[str, Any]] = content["values"]
            statistics = cls(*([entry[field] for entry in entries] for field in fields))
            stated = content["hash"]
        except (KeyError, TypeError, ValueError) as problem:
            raise StoreError(f"{path} holds no value statistics", got=repr(problem), remedy=remedy) from None
        if statistics.hash != stated:
            raise StoreError(f"{path} was changed", got=f"hash {statistics.hash}", expected=stated, remedy=remedy)
        return statistics


def bins_of(edges: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`ValueStatistics.bin` by the edges alone."""
    known = np.flatnonzero((rows >= 0) & ~np.isnan(values))
    result = np.zeros(len(rows), dtype=np.int32)
    row, value = rows[known], values[known]
    found = np.ones(len(known), dtype=np.int32)
    for column in np.ascontiguousarray(edges.T):
        found += column[row] < value
    result[known] = found
    return result


def _keys(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Integers that sort by row, then by value: the bits of a float32 order like the number, once negatives flip.

    >>> _keys(np.array([0, 0, 0, 1]), np.array([-2, -1, 0.5, -3], dtype=np.float32)).argsort().tolist()
    [0, 1, 2, 3]
    """
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)
    return (rows.astype(np.int64) << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _shortest(values: np.ndarray) -> list[float]:
    """The shortest decimals that read back as the same float32.

    >>> _shortest(np.float32([0.1, 1e-7, 16777216]))
    [0.1, 1e-07, 16777216.0]
    """
    return [float(text) for text in pc.cast(pa.array(values, pa.float32()), pa.string()).to_pylist()]


def _quantiles(values: np.ndarray, counts: np.ndarray, numerators: np.ndarray, denominator: int) -> np.ndarray:
    """Smallest values with at least numerator/denominator of the mass at or below them (in integers: exact)."""
    cumulative = np.cumsum(counts)
    return values[np.searchsorted(cumulative * denominator, numerators * cumulative[-1], side="left")]


def _bin_edges(
    values: np.ndarray, counts: np.ndarray, value_bins: int, min_count: int, max_discrete_bins: int
) -> list[float]:
    total = int(counts.sum())
    enough = max(MIN_BIN_SHARE * total, min_count)
    common = counts >= enough
    countable = len(values) <= _MAX_DISTINCT and common.sum() <= _MAX_COMMON
    if len(values) <= MAX_DISCRETE_BINS or (countable and counts[common].sum() >= _MOSTLY * total):
        return _merged_edges(values.tolist(), counts.tolist(), enough, max_discrete_bins)
    inner = np.unique(_quantiles(values, counts, np.arange(1, value_bins), value_bins))
    return [float(edge) for edge in inner if edge < values[-1]]


def _merged_edges(uppers: list[float], masses: list[int], enough: float, most: int) -> list[float]:
    """One bin per distinct value, then the lightest merged with its lighter neighbour until all are heavy enough.

    >>> _merged_edges([0.0, 1.0, 2.0, 3.0, 4.0, 9.0], [500, 200, 100, 4, 3, 2], enough=8, most=12)
    [0.0, 1.0, 2.0]
    """
    while len(masses) > 1 and (len(masses) > most or min(masses) < enough):
        lightest = masses.index(min(masses))
        lower = lightest - 1 if lightest > 0 else 0
        if 0 < lightest < len(masses) - 1 and masses[lightest + 1] < masses[lightest - 1]:
            lower = lightest
        masses[lower : lower + 2] = [masses[lower] + masses[lower + 1]]
        del uppers[lower]
    return uppers[:-1]
