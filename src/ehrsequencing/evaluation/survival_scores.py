"""Brier score and cumulative/dynamic AUC at horizons, weighted by the inverse probability of censoring.

By a horizon t, a subject is a case (event of the cause by t), a control (observed after t), has had a competing event,
or is censored. Cases and competing events weigh 1 / G(T), controls 1 / G(t), the censored 0. Predictions are cumulative
incidences of the cause: with one cause, 1 - survival.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival import inverse_weights, ratio, value_of
from ehrsequencing.evaluation.survival_censoring import Censoring, Known, checked_horizons, known_by
from ehrsequencing.evaluation.survival_curves import (
    Array,
    Ints,
    StepCurve,
    aalen_johansen,
    checked_causes,
    checked_risk,
)


class HorizonWeights:
    """Weights of subjects at horizons, under many weightings of the rows; of checked input.

    Attributes:
        horizons: Float [H], days.
        known: Cases, controls and competing events of each horizon.
    """

    def __init__(
        self, days: Array, cause: Ints, horizons: ArrayLike, of_cause: int, censoring: StepCurve | None
    ) -> None:
        self._censoring = Censoring(days, cause > 0, censoring)
        self.horizons = checked_horizons(days, horizons, self._censoring)
        self.known: list[Known] = [known_by(days, cause, float(t), of_cause) for t in self.horizons]
        self._places = self._censoring.place(self.horizons)

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """1 / G at each subject's duration [resamples, n] and at each horizon [resamples, H]; NaN where G is 0."""
        curve, given = self._censoring.curve(weights), self._censoring.given
        at = curve[:, self._places] if given is None else given.at(self.horizons)[None]
        return inverse_weights(curve[:, self._censoring.own]), inverse_weights(at)

    def combine(self, weights: Array, own: Array, at: Array, column: int) -> Array:
        """From what a call returned, weights of all subjects at one horizon, multiplicities included."""
        known = self.known[column]
        happened = known.case | known.competing
        weighed = np.where(happened, weights * own, 0.0)
        weighed += np.where(known.control, weights * at[:, column : column + 1], 0.0)
        return np.where(weights > 0, weighed, 0.0)


class Brier:
    """Prepared `brier_score`, or `integrated_brier` where there are several horizons; of checked input."""

    def __init__(
        self, days: Array, cause: Ints, incidence: Array, horizons: ArrayLike, *,
        of_cause: int = 1, censoring: StepCurve | None = None,
    ) -> None:  # fmt: skip
        self._weights = HorizonWeights(days, cause, horizons, of_cause, censoring)
        self._errors = [(known.case - incidence[:, column]) ** 2 for column, known in enumerate(self._weights.known)]

    def by_horizon(self, weights: Array) -> Array:
        """Float [resamples, H]."""
        own, at = self._weights(weights)
        total = weights.sum(1)
        return np.stack(
            [
                self._weights.combine(weights, own, at, column) @ errors / total
                for column, errors in enumerate(self._errors)
            ],
            axis=1,
        )

    def __call__(self, weights: Array) -> Array:
        scores, horizons = self.by_horizon(weights), self._weights.horizons
        return scores[:, 0] if len(horizons) == 1 else trapezoid_mean(scores, horizons)


class CumulativeAUC:
    """Prepared `cumulative_auc`, its mean where there are several horizons; of checked input."""

    def __init__(
        self, days: Array, cause: Ints, risk: Array, horizons: ArrayLike, *,
        of_cause: int = 1, censoring: StepCurve | None = None,
    ) -> None:  # fmt: skip
        self._weights = HorizonWeights(days, cause, horizons, of_cause, censoring)
        at = self._weights.horizons
        self._orders: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        for column, known in enumerate(self._weights.known):
            if not known.case.any() or not (known.control | known.competing).any():
                raise MetricError(
                    "AUC at a horizon needs cases and controls", got=f"{int(known.case.sum())} cases and "
                    f"{int((known.control | known.competing).sum())} controls by {at[column]:g} days",
                    remedy="choose another horizon",
                )  # fmt: skip
            if not column or risk.ndim == 2:
                score = risk if risk.ndim == 1 else risk[:, column]
                order = np.argsort(score)
                ordered = score[order]
                starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
            self._orders.append((order, starts))
        gained = np.diff(aalen_johansen(days, cause, of_cause).at(at), prepend=0.0)
        self._share = gained / gained.sum()

    def by_horizon(self, weights: Array) -> Array:
        """Float [resamples, H]."""
        own, at = self._weights(weights)
        found = np.empty((len(weights), len(self._orders)))
        for column, (order, starts) in enumerate(self._orders):
            known = self._weights.known[column]
            weighed = self._weights.combine(weights, own, at, column)[:, order]
            case = known.case[order]
            cases = np.add.reduceat(weighed * case, starts, axis=1)
            others = np.add.reduceat(weighed * ~case, starts, axis=1)
            beaten = np.einsum("rg,rg->r", cases, np.cumsum(others, axis=1) - others / 2)
            found[:, column] = ratio(cases.sum(1) * others.sum(1), beaten)
        return found

    def mean(self, by_horizon: Array) -> Array:
        """Float [resamples], of what `by_horizon` returned."""
        return by_horizon @ self._share

    def __call__(self, weights: Array) -> Array:
        return self.mean(self.by_horizon(weights))


