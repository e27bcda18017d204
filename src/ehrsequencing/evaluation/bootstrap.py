"""Intervals by resampling subjects, and paired differences on the same resamples.

A resample draws as many subjects as there are, with replacement; all rows of a drawn subject come together. Rows are
ranked once and a resample is a vector of integer multiplicities, so nothing is sorted again. The subjects drawn
depend on `seed`, `subject_ids` and `y_true` alone: two models judged on the same rows meet the same resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.calibration import wilson
from ehrsequencing.evaluation.metrics import METRICS, Array, RankedScores, checked, one_class_error

DEFAULT_METRICS = ("auroc", "auprc", "brier", "ece", "f1")
RARE = 10
"""With fewer subjects of the rarer class, resampling alone gives intervals that are too short."""
_CHUNK = 500_000


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval, population and direction.

    Attributes:
        value, low, high: Metric on all rows, and the ends of its interval.
        n, positives, subjects: Rows, positive rows, distinct subjects.
        higher_is_better: Direction (of a difference a - b too: whether a positive one favours a).
        seeds: Trainings that the value is a mean of.
        redrawn: Resamples thrown away because they held one class.
        subject_sd: Standard deviation of the value over resampled subjects, all seeds kept as they are.
        seed_sd: Standard deviation between the single trainings, on the whole sample; None for one training. The
            value, being a mean of K trainings, varies by seed_sd / sqrt(K) with the luck of the training.
    """

    value: float
    low: float
    high: float
    n: int
    positives: int
    subjects: int
    higher_is_better: bool
    seeds: int = 1
    redrawn: int = 0
    subject_sd: float | None = None
    seed_sd: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `summary.json` holds them; what is None is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Interval:
    """A figure without direction, with the ends of its interval."""

    value: float
    low: float
    high: float


class Resamples:
    """Outcomes by subject, and the resamples of them."""

    def __init__(self, y_true: ArrayLike, p: ArrayLike, subject_ids: ArrayLike, resamples: int, level: float) -> None:
        self.y, _ = checked(y_true, p)
        ids = np.asarray(subject_ids)
        if ids.shape != self.y.shape:
            raise MetricError("subject_ids must name the subject of every row", got=ids.shape, expected=self.y.shape)
        if not 0 < level < 1 or resamples < 2:
            raise MetricError(
                "an interval needs at least 2 resamples and a level between 0 and 1", got=f"{resamples} and {level}"
            )
        distinct, self.subject_row = np.unique(ids, return_inverse=True)
        self.subjects, self.resamples, self.level = len(distinct), resamples, level
        if self.subjects < 2:
            raise MetricError("an interval over subjects needs at least two", got=f"{self.subjects}")
        self.by_class = np.stack(
            [np.bincount(self.subject_row, weights=self.y == outcome, minlength=self.subjects) for outcome in (0, 1)], 1
        )
        self.positives = int(self.y.sum())
        self.rarer = int((self.by_class > 0).sum(0).min())
        self.redrawn = 0

    def require_both_classes(self, name: str) -> None:
        if self.positives in (0, len(self.y)):
            raise one_class_error(name, self.positives, len(self.y))

    def draws(self, seed: int, both_classes: bool) -> Iterator[Array]:
        """Multiplicities of subjects, [a few resamples, subjects], until there are enough."""
        rng = np.random.default_rng(seed)
        per_chunk = max(1, _CHUNK // max(len(self.y), self.subjects))
        left, self.redrawn = self.resamples, 0
        while left:
            rows = min(per_chunk, left)
            drawn = rng.integers(self.subjects, size=(rows, self.subjects))
            drawn += self.subjects * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * self.subjects).reshape(rows, -1).astype(np.float64)
            if both_classes:
                usable = (counts @ self.by_class > 0).all(1)
                self.redrawn += int((~usable).sum())
                counts = counts[usable]
            left -= len(counts)
            yield counts

    def sample(
        self, names: Sequence[str], scores: Sequence[RankedScores], thresholds: Sequence[float], seed: int
    ) -> tuple[Array, Array]:
        """Metrics on all rows, [metrics, scores], and on the resamples, [metrics, scores, resamples]."""
        for name in names:
            if name not in METRICS:
                raise MetricError("unknown metric", got=name, expected=", ".join(METRICS))
        needing = [name for name in names if METRICS[name].needs_both_classes]
        if needing:
            self.require_both_classes(needing[0])
        whole = np.ones((1, len(self.y)))
        values = np.array(
            [
                [
                    METRICS[name].weighted(ranked, whole, threshold)[0]
                    for ranked, threshold in zip(scores, thresholds, strict=True)
                ]
                for name in names
            ]
        )
        samples = np.empty((len(names), len(scores), self.resamples))
        done = 0
        subject_at_rank = [self.subject_row[ranked.order] for ranked in scores]
        for counts in self.draws(seed, bool(needing)):
            for s, (ranked, threshold) in enumerate(zip(scores, thresholds, strict=True)):
                weights = counts[:, subject_at_rank[s]]
                for m, name in enumerate(names):
                    samples[m, s, done : done + len(counts)] = METRICS[name].weighted(ranked, weights, threshold)
            done += len(counts)
        return values, samples

    def estimate(self, name: str, value: float, low: float, high: float, seeds: int, **spread: Any) -> Estimate:
        return Estimate(
            value=float(value), low=float(low), high=float(high), n=len(self.y), positives=self.positives,
            subjects=self.subjects, higher_is_better=METRICS[name].higher_is_better, seeds=seeds, redrawn=self.redrawn,
            **spread,
        )  # fmt: skip

    def percentiles(self, samples: Array, value: float) -> tuple[float, float]:
        """Percentile interval, stretched to the value where a biased metric would leave it outside."""
        low, high = np.quantile(samples, [(1 - self.level) / 2, (1 + self.level) / 2])
        return min(float(low), value), max(float(high), value)

    def proportion_interval(self, value: float) -> tuple[float, float]:
        """Interval of a proportion with as many trials as the rarer class has subjects."""
        return wilson(value, self.rarer, self.level)

    def too_few(self, name: str) -> bool:
        """Whether resampling alone is not to be trusted: the metric averages over a class of fewer than `RARE`."""
        return METRICS[name].needs_both_classes and self.rarer < RARE

    def by_student(self, name: str, samples: Array, value: float, least: float) -> tuple[float, float]:
        """Interval of a mean over all rows, such as Brier, that a handful of the rarer class decides.

        Student's t with that handful's degrees of freedom, since as few values say little about their own spread;
        without any width where the class is large enough.
        """
        if METRICS[name].needs_both_classes or self.rarer >= RARE:
            return value, value
        if self.rarer < 2:
            return least, 1.0
        half = float(student.ppf((1 + self.level) / 2, self.rarer - 1) * samples.std())
        return max(least, value - half), min(1.0, value + half)


