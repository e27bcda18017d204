"""Harrell's C that the true log-hazard of a proportional-hazards outcome has in expectation, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from ehrsequencing.errors import ConfigError

Array = NDArray[np.float64]
MAX_BETA = 30.0
_NODES, _PANEL = 24, 4.0
"""Nodes in each panel of log-time, and how wide a panel is in the logarithm of the cumulative hazard."""
_FIRST, _LAST = 1e-7, 60.0
"""Cumulative hazards of the riskiest subject and of the safest between which all is decided."""


@dataclass(frozen=True)
class Baseline:
    """S(t | z) = exp(-(t / scale_days) ** shape * exp(log-hazard)); a shape of 1 is the exponential distribution.

    Attributes:
        scale_days: By which a subject of log-hazard 0 has had the event with probability 1 - 1/e.
        shape: Of the Weibull distribution.
        horizon_days: Administrative end of follow-up; infinite for none.
    """

    scale_days: float
    shape: float = 1.0
    horizon_days: float = np.inf

    def survival(self, log_hazard: Array, days: float | Array) -> Array:
        """S(t | z), float64 of the broadcast shape."""
        return np.exp(-((np.asarray(days, dtype=np.float64) / self.scale_days) ** self.shape) * np.exp(log_hazard))

    def times(self, log_hazard: Array, exponential: Array) -> Array:
        """Days at which the cumulative hazard reaches standard exponential numbers."""
        times: Array = self.scale_days * (exponential * np.exp(-log_hazard)) ** (1 / self.shape)
        return times


def expected_harrell(log_hazard: Array, baseline: Baseline, censoring_per_day: Array | float = 0.0) -> float:
    """P(the subject of higher log-hazard has the event first | the pair is comparable).

    Under proportional hazards subject i has its event before j with probability h_i / (h_i + h_j) whenever one of them
    has it while both are followed. Which pairs come to that depends on follow-up: short or heavy censoring leaves more
    pairs of high hazards. So does Harrell's C, and this is its value under the follow-up stated, as n grows. Without
    censoring and horizon every pair counts once: the mean of 1 / (1 + exp(-|difference of log-hazards|)).

    Args:
        log_hazard: Float [n]; equal ones count half.
        baseline: Baseline hazard and horizon.
        censoring_per_day: Rates of exponential censoring, one or float [n]; it may depend on anything that, given the
            log-hazards, does not depend on the time of the event.

    Source: Harrell et al. 1982, JAMA 247:2543-2546; Goenen & Heller 2005, Biometrika 92:965-970 (the pair's
    probability).
    """
    order = np.argsort(log_hazard, kind="stable")
    risk = np.asarray(log_hazard, dtype=np.float64)[order]
    leaving = np.broadcast_to(np.asarray(censoring_per_day, dtype=np.float64), order.shape)[order]
    below, upto = np.searchsorted(risk, risk, "left"), np.searchsorted(risk, risk, "right")
    hazard = np.exp(risk)
    start = np.log(baseline.scale_days) + (np.log(_FIRST) - risk[-1]) / baseline.shape
    end = np.log(baseline.scale_days) + (np.log(_LAST) - risk[0]) / baseline.shape
    end = min(end, np.log(baseline.horizon_days))
    if (fastest := float(leaving.max())) > 0:
        start = min(start, np.log(_FIRST / fastest))
    start = min(start, end - _PANEL)
    panels = int(np.ceil((end - start) * baseline.shape / _PANEL))
    place, weight = np.polynomial.legendre.leggauss(_NODES)
    nodes = start + (end - start) * (np.arange(panels)[:, None] + (place + 1) / 2).ravel() / panels
    good = total = 0.0
    for log_days, share in zip(nodes, np.tile(weight, panels), strict=True):
        cumulative = np.exp(baseline.shape * (log_days - np.log(baseline.scale_days))) * hazard
        followed = np.exp(-cumulative - leaving * np.exp(log_days))
        event = cumulative * followed
        sums = np.concatenate([[0.0], np.cumsum(followed)])
        tied = sums[upto] - sums[below] - followed
        good += share * float(event @ (sums[below] + tied / 2))
        total += share * float(event @ (sums[-1] - followed))
    return float(good / total)


def scale_for(log_hazard: Array, shape: float, horizon_days: float, events: float) -> float:
    """The scale at which a share `events` of subjects has had the event by the horizon, in days."""
    hazard = np.exp(log_hazard)

    def excess(log_cumulative: float) -> float:
        return float(-np.expm1(-np.exp(log_cumulative) * hazard).mean() - events)

    widest = float(np.abs(log_hazard).max()) + 10
    reached = brentq(excess, -widest - 30, widest + 10, xtol=1e-12)
    return float(horizon_days * np.exp(-reached / shape))


def solve_beta(z: Array, best_c: float, *, horizon_days: float, shape: float = 1.0, events: float = 0.5) -> float:
    """The strength beta at which the score z itself has an expected Harrell's C of `best_c`.

    The log-hazard is beta * z, follow-up ends at the horizon for all, and `events` of them have the event by then.

    Args:
        z: Float [n].
        best_c: Between 0.5 and what ties of z allow.
        horizon_days: Administrative end.
        shape: Of the Weibull baseline.
        events: Share of subjects with the event by the horizon.

    Raises:
        ConfigError: `best_c` cannot be reached.
    """

    def reached(beta: float) -> float:
        scale = scale_for(beta * z, shape, horizon_days, events)
        return expected_harrell(beta * z, Baseline(scale, shape, horizon_days))

    most = reached(MAX_BETA)
    if not 0.5 < best_c < most:
        raise ConfigError(
            "no strength gives this best C", got=f"{best_c:g}", expected=f"above 0.5 and below {most:.3f}",
            remedy="state another best C",
        )  # fmt: skip
    return float(brentq(lambda beta: reached(beta) - best_c, 0.0, MAX_BETA, xtol=1e-9))
