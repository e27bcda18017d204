"""Metrics of many yes-or-no predictions per row, with intervals over subjects.

A ranking metric depends on its negatives only through their weight between one positive and the next. So all cells
(row, category) are sorted once, runs of negatives are merged, and a batch of resamples is one product of a sparse
matrix (merged cells by rows) with the multiplicities of the rows: exact, ties included, and nothing is sorted again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.bootstrap import RARE, Estimate, mean_of_drawn_seeds
from ehrsequencing.evaluation.calibration import wilson
from ehrsequencing.evaluation.metrics import f1_threshold

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer]

MOST_WORK, FEWEST_RESAMPLES = 3e9, 200
"""Cells times resamples at most, some 15 seconds a model; beyond it fewer resamples are drawn, down to the second."""
THRESHOLD_POSITIVES = 10
"""A category with fewer positives in tuning takes the threshold that all share."""
_AT_ONCE = 16


@dataclass(frozen=True)
class MultiLabelEstimate(Estimate):
    """As `Estimate`; `n` counts rows, `positives` positive cells.

    Attributes:
        categories: Categories that the metric covers: those with and without positives among these rows.
    """

    categories: int = 0


@dataclass(frozen=True)
class Thresholds:
    """From which probability on a category is called positive.

    Attributes:
        common: One for all categories; of `f1_micro`.
        by_category: Float [categories]; of `f1_macro`.
    """

    common: float
    by_category: Floats


@dataclass(frozen=True)
class MultiLabelResult:
    """One model on one population.

    Attributes:
        estimates: By metric.
        samples: By metric, float [seeds, resamples], NaN where a resample leaves the metric undefined.
    """

    estimates: dict[str, MultiLabelEstimate]
    samples: dict[str, NDArray[np.float64]]


def choose_thresholds(y_true: Bools, p: Floats) -> Thresholds:
    """Thresholds with the highest F1 on these rows, which must be of tuning.

    A category with fewer than `THRESHOLD_POSITIVES` positives here takes the common one: its own would be noise.

    Args:
        y_true: Bool [n, categories].
        p: Float [n, categories].

    Raises:
        MetricError: no positive or no negative at all, or see `metrics.checked`.
    """
    common = f1_threshold(y_true.ravel(), p.ravel())
    positives = y_true.sum(0)
    own = (positives >= THRESHOLD_POSITIVES) & (positives < len(y_true))
    by_category = np.full(y_true.shape[1], common)
    for category in np.flatnonzero(own):
        by_category[category] = f1_threshold(y_true[:, category], p[:, category])
    return Thresholds(common, by_category)


def affordable_resamples(cells: int, asked: int) -> int:
    """Resamples that `MOST_WORK` allows, of those asked for.

    >>> affordable_resamples(3_000_000, 1000), affordable_resamples(6_000_000, 1000)
    (1000, 500)
    """
    return min(asked, max(FEWEST_RESAMPLES, int(MOST_WORK / max(cells, 1))))


def evaluate_multilabel(
    y_true: ArrayLike,
    probabilities: Sequence[ArrayLike],
    subject_ids: ArrayLike,
    *,
    thresholds: Sequence[Thresholds] = (),
    at: Sequence[int] = (),
    cells: Bools | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> MultiLabelResult:
    """Micro and macro AUROC and AUPRC, F1 and recall at k, with basic bootstrap intervals over subjects.

    Only categories with and without positives among the cells are judged. Micro pools all their cells in one ranking;
    macro is the mean over categories, in a resample over those that still have both. The draws of subjects depend on
    `seed` and `subject_ids` alone, so models judged on the same rows meet the same resamples. Where fewer than `RARE`
    subjects have a positive, the interval is at least the score interval of a proportion with as many trials.

    Args:
        y_true: Bool [n, categories].
        probabilities: Float [n, categories] in [0, 1], one per training seed; metrics are taken per seed and averaged.
        subject_ids: [n]; rows of one subject are drawn together.
        thresholds: One per seed, chosen on tuning; without any there is no `f1_micro` and `f1_macro`.
        at: The k of `recall_at_k`: of the positives of a row, the share among its k most probable cells; mean over
            rows with a positive. Ties at the k-th place count by the share of them that fits.
        cells: Bool [n, categories]; only these are ranked and judged. All by default.
        resamples: Asked for; `affordable_resamples` may lower them.

    Raises:
        MetricError: shapes that differ, numbers outside [0, 1], one subject, or no category with both classes.

    Source: micro and macro averages: Yang 1999, Information Retrieval 1:69-90; recall at k: Choi et al. 2016,
    Doctor AI, arXiv:1511.05942.
    """
    y = np.asarray(y_true)
    scores = [_checked(y, p) for p in probabilities]
    ids = np.asarray(subject_ids)
    if ids.shape != y.shape[:1]:
        raise MetricError("subject_ids must name the subject of every row", got=ids.shape, expected=y.shape[:1])
    if thresholds and len(thresholds) != len(scores):
        raise MetricError("thresholds need one per seed", got=len(thresholds), expected=len(scores))
    inside = np.ones(y.shape, dtype=np.bool_) if cells is None else np.asarray(cells, dtype=np.bool_)
    y = y & inside
    positives = y.sum(0)
    judged = np.flatnonzero((positives > 0) & (positives < inside.sum(0)))
    if not len(judged):
        raise MetricError(
            "no category has both classes",
            got=f"{int(y.sum())} positives in {int(inside.sum())} cells",
            remedy="use more subjects or more frequent categories",
        )
    y, inside = y[:, judged], inside[:, judged]
    _, subject_of_row = np.unique(ids, return_inverse=True)
    subjects = int(subject_of_row.max()) + 1
    if subjects < 2:
        raise MetricError("an interval over subjects needs at least two", got=subjects)
    arms = [
        _Judge(y, p[:, judged], inside, at, None if not thresholds else _cut(thresholds[k], judged))
        for k, p in enumerate(scores)
    ]
    names = list(arms[0].names)
    resamples = affordable_resamples(int(inside.sum()), resamples)
    whole = np.array([arm.metrics(np.ones((len(y), 1), dtype=np.float32))[:, 0] for arm in arms])
    samples = np.empty((len(names), len(arms), resamples))
    done = 0
    for weights in _draws(subject_of_row, subjects, resamples, seed):
        for k, arm in enumerate(arms):
            samples[:, k, done : done + weights.shape[1]] = arm.metrics(weights)
        done += weights.shape[1]
    with_positive = len(np.unique(subject_of_row[y.any(1)]))
    drawn = mean_of_drawn_seeds(samples, seed)
    estimates = {}
    for m, name in enumerate(names):
        value = float(whole[:, m].mean())
        low, high = _interval(drawn[m], value, level)
        low, high = max(low, 0.0), min(high, 1.0)
        if with_positive < RARE:
            wide = wilson(value, with_positive, level)
            low, high = min(low, wide[0]), max(high, wide[1])
        estimates[name] = MultiLabelEstimate(
            value=value, low=low, high=high, n=int(inside.any(1).sum()), positives=int(y.sum()), subjects=subjects,
            higher_is_better=True, seeds=len(arms), redrawn=int(np.isnan(drawn[m]).sum()), categories=len(judged),
        )  # fmt: skip
    return MultiLabelResult(estimates, {name: samples[m] for m, name in enumerate(names)})


def multilabel_difference(
    a: MultiLabelResult, b: MultiLabelResult, metric: str, *, seed: int = 0, level: float = 0.95
) -> MultiLabelEstimate:
    """Metric of a minus metric of b on the same resamples; both must come from the same rows, seed and resamples.

    Raises:
        MetricError: they do not, as far as can be seen, or an unknown metric.
    """
    for result in (a, b):
        if metric not in result.estimates:
            raise MetricError("unknown metric", got=metric, expected=", ".join(result.estimates))
    one, other = a.estimates[metric], b.estimates[metric]
    population = [(item.n, item.positives, item.subjects, item.categories) for item in (one, other)]
    if population[0] != population[1] or a.samples[metric].shape[1] != b.samples[metric].shape[1]:
        raise MetricError("a paired difference needs the same rows", got=population[1], expected=population[0])
    value = one.value - other.value
    drawn = mean_of_drawn_seeds(a.samples[metric][None], seed) - mean_of_drawn_seeds(b.samples[metric][None], seed + 1)
    low, high = _interval(drawn[0], value, level)
    return MultiLabelEstimate(
        value=value, low=low, high=high, n=one.n, positives=one.positives, subjects=one.subjects,
        higher_is_better=True, seeds=min(one.seeds, other.seeds), categories=one.categories,
    )  # fmt: skip


def category_areas(y_true: Bools, p: Floats) -> tuple[Floats, Floats]:
    """AUROC and average precision of each category, float [categories]; NaN where one class is missing.

    Args:
        y_true: Bool [n, categories].
        p: Float [n, categories].
    """
    p = _checked(y_true, p)
    found = np.full((2, y_true.shape[1]), np.nan)
    positives = y_true.sum(0)
    both = np.flatnonzero((positives > 0) & (positives < len(y_true)))
    if len(both):
        row, segment = np.indices((len(y_true), len(both))).reshape(2, -1)
        ranking = _Ranking(p[:, both].ravel(), y_true[:, both].ravel(), row, segment, len(y_true))
        found[:, both] = np.stack(ranking.areas(np.ones((len(y_true), 1), dtype=np.float32)))[:, :, 0]
    return found[0], found[1]


class _Judge:
    """One set of probabilities on one population: y, p, inside [n, categories]."""

    def __init__(self, y: Bools, p: Floats, inside: Bools, at: Sequence[int], cut: Thresholds | None) -> None:
        row, category = np.nonzero(inside)
        cells = (p[inside], y[inside], row)
        self._macro = _Ranking(*cells, category, len(y))
        self._micro = _Ranking(*cells, np.zeros(len(row), dtype=np.int64), len(y))
        self.names = ["auroc_micro", "auroc_macro", "auprc_micro", "auprc_macro"]
        self._called: Calls | None = None
        if cut is not None:
            self.names += ["f1_micro", "f1_macro"]
            self._called = Calls(y, (p >= cut.common) & inside, (p >= cut.by_category) & inside)
        self._has = y.any(1).astype(np.float64)
        self._recall = [recall_at(y, np.where(inside, p, -1.0), k) for k in at]
        self.names += [f"recall_at_{k}" for k in at]

    def metrics(self, weights: Floats) -> Floats:
        """Metrics [metrics, resamples] under multiplicities of the rows, float32 [n, resamples]."""
        auroc_micro, auprc_micro = (found[0] for found in self._micro.areas(weights))
        auroc_macro, auprc_macro = (_mean_of_known(found) for found in self._macro.areas(weights))
        found = [auroc_micro, auroc_macro, auprc_micro, auprc_macro]
        if self._called is not None:
            found += self._called.f1(weights)
        if self._recall:
            rows = self._has @ weights
            with np.errstate(invalid="ignore"):
                found += [(share @ weights) / rows for share in self._recall]
        return np.stack(found)


class _Ranking:
    """Cells in rankings, one per segment, each segment with a positive.

    A group is a tie with positives together with all negatives since the tie before that has any.
    """

    def __init__(self, p: Floats, y: Bools, row: Ints, segment: Ints, rows: int) -> None:
        order = np.lexsort((-p, segment))
        p, y, row, segment = p[order], y[order], row[order].astype(np.int32), segment[order]
        opens = np.append(True, segment[1:] != segment[:-1])
        ties = np.flatnonzero(opens | np.append(True, p[1:] != p[:-1]))
        ends = np.append(ties[1:], len(p))
        positive = np.logical_or.reduceat(y, ties)
        begins, ends = ties[positive], ends[positive]
        self._first = np.flatnonzero(np.append(True, segment[begins[1:]] != segment[begins[:-1]]))
        self._sizes = np.diff(np.append(self._first, len(begins)))
        starts = np.flatnonzero(opens)
        since = np.append(0, ends[:-1])
        since[self._first] = starts
        last = np.append(self._first[1:], len(begins)) - 1

        def members(begin: Ints, end: Ints, chosen: Bools) -> sparse.csr_matrix:
            before = np.append(0, np.cumsum(chosen))
            counts = before[end] - before[begin]
            cell = np.repeat(before[begin] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            column = row[chosen][cell]
            bounds = np.append(0, np.cumsum(counts))
            return sparse.csr_matrix((np.ones(len(column), np.float32), column, bounds), (len(begin), rows))

        everything = np.ones(len(p), dtype=np.bool_)
        self._group = members(since, ends, everything)
        self._positive = members(begins, ends, y)
        self._tied = members(begins, ends, ~y)
        self._below = members(ends[last], np.append(starts[1:], len(p)), everything)

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """AUROC and average precision, float [segments, resamples] each; NaN where a segment lacks a class."""
        positive, group = self._by_resample(self._positive, weights), self._by_resample(self._group, weights)
        above_positive, above = self._running(positive), self._running(group)
        last = np.append(self._first[1:], positive.shape[1]) - 1
        positives = above_positive[:, last]
        negatives = above[:, last] - positives + self._by_resample(self._below, weights)
        # Negatives beaten: all, less those above the group's end, plus half of those tied.
        lost = above - above_positive
        if self._tied.nnz:
            lost -= self._by_resample(self._tied, weights) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = 1 - self._sum(positive * lost) / (positives * negatives)
            # A group of weight 0 at the top has nothing predicted and nothing positive.
            auprc = self._sum(positive * (above_positive / np.maximum(above, 1))) / positives
        auprc[negatives == 0] = np.nan
        return auroc.T, auprc.T

    @staticmethod
    def _by_resample(members: sparse.csr_matrix, weights: Floats) -> Floats:
        # Running sums along the memory order are ten times as fast.
        return np.ascontiguousarray((members @ weights).T, dtype=np.float64)

    def _sum(self, groups: Floats) -> Floats:
        return np.add.reduceat(groups, self._first, axis=1)

    def _running(self, groups: Floats) -> Floats:
        """Running sum within each segment, its own group included."""
        running = np.cumsum(groups, axis=1)
        if len(self._first) == 1:
            return running
        before = np.zeros((len(groups), len(self._first)))
        before[:, 1:] = running[:, self._first[1:] - 1]
        running -= np.repeat(before, self._sizes, axis=1)
        return running


class Calls:
    """Positive calls against the truth, each bool [n, categories]."""

    def __init__(self, y: Bools, common: Bools, by_category: Bools) -> None:
        self._hits, self._said, self._true = (
            sparse.csr_matrix(cells.T, dtype=np.float32) for cells in (by_category & y, by_category, y)
        )
        self._micro = np.stack([2 * (common & y).sum(1), common.sum(1) + y.sum(1)]).astype(np.float64)

    def f1(self, weights: Floats) -> list[Floats]:
        """Micro and macro F1, float [resamples] each; macro over categories with a positive in the resample."""
        hits, either = self._micro @ weights
        said, true = self._said @ weights, self._true @ weights
        with np.errstate(invalid="ignore", divide="ignore"):
            by_category = (2 * (self._hits @ weights)).astype(np.float64) / (said + true)
            by_category[true == 0] = np.nan
            return [hits / either, _mean_of_known(by_category)]


def recall_at(y: Bools, p: Floats, k: int) -> NDArray[np.float64]:
    """Share of each row's positives among its k largest p, float [n]; 0 for rows without a positive.

    Of cells that tie for the last places, each counts by the share of them that fits.

    >>> recall_at(np.array([[True, True, False]]), np.array([[0.9, 0.2, 0.2]]), 2).tolist()
    [0.75]
    """
    if k >= p.shape[1]:
        return np.asarray(y.any(1), dtype=np.float64)
    last = -np.partition(-p, k - 1, axis=1)[:, k - 1 : k]
    above, tied = p > last, p == last
    fits = (k - above.sum(1)) / tied.sum(1)
    hits = (above & y).sum(1) + fits * (tied & y).sum(1)
    return np.asarray(hits / np.maximum(y.sum(1), 1), dtype=np.float64)


def _draws(subject_of_row: Ints, subjects: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Multiplicities of rows, float32 [n, a few resamples], until there are enough."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        drawn = rng.integers(subjects, size=(count, subjects)) + subjects * np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=count * subjects).reshape(count, subjects)
        yield np.ascontiguousarray(counts.T.astype(np.float32)[subject_of_row])


def _checked(y: NDArray, p: ArrayLike) -> Floats:
    probability = np.asarray(p)
    if y.ndim != 2 or y.dtype != np.bool_ or probability.shape != y.shape or not y.size:
        raise MetricError(
            "outcomes and probabilities must be two tables of one shape, the outcomes bool",
            got=f"{y.dtype} {y.shape} and {probability.shape}",
        )
    if unusable := int((~((probability >= 0) & (probability <= 1))).sum()):
        raise MetricError(
            "probabilities must lie in [0, 1]",
            got=f"{unusable} of {probability.size} that do not",
            remedy="NaN comes from a diverged training; logits need a sigmoid first",
        )
    return probability


def _cut(thresholds: Thresholds, judged: Ints) -> Thresholds:
    return Thresholds(thresholds.common, thresholds.by_category[judged])


def _mean_of_known(by_category: Floats) -> Floats:
    """Mean over the first axis of what is no NaN; NaN where nothing is known."""
    known = ~np.isnan(by_category)
    count = known.sum(0)
    total = np.where(known, by_category, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(samples: Floats, value: float, level: float) -> tuple[float, float]:
    """Basic interval: the percentiles of the defined samples, mirrored at the value, and stretched to it.

    Average precision of rare categories is biased upwards, on resamples as on the sample itself; plain percentiles
    add the one bias to the other. Source: Davison & Hinkley 1997, Bootstrap Methods, section 5.2.
    """
    known = samples[~np.isnan(samples)]
    if len(known) < 2:
        raise MetricError("no resample has a category with both classes", remedy="use more subjects")
    low, high = 2 * value - np.quantile(known, [(1 + level) / 2, (1 - level) / 2])
    return min(float(low), value), max(float(high), value)
