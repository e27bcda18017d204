"""Times to one of several events on a grid of intervals: likelihoods, DeepHit's ranking term, and curves.

A grid has edges 0 = e[0] < e[1] < ... in days; interval j is (e[j], e[j + 1]]. Logits are Float [batch, causes,
intervals]: the softmax over an interval's causes and "none" gives the hazard of each cause in it, which for one cause
is a logistic hazard. Between edges the hazard is constant in continuous time, so an interval's cumulative hazard is
softplus(logsumexp over causes) and falls to the causes in the ratio of their exponentials. The discrete likelihood
and the piecewise-exponential one are of these same hazards: one knows the interval of an event, the other its day.

Sources: Gensheimer & Narasimhan 2019, arXiv:1805.00917 (logistic hazard); Tutz & Schmid 2016, Modeling Discrete
Time-to-Event Data, ch. 8 (several causes); Kvamme & Borgan 2019, arXiv:1910.06724 (constant hazard, softplus).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ehrsequencing.errors import LabelError, ShapeError
from ehrsequencing.objectives.time_to_event import exposures

_SMALL = -15.0
"""Below it the logarithm of softplus(x) is x - exp(x) / 2 to all digits, and softplus(x) loses some."""


class Placed(NamedTuple):
    """Durations on a grid.

    Attributes:
        interval: Long [batch], 0-based interval of the event or of censoring.
        cause: Long [batch], 0 where censored; an event beyond the grid is censored at its last edge.
        share: Float [batch], part of the interval that was lived through.
        beyond: Bool [batch], the duration lies beyond the last edge.
    """

    interval: Tensor
    cause: Tensor
    share: Tensor
    beyond: Tensor


class Curves(NamedTuple):
    """Survival, Float [batch, times], and cumulative incidences, Float [batch, causes, times]; they add up to 1."""

    survival: Tensor
    incidence: Tensor


def check_edges(edges: Tensor) -> None:
    """Refuse what is no grid.

    Raises:
        ShapeError: not one-dimensional, fewer than two edges, not finite, not rising, or not from 0.
    """
    whole = edges.ndim == 1 and len(edges) > 1 and bool(torch.isfinite(edges).all())
    if not whole or edges[0] != 0 or not bool((edges.diff() > 0).all()):
        raise ShapeError("edges of the grid", str(edges.tolist())[:80], "two or more rising days, the first 0")


def uniform_edges(intervals: int, horizon_days: float) -> Tensor:
    """Edges of intervals of one length, float64 [intervals + 1].

    >>> uniform_edges(4, 100.0).tolist()
    [0.0, 25.0, 50.0, 75.0, 100.0]
    """
    return torch.linspace(0, horizon_days, intervals + 1, dtype=torch.float64)


def quantile_edges(event_days: Tensor, intervals: int, horizon_days: float) -> Tensor:
    """Edges between which the events spread evenly, float64 [at most intervals + 1].

    Edges are days of events, so an interval ends with the event at its edge and none is empty; where many events share
    a day their intervals are one, and there are fewer than asked for.

    Args:
        event_days: Float [events], days of events; those beyond the horizon do not count.
        intervals: Number of intervals.
        horizon_days: Last edge.

    Raises:
        LabelError: no event within the horizon.

    >>> quantile_edges(torch.tensor([1.0, 2, 3, 4, 5, 5, 5, 9]), 4, 30.0).tolist()
    [0.0, 2.0, 4.0, 5.0, 30.0]
    """
    days = event_days.double()
    days = days[days <= horizon_days].sort().values
    if not len(days):
        raise LabelError(
            "a quantile grid needs events", got=f"none within {horizon_days:g} days", remedy="choose a later horizon"
        )
    place = (torch.arange(1, intervals, dtype=torch.float64) / intervals * len(days)).ceil().long() - 1
    inner = days[place.clamp(min=0)].unique()
    return torch.cat((days.new_zeros(1), inner[inner < days[-1]], days.new_full((1,), horizon_days)))


def place(durations: Tensor, cause: Tensor, edges: Tensor) -> Placed:
    """Where durations lie on a grid.

    Args:
        durations: Float [batch], days, above 0.
        cause: Long [batch], 0 censored, else the cause of the event.
        edges: Float [intervals + 1].

    Raises:
        ShapeError: shapes differ, or a duration is not finite or not above 0.

    >>> days, cause = torch.tensor([5.0, 10.0, 12.5, 99.0]), torch.tensor([1, 1, 0, 2])
    >>> placed = place(days, cause, torch.tensor([0.0, 10.0, 20.0]))
    >>> placed.interval.tolist(), placed.cause.tolist(), placed.share.tolist(), placed.beyond.tolist()
    ([0, 0, 1, 1], [1, 1, 0, 0], [0.5, 1.0, 0.25, 1.0], [False, False, False, True])
    """
    if durations.ndim != 1 or cause.shape != durations.shape:
        raise ShapeError("durations and causes", (tuple(durations.shape), tuple(cause.shape)), "[batch] each")
    wrong = ~(torch.isfinite(durations) & (durations > 0))
    if bool(wrong.any()):
        raise ShapeError("durations", f"{durations[wrong][0].item():g} days", "finite, above 0")
    edges = edges.to(durations)
    beyond = durations > edges[-1]
    days = durations.minimum(edges[-1])
    interval = torch.bucketize(days, edges[1:-1])
    share = (days - edges[interval]) / edges.diff()[interval]
    return Placed(interval, cause.masked_fill(beyond, 0), share, beyond)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ShapeError("hazard logits", f"{logits.dtype} {tuple(logits.shape)}", "Float [batch, causes, intervals]")


def cumulative_hazards(hazard_logits: Tensor) -> Tensor:
    """What each interval adds to the cumulative hazard of all causes, Float [batch, intervals]."""
    _check_logits(hazard_logits)
    return -F.logsigmoid(-torch.logsumexp(hazard_logits, dim=1))


def _lived(placed_interval: Tensor, last: Tensor, intervals: int) -> Tensor:
    """Share of each interval that was lived through, Float [batch, intervals]; `last` of the interval itself."""
    order = torch.arange(intervals, device=placed_interval.device)
    at = placed_interval[:, None]
    return (order < at).to(last) + (order == at).to(last) * last[:, None]


def _of_event(values: Tensor, interval: Tensor, cause: Tensor) -> Tensor:
    """Of [batch, causes, intervals], the entry of each row's event, Float [batch]; the first cause's if none."""
    return values[torch.arange(len(values), device=values.device), (cause - 1).clamp(min=0), interval]


def discrete_time_nll(
    hazard_logits: Tensor, interval: Tensor, event_observed: Tensor, *, share: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of right-censored times on a grid of intervals.

    Args:
        hazard_logits: Float [batch, intervals]; hazard = sigmoid(logit).
        interval: Long [batch]; 0-based interval of the event or of censoring.
        event_observed: Bool [batch]; False where censored.
        share: Float [batch], part of its interval that a censored time lived through, as survival at that day has it
            under a constant hazard; the whole by default.

    Returns:
        Scalar, nats per subject.

    Raises:
        ShapeError: an interval lies beyond the grid, or shapes differ.

    Source: Gensheimer & Narasimhan 2019, arXiv:1805.00917.
    """
    if hazard_logits.ndim != 2:
        raise ShapeError("hazard_logits", tuple(hazard_logits.shape), "Float [batch, intervals]")
    return competing_risks_nll(hazard_logits[:, None], interval, event_observed.to(torch.int64), share=share)


