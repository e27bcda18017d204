"""Cox regression with an elastic net on sparse features, and the cumulative hazard that belongs to its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse

from ehrsequencing.errors import LabelError, ShapeError

Floats = NDArray[np.float64]
_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class CoxFit:
    """Weights of one penalty.

    Attributes:
        weights: Float [features]; log hazard ratio per unit of the feature.
        penalty: As given.
        converged: Whether the solver met its tolerance.
    """

    weights: Floats
    penalty: float
    converged: bool


class PartialLikelihood:
    """Negative log partial likelihood of log hazards, per subject, ties after Efron.

    Args:
        durations: Float [n], above 0.
        event_observed: Bool [n].

    Raises:
        LabelError: no event.
        ShapeError: lengths differ.

    Source: Efron 1977, doi:10.1080/01621459.1977.10480613.
    """

    def __init__(self, durations: ArrayLike, event_observed: ArrayLike) -> None:
        time, event = np.asarray(durations, dtype=np.float64), np.asarray(event_observed, dtype=np.bool_)
        if time.shape != event.shape or time.ndim != 1:
            raise ShapeError("durations and events", (time.shape, event.shape), "two vectors of one length")
        if not event.any():
            raise LabelError("no event is observed", got=f"{len(time)} censored durations", expected="one or more")
        # Latest first, so that the subjects at risk at a time are the rows up to the last of that time.
        self.order = np.lexsort((~event, -time))
        sorted_time, self.event = time[self.order], event[self.order]
        new = np.flatnonzero(np.concatenate(([True], sorted_time[1:] != sorted_time[:-1])))
        self._first, self._last = new, np.append(new[1:], len(time)) - 1
        self._group = np.repeat(np.arange(len(new)), np.diff(np.append(new, len(time))))
        self._deaths = np.add.reduceat(self.event, new).astype(np.float64)
        # Events come first in their group: their rank there is their distance from its first row.
        self._events = np.flatnonzero(self.event)
        group = self._group[self._events]
        self._share = (self._events - new[group]) / self._deaths[group]
        self.times = sorted_time[new]

    def loss_and_gradient(self, log_hazard: Floats) -> tuple[float, Floats]:
        """Loss in nats per subject and its gradient, float [n], in the order of the arguments of the class."""
        eta = log_hazard[self.order]
        top = eta.max()
        weight = np.exp(eta - top)
        at_risk = np.cumsum(weight)[self._last]
        tied = np.add.reduceat(weight * self.event, self._first)
        group = self._group[self._events]
        denominator = at_risk[group] - self._share * tied[group]
        n = len(eta)
        loss = -(eta[self._events] - top - np.log(denominator)).sum() / n
        inverse = 1 / denominator
        per_group = np.bincount(group, inverse, len(self._first))
        less = np.bincount(group, self._share * inverse, len(self._first))
        # A row is at risk at its own time and at every earlier one, which are the later groups of this order.
        exposure = np.cumsum(per_group[::-1])[::-1][self._group]
        gradient = weight * (exposure - self.event * less[self._group]) - self.event
        restored = np.empty(n)
        restored[self.order] = gradient / n
        return float(loss), restored

    def cumulative_hazard(self, log_hazard: Floats, days: ArrayLike) -> Floats:
        """Baseline cumulative hazard at `days`, float [days], of a subject whose log hazard is 0.

        Source: Breslow 1972, in the discussion of Cox 1972, doi:10.1111/j.2517-6161.1972.tb00899.x.
        """
        eta = log_hazard[self.order]
        top = eta.max()
        at_risk = np.cumsum(np.exp(eta - top))[self._last]
        steps = (self._deaths / at_risk * np.exp(-top))[::-1]
        rising = np.concatenate(([0.0], np.cumsum(steps)))
        found: Floats = rising[np.searchsorted(self.times[::-1], np.asarray(days, dtype=np.float64), side="right")]
        return found


def fit_cox(
    X: sparse.csr_matrix,
    likelihood: PartialLikelihood,
    *,
    penalty: float,
    l1_ratio: float,
    start: Floats | None = None,
) -> CoxFit:
    """Minimise loss + penalty * (l1_ratio * |w| + (1 - l1_ratio) / 2 * w^2).

    Args:
        X: Float [n, features], scaled by the caller.
        likelihood: Of the same rows.
        penalty: Strength, 0 or more.
        l1_ratio: 0 ridge to 1 lasso.
        start: Weights to start from, those of a stronger penalty.
    """
    columns = X.shape[1]
    transposed = X.T.tocsr()
    lasso, ridge = penalty * l1_ratio, penalty * (1 - l1_ratio)

    def smooth(weights: Floats) -> tuple[float, Floats]:
        loss, gradient = likelihood.loss_and_gradient(X @ weights)
        return loss + ridge / 2 * float(weights @ weights), transposed @ gradient + ridge * weights

    # The kink of |w| disappears where w is a difference of two parts that are 0 or more.
    def parts(pair: Floats) -> tuple[float, Floats]:
        loss, gradient = smooth(pair[:columns] - pair[columns:])
        return loss + lasso * float(pair.sum()), np.concatenate((gradient + lasso, lasso - gradient))

    first = np.zeros(columns) if start is None else start
    options = {"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "ftol": 1e-9, "gtol": 1e-6}
    if lasso == 0:
        found = optimize.minimize(smooth, first, jac=True, method="L-BFGS-B", options=options)
        weights = found.x
    else:
        pair = np.concatenate((np.maximum(first, 0), np.maximum(-first, 0)))
        bounds = optimize.Bounds(np.zeros(2 * columns), np.full(2 * columns, np.inf))
        found = optimize.minimize(parts, pair, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        weights = found.x[:columns] - found.x[columns:]
    return CoxFit(np.asarray(weights, dtype=np.float64), penalty, bool(found.success))


def strongest_penalty(X: sparse.csr_matrix, likelihood: PartialLikelihood) -> float:
    """The lasso penalty from which on every weight is 0."""
    _, gradient = likelihood.loss_and_gradient(np.zeros(X.shape[0]))
    return float(np.abs(X.T @ gradient).max(initial=0.0))
