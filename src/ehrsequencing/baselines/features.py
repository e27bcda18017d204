"""What the baselines see: a sparse row per example, made of its history up to the prediction time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ehrsequencing.baselines.rollup import groups_of_code
from ehrsequencing.data.schema import DAYS_PER_YEAR, KINDS, MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples, Windows, truncated
from ehrsequencing.data.store import SplitStore
from ehrsequencing.data.values import ValueStatistics
from ehrsequencing.data.vocabulary import NUM_SPECIAL, UNK, Vocabulary
from ehrsequencing.errors import LabelError

Ints = NDArray[np.int64]
RECENCY_DAYS = 90.0
"""An occurrence this many days before the prediction time counts half of one on the same day."""
WINDOWS_DAYS = (30, 180, 365)
_ROWS_AT_ONCE = 2_000_000
_MAX_Z = 10.0

SCALARS = (
    "age", "age squared", "visits", "events", "events in last visit", "distinct codes", "years of history",
    "days since last event", "days since previous visit", "mean days between visits",
    *(f"visits in {days} days" for days in WINDOWS_DAYS),
    *(f"events in {days} days" for days in WINDOWS_DAYS),
    *(f"{kind} events" for kind in KINDS),
    *(f"{kind} events in last visit" for kind in KINDS),
)  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Rows of the histories of some examples, flat and in order.

    Attributes:
        at: Row of the split.
        example: Example, from 0 to `examples` - 1.
        days: Days before the prediction time; NaN for static rows.
        last_visit: Whether the row belongs to the visit of the example's last row.
    """

    split: SplitStore
    at: Ints
    example: Ints
    examples: int
    days: NDArray[np.float32]
    last_visit: NDArray[np.bool_]