def brier_score(
    durations: ArrayLike,
    cause: ArrayLike,
    incidence: ArrayLike,
    horizons: ArrayLike,
    *,
    of_cause: int = 1,
    censoring: StepCurve | None = None,
) -> Array:
    """Mean squared distance of predicted incidence and outcome at each horizon, float [H].

    With one cause equal to scikit-survival's `brier_score` to 1e-9 (which takes 1 - incidence).

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n], 0 censored; or bool.
        incidence: Float [n, H], or [n] at one horizon; P(event of the cause by the horizon).
        horizons: Float [H], days, rising; up to where G is above 0.
        of_cause: The cause.
        censoring: `censoring_curve` of other subjects; of these by default.

    Raises:
        MetricError: malformed input; a horizon beyond follow-up or where G is 0, with the largest possible one.

    Source: Graf et al. 1999, Statistics in Medicine 18:2529-2545; competing risks: Schoop et al. 2011, Biometrical
    Journal 53:88-112.

    >>> brier_score([1, 2, 3, 4], [1, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], 2.5).round(4).tolist()
    [0.25]
    """
    days, causes, predicted = _checked(durations, cause, incidence, horizons)
    prepared = Brier(days, causes, predicted, horizons, of_cause=of_cause, censoring=censoring)
    return prepared.by_horizon(np.ones((1, len(days))))[0]


def integrated_brier(
    durations: ArrayLike,
    cause: ArrayLike,
    incidence: ArrayLike,
    horizons: ArrayLike,
    *,
    of_cause: int = 1,
    censoring: StepCurve | None = None,
) -> float:
    """Mean of the Brier score from the first to the last horizon, by the trapezoid rule.

    Args and errors as `brier_score`, with at least two horizons. Equal to scikit-survival's `integrated_brier_score`.

    >>> round(integrated_brier([1, 2, 3, 4], [1, 0, 1, 1], [[0.2, 0.4]] * 4, [1, 2]), 6)
    0.2
    """
    days, causes, predicted = _checked(durations, cause, incidence, horizons)
    if predicted.shape[1] < 2:
        raise MetricError("an integrated Brier score needs at least two horizons", got=predicted.shape[1])
    prepared = Brier(days, causes, predicted, horizons, of_cause=of_cause, censoring=censoring)
    return value_of(prepared, len(days), "the Brier score is undefined")


def cumulative_auc(
    durations: ArrayLike,
    cause: ArrayLike,
    risk: ArrayLike,
    horizons: ArrayLike,
    *,
    of_cause: int = 1,
    censoring: StepCurve | None = None,
) -> tuple[Array, float]:
    """Cumulative/dynamic AUC: chance that a case by the horizon outranks who is no case then, ties counting one half.

    No case are the controls and, under competing risks, who had another event by the horizon. With one cause equal to
    scikit-survival's `cumulative_dynamic_auc` to 1e-9, except for risks that differ by less than its 1e-8.

    Args:
        durations, cause, horizons, of_cause, censoring: As `brier_score`.
        risk: Float [n], or [n, H] by horizon; higher for earlier or likelier events.

    Returns:
        AUC at each horizon, float [H], and their mean weighted by the growth of the observed incidence of the cause up
        to each.

    Raises:
        MetricError: as `brier_score`; a horizon without cases or without others.

    Source: Uno et al. 2007, Journal of the American Statistical Association 102:527-537; competing risks: Blanche,
    Dartigues & Jacqmin-Gadda 2013, Statistics in Medicine 32:5381-5397, definition ii.

    >>> cumulative_auc([1, 2, 3, 4], [1, 1, 0, 1], [0.9, 0.2, 0.3, 0.1], [1, 2])[0].tolist()
    [1.0, 0.75]
    """
    days, causes = checked_causes(durations, cause)
    scores = np.asarray(risk, dtype=np.float64)
    columns = np.size(horizons)
    if scores.ndim == 2:
        if scores.shape != (len(days), columns):
            raise MetricError(
                "risk needs one column per horizon", got=scores.shape, expected=f"({len(days)}, {columns})"
            )
        checked_risk(scores.ravel(), scores.size)
    else:
        scores = checked_risk(scores, len(days))
    prepared = CumulativeAUC(days, causes, scores, horizons, of_cause=of_cause, censoring=censoring)
    by_horizon = prepared.by_horizon(np.ones((1, len(days))))
    return by_horizon[0], float(prepared.mean(by_horizon)[0])


def trapezoid_mean(values: Array, days: Array) -> Array:
    """Mean over time of values [..., T] at days, float [...]."""
    return np.trapezoid(values, days, axis=-1) / (days[-1] - days[0])


def _checked(
    durations: ArrayLike, cause: ArrayLike, incidence: ArrayLike, horizons: ArrayLike
) -> tuple[Array, Ints, Array]:
    days, causes = checked_causes(durations, cause)
    return days, causes, checked_incidence(incidence, len(days), np.size(horizons))


def checked_incidence(incidence: ArrayLike, n: int, horizons: int) -> Array:
    """Incidences as float64 [n, H].

    Raises:
        MetricError: another shape, or values that are not in [0, 1].
    """
    predicted = np.asarray(incidence, dtype=np.float64)
    if predicted.ndim == 1 and horizons == 1:
        predicted = predicted[:, None]
    if predicted.shape != (n, horizons):
        raise MetricError("incidence needs one column per horizon", got=predicted.shape, expected=f"({n}, {horizons})")
    if unusable := int((~((predicted >= 0) & (predicted <= 1))).sum()):
        raise MetricError(
            "incidences must lie in [0, 1]", got=f"{unusable} of {predicted.size} that do not",
            remedy="risk scores without a scale go to concordance and AUC; NaN comes from a diverged training",
        )  # fmt: skip
    return predicted
