"""Cox's partial likelihood, Breslow's baseline, and what both say of a grid of intervals.

Sources: Cox 1972, JRSS B 34(2):187-220; Efron 1977, JASA 72:557-565 (ties); Breslow 1974, Biometrics 30:89-99 (ties and
the baseline hazard).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ehrsequencing.errors import ConfigError, ShapeError

TIES = ("efron", "breslow")
_NEVER = -69.0
"""Logarithm of what an interval without an event adds to the baseline: 1e-30."""
_CERTAIN = 9.0
"""Logarithm of a cumulative hazard beyond which nobody is left in any type of number."""
_SMALL = -15.0


class _Sorted(NamedTuple):
    """From the longest duration to the shortest; `group` numbers equal durations."""

    score: Tensor
    observed: Tensor
    group: Tensor
    order: Tensor
    at_risk: Tensor


def _sorted(log_hazard: Tensor, durations: Tensor, observed: Tensor) -> _Sorted:
    """Sort, and of each row take the logarithm of the summed hazards of those watched at least as long."""
    if log_hazard.ndim != 1 or durations.shape != log_hazard.shape or observed.shape != log_hazard.shape:
        got = tuple(log_hazard.shape), tuple(durations.shape), tuple(observed.shape)
        raise ShapeError("log_hazard, durations, event_observed", got, "[batch] each")
    if not bool((torch.isfinite(durations) & (durations > 0)).all()):
        raise ShapeError("durations", "a duration that is not finite or not above 0", "days above 0")
    if not bool(torch.isfinite(log_hazard).all()):
        raise ShapeError("log_hazard", "a score that is not finite", "finite numbers")
    order = torch.argsort(durations, descending=True, stable=True)
    _, group, count = torch.unique_consecutive(durations[order], return_inverse=True, return_counts=True)
    score = log_hazard[order].to(torch.promote_types(log_hazard.dtype, torch.float32))
    ends = count.cumsum(0) - 1
    return _Sorted(score, observed[order].bool(), group, order, torch.logcumsumexp(score, 0)[ends[group]])


def cox_nll(log_hazard: Tensor, durations: Tensor, event_observed: Tensor, *, ties: str = "efron") -> Tensor:
    """Negative logarithm of the partial likelihood, in the order of n log n.

    Args:
        log_hazard: Float [batch]; of any size, since only differences are exponentiated.
        durations: Float [batch], days, above 0.
        event_observed: Bool [batch]; False where censored.
        ties: "efron" or "breslow".

    Returns:
        Scalar, nats per event; 0 where there is no event.

    Raises:
        ShapeError: shapes differ, or a number is not finite, or a duration is not above 0.
        ConfigError: unknown `ties`.
    """
    if ties not in TIES:
        raise ConfigError("ties", got=ties, expected=" or ".join(TIES))
    found = _sorted(log_hazard, durations, event_observed)
    score, group = found.score[found.observed], found.group[found.observed]
    if not len(score):
        return log_hazard.sum() * 0.0
    denominator = found.at_risk[found.observed]
    if ties == "efron":
        groups = int(found.group[-1]) + 1
        size = torch.bincount(group, minlength=groups)
        # Of d events of one day, the l-th has l / d of all of them taken from those at risk.
        rank = torch.arange(len(group), device=group.device) - (size.cumsum(0) - size)[group]
        top = score.new_full((groups,), float("-inf")).scatter_reduce(0, group, score.detach(), "amax")
        tied = torch.zeros_like(top).index_add(0, group, (score - top[group]).exp())
        tied_log = tied[group].log() + top[group]
        share = rank.to(score) / size[group]
        denominator = denominator + torch.log1p(-share * (tied_log - denominator).clamp(max=0.0).exp())
    return (denominator - score).mean()


def baseline_log_increments(log_hazard: Tensor, durations: Tensor, event_observed: Tensor, edges: Tensor) -> Tensor:
    """Logarithm of what each interval adds to Breslow's baseline cumulative hazard, Float [intervals].

    Args:
        log_hazard, durations, event_observed: As in `cox_nll`.
        edges: Float [intervals + 1], days; events beyond the last do not count.

    Returns:
        Float [intervals]; 1e-30 (its logarithm) where an interval has no event.
    """
    found = _sorted(log_hazard, durations, event_observed)
    days = durations[found.order]
    chosen = found.observed & (days <= edges[-1])
    interval = torch.bucketize(days[chosen], edges[1:-1].to(days))
    added = -found.at_risk[chosen]
    parts = [torch.cat((added[interval == j], added.new_full((1,), _NEVER))) for j in range(len(edges) - 1)]
    return torch.stack([torch.logsumexp(part, 0) for part in parts])


def proportional_logits(log_hazard: Tensor, log_increments: Tensor) -> Tensor:
    """Proportional hazards as the logits of `objectives.survival`, whose curves are then those of the Cox model.

    Args:
        log_hazard: Float [batch, causes].
        log_increments: Float [causes, intervals], of each cause's baseline.

    Returns:
        Float [batch, causes, intervals].
    """
    by_cause = log_hazard[:, :, None] + log_increments
    total = torch.logsumexp(by_cause, dim=1, keepdim=True)
    capped = total.clamp(max=_CERTAIN)
    # log(exp(H) - 1), the logit whose softplus is H.
    hazard = capped.clamp(min=_SMALL).exp()
    inverse = torch.where(capped < _SMALL, capped + capped.exp() / 2, hazard + (-torch.expm1(-hazard)).log())
    return by_cause - total + inverse
