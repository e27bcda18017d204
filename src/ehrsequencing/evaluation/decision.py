"""Decision curves: what acting on a model's risks is worth, beside treating everyone and treating no one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.bootstrap import Interval, Resamples, mean_of_drawn_seeds
from ehrsequencing.evaluation.metrics import Array, checked

POINTS = 40


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit of a model at each threshold, per row judged.

    Attributes:
        thresholds: Float [t].
        net_benefit: Of treating whoever has `p >= threshold`; pointwise intervals over subjects.
        gain: Net benefit minus that of the better of treating everyone and no one, on the same resamples.
        treat_all: Float [t]; treating no one is worth 0.
    """

    thresholds: Array
    net_benefit: list[Interval]
    gain: list[Interval]
    treat_all: Array


def default_thresholds(y_true: ArrayLike) -> Array:
    """`POINTS` thresholds from 1 % to four times the share of positives (at least 20 %, at most 99 %).

    >>> default_thresholds([0] * 9 + [1])[[0, -1]].tolist()
    [0.01, 0.4]
    """
    share = float(np.mean(np.asarray(y_true, dtype=np.float64)))
    return np.linspace(0.01, float(np.clip(np.round(4 * share, 2), 0.2, 0.99)), POINTS)


def net_benefit(y_true: ArrayLike, p: ArrayLike, thresholds: ArrayLike) -> Array:
    """True positives minus weighted false positives, per row, float [t]; a row is treated where `p >= threshold`.

    The threshold sets the weight: acting from 10 % on says that a false alarm costs a ninth of what a hit is worth.

    Args:
        y_true: Bool [n].
        p: Float [n].
        thresholds: Float [t], each in (0, 1).

    Raises:
        MetricError: a threshold outside (0, 1), or see `metrics.checked`.

    Source: Vickers & Elkin 2006, Medical Decision Making 26:565-574.

    >>> net_benefit([1, 0, 0, 1], [0.9, 0.6, 0.1, 0.3], [0.2, 0.5]).round(4).tolist()
    [0.4375, 0.0]
    """
    y, probability = checked(y_true, p)
    return _worth(y, probability, _cuts(thresholds)).mean(0)


def decision_curve(
    y_true: ArrayLike,
    probabilities: Sequence[ArrayLike],
    subject_ids: ArrayLike,
    *,
    thresholds: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> DecisionCurve:
    """Net benefit with pointwise intervals over subjects (and seeds, where there are several).

    Args:
        y_true: Bool [n].
        probabilities: One float [n] per training seed; net benefits are averaged, not probabilities.
        subject_ids: [n]; rows of one subject are drawn together.
        thresholds: Float [t]; `default_thresholds` by default.

    Raises:
        MetricError: as `net_benefit`; no seed; fewer than two subjects.
    """
    if not len(probabilities):
        raise MetricError("no probabilities to judge", got="0 seeds")
    rows = Resamples(y_true, probabilities[0], subject_ids, resamples, level)
    cuts = default_thresholds(rows.y) if thresholds is None else _cuts(thresholds)
    everyone = _worth(rows.y, np.ones(len(rows.y)), cuts)
    tables = [_worth(rows.y, checked(y_true, p)[1], cuts) for p in probabilities]
    # Sums per subject once: a resample is then a product of small matrices.
    by_subject = [_per_subject(table, rows) for table in [*tables, everyone]]
    sizes = np.bincount(rows.subject_row, minlength=rows.subjects).astype(np.float64)
    samples = np.empty((len(cuts), len(by_subject), resamples))
    done = 0
    for counts in rows.draws(seed, both_classes=False):
        n = (counts @ sizes)[:, None]
        for index, sums in enumerate(by_subject):
            samples[:, index, done : done + len(counts)] = (counts @ sums / n).T
        done += len(counts)
    treat_all = everyone.mean(0)
    value = np.mean([table.mean(0) for table in tables], axis=0)
    spread = mean_of_drawn_seeds(samples[:, :-1], seed)
    best_default = np.maximum(treat_all, 0.0)
    gained = spread - np.maximum(samples[:, -1], 0.0)
    return DecisionCurve(
        thresholds=cuts,
        net_benefit=[_interval(rows, spread[t], value[t]) for t in range(len(cuts))],
        gain=[_interval(rows, gained[t], value[t] - best_default[t]) for t in range(len(cuts))],
        treat_all=treat_all,
    )


def _interval(rows: Resamples, samples: Array, value: float) -> Interval:
    return Interval(float(value), *rows.percentiles(samples, float(value)))


def _cuts(thresholds: ArrayLike) -> Array:
    cuts = np.asarray(thresholds, dtype=np.float64)
    if cuts.ndim != 1 or not len(cuts) or not ((cuts > 0) & (cuts < 1)).all():
        raise MetricError("thresholds of a decision curve lie between 0 and 1", got=cuts.tolist(), expected="(0, 1)")
    return cuts


def _worth(y: np.ndarray, p: Array, cuts: Array) -> Array:
    """What treating each row is worth at each threshold, float [n, t]; 0 where it is not treated."""
    return np.where(p[:, None] >= cuts, 1.0, 0.0) * np.where(y[:, None], 1.0, -cuts / (1 - cuts))


def _per_subject(table: Array, rows: Resamples) -> Array:
    sums = np.zeros((rows.subjects, table.shape[1]))
    np.add.at(sums, rows.subject_row, table)
    return sums