def competing_risks_nll(
    hazard_logits: Tensor, interval: Tensor, cause: Tensor, *, share: Tensor | None = None
) -> Tensor:
    """`discrete_time_nll` with one of several causes.

    Args:
        hazard_logits: Float [batch, causes, intervals].
        interval: Long [batch].
        cause: Long [batch], 0 censored, 1 to `causes` the cause of the event.
        share: As in `discrete_time_nll`.

    Returns:
        Scalar, nats per subject.

    Raises:
        ShapeError: an interval or cause lies beyond the logits, or shapes differ.

    Source: Tutz & Schmid 2016, Modeling Discrete Time-to-Event Data, section 8.2.
    """
    _check_logits(hazard_logits)
    batch, causes, intervals = hazard_logits.shape
    share = torch.ones(batch, device=hazard_logits.device) if share is None else share
    for name, given in {"interval": interval, "cause": cause, "share": share}.items():
        if given.shape != (batch,):
            raise ShapeError(name, tuple(given.shape), (batch,))
    if not batch:
        raise ShapeError("hazard_logits", "no subject", "one or more")
    low, high, first, last = torch.stack((interval.min(), interval.max(), cause.min(), cause.max())).tolist()
    if low < 0 or high >= intervals:
        raise ShapeError("interval", f"{low} to {high}", f"0 to {intervals - 1}")
    if first < 0 or last > causes:
        raise ShapeError("cause", f"{first} to {last}", f"0 to {causes}")
    logits = hazard_logits.to(torch.promote_types(hazard_logits.dtype, torch.float32))
    observed = cause > 0
    lived = _lived(interval, torch.where(observed, torch.ones_like(share), share).to(logits), intervals)
    nats = (cumulative_hazards(logits) * lived).sum(1)
    return (nats - torch.where(observed, _of_event(logits, interval, cause), 0.0)).mean()


