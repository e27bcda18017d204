"""Whether predicted incidences come true: groups at a horizon, D-calibration, and the integrated calibration index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.calibration import wilson
from ehrsequencing.evaluation.metrics import equal_mass_bins
from ehrsequencing.evaluation.survival_censoring import Censoring, checked_horizons
from ehrsequencing.evaluation.survival_curves import (
    Array,
    Ints,
    StepCurve,
    aalen_johansen,
    checked_causes,
    checked_outcomes,
    kaplan_meier,
)
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.evaluation.survival_scores import HorizonWeights, checked_incidence

_SMALLEST = 1e-6
_KNOTS = (0.05, 0.35, 0.65, 0.95)
_RIDGE, _STEPS, _TOLERANCE = 1e-6, 100, 1e-10


def calibration_groups(
    durations: ArrayLike,
    cause: ArrayLike,
    incidence: ArrayLike,
    horizon: float,
    *,
    of_cause: int = 1,
    groups: int = 10,
    level: float = 0.95,
) -> list[dict[str, float | None]]:
    """Observed beside predicted incidence by a horizon, in groups of predicted incidence of equal size.

    Observed is 1 - Kaplan-Meier where nothing competes in any group, else Aalen-Johansen. One group compares the means.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n], 0 censored; or bool.
        incidence: Float [n]; P(event of the cause by the horizon).
        horizon: Days.
        of_cause: The cause.
        groups: At most this many; subjects of equal prediction share a group, and groups this leaves empty are left
            out.
        level: Of the intervals, which count rows as independent.

    Returns:
        By rising prediction `predicted` (mean), `observed`, `low`, `high`, `n` and `events` (of the cause by the
        horizon). Observed and its interval are None where the follow-up of a group ends before the horizon with
        somebody still at risk. Intervals are log(-log); without a single event, or with nobody left, the score interval
        of a proportion of as many as were followed to their event or the horizon.

    Raises:
        MetricError: malformed input, no groups, or a horizon beyond follow-up.

    >>> rows = calibration_groups([1, 2, 3, 4, 5, 6], [1, 1, 0, 1, 0, 0], [0.9, 0.9, 0.4, 0.4, 0.1, 0.1], 4, groups=2)
    >>> [(row["predicted"], round(row["observed"], 3), row["n"]) for row in rows]
    [(0.1, 0.0, 2), (0.65, 1.0, 4)]
    """
    days, causes = checked_causes(durations, cause)
    predicted = checked_incidence(incidence, len(days), 1)[:, 0]
    checked_horizons(days, horizon, Censoring(days, causes > 0))
    if groups < 1:
        raise MetricError("calibration needs at least one group", got=groups)
    competing = bool(((causes > 0) & (causes != of_cause)).any())
    _, place, mass = np.unique(predicted, return_inverse=True, return_counts=True)
    group = equal_mass_bins(mass[None].astype(np.float64), groups)[0][place]
    rows: list[dict[str, float | None]] = []
    for index in np.unique(group).tolist():
        inside = group == index
        own_days, own_causes = days[inside], causes[inside]
        row: dict[str, float | None] = {
            "predicted": float(predicted[inside].mean()), "observed": None, "low": None, "high": None,
            "n": int(inside.sum()), "events": int(((own_causes == of_cause) & (own_days <= horizon)).sum()),
        }  # fmt: skip
        survival = kaplan_meier(own_days, own_causes > 0)
        if own_days.max() >= horizon or survival.value[-1] == 0:
            row |= _observed(own_days, own_causes, survival, horizon, of_cause, competing, level)
        rows.append(row)
    return rows


def _observed(
    days: Array, cause: Ints, survival: StepCurve, horizon: float, of_cause: int, competing: bool, level: float
) -> dict[str, float | None]:
    if competing:
        curve = aalen_johansen(days, cause, of_cause)
        value = float(curve.at([horizon])[0])
        low, high = (float(end[0]) for end in curve.interval([horizon], level))
    else:
        value = 1 - float(survival.at([horizon])[0])
        high, low = (1 - float(end[0]) for end in survival.interval([horizon], level))
    if low == high:
        followed = int(((days >= horizon) | (cause > 0)).sum())
        low, high = wilson(value, followed, level)
    return {"observed": value, "low": low, "high": high}


@dataclass(frozen=True)
class DCalibration:
    """How evenly the predicted survival at the subjects' own events spreads over [0, 1].

    Attributes:
        statistic, p: Pearson's chi-square against even shares and its p; a small p speaks against calibration.
        counts: Float [bins]; subjects by survival at their event, from 0 up, the censored spread.
    """

    statistic: float
    p: float
    counts: Array


def d_calibration(
    durations: ArrayLike, event_observed: ArrayLike, prediction: SurvivalPrediction, *, bins: int = 10
) -> DCalibration:
    """Haider's test of calibration over the whole of follow-up.

    An event counts in the bin of its survival. A censored subject, whose event has its survival evenly below that at
    censoring, is spread over its own bin and those below in proportion.

    Args:
        durations: Float [n], days, above 0; longer ones than the prediction are censored at its last day.
        event_observed: Bool [n]; under competing risks an event of any cause.
        prediction: Of the same n subjects.
        bins: Of equal width; [low, high), the last one with 1.

    Raises:
        MetricError: malformed input, a prediction of other subjects, or fewer than 2 bins.

    Source: Haider et al. 2020, Journal of Machine Learning Research 21(85):1-63.

    >>> halves = SurvivalPrediction.of_one_cause([1], [[0.1], [0.5]])
    >>> d_calibration([1, 1], [True, False], halves, bins=2).counts.tolist()
    [2.0, 0.0]
    """
    days, event = checked_outcomes(durations, event_observed)
    if len(prediction) != len(days):
        raise MetricError("a prediction needs one row per subject", got=len(prediction), expected=len(days))
    if bins < 2:
        raise MetricError("D-calibration needs at least two bins", got=bins)
    last = prediction.days[-1]
    event = event & (days <= last)
    at = own_survival(prediction, np.minimum(days, last))
    own = np.minimum((at * bins).astype(np.int64), bins - 1)
    counts = np.bincount(own[event], minlength=bins).astype(np.float64)
    spread, place = at[~event], own[~event]
    width = np.divide(1 / bins, spread, out=np.zeros_like(spread), where=spread > 0)
    within = np.where(place > 0, 1 - place * width, 1.0)
    counts += np.bincount(place, weights=within, minlength=bins)
    # Each bin below takes the same share of a subject: sums from the top down.
    below = np.bincount(place, weights=np.where(place > 0, width, 0.0), minlength=bins)
    counts[:-1] += below[::-1].cumsum()[::-1][1:]
    expected = len(days) / bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return DCalibration(statistic, float(chi2.sf(statistic, bins - 1)), counts)


def own_survival(prediction: SurvivalPrediction, days: Array) -> Array:
    """Survival of each subject at a day of its own, float [n]; days above 0 and at most the last one predicted."""
    edges = np.append(0.0, prediction.days)
    right = np.searchsorted(edges, days, side="left")
    rows = np.arange(len(days))
    end = prediction.survival[rows, right - 1]
    begin = np.where(right > 1, prediction.survival[rows, right - 2], 1.0)
    share = (days - edges[right - 1]) / (edges[right] - edges[right - 1])
    ratio = np.divide(end, begin, out=np.zeros_like(end), where=begin > 0)
    return np.where(share == 1, end, begin * ratio**share)


@dataclass(frozen=True)
class CalibrationIndex:
    """Distance of predicted from smoothed observed incidence over the subjects.

    Attributes:
        ici, e50, e90, largest: Mean, median, 90 % quantile and maximum of |predicted - smoothed|.
        smoothed: Float [n]; observed incidence as a smooth function of the predicted one.
    """

    ici: float
    e50: float
    e90: float
    largest: float
    smoothed: Array


def calibration_index(
    durations: ArrayLike,
    cause: ArrayLike,
    incidence: ArrayLike,
    horizon: float,
    *,
    of_cause: int = 1,
    censoring: StepCurve | None = None,
) -> CalibrationIndex:
    """Integrated calibration index at a horizon.

    The smoothed curve is a binomial regression of the outcome by the horizon on log(-log(1 - predicted)), with
    complementary log-log link, restricted cubic splines of four knots (at the 5, 35, 65 and 95 % quantiles; a line
    where these are fewer than three values, a constant where there is but one) and the weights of `brier_score`. At
    one horizon that is the form of the Cox model of the first source, and of the Fine-Gray model of the second, which
    fit it to all of follow-up.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n], 0 censored; or bool.
        incidence: Float [n]; P(event of the cause by the horizon), kept 1e-6 away from 0 and 1.
        horizon: Days.
        of_cause: The cause.
        censoring: `censoring_curve` of other subjects; of these by default.

    Raises:
        MetricError: as `brier_score`; no event of the cause by the horizon, or nobody without.

    Source: Austin, Harrell & van Klaveren 2020, Statistics in Medicine 39:2714-2742; competing risks: Austin, Putter,
    Giardiello & van Klaveren 2022, Diagnostic and Prognostic Research 6:2; direct binomial regression: Scheike, Zhang
    & Gerds 2008, Biometrika 95:205-220.
    """
    days, causes = checked_causes(durations, cause)
    predicted = checked_incidence(incidence, len(days), 1)[:, 0]
    prepared = Smoothed(days, causes, predicted, horizon, of_cause=of_cause, censoring=censoring)
    smoothed = prepared.smooth(np.ones((1, len(days))))[0]
    gap = np.abs(predicted - smoothed)
    return CalibrationIndex(
        float(gap.mean()), float(np.median(gap)), float(np.quantile(gap, 0.9)), float(gap.max()), smoothed
    )


class Smoothed:
    """Prepared ICI of `calibration_index`; of checked input."""

    def __init__(
        self, days: Array, cause: Ints, incidence: Array, horizon: float, *,
        of_cause: int = 1, censoring: StepCurve | None = None,
    ) -> None:  # fmt: skip
        self._predicted = incidence
        self._weights = HorizonWeights(days, cause, horizon, of_cause, censoring)
        known = self._weights.known[0]
        self._case = known.case.astype(np.float64)
        self._others = known.control | known.competing
        if not known.case.any() or not self._others.any():
            raise MetricError(
                "calibration at a horizon needs subjects with and without the event by then",
                got=f"{int(known.case.sum())} with and {int(self._others.sum())} without by {horizon:g} days",
                remedy="choose another horizon",
            )  # fmt: skip
        self._design = _spline(incidence)

    def smooth(self, weights: Array) -> Array:
        """Smoothed observed incidence, float [resamples, n]; NaN where a resample lacks an outcome or a weight."""
        weighed = self._weights.combine(weights, *self._weights(weights), 0)
        found = np.full(weights.shape, np.nan)
        for row, own in enumerate(weighed):
            if np.isfinite(own).all() and own @ self._case > 0 and own @ self._others > 0:
                fitted = self._design @ _fit_cloglog(self._design, self._case, own)
                # exp(-exp(50)) is 0 in every respect.
                found[row] = -np.expm1(-np.exp(np.minimum(fitted, 50.0)))
        return found

    def __call__(self, weights: Array) -> Array:
        gap = np.abs(self.smooth(weights) - self._predicted)
        return np.einsum("rn,rn->r", weights, gap) / weights.sum(1)


def _spline(predicted: Array) -> Array:
    """Design [n, 1 to 4]: constant, line and restricted cubic terms of the standardised cloglog."""
    kept = np.clip(predicted, _SMALLEST, 1 - _SMALLEST)
    x = np.log(-np.log1p(-kept))
    spread = x.std()
    if np.ptp(x) == 0 or spread == 0:
        return np.ones((len(x), 1))
    x = (x - x.mean()) / spread
    columns = [np.ones_like(x), x]
    knots = np.unique(np.quantile(x, _KNOTS))
    if len(knots) > 2:

        def cubed(knot: float) -> Array:
            return np.maximum(x - knot, 0.0) ** 3

        *inner, last_but_one, last = knots.tolist()
        for knot in inner:
            columns.append(
                cubed(knot)
                - cubed(last_but_one) * (last - knot) / (last - last_but_one)
                + cubed(last) * (last_but_one - knot) / (last - last_but_one)
            )
            columns[-1] /= max(float(columns[-1].std()), 1e-12)
    return np.stack(columns, axis=1)


def _fit_cloglog(design: Array, case: Array, weights: Array) -> Array:
    """Coefficients of largest weighted likelihood, a trace of ridge beside, by Fisher scoring with halved steps."""
    penalty = np.full(design.shape[1], _RIDGE * weights.sum())
    penalty[0] = 0.0
    share = (weights @ case) / weights.sum()
    beta = np.zeros(design.shape[1])
    beta[0] = np.log(-np.log1p(-share))

    def loss(coefficients: Array) -> float:
        rate = np.exp(np.minimum(design @ coefficients, 30.0))
        with np.errstate(divide="ignore"):
            of_case = np.log(-np.expm1(-rate))
        return float(weights @ np.where(case == 1, -np.maximum(of_case, -1e3), rate) + penalty @ coefficients**2 / 2)

    current = loss(beta)
    for _ in range(_STEPS):
        rate = np.exp(np.clip(design @ beta, -30.0, 6.0))
        odds = rate / np.expm1(rate)
        gradient = design.T @ (weights * np.where(case == 1, odds, -rate)) - penalty * beta
        information = (design.T * (weights * rate * odds)) @ design + np.diag(penalty + 1e-12)
        step = np.linalg.solve(information, gradient)
        while (proposed := loss(beta + step)) > current + 1e-12 and np.abs(step).max() > _TOLERANCE:
            step = step / 2
        beta, current = beta + step, proposed
        if np.abs(step).max() < _TOLERANCE:
            break
    return beta
