"""The censoring distribution under many weightings of the same subjects, and what can be known by a horizon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival_curves import Array, Bools, Ints, StepCurve


class Censoring:
    """Probability G of not being censored by a day, estimated anew for each weighting, or given.

    G counts the censorings of the day itself and takes the day's events out of risk first, as scikit-survival does.

    Args:
        durations: Float [n].
        event: Bool [n]; an event of any cause.
        given: A `censoring_curve` of other subjects, such as train; then weights change nothing.
    """

    def __init__(self, durations: Array, event: Bools, given: StepCurve | None = None) -> None:
        self.days, self._time = np.unique(durations, return_inverse=True)
        self.own = self._time + 1
        self.given = given
        moment = 2 * self._time + ~event
        self._order = np.argsort(moment, kind="stable")
        ordered = moment[self._order]
        self._starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        self._moments = ordered[self._starts]

    def curve(self, weights: Array) -> Array:
        """G before the first day and after each distinct day, float [resamples or 1, days + 1]."""
        if self.given is not None:
            return np.append(1.0, self.given.at(self.days))[None]
        leaving = np.zeros((len(weights), 2 * len(self.days)))
        leaving[:, self._moments] = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        event, censored = leaving[:, ::2], leaving[:, 1::2]
        at_risk = (event + censored)[:, ::-1].cumsum(1)[:, ::-1] - event
        hazard = np.divide(censored, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
        return np.concatenate([np.ones((len(weights), 1)), np.cumprod(1 - hazard, axis=1)], axis=1)

    def place(self, days: ArrayLike) -> Ints:
        """Column of `curve` for each day."""
        return np.searchsorted(self.days, days, side="right")

    def require(self, day: float, what: str) -> None:
        """Refuse what needs G beyond the day at which it is known and above 0.

        Raises:
            MetricError: naming the largest possible day.
        """
        if self.given is not None and day > self.given.days[-1] and self.given.value[-1] > 0:
            raise MetricError(
                f"{what} lies beyond the follow-up of the censoring curve", got=f"{day:g} days",
                expected=f"at most {self.given.days[-1]:g}",
            )  # fmt: skip
        curve = self.curve(np.ones((1, len(self._time))))[0]
        at = self.given.at([day])[0] if self.given is not None else curve[self.place([day])[0]]
        if at <= 0:
            known, values = (self.days, curve[1:]) if self.given is None else (self.given.days, self.given.value)
            raise MetricError(
                f"{what} lies where nobody is uncensored any more", got=f"{day:g} days",
                expected=f"below {known[np.argmax(values <= 0)]:g}", remedy="choose an earlier one",
            )  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What is known about each subject by a horizon.

    Attributes:
        case: Bool [n]; had the event of the cause by the horizon.
        control: Bool [n]; still under observation without any event after the horizon.
        competing: Bool [n]; had an event of another cause by the horizon.
    """

    case: Bools
    control: Bools
    competing: Bools


def known_by(durations: Array, cause: Ints, horizon: float, of_cause: int) -> Known:
    """What is known by a horizon; who is censored by then is none of the three."""
    by = durations <= horizon
    return Known(by & (cause == of_cause), ~by, by & (cause > 0) & (cause != of_cause))


def checked_horizons(durations: Array, horizons: ArrayLike, censoring: Censoring) -> Array:
    """Horizons as float [H], rising, each within follow-up.

    Raises:
        MetricError: none, not rising from above 0, or beyond what can be known, with the largest possible one.
    """
    days = np.atleast_1d(np.asarray(horizons, dtype=np.float64))
    if days.ndim != 1 or not len(days) or not np.isfinite(days).all() or days[0] <= 0 or (np.diff(days) <= 0).any():
        raise MetricError("horizons must be days that rise from above 0", got=days.tolist())
    if days[-1] > (last := durations.max()):
        raise MetricError(
            "a horizon beyond the end of follow-up", got=f"{days[-1]:g} days", expected=f"at most {last:g}",
            remedy="choose an earlier horizon",
        )  # fmt: skip
    censoring.require(float(days[-1]), "a horizon")
    return days