class CountFeatures:
    """Sparse features of a history. Made by `fit` on train; `transform` gives the same columns for any split.

    Blocks, in order (docs/evaluation.md explains them): scalars (age, utilisation, gaps), counts per code and recency
    per code, counts per group of codes, counts per value bin, tokens and groups of the last visit, last value, change,
    mean and slope per code and unit. Columns that fewer than `min_examples` train examples fill are left out.

    Attributes:
        names: Name of each column.
    """

    def __init__(
        self, vocabulary: Vocabulary, values: ValueStatistics, age: tuple[float, float], max_rows: int | None
    ) -> None:
        self._values, self._age, self._max_rows = values, age, max_rows
        codes = [*vocabulary.base_codes, "[unknown]"]
        self._code_of_token = vocabulary.base_ids.astype(np.int64)
        self._code_of_token[UNK] = len(codes) - 1
        memberships = [groups_of_code(code) for code in codes]
        self._groups = list(dict.fromkeys(name for groups in memberships for name in groups))
        group_id = {name: index for index, name in enumerate(self._groups)}
        # One column per level: rows of a code enter up to two groups.
        self._group_of_code = np.full((len(codes), 2), -1, dtype=np.int64)
        for index, groups in enumerate(memberships):
            for level, name in enumerate(groups[:2]):
                self._group_of_code[index, level] = group_id[name]
        tokens = [token if i != UNK else "[unknown]" for i, token in enumerate(vocabulary.tokens)]
        binned = [i >= NUM_SPECIAL and token != vocabulary.base_codes[vocabulary.base_ids[i]]
                  for i, token in enumerate(vocabulary.tokens)]  # fmt: skip
        self._binned = np.array(binned)
        measured = [f"{code} [{unit}]" if unit else code for code, unit in zip(values.codes, values.units, strict=True)]
        self._blocks: list[tuple[str, list[str]]] = [
            ("", list(SCALARS)),
            ("count ", codes), ("recency ", codes), ("count ", self._groups), ("count ", tokens),
            ("last visit ", tokens), ("last visit ", self._groups),
            ("last ", measured), ("change ", measured), ("mean ", measured), ("slope ", measured),
        ]  # fmt: skip
        self._all_names = [f"{prefix}{name}" for prefix, names in self._blocks for name in names]
        self._kept: Ints = np.arange(len(self._all_names))

    @classmethod
    def fit(
        cls,
        split: SplitStore,
        examples: Examples,
        vocabulary: Vocabulary,
        values: ValueStatistics,
        *,
        min_examples: int | None = None,
        max_rows: int | None = None,
    ) -> CountFeatures:
        """Choose the columns and the scale of age by the examples of train.

        Args:
            split: The train split.
            vocabulary, values: Of the same token store.
            min_examples: Examples that must fill a column; 10, or 1 in 2,000 where that is more, by default.
            max_rows: Rows of a history to see, cut as a model's are (`sequences.truncated`); all by default.

        Raises:
            LabelError: no examples.
        """
        if not len(examples):
            raise LabelError("no examples to fit features on", got="0 rows")
        ages = _age_at(split, examples)
        known = ages[~np.isnan(ages)]
        mean, sd = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
        features = cls(vocabulary, values, (mean, sd or 1.0), max_rows)
        filled = np.zeros(len(features._all_names), dtype=np.int64)
        for chunk in features._chunks(split, examples):
            filled += np.bincount(chunk.indices, minlength=len(filled))
        needed = max(10, len(examples) // 2000) if min_examples is None else min_examples
        features._kept = np.flatnonzero(filled >= min(needed, len(examples)))
        return features

    @property
    def names(self) -> list[str]:
        return [self._all_names[column] for column in self._kept.tolist()]

    def transform(self, split: SplitStore, examples: Examples) -> sparse.csr_matrix:
        """Features, float32 [examples, len(names)]. A cell that is not stored is absent, never measured, or unknown."""
        chunks = [chunk[:, self._kept] for chunk in self._chunks(split, examples)]
        return sparse.vstack(chunks, format="csr", dtype=np.float32)

    def _chunks(self, split: SplitStore, examples: Examples) -> Iterator[sparse.csr_matrix]:
        """All columns, a bounded number of rows of the store at a time."""
        windows = truncated(split, examples.index, examples.until, self._max_rows)
        cuts = np.flatnonzero(np.diff(np.cumsum(windows.lengths) // _ROWS_AT_ONCE)) + 1
        ages = _age_at(split, examples)
        for part in np.split(np.arange(len(examples)), cuts):
            rows = _gather(split, windows, part, examples.until[part])
            yield sparse.hstack(list(self._block_matrices(rows, ages[part])), format="csr", dtype=np.float32)

    def _block_matrices(self, rows: _Rows, ages: NDArray[np.float32]) -> Iterator[sparse.csr_matrix]:
        token = rows.split.code[rows.at].astype(np.int64)
        code = self._code_of_token[token]
        codes, tokens = len(self._group_of_code), len(self._code_of_token)
        counts, recency = _by_code(rows, code, codes)
        yield self._scalars(rows, ages, np.diff(counts.indptr))
        yield counts
        yield recency
        yield _log_counts(rows, *self._in_groups(rows.example, code), len(self._groups))
        yield _log_counts(rows, *_where(self._binned[token], rows.example, token), tokens)
        last = rows.last_visit
        yield _presence(rows, *_where(last, rows.example, token), tokens)
        yield _presence(rows, *self._in_groups(*_where(last, rows.example, code)), len(self._groups))
        yield from self._trends(rows)

    def _in_groups(self, example: Ints, code: Ints) -> tuple[Ints, Ints]:
        group = self._group_of_code[code]
        inside = group >= 0
        return np.repeat(example, inside.sum(1)), group[inside]

    def _scalars(self, rows: _Rows, ages: NDArray[np.float32], distinct: Ints) -> sparse.csr_matrix:
        """The columns of `SCALARS`; unknown ones are not stored."""
        n, example = rows.examples, rows.example
        columns: dict[str, NDArray[np.floating]] = {}
        z = (ages - self._age[0]) / self._age[1]
        columns["age"], columns["age squared"] = z, z**2

        def count(where: NDArray[np.bool_] | Ints) -> NDArray[np.float64]:
            return np.log1p(np.bincount(example[where], minlength=n))

        dated = np.flatnonzero(~np.isnan(rows.days))
        columns["events"], columns["events in last visit"] = count(dated), count(rows.last_visit)
        columns["distinct codes"] = np.log1p(distinct)
        last_event = np.full(n, np.nan)
        last_event[example[dated]] = rows.days[dated]
        columns["days since last event"] = np.log1p(last_event)
        # Visits are numbered by their first time, and may overlap, so their rows need not be neighbours.
        visit = rows.split.visit[rows.at[dated]].astype(np.int64)
        order, start, _ = _groups(example[dated] * (visit.max(initial=0) + 1) + visit)
        begins = dated[order[start]]
        # Nor in the order of what is left of them, where a truncated history begins within one.
        begins = begins[np.lexsort((-rows.days[begins], example[begins]))]
        days_of_visit, of = rows.days[begins], example[begins]
        first = np.flatnonzero(np.append(True, of[1:] != of[:-1])[: len(of)])
        last = np.append(first[1:], len(of))[: len(first)] - 1
        oldest, newest, previous = (np.full(n, np.nan) for _ in range(3))
        oldest[of[first]], newest[of[last]] = days_of_visit[first], days_of_visit[last]
        returning = last[last > first]
        previous[of[returning]] = days_of_visit[returning - 1] - days_of_visit[returning]
        visits = np.bincount(of, minlength=n)
        columns["visits"] = np.log1p(visits)
        columns["years of history"] = np.log1p(oldest / DAYS_PER_YEAR)
        columns["days since previous visit"] = np.log1p(previous)
        mean_gap = np.full(n, np.nan)
        np.divide(oldest - newest, visits - 1, out=mean_gap, where=visits > 1)
        columns["mean days between visits"] = np.log1p(mean_gap)
        for days in WINDOWS_DAYS:
            recent = rows.days <= days
            columns[f"visits in {days} days"] = count(begins[recent[begins]])
            columns[f"events in {days} days"] = count(recent)
        kind = rows.split.kind[rows.at]
        for index, name in enumerate(KINDS):
            columns[f"{name} events"] = count(kind == index)
            columns[f"{name} events in last visit"] = count((kind == index) & rows.last_visit)
        dense = np.column_stack([columns[name] for name in SCALARS]).astype(np.float32)
        known_example, known_column = np.nonzero(~np.isnan(dense))
        return sparse.csr_matrix((dense[known_example, known_column], (known_example, known_column)), dense.shape)

    def _trends(self, rows: _Rows) -> Iterator[sparse.csr_matrix]:
        """Per code and unit, in standard deviations of train: last value, its change, mean, and slope per year."""
        series = rows.split.statistic[rows.at].astype(np.int64)
        value = rows.split.value[rows.at]
        usable = (series >= 0) & ~np.isnan(value)
        series, example, days = series[usable], rows.example[usable], rows.days[usable].astype(np.float64)
        sd = np.where(self._values.sd > 0, self._values.sd, 1.0)
        z = np.clip((value[usable] - self._values.mean[series]) / sd[series], -_MAX_Z, _MAX_Z)
        order, first, last = _groups(example * len(self._values) + series)
        z, years, days = z[order], -days[order] / DAYS_PER_YEAR, days[order]
        row, column = example[order][last], series[order][last]
        shape = (rows.examples, len(self._values))

        def matrix(cells: NDArray[np.floating], where: NDArray[np.bool_] | slice = slice(None)) -> sparse.csr_matrix:
            return sparse.csr_matrix((cells[where].astype(np.float32), (row[where], column[where])), shape)

        n = last - first + 1
        several = n > 1
        yield matrix(z[last])
        yield matrix(z[last] - z[last - several], several)
        mean = _sums(z, first) / n
        yield matrix(mean)
        mean_years = _sums(years, first) / n
        centred = years - np.repeat(mean_years, n)
        spread = _sums(centred**2, first)
        dated = several & (spread > 0)
        slope = np.zeros(len(n))
        np.divide(_sums(centred * z, first), spread, out=slope, where=dated)
        yield matrix(np.clip(slope, -_MAX_Z, _MAX_Z), dated)


def _age_at(split: SplitStore, examples: Examples) -> NDArray[np.float32]:
    """Age in years at the prediction time, float [examples]; NaN where birth or prediction time is unknown."""
    birth = split.birth_time[examples.index]
    known = (birth != STATIC_TIME) & (examples.until != STATIC_TIME)
    ages = np.full(len(birth), np.nan, dtype=np.float32)
    ages[known] = (examples.until[known] - birth[known]) / (MICROSECONDS_PER_DAY * DAYS_PER_YEAR)
    return ages


def _gather(split: SplitStore, windows: Windows, part: Ints, until: Ints) -> _Rows:
    example, _, at = windows.rows(part)
    time = split.time[at]
    dated = time != STATIC_TIME
    days = np.full(len(at), np.nan, dtype=np.float32)
    days[dated] = (until[example[dated]] - time[dated]) / MICROSECONDS_PER_DAY
    final_visit = np.where(windows.lengths[part] > 0, split.visit[np.maximum(windows.stop[part] - 1, 0)], -1)
    last_visit = dated & (split.visit[at] == final_visit[example])
    return _Rows(split, at, example, len(part), days, last_visit)


def _groups(key: Ints) -> tuple[Ints, Ints, Ints]:
    """Stable order by key, and the first and last position of each group in that order."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    change = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    first = np.concatenate([np.zeros(min(len(key), 1), dtype=np.int64), change])
    last = np.append(change, len(key))[: len(first)] - 1
    return order, first, last


def _sums(values: NDArray[np.floating], first: Ints) -> NDArray[np.floating]:
    return np.add.reduceat(values, first) if len(first) else np.zeros(0)


def _by_code(rows: _Rows, code: Ints, codes: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """log(1 + occurrences), and 1 / (1 + days since the last one / RECENCY_DAYS) where it is dated."""
    shape = (rows.examples, codes)
    order, first, last = _groups(rows.example * codes + code)
    row, column = rows.example[order[first]], code[order[first]]
    counts = sparse.csr_matrix((np.log1p(last - first + 1).astype(np.float32), (row, column)), shape)
    days = rows.days[order[last]]
    dated = ~np.isnan(days)
    nearness = (1 / (1 + days[dated] / RECENCY_DAYS)).astype(np.float32)
    return counts, sparse.csr_matrix((nearness, (row[dated], column[dated])), shape)


def _where(keep: NDArray[np.bool_], example: Ints, column: Ints) -> tuple[Ints, Ints]:
    return example[keep], column[keep]


def _log_counts(rows: _Rows, example: Ints, column: Ints, columns: int) -> sparse.csr_matrix:
    ones = np.ones(len(example), dtype=np.float32)
    # Building a CSR matrix from coordinates adds up cells that are named twice.
    matrix = sparse.csr_matrix((ones, (example, column)), (rows.examples, columns))
    matrix.data = np.log1p(matrix.data)
    return matrix


def _presence(rows: _Rows, example: Ints, column: Ints, columns: int) -> sparse.csr_matrix:
    matrix = _log_counts(rows, example, column, columns)
    matrix.data[:] = 1
    return matrix
