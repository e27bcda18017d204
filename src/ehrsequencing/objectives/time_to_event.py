"""Time to the next occurrence of many codes at once, with hazards that are constant within pieces of time.

Source: the idea of MOTOR, Steinberg et al. 2023, arXiv:2301.03150.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ehrsequencing.errors import ShapeError

SHORTEST_DAYS = 1 / 24
"""Times are at least an hour: what is noted at the same instant as the question still took some time to happen."""


def next_times(
    columns: Tensor, days: Tensor, visit_ids: Tensor, mask: Tensor, visits: Tensor, num_columns: int
) -> tuple[Tensor, Tensor]:
    """When each code comes next after each visit, or how long it was looked for.

    Args:
        columns: Long [batch, length], column of each token's code; -1 for tokens that are not asked for.
        days: Float [batch, length], days before the end of the history.
        visit_ids: Long [batch, length]; 0 is no visit.
        mask: Bool [batch, length].
        visits: Long [visits, 2], row of the batch and visit id.
        num_columns: Number of columns.

    Returns:
        Float [visits, num_columns] days to the first token of a later visit with that code, else to the end of the
        history, and Bool [visits, num_columns], whether there is one. The clock starts with a visit's last token.
    """
    slots = int(visit_ids.max()) + 2
    row = torch.arange(len(days), device=days.device)[:, None].expand_as(visit_ids)
    dated = mask & (visit_ids > 0)
    # Days before the end at which each visit ends: the smallest of its tokens.
    ends = torch.full((len(days) * slots,), math.inf, dtype=days.dtype, device=days.device)
    ends.scatter_reduce_(0, (row * slots + visit_ids)[dated], days[dated], "amin")
    ends = ends.view(len(days), slots)
    # The first token of a code in a visit is the one furthest from the end; later visits' firsts by a running maximum.
    asked = dated & (columns >= 0)
    first = torch.full((len(days) * slots * num_columns,), -math.inf, dtype=days.dtype, device=days.device)
    cell = (row * slots + visit_ids) * num_columns + columns
    first.scatter_reduce_(0, cell[asked], days[asked], "amax")
    first = first.view(len(days), slots, num_columns).flip(1).cummax(dim=1).values.flip(1)
    after = first[visits[:, 0], visits[:, 1] + 1]
    observed = torch.isfinite(after)
    start = ends[visits[:, 0], visits[:, 1], None]
    waited = start - torch.where(observed, after, torch.zeros_like(after))
    return waited.clamp(min=SHORTEST_DAYS), observed


def exposures(days: Tensor, observed: Tensor, boundaries: Tensor) -> tuple[Tensor, Tensor]:
    """How long each piece was lived through, and in which the event fell.

    Args:
        days: Float [...], time to event or censoring.
        observed: Bool [...].
        boundaries: Float [pieces], ascending, where each piece starts; the first is 0, the last piece is open.

    Returns:
        Float [..., pieces] days, and Bool [..., pieces].
    """
    width = torch.diff(boundaries, append=boundaries.new_full((1,), math.inf))
    lived = (days[..., None] - boundaries).clamp(min=0).minimum(width)
    ended = (days[..., None] > boundaries) & (days[..., None] <= boundaries + width)
    return lived, ended & observed[..., None]


def piecewise_exponential_nll(log_hazard: Tensor, days: Tensor, observed: Tensor, boundaries: Tensor) -> Tensor:
    """Negative log-likelihood of right-censored times under hazards that are constant within pieces.

    Args:
        log_hazard: Float [..., pieces], of a hazard per day.
        days: Float [...].
        observed: Bool [...], whether the time ended in an event.
        boundaries: Float [pieces], where each piece starts; the first is 0.

    Returns:
        Float [...], nats (densities per day, so it may be negative).

    Raises:
        ShapeError: shapes differ.

    Source: Friedman 1982, Annals of Statistics 10(1):101-113.
    """
    if log_hazard.shape != (*days.shape, len(boundaries)) or observed.shape != days.shape:
        raise ShapeError("log_hazard", tuple(log_hazard.shape), (*days.shape, len(boundaries)))
    lived, ended = exposures(days, observed, boundaries)
    log_hazard = log_hazard.float()
    return (lived * log_hazard.exp()).sum(-1) - torch.where(ended, log_hazard, 0.0).sum(-1)
