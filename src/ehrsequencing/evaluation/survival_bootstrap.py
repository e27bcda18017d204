"""Survival metrics with intervals over resampled subjects, and paired differences on the same resamples.

Resamples are those of `bootstrap`: subjects drawn with replacement, all rows of a subject together, the same for all
models. The censoring distribution is estimated anew on each. A resample in which a metric is undefined, for want of an
event or of anybody uncensored at a horizon, is left out of its interval and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.bootstrap import RARE, Estimate, Resamples, mean_of_drawn_seeds
from ehrsequencing.evaluation.calibration import wilson
from ehrsequencing.evaluation.survival import Antolini, Harrell, Prepared, Uno, Wolbers, value_of
from ehrsequencing.evaluation.survival_calibration import Smoothed
from ehrsequencing.evaluation.survival_curves import Array, Ints, checked_causes
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.evaluation.survival_scores import Brier, CumulativeAUC

DEFAULT_METRICS = ("c_harrell", "c_uno", "c_antolini", "ibs")
IBS_DAYS = 50
"""Days, evenly spaced up to the last horizon, at which the integrated Brier score is taken."""


@dataclass(frozen=True)
class Question:
    """What a metric is asked of: its name, checked outcomes, the cause, and the horizon in days."""

    name: str
    days: Array
    cause: Ints
    of_cause: int
    horizon: float
    tau: float | None

    def risk(self, prediction: SurvivalPrediction) -> Array:
        """The model's own risk, else its incidence of the cause by the horizon."""
        if prediction.risk is not None:
            return prediction.risk
        at = prediction.at([self.horizon])
        # Close to certainty survival still tells subjects apart where 1 - survival is 1.
        return -at.survival[:, 0] if at.causes == 1 else at.incidence[:, self.of_cause - 1, 0]

    def incidence(self, prediction: SurvivalPrediction, days: ArrayLike | None = None) -> Array:
        """Incidence of the cause, float [n, days], by the horizon unless days are named."""
        return prediction.at([self.horizon] if days is None else days).incidence[:, self.of_cause - 1]


@dataclass(frozen=True)
class SurvivalMetric:
    """A metric by name.

    Attributes:
        higher_is_better: Direction.
        needs_horizon: Defined at a horizon alone, as `name@days`.
        prepare: From a question and a prediction.
    """

    higher_is_better: bool
    needs_horizon: bool
    prepare: Callable[[Question, SurvivalPrediction], Prepared]


def _harrell(q: Question, p: SurvivalPrediction) -> Prepared:
    return Harrell(q.days, q.cause == q.of_cause, q.risk(p), tau=q.tau, keep=True)


def _uno(q: Question, p: SurvivalPrediction) -> Prepared:
    return Uno(q.days, q.cause == q.of_cause, q.risk(p), tau=q.horizon if q.tau is None else q.tau, keep=True)


def _wolbers(q: Question, p: SurvivalPrediction) -> Prepared:
    return Wolbers(q.days, q.cause, q.risk(p), of_cause=q.of_cause, tau=q.tau, keep=True)


def _antolini(q: Question, p: SurvivalPrediction) -> Prepared:
    return Antolini(q.days, q.cause, p, of_cause=q.of_cause, tau=q.tau)


def _auc(q: Question, p: SurvivalPrediction) -> Prepared:
    return CumulativeAUC(q.days, q.cause, q.incidence(p), [q.horizon], of_cause=q.of_cause)


def _brier(q: Question, p: SurvivalPrediction) -> Prepared:
    return Brier(q.days, q.cause, q.incidence(p), [q.horizon], of_cause=q.of_cause)


def _ibs(q: Question, p: SurvivalPrediction) -> Prepared:
    grid = np.linspace(q.horizon / IBS_DAYS, q.horizon, IBS_DAYS)
    return Brier(q.days, q.cause, q.incidence(p, grid), grid, of_cause=q.of_cause)


def _ici(q: Question, p: SurvivalPrediction) -> Prepared:
    return Smoothed(q.days, q.cause, q.incidence(p)[:, 0], q.horizon, of_cause=q.of_cause)


METRICS: dict[str, SurvivalMetric] = {
    "c_harrell": SurvivalMetric(True, False, _harrell),
    "c_uno": SurvivalMetric(True, False, _uno),
    "c_antolini": SurvivalMetric(True, False, _antolini),
    "c_wolbers": SurvivalMetric(True, False, _wolbers),
    "ibs": SurvivalMetric(False, False, _ibs),
    "auc": SurvivalMetric(True, True, _auc),
    "brier": SurvivalMetric(False, True, _brier),
    "ici": SurvivalMetric(False, True, _ici),
}


