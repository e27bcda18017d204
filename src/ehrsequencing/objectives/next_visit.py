"""Next-visit prediction: targets, losses, and the two floors that inflated figures hide.

A transition is a visit with a visit after it; its target is the set of codes of that next visit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ehrsequencing.errors import ConfigError, ShapeError

SEEN_BINS = 4
"""Copy-history tells never, once, twice and more often apart."""
_MOST_CELLS = 20_000_000
PRIOR_ROWS = 20.0
"""Transitions of the pooled rate that a code's own rate is shrunk with."""


def transitions(codes: Tensor, visit_ids: Tensor, mask: Tensor, *, num_special: int) -> tuple[Tensor, Tensor]:
    """Visits that another visit follows, and how much of what follows can be predicted.

    Args:
        codes: Long [batch, length].
        visit_ids: Long [batch, length]; 0 is no visit, 1, 2, ... are.
        mask: Bool [batch, length].
        num_special: Ids below it are no codes.

    Returns:
        Long [transitions, 2], row of the batch and visit id, where the next visit holds a code; and how many
        transitions hold none, a scalar.
    """
    slots = int(visit_ids.max()) + 2
    row = torch.arange(len(codes), device=codes.device)[:, None].expand_as(codes)
    place = (row * slots + visit_ids).masked_fill(~mask | (visit_ids < 1), 0)
    exists = torch.zeros(len(codes) * slots, dtype=torch.bool, device=codes.device)
    holds = exists.clone()
    exists[place[mask & (visit_ids >= 1)]] = True
    holds[place[mask & (visit_ids >= 1) & (codes >= num_special)]] = True
    exists, holds = exists.view(len(codes), slots), holds.view(len(codes), slots)
    followed = exists[:, :-1] & exists[:, 1:]
    return (followed & holds[:, 1:]).nonzero(), (followed & ~holds[:, 1:]).sum()


def next_codes(
    codes: Tensor, visit_ids: Tensor, mask: Tensor, visits: Tensor, *, vocab_size: int, num_special: int
) -> Tensor:
    """What the visit after each of these holds.

    Args:
        codes, visit_ids, mask: As in `transitions`.
        visits: Long [transitions, 2].

    Returns:
        Float [transitions, vocab_size], 1 for each code present.
    """
    slots = int(visit_ids.max()) + 2
    place = torch.full((len(codes) * slots,), -1, dtype=torch.int64, device=codes.device)
    place[visits[:, 0] * slots + visits[:, 1] + 1] = torch.arange(len(visits), device=codes.device)
    row = torch.arange(len(codes), device=codes.device)[:, None]
    owner = place[row * slots + visit_ids]
    wanted = mask & (owner >= 0) & (codes >= num_special)
    target = torch.zeros(len(visits), vocab_size, device=codes.device)
    target[owner[wanted], codes[wanted]] = 1.0
    return target