def evaluate(
    y_true: ArrayLike,
    p: ArrayLike,
    subject_ids: ArrayLike,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Metrics with percentile intervals over resampled subjects.

    Where the rarer class has fewer than `RARE` subjects, or the value is 1, AUROC, AUPRC and F1 take the wider of that
    interval and the score interval of a proportion with as many trials: a handful of positives, perfectly ranked, is
    no certainty. Brier and calibration error take the wider of it and Student's with as many degrees of freedom less
    one.

    Args:
        y_true: Bool [n].
        p: Float [n].
        subject_ids: [n]; rows of one subject are drawn together.
        metrics: Names in `METRICS`.
        threshold: Of F1; chosen on the tuning split (`f1_threshold`).

    Raises:
        MetricError: unknown metric, one class, one subject, NaN, or lengths that differ.

    Source: Efron & Tibshirani 1993, chapters 6 and 13; variance of AUROC at most A(1-A)/min(m, n): Birnbaum & Klose
    1957, Annals of Mathematical Statistics 28:933-945.
    """
    return summarise_seeds(
        y_true, [p], subject_ids,
        metrics=metrics, thresholds=threshold, resamples=resamples, seed=seed, level=level,
    )  # fmt: skip


def summarise_seeds(
    y_true: ArrayLike,
    probabilities: Sequence[ArrayLike],
    subject_ids: ArrayLike,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    thresholds: float | Sequence[float] = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Mean of each metric over trainings that differ by seed, with an interval over subjects and seeds.

    The metric is taken per seed and averaged (probabilities are not averaged: that would judge an ensemble). Each
    resample draws subjects, the same for all seeds, and one fewer seeds than there are, with replacement, so that
    the spread between K seeds enters the variance as s^2/K.

    Args:
        probabilities: One float [n] per seed, on the same rows.
        thresholds: Of F1, one for all or one per seed.

    Raises:
        MetricError: as `evaluate`; also no seed at all.

    Source: the draw of K - 1 out of K: Rao & Wu 1988, Journal of the American Statistical Association 83:231-241.
    """
    rows, scores, cuts = _prepare(y_true, probabilities, thresholds, subject_ids, resamples, level)
    values, samples = rows.sample(metrics, scores, cuts, seed)
    means, spread = values.mean(1), mean_of_drawn_seeds(samples, seed)
    found = {}
    for m, name in enumerate(metrics):
        low, high = rows.percentiles(spread[m], means[m])
        perfect = METRICS[name].needs_both_classes and means[m] == 1
        if rows.too_few(name) or perfect:
            wide = rows.proportion_interval(means[m])
            low, high = min(low, wide[0]), max(high, wide[1])
        wide = rows.by_student(name, spread[m], float(means[m]), 0.0)
        low, high = min(low, wide[0]), max(high, wide[1])
        found[name] = rows.estimate(
            name, means[m], low, high, len(scores),
            subject_sd=float(samples[m].mean(0).std(ddof=1)),
            seed_sd=float(values[m].std(ddof=1)) if len(scores) > 1 else None,
        )  # fmt: skip
    return found


def paired_difference(
    y_true: ArrayLike,
    p_a: ArrayLike | Sequence[ArrayLike],
    p_b: ArrayLike | Sequence[ArrayLike],
    subject_ids: ArrayLike,
    metric: str = "auroc",
    *,
    threshold_a: float | Sequence[float] = 0.5,
    threshold_b: float | Sequence[float] = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Metric of a minus metric of b, both on the same resamples of the same rows.

    Args:
        p_a, p_b: Float [n], or one per seed; seeds of a and of b are drawn independently of each other.

    Returns:
        Estimate of the difference. Where a class is smaller than `RARE` subjects, the interval is at least that of
        two independent score intervals combined, which ignores what the pairing gains; of Brier and calibration
        error, Student's.

    Raises:
        MetricError: as `evaluate`.

    Source: combining two intervals: Newcombe 1998, Statistics in Medicine 17:873-890.
    """
    rows, scores_a, cuts_a = _prepare(y_true, _as_seeds(p_a), threshold_a, subject_ids, resamples, level)
    _, scores_b, cuts_b = _prepare(y_true, _as_seeds(p_b), threshold_b, subject_ids, resamples, level)
    values, samples = rows.sample([metric], [*scores_a, *scores_b], [*cuts_a, *cuts_b], seed)
    of_a, of_b = slice(0, len(scores_a)), slice(len(scores_a), None)
    mean_a, mean_b = values[0, of_a].mean(), values[0, of_b].mean()
    spread = mean_of_drawn_seeds(samples[:, of_a], seed) - mean_of_drawn_seeds(samples[:, of_b], seed + 1)
    low, high = rows.percentiles(spread[0], mean_a - mean_b)
    if rows.too_few(metric):
        wide_a, wide_b = rows.proportion_interval(mean_a), rows.proportion_interval(mean_b)
        low = min(low, mean_a - mean_b - np.hypot(mean_a - wide_a[0], wide_b[1] - mean_b))
        high = max(high, mean_a - mean_b + np.hypot(wide_a[1] - mean_a, mean_b - wide_b[0]))
    wide = rows.by_student(metric, spread[0], float(mean_a - mean_b), -1.0)
    low, high = min(low, wide[0]), max(high, wide[1])
    return rows.estimate(metric, mean_a - mean_b, low, high, min(len(scores_a), len(scores_b)))


def _as_seeds(p: ArrayLike | Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    by_seed = np.atleast_2d(np.asarray(p, dtype=np.float64))
    return list(by_seed)


def _prepare(
    y_true: ArrayLike,
    probabilities: Sequence[ArrayLike],
    thresholds: float | Sequence[float],
    subject_ids: ArrayLike,
    resamples: int,
    level: float,
) -> tuple[Resamples, list[RankedScores], list[float]]:
    if not len(probabilities):
        raise MetricError("no probabilities to judge", got="0 seeds")
    cuts = [float(t) for t in np.broadcast_to(np.asarray(thresholds, dtype=np.float64), len(probabilities))]
    rows = Resamples(y_true, probabilities[0], subject_ids, resamples, level)
    return rows, [RankedScores(y_true, p) for p in probabilities], cuts


def mean_of_drawn_seeds(samples: Array, seed: int) -> Array:
    """[metrics, seeds, resamples] -> [metrics, resamples], each the mean of seeds - 1 seeds drawn anew."""
    seeds, resamples = samples.shape[1:]
    if seeds == 1:
        return samples[:, 0]
    # A stream of its own: the draws of subjects stay those of a single seed.
    drawn: NDArray[np.int64] = np.random.default_rng([seed, 1]).integers(seeds, size=(seeds - 1, resamples))
    return samples[:, drawn, np.arange(resamples)].mean(1)