def piecewise_nll(hazard_logits: Tensor, durations: Tensor, cause: Tensor, edges: Tensor) -> Tensor:
    """Negative log-likelihood of right-censored days under hazards that are constant within intervals.

    Returns:
        Scalar, the mean of `piecewise_nats`, whose arguments it has.
    """
    return piecewise_nats(hazard_logits, durations, cause, edges).mean()


def piecewise_nats(
    hazard_logits: Tensor, durations: Tensor, cause: Tensor, edges: Tensor, *, entry: Tensor | None = None
) -> Tensor:
    """What each row adds to `piecewise_nll`.

    Args:
        hazard_logits: Float [batch, causes, intervals].
        durations: Float [batch], days, above 0; those beyond the grid are censored at its end.
        cause: Long [batch], 0 censored, else the cause.
        edges: Float [intervals + 1].
        entry: Float [batch], days from which on a row was watched (it cannot have had the event before); 0 by default.
            A row whose entry lies beyond the grid adds nothing.

    Returns:
        Float [batch], nats; of densities per day, so they may be negative.

    Raises:
        ShapeError: shapes differ, or a duration is not finite or not above the entry.

    Source: Friedman 1982, Annals of Statistics 10(1):101-113; Kvamme & Borgan 2019, arXiv:1910.06724.
    """
    _check_logits(hazard_logits)
    if (*durations.shape, len(edges) - 1) != (len(hazard_logits), hazard_logits.shape[2]):
        raise ShapeError("durations and edges", (tuple(durations.shape), len(edges)), tuple(hazard_logits.shape))
    placed = place(durations, cause, edges)
    logits = hazard_logits.to(torch.promote_types(hazard_logits.dtype, torch.float32))
    edges = edges.to(logits)
    width = edges.diff()
    lived = exposures(durations.to(logits).minimum(edges[-1]), placed.cause > 0, edges[:-1])[0]
    if entry is not None:
        if entry.shape != durations.shape or not bool(((entry >= 0) & (entry < durations)).all()):
            raise ShapeError("entry", "an entry that is negative or not before the end", "[batch], below the duration")
        lived = lived - exposures(entry.to(logits).minimum(edges[-1]), placed.cause > 0, edges[:-1])[0]
    total = torch.logsumexp(logits, dim=1)
    hazard = log_softplus(total) - width.log() + _share_of_cause(logits, total, placed)
    nats = (cumulative_hazards(logits) * lived / width).sum(1)
    at_event = hazard.gather(1, placed.interval[:, None])[:, 0]
    return nats - torch.where(placed.cause > 0, at_event, 0.0)


def _share_of_cause(logits: Tensor, total: Tensor, placed: Placed) -> Tensor:
    """Logarithm of the part of a failure that falls to each row's cause, Float [batch, 1]."""
    own = _of_event(logits, placed.interval, placed.cause)[:, None]
    return own - total.gather(1, placed.interval[:, None])


def log_softplus(x: Tensor) -> Tensor:
    """log(log(1 + exp(x))), with a gradient everywhere.

    >>> log_softplus(torch.tensor([-90.0, 0.0, 90.0])).tolist()
    [-90.0, -0.3665129244327545, 4.499809741973877]
    """
    low = x < _SMALL
    small = x.masked_fill(~low, _SMALL)
    return torch.where(low, small - small.exp() / 2, (-F.logsigmoid(-x.masked_fill(low, 0.0))).log())