def seen_visits(
    codes: Tensor, visit_ids: Tensor, mask: Tensor, visits: Tensor, *, vocab_size: int, num_special: int
) -> Tensor:
    """In how many visits up to each of these, it included, a code occurred (rows without a visit count as one).

    Args:
        codes, visit_ids, mask, visits: As in `next_codes`.

    Returns:
        Float [transitions, vocab_size].
    """
    slots = int(visit_ids.max()) + 1
    real = mask & (codes >= num_special)
    found = torch.zeros(len(visits), vocab_size, device=codes.device)
    # A few rows at a time: every visit of a row has a column per code.
    for some in torch.arange(len(codes), device=codes.device).split(max(1, _MOST_CELLS // (slots * vocab_size))):
        mine = (visits[:, 0] >= some[0]) & (visits[:, 0] <= some[-1])
        row, column = real[some].nonzero(as_tuple=True)
        present = torch.zeros(len(some), slots, vocab_size, device=codes.device)
        present[row, visit_ids[some][row, column], codes[some][row, column]] = 1.0
        found[mine] = present.cumsum(dim=1)[visits[mine, 0] - some[0], visits[mine, 1]]
    return found


def next_visit_loss(
    logits: Tensor, target: Tensor, *, positive_weight: Tensor | None = None, gamma: float = 0.0
) -> Tensor:
    """Binary cross-entropy over all codes, summed and divided by the number of codes that came.

    So its size does not fall with the vocabulary, and it can be weighed against a masked code's cross-entropy. 0 where
    there is no transition.

    Args:
        logits: Float [transitions, vocab_size].
        target: Float [transitions, vocab_size].
        positive_weight: Float [vocab_size], weight of a code that came against one that did not; 1 by default.
        gamma: Focal loss: each term is multiplied by (1 - probability of what happened) ** gamma; 0 is cross-entropy.

    Returns:
        Scalar, nats per code that came.

    Raises:
        ShapeError: shapes differ.

    Source: Lin et al. 2017, Focal loss for dense object detection, arXiv:1708.02002.
    """
    if logits.shape != target.shape:
        raise ShapeError("target", tuple(target.shape), tuple(logits.shape))
    cells = F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=positive_weight, reduction="none")
    if gamma:
        right = torch.where(target > 0.5, logits.float(), -logits.float()).sigmoid()
        cells = cells * (1 - right) ** gamma
    return cells.sum() / target.sum().clamp(min=1)


def balancing_weights(rate: Tensor, balance: float) -> Tensor:
    """Weight of a code's positives: (its negatives per positive) ** balance; 0 changes nothing, 1 evens them out.

    Args:
        rate: Float [vocab_size], share of train transitions that are positive.
        balance: From 0 to 1.

    Raises:
        ConfigError: `balance` is outside [0, 1].
    """
    if not 0 <= balance <= 1:
        raise ConfigError("balance of positives and negatives", got=balance, expected="0 to 1")
    rate = rate.clamp(1e-6, 1 - 1e-6)
    return ((1 - rate) / rate) ** balance


def next_visit_statistics(probability: Tensor, target: Tensor, *, k: int = 10) -> dict[str, Tensor]:
    """Sums per transition.

    Args:
        probability: Float [transitions, vocab_size] in (0, 1).
        target: Float [transitions, vocab_size], each row with a positive.
        k: How many guesses count.

    Returns:
        Float [transitions] each: `loss_sum` in nats, `count` (codes that came), `recall_sum` (share of them among the
        `k` most probable).
    """
    probability = probability.double().clamp(1e-9, 1 - 1e-9)
    chance = torch.where(target > 0.5, probability, 1 - probability)
    best = probability.topk(min(k, probability.shape[1]), dim=1).indices
    count = target.sum(1).double()
    return {
        "loss_sum": -chance.log().sum(1),
        "count": count,
        "recall_sum": target.gather(1, best).sum(1).double() / count.clamp(min=1),
    }


class CopyRates:
    """Rates of the two floors, counted over train transitions.

    A code is as likely as it is on the whole (prevalence), or as it was in train after as many visits with it
    (copy-history). Both are shrunk; see `PRIOR_ROWS`.
    """

    def __init__(self, vocab_size: int) -> None:
        self.transitions = 0
        self._rows = torch.zeros(SEEN_BINS * vocab_size, dtype=torch.float64)
        self._positives = torch.zeros(SEEN_BINS * vocab_size, dtype=torch.float64)
        self._size = vocab_size

    def add(self, seen: Tensor, target: Tensor) -> None:
        """Count transitions: `seen` and `target` Float [transitions, vocab_size]."""
        self.transitions += len(seen)
        for counts, cells in ((self._rows, seen > 0), (self._positives, target > 0)):
            row, code = cells.nonzero(as_tuple=True)
            times = seen[row, code].long().clamp(max=SEEN_BINS - 1)
            counts += torch.bincount(times * self._size + code, minlength=len(counts)).cpu()

    @property
    def rows(self) -> Tensor:
        """Transitions by times seen, float64 [SEEN_BINS, vocab_size]."""
        rows = self._rows.view(SEEN_BINS, self._size).clone()
        rows[0] = self.transitions - rows[1:].sum(0)
        return rows

    @property
    def positives(self) -> Tensor:
        """Those of `rows` after which the code came."""
        return self._positives.view(SEEN_BINS, self._size)

    @property
    def prevalence(self) -> Tensor:
        """Share of transitions after which a code came, float64 [vocab_size]; never 0 or 1."""
        return (self.positives.sum(0) + 0.5) / (self.transitions + 1)

    @property
    def table(self) -> Tensor:
        """Copy-history: share of transitions after which a code came by times seen, float64 [SEEN_BINS, vocab_size]."""
        rows = self.rows
        pooled = (self.positives.sum(1) + 0.5) / (rows.sum(1) + 1)
        prior = pooled[:, None].expand_as(rows).clone()
        # Never seen: rare and frequent codes have little in common, so each is shrunk to its own share.
        prior[0] = self.prevalence
        return (self.positives + PRIOR_ROWS * prior) / (rows + PRIOR_ROWS)

    def after(self, seen: Tensor) -> Tensor:
        """Copy-history's probabilities, float64 [transitions, vocab_size]."""
        return self.table.gather(0, seen.long().clamp(max=SEEN_BINS - 1))
