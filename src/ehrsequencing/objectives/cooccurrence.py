"""Which codes share a visit, and what the visits around it hold: losses over sets of codes, exact and sparse.

A visit is the set of its codes. Nothing here is [visits, vocabulary] but the scores of the visits' neighbours, and
nothing lists the pairs of codes of a visit, whose number grows with its square.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ehrsequencing.errors import ShapeError


class VisitSets(NamedTuple):
    """The visits of a batch that hold a code, each as the set of its codes.

    Attributes:
        row: Long [visits], row of the batch.
        visit: Long [visits], its id in the row; visits come in order of row and id.
        code: Long [entries], the distinct codes of the first visit, then of the second, ...
        owner: Long [entries], the visit that holds the code.
        size: Long [visits], codes of each.
    """

    row: Tensor
    visit: Tensor
    code: Tensor
    owner: Tensor
    size: Tensor

    @property
    def starts(self) -> Tensor:
        """First entry of each visit, Long [visits]."""
        return self.size.cumsum(0) - self.size


def visit_sets(codes: Tensor, visit_ids: Tensor, wanted: Tensor, *, vocab_size: int) -> VisitSets:
    """The sets of codes of a batch's visits.

    Args:
        codes: Long [batch, length].
        visit_ids: Long [batch, length]; 0 is no visit.
        wanted: Bool [batch, length], tokens that count.
        vocab_size: Number of token ids.

    >>> codes, ids = torch.tensor([[7, 5, 7, 6]]), torch.tensor([[1, 1, 1, 3]])
    >>> found = visit_sets(codes, ids, codes > 0, vocab_size=10)
    >>> found.visit.tolist(), found.code.tolist(), found.owner.tolist(), found.size.tolist()
    ([1, 3], [5, 7, 6], [0, 0, 1], [2, 1])
    """
    slots = int(visit_ids.max()) + 1 if visit_ids.numel() else 1
    row = torch.arange(len(codes), device=codes.device)[:, None].expand_as(codes)
    chosen = wanted & (visit_ids >= 1)
    key = torch.unique(((row * slots + visit_ids) * vocab_size + codes)[chosen])
    place, owner, size = torch.unique_consecutive(key // vocab_size, return_inverse=True, return_counts=True)
    return VisitSets(place // slots, place % slots, key % vocab_size, owner, size)


def neighbours(visits: VisitSets, window: int) -> tuple[Tensor, Tensor]:
    """Pairs of visits of one subject that are 1 to `window` visits apart, in both directions.

    Returns:
        Long [pairs] each: a visit, and one around it.

    >>> codes, ids = torch.tensor([[7, 5, 6, 8]]), torch.tensor([[1, 2, 3, 5]])
    >>> here, around = neighbours(visit_sets(codes, ids, codes > 0, vocab_size=10), 1)
    >>> sorted(zip(here.tolist(), around.tolist()))
    [(0, 1), (1, 0), (1, 2), (2, 1)]
    """
    if not len(visits.row) or not window:
        return visits.row[:0], visits.row[:0]
    # Room behind the last visit of a row, so that a step never leads into the next row.
    place = visits.row * (int(visits.visit.max()) + window + 1) + visits.visit
    here, around = [], []
    for distance in range(1, window + 1):
        found = torch.searchsorted(place, place + distance).clamp(max=len(place) - 1)
        first = (place[found] == place + distance).nonzero()[:, 0]
        here += [first, found[first]]
        around += [found[first], first]
    return torch.cat(here), torch.cat(around)


def entries_of(visits: VisitSets, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of some visits, Long [m], one after the other: which of them, and the code; Long [entries] each."""
    size = visits.size[chosen]
    owner = torch.repeat_interleave(torch.arange(len(chosen), device=size.device), size)
    step = torch.arange(len(owner), device=size.device) - (size.cumsum(0) - size)[owner]
    return owner, visits.code[visits.starts[chosen][owner] + step]


def sums_of_codes(table: Tensor, visits: VisitSets) -> Tensor:
    """Sum of the vectors of each visit's codes, Float [visits, width], from a table Float [vocab_size, width]."""
    return F.embedding_bag(visits.code, table, visits.starts, mode="sum")


def context_sizes(visits: VisitSets, here: Tensor, around: Tensor) -> Tensor:
    """How many other codes each code of a visit has around it: in its own visit, and in its neighbours. Long [visits].

    Args:
        here, around: As `neighbours` returns them; empty where the visit alone counts.
    """
    return (visits.size - 1).index_add(0, here, visits.size[around])


