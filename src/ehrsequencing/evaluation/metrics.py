"""Metrics of binary predictions, each exact under ties and computable for many weightings of the rows at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrsequencing.errors import MetricError

Array = NDArray[np.float64]
ECE_BINS = 10


class RankedScores:
    """Outcomes and probabilities in descending order of probability, sorted once for any number of resamples.

    Args:
        y_true: Bool [n], or 0 and 1.
        p: Float [n]; probabilities in [0, 1].

    Attributes:
        order: Int [n]; row of the input at each rank.
        y, p: Float [n]; in ranked order.

    Raises:
        MetricError: empty, of different lengths, not 0 or 1, NaN, or outside [0, 1].
    """

    def __init__(self, y_true: ArrayLike, p: ArrayLike) -> None:
        y, p = checked(y_true, p)
        self.order = np.argsort(-p, kind="stable")
        self.y: Array = y[self.order].astype(np.float64)
        self.p: Array = p[self.order]
        first = np.append(True, self.p[1:] != self.p[:-1])
        self._starts: NDArray[np.intp] | None = None if first.all() else np.flatnonzero(first)

    def by_group(self, values: Array) -> Array:
        """Sum `values` [..., n] over rows of equal probability -> [..., groups]."""
        return values if self._starts is None else np.add.reduceat(values, self._starts, axis=-1)

    def class_mass(self, weights: Array) -> tuple[Array, Array]:
        """Weight of positives and of negatives at each distinct probability, each [resamples, groups]."""
        positive = weights * self.y
        return self.by_group(positive), self.by_group(weights - positive)


def checked(y_true: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
    """Outcomes as bool [n] and probabilities as float64 [n].

    Raises:
        MetricError: empty, of different lengths, not 0 or 1, NaN, or outside [0, 1].
    """
    y, probability = np.asarray(y_true), np.asarray(p, dtype=np.float64)
    if y.ndim != 1 or y.shape != probability.shape or not len(y):
        raise MetricError(
            "outcomes and probabilities must be two vectors of one length",
            got=f"shapes {y.shape} and {probability.shape}",
        )
    if y.dtype != np.bool_:
        if not np.isin(y, (0, 1)).all():
            raise MetricError("outcomes must be 0 or 1", got=f"{y[~np.isin(y, (0, 1))][0]}")
        y = y.astype(np.bool_)
    if unusable := int((~((probability >= 0) & (probability <= 1))).sum()):
        example = probability[~((probability >= 0) & (probability <= 1))][0]
        raise MetricError(
            "probabilities must lie in [0, 1]",
            got=f"{unusable} of {len(y)} that do not, such as {example}",
            remedy="NaN comes from a diverged training; logits need a sigmoid first",
        )
    return y, probability


# Each of these takes integer multiplicities of the ranked rows, float [resamples, n], and returns float [resamples].


def _auroc(scores: RankedScores, weights: Array, threshold: float) -> Array:
    positive, negative = scores.class_mass(weights)
    beaten = negative.sum(1, keepdims=True) - np.cumsum(negative, axis=1) + negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return np.einsum("rg,rg->r", positive, beaten) / pairs


def _auprc(scores: RankedScores, weights: Array, threshold: float) -> Array:
    positive = scores.by_group(weights * scores.y)
    predicted = np.cumsum(scores.by_group(weights), axis=1)
    # A group of weight 0 at the top has nothing predicted and nothing positive.
    precision = np.cumsum(positive, axis=1) / np.maximum(predicted, 1)
    return np.einsum("rg,rg->r", positive, precision) / positive.sum(1)


def _brier(scores: RankedScores, weights: Array, threshold: float) -> Array:
    return weights @ (scores.p - scores.y) ** 2 / weights.sum(1)


def _log_loss(scores: RankedScores, weights: Array, threshold: float) -> Array:
    tiny = np.finfo(np.float64).eps
    of_outcome = np.clip(np.where(scores.y == 1, scores.p, 1 - scores.p), tiny, 1 - tiny)
    return weights @ -np.log(of_outcome) / weights.sum(1)


def _f1(scores: RankedScores, weights: Array, threshold: float) -> Array:
    predicted = (scores.p >= threshold).astype(np.float64)
    hits = weights @ (predicted * scores.y)
    return 2 * hits / (weights @ (predicted + scores.y))


def _ece(scores: RankedScores, weights: Array, threshold: float) -> Array:
    mass = scores.by_group(weights)
    total = weights.sum(1)
    excess = scores.by_group(weights * (scores.p - scores.y))
    bins = equal_mass_bins(mass, ECE_BINS) + ECE_BINS * np.arange(len(mass))[:, None]
    gaps = np.bincount(bins.ravel(), weights=excess.ravel(), minlength=ECE_BINS * len(mass))
    return np.abs(gaps.reshape(-1, ECE_BINS)).sum(1) / total


def equal_mass_bins(mass: Array, bins: int) -> NDArray[np.int64]:
    """Bin, 0-based, of each tie group: the bin of equal mass in which the middle of the group lies.

    Rows of equal probability are never parted, so bins are equal in mass as far as ties allow.

    Args:
        mass: Float [resamples, groups]; weight of each group, in order of probability.
    """
    middle = np.cumsum(mass, axis=1) - mass / 2
    share = middle / mass.sum(1, keepdims=True)
    return np.minimum((share * bins).astype(np.int64), bins - 1)


Weighted = Callable[[RankedScores, Array, float], Array]


@dataclass(frozen=True)
class Metric:
    """A metric, its direction, and its form for many resamples at once.

    Attributes:
        fn: `fn(y_true, p) -> float`; F1 takes `threshold` too.
        higher_is_better: Direction.
        weighted: `weighted(scores, multiplicities [resamples, n] in ranked order, threshold) -> [resamples]`.
        needs_both_classes: Undefined unless a positive and a negative are there.
    """

    fn: Callable[..., float]
    higher_is_better: bool
    weighted: Weighted
    needs_both_classes: bool = False


def _single(weighted: Weighted, y_true: ArrayLike, p: ArrayLike, name: str, threshold: float = 0.5) -> float:
    scores = RankedScores(y_true, p)
    positives = int(scores.y.sum())
    if METRICS[name].needs_both_classes and positives in (0, len(scores.y)):
        raise one_class_error(name, positives, len(scores.y))
    return float(weighted(scores, np.ones((1, len(scores.y))), threshold)[0])


def one_class_error(name: str, positives: int, n: int) -> MetricError:
    """What is raised where a metric needs both classes and finds one."""
    return MetricError(
        f"{name} is undefined on one class",
        got=f"{positives} positives in {n} rows",
        expected="both classes",
        remedy="use more subjects or a more frequent outcome",
    )


def auroc(y_true: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve: chance that a positive outranks a negative, ties counting one half.

    Args:
        y_true: Bool [n].
        p: Float [n].

    Raises:
        MetricError: one class, or see `checked`.

    >>> auroc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    return _single(_auroc, y_true, p, "auroc")


def auprc(y_true: ArrayLike, p: ArrayLike) -> float:
    """Average precision: precision at each distinct probability, weighted by the recall gained there.

    Chance level is the share of positives. Arguments and errors as `auroc`.

    >>> round(auprc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]), 4)
    0.8333
    """
    return _single(_auprc, y_true, p, "auprc")


def brier(y_true: ArrayLike, p: ArrayLike) -> float:
    """Mean squared distance of probability and outcome.

    Raises:
        MetricError: see `checked`.

    >>> round(brier([1, 0], [0.8, 0.4]), 4)
    0.1
    """
    return _single(_brier, y_true, p, "brier")


def log_loss(y_true: ArrayLike, p: ArrayLike) -> float:
    """Cross-entropy in nats per row; probabilities are kept 2.2e-16 away from 0 and 1.

    Raises:
        MetricError: see `checked`.

    >>> round(log_loss([1, 0], [0.5, 0.5]), 4)
    0.6931
    """
    return _single(_log_loss, y_true, p, "log_loss")


def f1(y_true: ArrayLike, p: ArrayLike, threshold: float = 0.5) -> float:
    """Harmonic mean of precision and recall where `p >= threshold` is called positive; 0 without a hit.

    Args:
        threshold: Fixed beforehand, for example by `f1_threshold` on the tuning split.

    Raises:
        MetricError: one class, or see `checked`.

    >>> f1([0, 1, 1], [0.1, 0.2, 0.9], threshold=0.5)
    0.6666666666666666
    """
    return _single(_f1, y_true, p, "f1", threshold)


def ece(y_true: ArrayLike, p: ArrayLike) -> float:
    """Expected calibration error: mean over ten bins of equal mass of |mean probability - observed share|.

    Rows of equal probability share a bin (`equal_mass_bins`); bins weigh as many rows as they hold.

    Raises:
        MetricError: see `checked`.

    Source: bins of equal mass as in Nguyen & O'Connor 2015, arXiv:1508.05154.

    >>> round(ece([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]), 4)
    0.25
    """
    return _single(_ece, y_true, p, "ece")


METRICS: dict[str, Metric] = {
    "auroc": Metric(auroc, True, _auroc, needs_both_classes=True),
    "auprc": Metric(auprc, True, _auprc, needs_both_classes=True),
    "f1": Metric(f1, True, _f1, needs_both_classes=True),
    "brier": Metric(brier, False, _brier),
    "ece": Metric(ece, False, _ece),
    "log_loss": Metric(log_loss, False, _log_loss),
}


def f1_threshold(y_true: ArrayLike, p: ArrayLike) -> float:
    """Threshold with the highest F1 on these rows, which must be of the tuning split; the highest of equals.

    Raises:
        MetricError: one class, or see `checked`.

    >>> f1_threshold([0, 1, 0, 1], [0.1, 0.4, 0.3, 0.8])
    0.4
    """
    positive, negative = _cumulative(y_true, p, "f1")
    best = np.argmax(2 * positive / (2 * positive + negative + positive[-1] - positive))
    return float(np.unique(np.asarray(p, dtype=np.float64))[::-1][best])


def roc_points(y_true: ArrayLike, p: ArrayLike) -> tuple[Array, Array]:
    """False and true positive rate at each distinct probability, from (0, 0) to (1, 1).

    Raises:
        MetricError: one class, or see `checked`.

    >>> [x.tolist() for x in roc_points([0, 1, 1], [0.2, 0.2, 0.9])]
    [[0.0, 0.0, 1.0], [0.0, 0.5, 1.0]]
    """
    positive, negative = _cumulative(y_true, p, "the ROC curve")
    return np.append(0.0, negative / negative[-1]), np.append(0.0, positive / positive[-1])


def precision_recall_points(y_true: ArrayLike, p: ArrayLike) -> tuple[Array, Array]:
    """Recall and precision at each distinct probability, highest first.

    Raises:
        MetricError: one class, or see `checked`.

    >>> [x.tolist() for x in precision_recall_points([0, 1, 1], [0.4, 0.4, 0.9])]
    [[0.5, 1.0], [1.0, 0.6666666666666666]]
    """
    positive, negative = _cumulative(y_true, p, "the precision-recall curve")
    return positive / positive[-1], positive / (positive + negative)


def thinned(curve: tuple[Array, Array], most: int = 200) -> dict[str, list[float]]:
    """A curve as plain numbers, at most `most` points of it, both ends among them.

    >>> thinned((np.arange(5.0), np.ones(5)), 3)["x"]
    [0.0, 2.0, 4.0]
    """
    x, y = curve
    keep = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(int))
    return {"x": x[keep].tolist(), "y": y[keep].tolist()}


def _cumulative(y_true: ArrayLike, p: ArrayLike, what: str) -> tuple[Array, Array]:
    """Positives and negatives called positive at each distinct probability."""
    scores = RankedScores(y_true, p)
    positives = int(scores.y.sum())
    if positives in (0, len(scores.y)):
        raise one_class_error(what, positives, len(scores.y))
    positive, negative = scores.class_mass(np.ones((1, len(scores.y))))
    return np.cumsum(positive[0]), np.cumsum(negative[0])