def evaluate_survival(
    durations: ArrayLike,
    cause: ArrayLike,
    predictions: Sequence[SurvivalPrediction],
    subject_ids: ArrayLike,
    horizon: float,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    of_cause: int = 1,
    tau: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Metrics with percentile intervals over subjects, means over trainings that differ by seed.

    With fewer than `RARE` subjects with the event, and at a value of 1, concordances and AUC take the wider of that
    interval and the score interval of a proportion with as many trials; the others, with as few, the wider of it and
    Student's with as many degrees of freedom less one.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n], 0 censored; or bool.
        predictions: One per seed, each of the same n rows.
        subject_ids: [n]; rows of one subject are drawn together.
        horizon: Days. `ibs` is the mean up to it, `c_uno` counts events before it, and a model without a risk of its
            own is ranked by its incidence of the cause by then.
        metrics: Names in `METRICS`, or `name@days` for another horizon, which for concordances is also their tau;
            `auc`, `brier` and `ici` are only defined so.
        of_cause: The cause; an event of another one censors in `c_harrell` and `c_uno`, and not in the others.
        tau: Days; only events before it count in concordances.

    Raises:
        MetricError: unknown metric, no prediction or of other subjects, one subject, what the metric itself refuses,
            or a metric that is undefined in most resamples.

    Source: see `bootstrap.summarise_seeds`.
    """
    rows, days, causes = _outcomes(durations, cause, subject_ids, of_cause, resamples, level)
    questions = [_question(name, days, causes, of_cause, horizon, tau) for name in metrics]
    values, samples = _sample(rows, questions, predictions, seed)
    found = {}
    for m, (name, (metric, _)) in enumerate(zip(metrics, questions, strict=True)):
        drawn, left_out = _known(name, mean_of_drawn_seeds(samples[m][None], seed)[0])
        value = float(values[m].mean())
        low, high = rows.percentiles(drawn, value)
        low, high = _widened(rows, metric, drawn, value, low, high, 0.0)
        single = samples[m].mean(0)
        found[name] = _estimate(
            rows, metric, value, low, high, len(predictions), left_out,
            subject_sd=float(single[~np.isnan(single)].std(ddof=1)),
            seed_sd=float(values[m].std(ddof=1)) if len(predictions) > 1 else None,
        )  # fmt: skip
    return found


def survival_difference(
    durations: ArrayLike,
    cause: ArrayLike,
    a: Sequence[SurvivalPrediction],
    b: Sequence[SurvivalPrediction],
    subject_ids: ArrayLike,
    horizon: float,
    metric: str = "c_harrell",
    *,
    of_cause: int = 1,
    tau: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Metric of a minus metric of b, both on the same resamples of the same rows.

    Args:
        a, b: One prediction per seed; seeds of a and of b are drawn independently of each other.

    Returns:
        Estimate of the difference. With fewer than `RARE` subjects with the event, the interval of a concordance or
        AUC is at least that of two independent score intervals combined; of other metrics, Student's.

    Raises:
        MetricError: as `evaluate_survival`.

    Source: see `bootstrap.paired_difference`.
    """
    rows, days, causes = _outcomes(durations, cause, subject_ids, of_cause, resamples, level)
    question = _question(metric, days, causes, of_cause, horizon, tau)
    values, samples = _sample(rows, [question], [*a, *b], seed)
    of_a, of_b = slice(0, len(a)), slice(len(a), None)
    mean_a, mean_b = float(values[0, of_a].mean()), float(values[0, of_b].mean())
    spread = mean_of_drawn_seeds(samples[:, of_a], seed) - mean_of_drawn_seeds(samples[:, of_b], seed + 1)
    drawn, left_out = _known(metric, spread[0])
    low, high = rows.percentiles(drawn, mean_a - mean_b)
    kind, events = question[0], _event_subjects(rows)
    if events < RARE and kind.higher_is_better:
        wide_a, wide_b = wilson(mean_a, events, level), wilson(mean_b, events, level)
        low = min(low, mean_a - mean_b - float(np.hypot(mean_a - wide_a[0], wide_b[1] - mean_b)))
        high = max(high, mean_a - mean_b + float(np.hypot(wide_a[1] - mean_a, mean_b - wide_b[0])))
    elif not kind.higher_is_better:
        low, high = _widened(rows, kind, drawn, mean_a - mean_b, low, high, -1.0)
    return _estimate(rows, kind, mean_a - mean_b, low, high, min(len(a), len(b)), left_out)


def _outcomes(
    durations: ArrayLike, cause: ArrayLike, subject_ids: ArrayLike, of_cause: int, resamples: int, level: float
) -> tuple[Resamples, Array, Ints]:
    days, causes = checked_causes(durations, cause)
    return Resamples(causes == of_cause, np.zeros(len(days)), subject_ids, resamples, level), days, causes


def _question(
    name: str, days: Array, cause: Ints, of_cause: int, horizon: float, tau: float | None
) -> tuple[SurvivalMetric, Question]:
    bare, at, asked = name.partition("@")
    if bare not in METRICS:
        raise MetricError("unknown survival metric", got=name, expected=", ".join(METRICS))
    metric = METRICS[bare]
    if not at:
        if metric.needs_horizon:
            raise MetricError(f"{bare} is defined at a horizon", got=name, expected=f"{bare}@DAYS")
        return metric, Question(name, days, cause, of_cause, float(horizon), tau)
    try:
        own = float(asked)
    except ValueError:
        raise MetricError("a horizon is a number of days", got=name, expected=f"{bare}@DAYS") from None
    return metric, Question(name, days, cause, of_cause, own, own if bare.startswith("c_") else tau)


def _sample(
    rows: Resamples,
    questions: Sequence[tuple[SurvivalMetric, Question]],
    predictions: Sequence[SurvivalPrediction],
    seed: int,
) -> tuple[Array, Array]:
    """Values on all rows, [metrics, predictions], and on the resamples, [metrics, predictions, resamples]."""
    if not len(predictions):
        raise MetricError("no predictions to judge", got="0 seeds")
    n = len(rows.y)
    for prediction in predictions:
        if len(prediction) != n:
            raise MetricError("a prediction needs one row per outcome", got=len(prediction), expected=n)
    if not rows.positives:
        raise MetricError("no event of the cause at all", got=f"0 of {n}", remedy="survival metrics need events")
    values = np.empty((len(questions), len(predictions)))
    samples = np.empty((*values.shape, rows.resamples))
    prepared = [[metric.prepare(question, p) for p in predictions] for metric, question in questions]
    for m, row in enumerate(prepared):
        undefined = f"{questions[m][1].name} is undefined on these subjects"
        values[m] = [value_of(one, n, undefined) for one in row]
    done = 0
    for counts in rows.draws(seed, both_classes=False):
        weights = counts[:, rows.subject_row]
        for m, row in enumerate(prepared):
            for s, one in enumerate(row):
                samples[m, s, done : done + len(counts)] = one(weights)
        done += len(counts)
    return values, samples


def _known(name: str, samples: Array) -> tuple[Array, int]:
    known = samples[~np.isnan(samples)]
    if 2 * len(known) < len(samples):
        raise MetricError(
            f"{name} is undefined in most resamples", got=f"{len(samples) - len(known)} of {len(samples)}",
            remedy="use more subjects or an earlier horizon",
        )  # fmt: skip
    return known, len(samples) - len(known)


def _event_subjects(rows: Resamples) -> int:
    return int((rows.by_class[:, 1] > 0).sum())


def _widened(
    rows: Resamples, metric: SurvivalMetric, samples: Array, value: float, low: float, high: float, least: float
) -> tuple[float, float]:
    events = _event_subjects(rows)
    if metric.higher_is_better:
        if events < RARE or value > 1 - 1e-9:
            wide = wilson(value, events, rows.level)
            return min(low, wide[0]), max(high, wide[1])
    elif events < RARE:
        if events < 2:
            return least, 1.0
        half = float(student.ppf((1 + rows.level) / 2, events - 1) * samples.std())
        return max(least, min(low, value - half)), min(1.0, max(high, value + half))
    return low, high


def _estimate(
    rows: Resamples, metric: SurvivalMetric, value: float, low: float, high: float, seeds: int, left_out: int,
    **spread: float | None,
) -> Estimate:  # fmt: skip
    return Estimate(
        value=value, low=float(low), high=float(high), n=len(rows.y), positives=rows.positives, subjects=rows.subjects,
        higher_is_better=metric.higher_is_better, seeds=seeds, redrawn=left_out, **spread,
    )  # fmt: skip