def context_nll(inner: Tensor, outer: Tensor, visits: VisitSets, here: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """Skip-gram with the full softmax: each code predicts each of the codes around it.

    - sum over i, j of log p(c_j | c_i), with p(c_j | c_i) = exp(outer_j . inner_i) / sum_k exp(outer_k . inner_i).

    The normaliser depends on i alone and is computed once for every code of the batch; the sum over pairs of a visit
    is a product of sums of vectors, less what a code would have with itself.

    Args:
        inner, outer: Float [vocab_size, width], vectors of a code that predicts and of one that is predicted; the
            same tensor where there is but one.
        visits: The visits.
        here, around: Neighbours whose codes count as context; empty for the codes of the same visit alone.

    Returns:
        Nats of each visit's codes, Float [visits], and pairs of codes, Long [visits].

    Source: Mikolov et al. 2013, arXiv:1301.3781, section 3.2 and arXiv:1310.4546, equation 2.
    """
    sizes = context_sizes(visits, here, around)
    unique, place = torch.unique(visits.code, return_inverse=True)
    # What is subtracted below is exact; products rounded to 16 bits would not cancel it.
    with torch.autocast(inner.device.type, enabled=False):
        normaliser = torch.logsumexp(inner[unique] @ outer.T, dim=1).float()
    predicting, predicted = sums_of_codes(inner, visits), sums_of_codes(outer, visits)
    context = predicted.index_add(0, here, predicted[around])
    itself = (inner * outer).sum(1).float()
    per_entry = normaliser[place] * sizes[visits.owner] + itself[visits.code]
    products = (predicting * context).sum(1).float()
    return -products.index_add(0, visits.owner, per_entry, alpha=-1.0), visits.size * sizes


def shared_codes(visits: VisitSets, here: Tensor, around: Tensor, *, vocab_size: int) -> Tensor:
    """How many codes of `around` the visit `here` holds, too; Long [pairs]."""
    pair, code = entries_of(visits, around)
    both = torch.isin(here[pair] * vocab_size + code, visits.owner * vocab_size + visits.code)
    return torch.zeros_like(here).index_add(0, pair, both.long())


def log_complement(log_probability: Tensor) -> Tensor:
    """log(1 - p) of a softmax, Float [rows, classes], also where one class has nearly all of it.

    Beside a class of probability near 1 the difference 1 - p loses its digits; there the other classes are summed
    instead. No other class can have more than one half.

    >>> scores = torch.tensor([[40.0, 0.0, 0.0]])
    >>> log_complement(scores.log_softmax(1))[0, 0].item()  # log 2 - 40
    -39.30685...
    """
    top = log_probability.argmax(1, keepdim=True)
    others = torch.logsumexp(log_probability.scatter(1, top, -torch.inf), dim=1, keepdim=True)
    plain = torch.log1p(-log_probability.scatter(1, top, -torch.inf).exp())
    return plain.scatter(1, top, others)


def neighbour_nll(scores: Tensor, visits: VisitSets, here: Tensor, around: Tensor) -> Tensor:
    """Binary cross-entropy of a softmax over codes, against the set of codes of each visit around.

    - sum over k of x_k log y_k + (1 - x_k) log(1 - y_k), with y = softmax(scores of the visit).

    Args:
        scores: Float [visits, vocab_size].
        visits: The visits.
        here, around: Long [pairs]: the visit that predicts, and the one that is predicted.

    Returns:
        Nats, Float [pairs].

    Raises:
        ShapeError: scores of another number of visits.

    Source: Choi et al. 2016, arXiv:1602.05568, equation 3.
    """
    if len(scores) != len(visits.row):
        raise ShapeError("scores", tuple(scores.shape), f"({len(visits.row)}, vocab_size)")
    log_probability = scores.float().log_softmax(1)
    return sets_nll(log_probability, log_complement(log_probability), visits, here, around)


def sets_nll(present: Tensor, absent: Tensor, visits: VisitSets, here: Tensor, around: Tensor) -> Tensor:
    """Nats of the sets of codes of visits, Float [pairs]; see `neighbour_nll`.

    Args:
        present, absent: Float [visits, vocab_size], log probability that a visit around holds the code, or does not.
    """
    pair, code = entries_of(visits, around)
    gain = present[here[pair], code] - absent[here[pair], code]
    return -absent.sum(1)[here].index_add(0, pair, gain)


def neighbour_recall(scores: Tensor, visits: VisitSets, here: Tensor, around: Tensor, *, k: int = 10) -> Tensor:
    """Share of the codes of each visit around that are among the `k` with the highest score, Float [pairs]."""
    best = torch.zeros_like(scores, dtype=torch.bool)
    best.scatter_(1, scores.topk(min(k, scores.shape[1]), dim=1).indices, True)
    pair, code = entries_of(visits, around)
    found = torch.zeros(len(here), device=scores.device).index_add_(0, pair, best[here[pair], code].float())
    return found / visits.size[around].clamp(min=1)
