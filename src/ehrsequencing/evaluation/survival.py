"""Concordance of risks with times to an event: Harrell's, Uno's, Antolini's and, for competing risks, Wolbers'.

Of a comparable pair, the first subject has the event and the second comes later: its duration is longer, or as long
and censored. Two events of one day are no pair. A pair is concordant where the first has the higher risk; equal risks,
compared exactly, count one half. Infinite risks are ordered like any other number.

Each concordance is a class, prepared once and called with multiplicities of the rows [resamples, n], beside a function
for the rows as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival_censoring import Censoring
from ehrsequencing.evaluation.survival_curves import (
    Array,
    Bools,
    Ints,
    StepCurve,
    checked_causes,
    checked_outcomes,
    checked_risk,
)
from ehrsequencing.evaluation.survival_pairs import PairCounts, dense_ranks
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction

_CELLS = 1 << 22


class Prepared(Protocol):
    """A metric of one prediction on one population."""

    def __call__(self, weights: Array) -> Array:
        """Values float [resamples] under multiplicities of the rows, float [resamples, n]; NaN where undefined."""


def value_of(prepared: Prepared, n: int, undefined: str) -> float:
    """The metric on the rows as they are.

    Raises:
        MetricError: it is undefined.
    """
    value = float(prepared(np.ones((1, n)))[0])
    if np.isnan(value):
        raise MetricError(undefined, got=f"{n} subjects", remedy="use more subjects, events or longer follow-up")
    return value


NO_PAIR = "concordance is undefined without a comparable pair: an event and a later duration"


class Harrell:
    """Prepared `concordance_index`; of checked input."""

    def __init__(self, days: Array, event: Bools, risk: Array, *, tau: float | None = None, keep: bool = False) -> None:
        self._pairs = PairCounts(days, _before(event, days, tau), risk, keep=keep)

    def __call__(self, weights: Array) -> Array:
        return ratio(*self._pairs.sums(weights, weights))


class Uno:
    """Prepared `uno_concordance`; of checked input."""

    def __init__(
        self,
        days: Array,
        event: Bools,
        risk: Array,
        *,
        tau: float | None = None,
        censoring: StepCurve | None = None,
        keep: bool = False,
    ) -> None:
        self._counted = _before(event, days, tau)
        self._pairs = PairCounts(days, self._counted, risk, keep=keep)
        self._censoring = Censoring(days, event, censoring)
        if self._counted.any():
            self._censoring.require(float(days[self._counted].max()), "the last event, or tau,")

    def __call__(self, weights: Array) -> Array:
        inverse = inverse_weights(self._censoring.curve(weights)[:, self._censoring.own])
        return ratio(*self._pairs.sums(np.where(self._counted, weights * inverse**2, 0.0), weights))


class Wolbers:
    """Prepared `wolbers_concordance`; of checked input."""

    def __init__(
        self,
        days: Array,
        cause: Ints,
        risk: Array,
        *,
        of_cause: int = 1,
        tau: float | None = None,
        weighted: bool = False,
        keep: bool = False,
    ) -> None:
        competing = (cause > 0) & (cause != of_cause)
        counted = _before(cause == of_cause, days, tau)
        self._counted, self._competing = counted, competing
        self._censoring: Censoring | None = None
        if not weighted:
            self._pairs = PairCounts(np.where(competing, np.inf, days), counted, risk, keep=keep)
            return
        self._censoring = Censoring(days, cause > 0)
        if counted.any():
            self._censoring.require(float(days[counted].max()), "the last event, or tau,")
        self._later = PairCounts(days, counted, risk, keep=keep)
        # Time turned round, competing events of a day before its others: they are pairs of `_later` already.
        self._earlier = PairCounts(-(2 * dense_ranks(days) + ~counted).astype(np.float64), counted, risk, keep=keep)

    def __call__(self, weights: Array) -> Array:
        if self._censoring is None:
            return ratio(*self._pairs.sums(weights, weights))
        inverse = inverse_weights(self._censoring.curve(weights)[:, self._censoring.own])
        first = np.where(self._counted, weights * inverse, 0.0)
        total, good = self._later.sums(np.where(self._counted, first * inverse, 0.0), weights)
        # A competing event where G is 0 comes earlier than no first of a pair.
        known = np.where(self._competing & ~np.isnan(inverse), weights * inverse, 0.0)
        more, better = self._earlier.sums(first, known)
        return ratio(total + more, good + better)


class Antolini:
    """Prepared `antolini_concordance`; of checked input."""

    def __init__(
        self,
        days: Array,
        cause: Ints,
        prediction: SurvivalPrediction,
        *,
        of_cause: int = 1,
        tau: float | None = None,
    ) -> None:
        if len(prediction) != len(days):
            raise MetricError("a prediction needs one row per subject", got=len(prediction), expected=len(days))
        if not 1 <= of_cause <= prediction.causes:
            raise MetricError("the prediction has no such cause", got=of_cause, expected=f"1 to {prediction.causes}")
        event = _before((cause == of_cause) & (days <= prediction.days[-1]), days, tau)
        # A competing event keeps its subject from the event for good.
        until = np.where((cause > 0) & (cause != of_cause), np.inf, days)
        self._order = np.lexsort((~event, until))
        until, event = until[self._order], event[self._order]
        self._firsts = np.flatnonzero(event)
        self._day = until[self._firsts]
        # On its day the events come first, so what is later begins after the last of them.
        self._later = self._firsts[np.searchsorted(self._day, self._day, side="right") - 1] + 1
        self._prediction, self._of_cause = prediction, of_cause

    def __call__(self, weights: Array) -> Array:
        ordered = np.ascontiguousarray(weights[:, self._order].T)
        exact = ordered.astype(np.float32)
        left = np.concatenate([ordered[::-1].cumsum(0)[::-1], np.zeros((1, ordered.shape[1]))])
        total = np.einsum("er,er->r", ordered[self._firsts], left[self._later])
        good = np.zeros(len(total))
        for block, won in self._blocks():
            # Halves of whole numbers: their sums in single precision are exact below 2**23.
            beaten = won @ exact[len(exact) - won.shape[1] :]
            good += np.einsum("er,er->r", ordered[self._firsts[block]], beaten.astype(np.float64))
        return ratio(total, good)

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Events, and what each wins against all rows from the first that is later than one of them."""
        n, done, interval, safety = len(self._order), 0, 1, self._interval(1)
        edges = np.append(0.0, self._prediction.days)
        while done < len(self._firsts):
            start, begin = int(self._firsts[done]), int(self._later[done])
            block = slice(done, min(len(self._firsts), done + max(1, _CELLS // max(n - begin, 1))))
            won = np.zeros((block.stop - done, n - begin), np.float32)
            for day in np.unique(self._day[block]):
                right = int(np.searchsorted(edges, day, side="left"))
                if right != interval:
                    interval, safety = right, self._interval(right)
                at = safety((day - edges[right - 1]) / (edges[right] - edges[right - 1]), start)
                of_day = np.searchsorted(self._day[block], [day, np.nextafter(day, np.inf)])
                for event in range(*(done + of_day)):
                    others, own = at[self._later[event] - start :], at[self._firsts[event] - start]
                    row = won[event - done, self._later[event] - begin :]
                    np.add(others > own, np.float32(0.5) * (others == own), out=row)
            yield block, won
            done = block.stop

    def _interval(self, right: int) -> Callable[[float, int], Array]:
        """Within the interval of the prediction that ends at day `right`: safety at a share of it, from a row on."""
        survival = (
            _column(self._prediction.survival, right, 1.0)[self._order],
            _column(self._prediction.survival, right - 1, 1.0)[self._order],
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            end, begin = np.log(survival[0]), np.log(survival[1])
            slope = np.where(np.isinf(begin), 0.0, end - begin)
        if self._prediction.causes == 1:
            return lambda share, row: end[row:] if share == 1 else begin[row:] + share * slope[row:]
        incidence = self._prediction.incidence[:, self._of_cause - 1]
        after, before = (_column(incidence, place, 0.0)[self._order] for place in (right, right - 1))
        lost = survival[1] - survival[0]

        def safety(share: float, row: int) -> Array:
            if share == 1:
                return -after[row:]
            fallen, all_lost = -survival[1][row:] * np.expm1(share * slope[row:]), lost[row:]
            part = np.divide(fallen, all_lost, out=np.full_like(fallen, share), where=all_lost > 0)
            return -(before[row:] + part * (after[row:] - before[row:]))

        return safety


def concordance_index(
    durations: ArrayLike, event_observed: ArrayLike, risk: ArrayLike, *, tau: float | None = None
) -> float:
    """Harrell's C, in n log n: share of comparable pairs in which the earlier event had the higher risk.

    0.5 where all risks are equal. Equal to lifelines' (which takes -risk) exactly, ties included.

    Args:
        durations: Float [n], days, above 0.
        event_observed: Bool [n].
        risk: Float [n], higher for earlier events.
        tau: Days; only events before it count as the first of a pair.

    Raises:
        MetricError: no comparable pair; NaN, wrong shapes or durations (`checked_outcomes`, `checked_risk`).

    Source: Harrell, Lee & Mark 1996, Statistics in Medicine 15:361-387.

    >>> concordance_index([1, 2, 3, 4], [True, False, True, False], [0.9, 0.1, 0.3, 0.3])
    0.875
    """
    days, event = checked_outcomes(durations, event_observed)
    return value_of(Harrell(days, event, checked_risk(risk, len(days)), tau=tau), len(days), NO_PAIR)


def uno_concordance(
    durations: ArrayLike,
    event_observed: ArrayLike,
    risk: ArrayLike,
    *,
    tau: float | None = None,
    censoring: StepCurve | None = None,
) -> float:
    """Uno's C: Harrell's with each pair weighted by 1 / G^2 at its event, which censoring does not bias.

    Equal to scikit-survival's `concordance_index_ipcw` to 1e-9, except for risks that differ by less than its 1e-8.

    Args:
        durations, event_observed, risk: As `concordance_index`.
        tau: Days; only events before it count as the first of a pair. Late events weigh much: choose it.
        censoring: `censoring_curve` of other subjects; of these by default.

    Raises:
        MetricError: as `concordance_index`; an event that counts where G is 0, with the largest possible tau.

    Source: Uno et al. 2011, Statistics in Medicine 30:1105-1117.

    >>> round(uno_concordance([1, 2, 3, 4], [True, False, True, False], [0.9, 0.1, 0.3, 0.3]), 4)
    0.7857
    """
    days, event = checked_outcomes(durations, event_observed)
    prepared = Uno(days, event, checked_risk(risk, len(days)), tau=tau, censoring=censoring)
    return value_of(prepared, len(days), NO_PAIR)


def wolbers_concordance(
    durations: ArrayLike,
    cause: ArrayLike,
    risk: ArrayLike,
    *,
    of_cause: int = 1,
    tau: float | None = None,
    weighted: bool = False,
) -> float:
    """Wolbers' C under competing risks: who had another event, on whatever day, counts as never having this one.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n]; 0 censored.
        risk: Float [n], higher for earlier or likelier events of the cause.
        of_cause: The cause.
        tau: Days; only events before it count as the first of a pair.
        weighted: By inverse probability of censoring: 1 / G^2 at the event of the first, or where the second had its
            competing event earlier, 1 / G at the event of each. Without competing events that is Uno's C.

    Raises:
        MetricError: as `uno_concordance`.

    Source: Wolbers et al. 2009, Epidemiology 20:555-561; weighted: Wolbers et al. 2014, Biostatistics 15:526-539.

    >>> wolbers_concordance([1, 2, 3, 4], [2, 1, 1, 0], [0.9, 0.5, 0.6, 0.1])
    0.4
    """
    days, causes = checked_causes(durations, cause)
    prepared = Wolbers(days, causes, checked_risk(risk, len(days)), of_cause=of_cause, tau=tau, weighted=weighted)
    return value_of(prepared, len(days), NO_PAIR)


def antolini_concordance(
    durations: ArrayLike,
    cause: ArrayLike,
    prediction: SurvivalPrediction,
    *,
    of_cause: int = 1,
    tau: float | None = None,
) -> float:
    """Antolini's time-dependent C: of a pair, the first should have the lower survival on the day of its event.

    Equal survival counts one half. Curves that never cross give Harrell's C. Where the prediction has several causes,
    the first should have the higher cumulative incidence of the cause on that day, and pairs are those of
    `wolbers_concordance`. Time grows with events times subjects.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n], 0 censored; or bool.
        prediction: Of the same n subjects; events after its last day are not the first of any pair.
        of_cause: The cause.
        tau: Days; only events before it count as the first of a pair.

    Raises:
        MetricError: as `concordance_index`; a prediction of other subjects or without the cause.

    Source: Antolini, Boracchi & Biganzoli 2005, Statistics in Medicine 24:3927-3944, with half for ties.

    >>> crossing = SurvivalPrediction.of_one_cause([1, 2, 3], [[0.5, 0.4, 0.3], [0.9, 0.2, 0.1], [0.8, 0.7, 0.6]])
    >>> antolini_concordance([1, 2, 3], [1, 1, 0], crossing)
    1.0
    """
    days, causes = checked_causes(durations, cause)
    return value_of(Antolini(days, causes, prediction, of_cause=of_cause, tau=tau), len(days), NO_PAIR)


def _before(event: Bools, days: Array, tau: float | None) -> Bools:
    if tau is None:
        return event
    if not tau > 0:
        raise MetricError("tau is a number of days above 0", got=tau)
    return event & (days < tau)


def inverse_weights(g: Array) -> Array:
    """1 / G, NaN where G is 0: what needs such a weight is undefined."""
    return np.divide(1.0, g, out=np.full_like(g, np.nan), where=g > 0)


def _column(curves: Array, place: int, start: float) -> Array:
    """Curves [n, T] at a place, where place 0 is day 0."""
    return curves[:, place - 1] if place else np.full(len(curves), start)


def ratio(total: Array, good: Array) -> Array:
    """good / total, at most 1 where rounding says more; NaN where the total is 0."""
    return np.minimum(np.divide(good, total, out=np.full_like(good, np.nan), where=total > 0), 1.0)
