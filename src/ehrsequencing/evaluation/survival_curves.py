"""Kaplan-Meier, Nelson-Aalen and Aalen-Johansen, with variances and intervals, and the checks of survival outcomes.

Where an event and a censoring fall on the same day, the event comes first. Curves are right-continuous steps: the
value at a day counts what happens on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from ehrsequencing.errors import MetricError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def checked_outcomes(durations: ArrayLike, event_observed: ArrayLike) -> tuple[Array, Bools]:
    """Durations as float64 [n] and events as bool [n].

    Raises:
        MetricError: empty, of different lengths, events that are not 0 or 1, or durations that are not finite and
            above 0.
    """
    days, event = _checked(durations, np.asarray(event_observed))
    if event.dtype != np.bool_ and not np.isin(event, (0, 1)).all():
        raise MetricError(
            "event_observed must be 0 or 1", got=f"{event[~np.isin(event, (0, 1))][0]}",
            remedy="outcomes with several causes go to the functions that take `cause`",
        )  # fmt: skip
    return days, event.astype(np.bool_)


def checked_causes(durations: ArrayLike, cause: ArrayLike) -> tuple[Array, Ints]:
    """Durations as float64 [n] and causes as int64 [n], 0 censored.

    Raises:
        MetricError: as `checked_outcomes`; causes that are not whole numbers of at least 0.
    """
    days, causes = _checked(durations, np.asarray(cause))
    whole = np.zeros(causes.shape, bool)
    if np.issubdtype(causes.dtype, np.number) or causes.dtype == np.bool_:
        whole = (causes >= 0) & (causes == np.floor(causes))
    if not whole.all():
        raise MetricError("causes must be whole numbers, 0 censored, 1 the event", got=f"{causes[~whole][0]}")
    return days, causes.astype(np.int64)


def checked_risk(risk: ArrayLike, n: int) -> Array:
    """Risks as float64 [n]; infinite ones are ordered.

    Raises:
        MetricError: another shape, or NaN.
    """
    values = np.asarray(risk, dtype=np.float64)
    if values.shape != (n,):
        raise MetricError("risk needs one number per subject", got=f"shape {values.shape}", expected=f"shape ({n},)")
    if unusable := int(np.isnan(values).sum()):
        raise MetricError("risk must not be NaN", got=f"{unusable} of {n}", remedy="NaN comes from a diverged training")
    return values


def _checked(durations: ArrayLike, outcome: NDArray) -> tuple[Array, NDArray]:
    days = np.asarray(durations, dtype=np.float64)
    if days.ndim != 1 or days.shape != outcome.shape or not len(days):
        raise MetricError(
            "durations and outcomes must be two vectors of one length", got=f"shapes {days.shape} and {outcome.shape}"
        )
    usable = np.isfinite(days) & (days > 0)
    if not usable.all():
        raise MetricError(
            "durations must be finite and above 0 days",
            got=f"{int((~usable).sum())} of {len(days)} that are not, such as {days[~usable][0]:g}",
            remedy="outcomes at or before the prediction time are no outcomes of it",
        )
    return days, outcome


@dataclass(frozen=True)
class Counts:
    """Who is at risk and what happens, at each distinct duration.

    Attributes:
        days: Float [times], rising.
        at_risk: Float [times]; subjects whose duration is at least this long.
        observed: Float [times, causes].
        censored: Float [times].
    """

    days: Array
    at_risk: Array
    observed: Array
    censored: Array


def counts(durations: Array, cause: NDArray, causes: int) -> Counts:
    """Counts of checked outcomes, cause 0 censored."""
    days, time = np.unique(durations, return_inverse=True)
    tally = np.bincount(time * (causes + 1) + cause, minlength=len(days) * (causes + 1))
    table = tally.reshape(len(days), -1).astype(np.float64)
    leaving = table.sum(1)
    return Counts(days, leaving[::-1].cumsum()[::-1], table[:, 1:], table[:, 0])


@dataclass(frozen=True)
class StepCurve:
    """A step function of time after the prediction time, with its variance.

    Attributes:
        days: Float [times]; every distinct duration, rising. The last one is the end of follow-up.
        value, variance: Float [times]; at and after the day, until the next.
        start: Value before the first day; the variance there is 0.
        scale: Of the intervals: "log-log" (of a probability) or "log" (of a cumulative hazard).
    """

    days: Array
    value: Array
    variance: Array
    start: float
    scale: str

    def at(self, days: ArrayLike) -> Array:
        """Values at days, float; after the end of follow-up the last one, which says nothing about that day."""
        return np.append(self.start, self.value)[np.searchsorted(self.days, days, side="right")]

    def interval(self, days: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
        """Lower and upper ends of pointwise intervals, float [days] each; without width where the value is exact.

        Exact means 0 or 1 of a probability, 0 of a cumulative hazard: the variance there is estimated as 0.

        Source: log(-log) scale: Kalbfleisch & Prentice 2002, The Statistical Analysis of Failure Time Data, 1.4.
        """
        index = np.searchsorted(self.days, days, side="right")
        value = np.append(self.start, self.value)[index]
        deviation = np.sqrt(np.append(0.0, self.variance)[index])
        z = float(norm.ppf((1 + level) / 2))
        exact = (value <= 0) | ((value >= 1) if self.scale == "log-log" else False)
        inner = np.where(exact, 0.5, value)
        if self.scale == "log":
            width = z * deviation / inner
            low, high = value * np.exp(-width), value * np.exp(width)
        else:
            width = z * deviation / (inner * np.abs(np.log(inner)))
            low, high = inner ** np.exp(width), inner ** np.exp(-width)
        return np.where(exact, value, low), np.where(exact, value, high)


def kaplan_meier(durations: ArrayLike, event_observed: ArrayLike) -> StepCurve:
    """Probability of no event yet, with Greenwood's variance.

    Args:
        durations: Float [n], days, above 0.
        event_observed: Bool [n].

    Raises:
        MetricError: see `checked_outcomes`.

    Source: Kaplan & Meier 1958, Journal of the American Statistical Association 53:457-481; Greenwood 1926.

    >>> kaplan_meier([1, 2, 2, 3], [True, True, False, False]).value.round(3).tolist()
    [0.75, 0.5, 0.5]
    """
    found = counts(*checked_outcomes(durations, event_observed), 1)
    return _product_limit(found.days, found.at_risk, found.observed[:, 0])


def censoring_curve(durations: ArrayLike, event_observed: ArrayLike) -> StepCurve:
    """Probability of not being censored yet, G: Kaplan-Meier of censoring, events of the day being out of risk first.

    Args:
        durations: Float [n], days, above 0.
        event_observed: Bool [n], or causes; whatever is not 0 is an event.

    Raises:
        MetricError: see `checked_causes`.

    >>> censoring_curve([1, 2, 2, 3], [1, 1, 0, 0]).value.tolist()
    [1.0, 0.5, 0.0]
    """
    days, cause = checked_causes(durations, event_observed)
    found = counts(days, (cause > 0).astype(np.int64), 1)
    return _product_limit(found.days, found.at_risk - found.observed[:, 0], found.censored)


def nelson_aalen(durations: ArrayLike, event_observed: ArrayLike) -> StepCurve:
    """Cumulative hazard, with the binomial variance: d events of n at risk add d / n to the one, d (n - d) / n^3 to
    the other.

    Args and errors as `kaplan_meier`. Source: Aalen 1978, Annals of Statistics 6:701-726; variance: Klein 1991,
    Scandinavian Journal of Statistics 18:333-340.

    >>> nelson_aalen([1, 2, 3], [True, True, False]).value.round(3).tolist()
    [0.333, 0.833, 0.833]
    """
    found = counts(*checked_outcomes(durations, event_observed), 1)
    happened = found.observed[:, 0]
    variance = np.cumsum(happened * (found.at_risk - happened) / found.at_risk**3)
    value = np.cumsum(happened / found.at_risk)
    return StepCurve(found.days, value, variance, 0.0, "log")


def aalen_johansen(durations: ArrayLike, cause: ArrayLike, of_cause: int = 1) -> StepCurve:
    """Cumulative incidence of one cause, with the delta-method variance.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n]; 0 censored.
        of_cause: Which one; 0 everywhere where it never happens.

    Raises:
        MetricError: see `checked_causes`; a cause below 1.

    Source: Aalen & Johansen 1978, Scandinavian Journal of Statistics 5:141-150; variance: Dinse & Larson 1986,
    Biometrika 73:379-386, in the form of Collett 2015, Modelling Survival Data in Medical Research, 12.3.

    >>> aalen_johansen([1, 2, 3, 4], [1, 2, 1, 0]).value.tolist()
    [0.25, 0.25, 0.5, 0.5]
    """
    days, causes = checked_causes(durations, cause)
    if of_cause < 1:
        raise MetricError("a cause is a number from 1 on", got=of_cause)
    found = counts(days, np.where(causes == of_cause, 1, np.where(causes > 0, 2, 0)), 2)
    at_risk, own, every = found.at_risk, found.observed[:, 0], found.observed.sum(1)
    before = np.append(1.0, _product_limit(found.days, at_risk, every).value[:-1])
    value = np.cumsum(before * own / at_risk)
    # Var F(t) = sum over s <= t of (F(t) - F(s))^2 g(s) + h(s) - 2 (F(t) - F(s)) k(s), multiplied out over t.
    g = _greenwood(at_risk, every)
    h, k = before**2 * own * (at_risk - own) / at_risk**3, before * own / at_risk**2
    squares = value**2 * np.cumsum(g) - 2 * value * np.cumsum(g * value) + np.cumsum(g * value**2)
    variance = squares + np.cumsum(h) - 2 * (value * np.cumsum(k) - np.cumsum(k * value))
    return StepCurve(found.days, value, np.maximum(variance, 0.0), 0.0, "log-log")


def restricted_mean(
    durations: ArrayLike, event_observed: ArrayLike, horizon: float, level: float = 0.95
) -> tuple[float, float, float]:
    """Area under Kaplan-Meier up to a horizon, days, and the ends of its interval.

    Args:
        horizon: Days, within follow-up.

    Raises:
        MetricError: see `checked_outcomes`; a horizon beyond follow-up where subjects are still without an event.

    Source: Royston & Parmar 2013, BMC Medical Research Methodology 13:152; variance: Klein & Moeschberger 2003,
    Survival Analysis, 4.5, without the factor for small samples.

    >>> [round(x, 3) for x in restricted_mean([1, 2, 3, 4], [True, True, False, True], 3)]
    [2.25, 1.437, 3.0]
    """
    found = counts(*checked_outcomes(durations, event_observed), 1)
    curve = _product_limit(found.days, found.at_risk, found.observed[:, 0])
    within_follow_up(curve, horizon)
    inside = curve.days < horizon
    edges = np.concatenate([[0.0], curve.days[inside], [horizon]])
    areas = np.append(1.0, curve.value[inside]) * np.diff(edges)
    value = float(areas.sum())
    after = areas[::-1].cumsum()[::-1][1:]
    spread = float(np.sqrt((after**2 * _greenwood(found.at_risk, found.observed[:, 0])[inside]).sum()))
    half = float(norm.ppf((1 + level) / 2)) * spread
    return value, max(0.0, value - half), min(float(horizon), value + half)


def within_follow_up(curve: StepCurve, horizon: float) -> None:
    """Refuse horizons that the curve says nothing about.

    Raises:
        MetricError: not above 0, or beyond the last duration while the curve has not reached 0.
    """
    if not horizon > 0:
        raise MetricError("a horizon is a number of days above 0", got=horizon)
    if horizon > curve.days[-1] and not (curve.start == 1 and curve.value[-1] == 0):
        raise MetricError(
            "a horizon beyond the end of follow-up", got=f"{horizon:g} days", expected=f"at most {curve.days[-1]:g}",
            remedy="choose an earlier horizon",
        )  # fmt: skip


def _greenwood(at_risk: Array, happened: Array) -> Array:
    """Terms d / (n (n - d)); 0 where all at risk are gone, for the curve is constant from there on."""
    left = at_risk * (at_risk - happened)
    return np.divide(happened, left, out=np.zeros_like(left), where=left > 0)


def _product_limit(days: Array, at_risk: Array, happened: Array) -> StepCurve:
    hazard = np.divide(happened, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
    value = np.cumprod(1 - hazard)
    return StepCurve(days, value, value**2 * np.cumsum(_greenwood(at_risk, happened)), 1.0, "log-log")