def ranking_loss(incidence: Tensor, placed: Placed, durations: Tensor, *, sigma: float = 0.1) -> Tensor:
    """DeepHit's ranking term: whoever had the event first should have had the larger incidence by then.

    Pairs are an event of a cause and somebody watched for longer (or censored on the same day); each costs
    exp(-(F(first) - F(other)) / sigma), F the cause's incidence at the end of the interval of the event.

    Args:
        incidence: Float [batch, causes, intervals + 1], at the edges.
        placed: The durations on the grid.
        durations: Float [batch], days.
        sigma: Scale of the exponential.

    Returns:
        Scalar, mean over comparable pairs of all causes; 0 where there is none.

    Raises:
        ShapeError: shapes differ, or `sigma` is not above 0.

    Source: Lee et al. 2018, DeepHit, AAAI 32(1), equation 8; here a mean over pairs, whatever the batch.
    """
    if incidence.ndim != 3 or durations.shape != incidence.shape[:1] or placed.interval.shape != durations.shape:
        raise ShapeError("incidence", tuple(incidence.shape), (len(durations), "causes", "intervals + 1"))
    if not sigma > 0:
        raise ShapeError("sigma of the ranking term", sigma, "above 0")
    days, other = durations[:, None], durations[None, :]
    later = (other > days) | ((other == days) & (placed.cause == 0)[None, :])
    cost, pairs = incidence.sum() * 0.0, 0
    for cause in range(1, incidence.shape[1] + 1):
        first = ((placed.cause == cause)[:, None] & later).nonzero()
        # Of each event's row: the incidence of everyone at the end of that event's interval.
        by_then = incidence[:, cause - 1].T[placed.interval[first[:, 0]] + 1, first.T]
        cost = cost + torch.exp((by_then[1] - by_then[0]) / sigma).sum()
        pairs += len(first)
    return cost / max(pairs, 1)


def survival_curve(hazard_logits: Tensor) -> Tensor:
    """Survival at the edges, Float [batch, intervals + 1]; 1 at the first."""
    return torch.exp(-F.pad(cumulative_hazards(hazard_logits).cumsum(1), (1, 0)))


def cumulative_incidence(hazard_logits: Tensor) -> Tensor:
    """Cumulative incidence of each cause at the edges, Float [batch, causes, intervals + 1]; 0 at the first."""
    total = cumulative_hazards(hazard_logits)
    before = survival_curve(hazard_logits)[:, :-1]
    failed = before * -torch.expm1(-total)
    return F.pad((failed[:, None] * torch.softmax(hazard_logits, dim=1)).cumsum(2), (1, 0))


def curves(hazard_logits: Tensor) -> Curves:
    """Both at the edges."""
    return Curves(survival_curve(hazard_logits), cumulative_incidence(hazard_logits))


def at_days(at_edges: Curves, edges: Tensor, days: Tensor) -> Curves:
    """Curves at any days of the grid: the hazard is constant within an interval, its causes share it in one ratio.

    Args:
        at_edges: Curves at the edges.
        edges: Float [intervals + 1].
        days: Float [times], from 0 to the last edge.

    Raises:
        ShapeError: a day lies before 0 or beyond the grid, where nothing was learned.
    """
    if days.ndim != 1 or not bool(((days >= 0) & (days <= edges[-1])).all()):
        wrong = ~((days >= 0) & (days <= edges[-1]))
        raise ShapeError(
            "days", f"{days[wrong].flatten()[:1].tolist()}", f"[times], 0 to {float(edges[-1]):g} where the grid ends",
            remedy="ask for earlier days, or train with a longer survival.horizon_days",
        )  # fmt: skip
    survival, incidence = at_edges
    edges, days = edges.to(survival), days.to(survival)
    left = torch.bucketize(days, edges[1:-1])
    share = (days - edges[left]) / edges.diff()[left]
    before, after = survival[:, left], survival[:, left + 1]
    alive = before > 0
    ratio = torch.where(alive, after / before.masked_fill(~alive, 1.0), 0.0)
    now = before * ratio**share
    failed = before - after
    part = torch.where(failed > 0, (before - now) / failed.masked_fill(failed <= 0, 1.0), share)
    start = incidence[:, :, left]
    return Curves(now, start + part[:, None] * (incidence[:, :, left + 1] - start))


def marginal_logits(placed: Placed, causes: int, intervals: int) -> Tensor:
    """Logits of the hazards of everyone together, float64 [causes, intervals].

    Events of a cause over those at risk, a censored one for the part that it was watched. Each interval has one more
    at risk with the hazard of the whole grid, so that none is 0 or 1, nor undefined where nobody is left.
    """
    interval, cause = placed.interval, placed.cause
    lived = _lived(interval, torch.where(cause > 0, 1.0, placed.share.double()), intervals).sum(0)
    events = torch.zeros(causes, intervals, dtype=torch.float64, device=interval.device)
    fell = cause > 0
    events.index_put_((cause[fell] - 1, interval[fell]), events.new_ones(()), accumulate=True)
    overall = (events.sum(1) + 0.5) / (lived.sum() + causes)
    hazard = (events + overall[:, None]) / (lived + 1)
    return hazard.log() - (1 - hazard.sum(0)).log()
