"""Recalibration fitted on tuning, and the slope and intercept that say whether a model needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ehrsequencing.errors import ConfigError, MetricError
from ehrsequencing.evaluation.bootstrap import Interval, Resamples, mean_of_drawn_seeds
from ehrsequencing.evaluation.metrics import Array, checked, one_class_error

METHODS = ("platt", "isotonic")
SMALLEST = 1e-6
"""Probabilities are kept this far from 0 and 1 before their logit is taken: forests and isotonic fits reach both."""
_STEPS, _TOLERANCE = 60, 1e-10


def logit(p: ArrayLike) -> Array:
    """Log odds, float, of probabilities kept `SMALLEST` away from 0 and 1."""
    kept = np.clip(np.asarray(p, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(kept) - np.log1p(-kept)


@dataclass(frozen=True)
class Recalibration:
    """A fitted map from probabilities to probabilities.

    Attributes:
        method: One of `METHODS`.
        intercept, slope: Of Platt's sigmoid; None for an isotonic fit.
    """

    method: str
    mapping: Callable[[Array], Array]
    intercept: float | None = None
    slope: float | None = None

    def apply(self, p: ArrayLike) -> Array:
        """Recalibrated probabilities, float [n].

        Raises:
            MetricError: `p` is not in [0, 1].
        """
        probability = np.asarray(p, dtype=np.float64)
        if not ((probability >= 0) & (probability <= 1)).all():
            raise MetricError("only probabilities can be recalibrated", expected="values in [0, 1]")
        return self.mapping(probability)


def fit_recalibration(method: str, y_tuning: ArrayLike, p_tuning: ArrayLike) -> Recalibration:
    """Fit a recalibration on the tuning split.

    Platt's sigmoid of the logit has targets (positives + 1) / (positives + 2) and 1 / (negatives + 2) instead of 1
    and 0, which keeps it finite where the classes part; on thousands of rows they change nothing. An isotonic fit is
    the non-decreasing step function of least squares, linear between steps and constant outside: it follows any
    shape, ties what it cannot tell apart, and overfits where tuning is small.

    Args:
        method: One of `METHODS`.
        y_tuning: Bool [n].
        p_tuning: Float [n], the model's own probabilities.

    Raises:
        ConfigError: unknown method.
        MetricError: one class, see `metrics.checked`, or a Platt slope of 0 or less, which would turn the ranking
            round.

    Source: Platt 1999, Advances in Large Margin Classifiers 61-74, in the form of Lin, Lin & Weng 2007, Machine
    Learning 68:267-276; isotonic: Zadrozny & Elkan 2002, KDD 694-699.

    >>> fitted = fit_recalibration("platt", [0, 0, 1, 1, 0, 1], [0.9, 0.8, 0.95, 0.99, 0.7, 0.85])
    >>> fitted.apply([0.8, 0.9]).round(2).tolist()
    [0.35, 0.49]
    """
    if method not in METHODS:
        raise ConfigError("unknown recalibration", got=method, expected=", ".join(METHODS))
    y, p = checked(y_tuning, p_tuning)
    positives = int(y.sum())
    if positives in (0, len(y)):
        raise one_class_error("a recalibration", positives, len(y))
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        steps = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p, y.astype(np.float64))
        return Recalibration(method, lambda given: np.asarray(steps.predict(given), dtype=np.float64))
    target = np.where(y, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    intercepts, slopes = _fit_line(logit(p), target, np.ones((1, len(y))))
    intercept, slope = float(intercepts[0]), float(slopes[0])
    if slope <= 0:
        raise MetricError(
            "Platt's slope on tuning is not positive, so recalibration would turn the ranking round",
            got=f"{slope:.3f}", expected="more than 0", remedy="the model ranks no better than chance on tuning",
        )  # fmt: skip
    return Recalibration(method, lambda given: _sigmoid(intercept + slope * logit(given)), intercept, slope)


@dataclass(frozen=True)
class CalibrationFit:
    """Logistic recalibration of held-out rows, with intervals over subjects.

    Attributes:
        slope: Of the logit: 1 is right, below 1 predictions are too extreme, above 1 too timid.
        intercept: Log odds to add to every prediction, slope 1: 0 is right, below 0 risks are too high on average.
    """

    slope: Interval
    intercept: Interval


def calibration_fit(
    y_true: ArrayLike,
    probabilities: Sequence[ArrayLike],
    subject_ids: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> CalibrationFit:
    """Calibration slope and intercept, means over trainings that differ by seed.

    Args:
        y_true: Bool [n].
        probabilities: One float [n] per seed.
        subject_ids: [n]; rows of one subject are drawn together.

    Raises:
        MetricError: one class, classes that one threshold parts, equal predictions, or see `bootstrap.evaluate`.

    Source: Cox 1958, Biometrika 45:562-565; slope and intercept as in Van Calster et al. 2019, BMC Medicine 17:230.
    """
    if not len(probabilities):
        raise MetricError("no probabilities to judge", got="0 seeds")
    rows = Resamples(y_true, probabilities[0], subject_ids, resamples, level)
    rows.require_both_classes("a calibration slope")
    target = rows.y.astype(np.float64)
    logits = [logit(checked(y_true, p)[1]) for p in probabilities]
    for x in logits:
        _refuse_endless(x, rows.y)
    whole = np.ones((1, len(target)))
    lines = [_fit_line(x, target, whole) for x in logits]
    shifts = [_fit_shift(x, target, whole) for x in logits]
    slopes, intercepts = (np.empty((1, len(logits), resamples)) for _ in range(2))
    done = 0
    for counts in rows.draws(seed, both_classes=True):
        weights = counts[:, rows.subject_row]
        for index, x in enumerate(logits):
            span = slice(done, done + len(counts))
            slopes[0, index, span] = _fit_line(x, target, weights, lines[index])[1]
            intercepts[0, index, span] = _fit_shift(x, target, weights, shifts[index])
        done += len(counts)

    def interval(values: Sequence[float], samples: Array) -> Interval:
        mean = float(np.mean(values))
        return Interval(mean, *rows.percentiles(mean_of_drawn_seeds(samples, seed)[0], mean))

    return CalibrationFit(
        slope=interval([float(slope[0]) for _, slope in lines], slopes),
        intercept=interval([float(shift[0]) for shift in shifts], intercepts),
    )


def _refuse_endless(x: Array, y: np.ndarray) -> None:
    if x.min() == x.max():
        raise MetricError("a model that predicts one probability has no calibration slope", got=f"logit {x[0]:.3f}")
    if x[y].min() >= x[~y].max() or x[y].max() <= x[~y].min():
        raise MetricError(
            "the calibration slope has no end: one threshold parts the classes", remedy="judge on more subjects"
        )


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def _fit_line(x: Array, target: Array, weights: Array, start: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """Intercept and slope, float [r] each, of logistic regressions of target on x [n] under weights [r, n].

    Newton's method on centred x; a step that does not raise the likelihood is halved.
    """
    total = weights.sum(1)
    middle = float((weights[0] @ x) / total[0])
    scale = float(np.sqrt((weights[0] @ (x - middle) ** 2) / total[0])) or 1.0
    z = (x - middle) / scale
    level = weights @ target / total
    a, b = np.log(level) - np.log1p(-level), np.zeros(len(weights))
    if start is not None:
        a, b = a * 0 + start[0] + start[1] * middle, b + start[1] * scale
    loss = _loss(a[:, None] + b[:, None] * z, target, weights)
    for _ in range(_STEPS):
        p = _sigmoid(a[:, None] + b[:, None] * z)
        curve = weights * p * (1 - p)
        error = weights * (target - p)
        g0, g1 = error.sum(1), error @ z
        h00, h01, h11 = curve.sum(1), curve @ z, curve @ z**2
        determinant = np.maximum(h00 * h11 - h01**2, np.finfo(np.float64).tiny)
        step_a, step_b = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < _TOLERANCE:
            break
        for _ in range(_STEPS):
            tried = _loss((a + step_a)[:, None] + (b + step_b)[:, None] * z, target, weights)
            worse = ~(tried <= loss + 1e-9 * np.abs(loss))
            if not worse.any():
                break
            step_a, step_b = np.where(worse, step_a / 2, step_a), np.where(worse, step_b / 2, step_b)
        a, b, loss = a + step_a, b + step_b, tried
    return a - b * middle / scale, b / scale


def _fit_shift(x: Array, target: Array, weights: Array, start: Array | None = None) -> Array:
    """Intercepts, float [r], of logistic regressions of target with x as offset."""
    total = weights @ target
    shift = np.zeros(len(weights)) if start is None else np.zeros(len(weights)) + start
    for _ in range(_STEPS):
        p = _sigmoid(shift[:, None] + x)
        expected, curve = (weights * p).sum(1), (weights * p * (1 - p)).sum(1)
        # Newton on the log odds of the total, which is nearly linear in the shift and so cannot overshoot far.
        size = weights.sum(1)
        wanted = np.log(total / (size - total))
        found = np.log(expected / (size - expected))
        step = (wanted - found) * expected * (size - expected) / (size * curve)
        shift = shift + step
        if np.abs(step).max() < _TOLERANCE:
            break
    return shift


def _loss(x: Array, target: Array, weights: Array) -> Array:
    return (weights * (np.logaddexp(0.0, x) - target * x)).sum(1)
