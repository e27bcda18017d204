"""What every survival model hands to evaluation: curves over days, and a risk score where it has one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrsequencing.errors import MetricError

Array = NDArray[np.float64]
TOLERANCE = 1e-6
"""Curves may miss the range, monotony and sum of probabilities by this much; what they miss by less is mended."""


@dataclass(frozen=True)
class SurvivalPrediction:
    """Survival and cumulative incidence of n subjects at T days, from 1 and 0 at day 0.

    Attributes:
        days: Float [T]; since the prediction time, above 0 and rising.
        survival: Float [n, T]; P(no event of any cause by the day).
        incidence: Float [n, causes, T]; P(event of the cause by the day, before any other). Cause k of the labels
            is row k - 1.
        risk: Float [n], higher for earlier events, of models with a score that holds for all days; else None.
            Infinite scores are ordered.

    Raises:
        MetricError: shapes that do not fit, NaN, days that do not rise from above 0, and curves that leave [0, 1],
            turn round or do not sum to one by more than `TOLERANCE`.

    >>> halves = SurvivalPrediction.of_one_cause([100, 200], [[0.5, 0.25]])
    >>> halves.at([50, 150]).survival.round(4).tolist(), halves.median().tolist()
    ([[0.7071, 0.3536]], [100.0])
    """

    days: Array
    survival: Array
    incidence: Array
    risk: Array | None = None

    def __post_init__(self) -> None:
        days, survival, incidence = (
            np.array(values, dtype=np.float64) for values in (self.days, self.survival, self.incidence)
        )
        if days.ndim != 1 or not len(days) or not np.isfinite(days).all() or days[0] <= 0 or (np.diff(days) <= 0).any():
            raise MetricError("days of a survival prediction must rise from above 0", got=_brief(days))
        if survival.ndim != 2 or not len(survival) or survival.shape[1] != len(days):
            raise MetricError("survival needs one row per subject and one column per day", got=survival.shape,
                              expected=f"(n, {len(days)})")  # fmt: skip
        if incidence.ndim != 3 or not incidence.shape[1] or incidence[:, 0].shape != survival.shape:
            raise MetricError(
                "incidence needs subjects, causes and days", got=incidence.shape,
                expected=f"({len(survival)}, causes, {len(days)})",
            )  # fmt: skip
        for name, curves, fall in (("survival", survival, True), ("incidence", incidence, False)):
            _check_curves(name, curves, -1.0 if fall else 1.0)
        gap = np.abs(survival + incidence.sum(1) - 1)
        if gap.max() > TOLERANCE:
            raise MetricError(
                "survival and incidences do not sum to one", got=f"a gap of {gap.max():.2g}",
                expected=f"at most {TOLERANCE:g}",
            )  # fmt: skip
        risk = self.risk
        if risk is not None:
            risk = np.array(risk, dtype=np.float64)
            if risk.shape != (len(survival),) or np.isnan(risk).any():
                raise MetricError(
                    "risk needs one number per subject", got=f"shape {risk.shape}, {int(np.isnan(risk).sum())} NaN",
                    expected=f"shape ({len(survival)},)",
                )  # fmt: skip
        mended = {
            "days": days,
            "survival": np.minimum.accumulate(np.clip(survival, 0, 1), axis=-1),
            "incidence": np.maximum.accumulate(np.clip(incidence, 0, 1), axis=-1),
            "risk": risk,
        }
        for name, values in mended.items():
            if values is not None:
                values.flags.writeable = False
            object.__setattr__(self, name, values)

    @classmethod
    def of_one_cause(cls, days: ArrayLike, survival: ArrayLike, risk: ArrayLike | None = None) -> SurvivalPrediction:
        """Of survival curves alone, float [n, T]: the incidence of the one cause is the rest."""
        curves = np.asarray(survival, dtype=np.float64)
        return cls(np.asarray(days), curves, 1 - curves[:, None], None if risk is None else np.asarray(risk))

    def __len__(self) -> int:
        return len(self.survival)

    @property
    def causes(self) -> int:
        """Number of causes."""
        return self.incidence.shape[1]

    def take(self, rows: ArrayLike) -> SurvivalPrediction:
        """The prediction of some rows: indices, or bool [n]."""
        chosen = np.asarray(rows)
        risk = None if self.risk is None else self.risk[chosen]
        return SurvivalPrediction(self.days, self.survival[chosen], self.incidence[chosen], risk)

    def at(self, days: ArrayLike) -> SurvivalPrediction:
        """The prediction at other days, with constant hazard between the days given.

        S(t) = S(left) (S(right) / S(left)) ** share; causes share what an interval loses in constant ratio.

        Args:
            days: Float [m], rising, above 0 and at most `self.days[-1]`.

        Raises:
            MetricError: a day beyond the last one predicted, or days that do not rise from above 0.
        """
        asked = np.atleast_1d(np.asarray(days, dtype=np.float64))
        self._within(asked)
        edges, survival, incidence = self._from_day_0()
        right = np.clip(np.searchsorted(edges, asked, side="left"), 1, len(edges) - 1)
        share = (asked - edges[right - 1]) / (edges[right] - edges[right - 1])
        begin, end = survival[:, right - 1], survival[:, right]
        ratio = np.divide(end, begin, out=np.zeros_like(end), where=begin > 0)
        at = np.where(share == 1, end, begin * ratio**share)
        lost = np.divide(begin - at, begin - end, out=np.broadcast_to(share, at.shape).copy(), where=begin > end)
        before, after = incidence[..., right - 1], incidence[..., right]
        there = before + lost[:, None] * (after - before)
        return SurvivalPrediction(asked, at, np.where(share == 1, after, there), self.risk)

    def median(self) -> Array:
        """Day at which survival falls to one half, float [n]; infinite where it stays above on all days predicted."""
        edges, survival, _ = self._from_day_0()
        found = np.full(len(survival), np.inf)
        reached = survival[:, -1] <= 0.5
        right = np.argmax(survival[reached] <= 0.5, axis=1)
        rows = np.flatnonzero(reached)
        begin, end = survival[rows, right - 1], survival[rows, right]
        with np.errstate(divide="ignore"):
            share = np.log(begin / 0.5) / (np.log(begin) - np.log(end))
        found[rows] = edges[right - 1] + share * (edges[right] - edges[right - 1])
        return found

    def restricted_mean(self, horizon: float) -> Array:
        """Expected days without an event within the horizon, float [n]: the area under survival up to it.

        Args:
            horizon: Days, at most `self.days[-1]`.

        Raises:
            MetricError: a horizon beyond the last day predicted, or not above 0.

        Source: Royston & Parmar 2013, BMC Medical Research Methodology 13:152.
        """
        self._within(np.array([horizon], dtype=np.float64))
        days = np.append(self.days[self.days < horizon], horizon)
        edges, survival, _ = self.at(days)._from_day_0()
        begin, end = survival[:, :-1], survival[:, 1:]
        falls = end < begin * (1 - 1e-9)
        with np.errstate(divide="ignore"):
            hazard = np.log(np.where(falls, begin, 1.0)) - np.log(np.where(falls, end, 0.5))
        height = np.where(falls, (begin - end) / hazard, (begin + end) / 2)
        return height @ np.diff(edges)

    def _from_day_0(self) -> tuple[Array, Array, Array]:
        """Days, survival and incidence with day 0 in front."""
        start = np.zeros((*self.incidence.shape[:2], 1))
        survival = np.concatenate([np.ones((len(self), 1)), self.survival], axis=1)
        return np.append(0.0, self.days), survival, np.concatenate([start, self.incidence], axis=2)

    def _within(self, days: Array) -> None:
        if days.size and not (days > 0).all():
            raise MetricError("a survival prediction is asked for days after the prediction time", got=_brief(days),
                              expected="above 0")  # fmt: skip
        if days.size and days.max() > self.days[-1]:
            raise MetricError(
                "a day beyond the last one predicted", got=f"{days.max():g} days",
                expected=f"at most {self.days[-1]:g}", remedy="ask for an earlier day, or predict on a longer grid",
            )  # fmt: skip


def _check_curves(name: str, curves: Array, sign: float) -> None:
    if unusable := int((~np.isfinite(curves)).sum()):
        raise MetricError(f"{name} must be finite", got=f"{unusable} values that are not",
                          remedy="NaN comes from a diverged training")  # fmt: skip
    if curves.min() < -TOLERANCE or curves.max() > 1 + TOLERANCE:
        raise MetricError(f"{name} must lie in [0, 1]", got=f"{curves.min():g} to {curves.max():g}")
    if curves.shape[-1] > 1 and (worst := (sign * np.diff(curves, axis=-1)).min()) < -TOLERANCE:
        direction = "never fall" if sign > 0 else "never rise"
        raise MetricError(f"{name} must {direction} with time", got=f"a step of {sign * worst:.2g}")


def _brief(days: Array) -> str:
    return np.array2string(days, threshold=8, precision=6, separator=", ").replace("\n", "")
