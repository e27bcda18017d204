"""Counting pairs of subjects for concordance, in n log n, for many weightings of the same subjects.

Of a comparable pair, the first has an event and the second comes later: its duration is longer, or as long and
censored. The pair is concordant where the first has the higher risk. Subjects are brought into order of time once;
then the bits of their risk ranks, highest first, part them into ever smaller groups that agree in the bits above. A
pair is decided at the one bit where its ranks part ways: it is concordant where the second has a 0 there. Within a
group, running sums over time count all pairs of a bit at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Places = NDArray[np.int32]
_BLOCK = 1 << 16
"""Rows that are worked on together: what fits into a core's cache."""


@dataclass(frozen=True)
class _Step:
    """Rows that win and rows that lose a comparison, and which of the winners each loser pairs with.

    Attributes:
        winners: Places in order of time of rows with an event; the firsts of pairs.
        losers: Places; the seconds of pairs.
        until, since: For each loser, the winners [since, until) make a pair with it; since None is 0.
        share: What a pair counts as concordant.
    """

    winners: Places
    losers: Places
    until: Places
    since: Places | None
    share: float

    def weigh(self, first: Array, second: Array) -> Array:
        """Sum over pairs of first[winner] * second[loser], float [resamples], of weights [resamples, n]."""
        running = np.zeros((len(first), len(self.winners) + 1))
        np.cumsum(first[:, self.winners], axis=1, out=running[:, 1:])
        before = running[:, self.until]
        if self.since is not None:
            before -= running[:, self.since]
        return np.einsum("rn,rn->r", before, second[:, self.losers])


class PairCounts:
    """Weighted sums over comparable pairs.

    Args:
        durations: Float [n]; infinite ones come last and are censored.
        event: Bool [n].
        risk: Float [n], no NaN; infinite ones are ordered.
        keep: Whether to keep the steps, for use on several weightings: about 8 bytes per row and bit.
    """

    def __init__(self, durations: Array, event: NDArray[np.bool_], risk: Array, *, keep: bool = False) -> None:
        rank = dense_ranks(risk)
        self._bits = int(rank.max()).bit_length()
        # Events first on a day, and among them the lower risk first: no pair of two events of a day can be concordant.
        moment = 2 * dense_ranks(durations) + ~event
        self._order = np.argsort((moment << self._bits) + rank)
        self._moment = moment[self._order]
        # A rank with its event in the last bit, so that both move at once.
        self._value = (2 * rank + event)[self._order].astype(np.int32)
        self._kept = list(self._steps()) if keep else None

    def sums(self, first: Array, second: Array) -> tuple[Array, Array]:
        """Weight of all pairs, and of concordant ones with half of those tied in risk, float [resamples] each.

        Args:
            first, second: Float [resamples, n]; weight of a row as the first and as the second of a pair.
        """
        if len(first) > 1 and first.size > 2 * _BLOCK:
            parts = [self.sums(first[row : row + 1], second[row : row + 1]) for row in range(len(first))]
            total, good = (np.concatenate(found) for found in zip(*parts, strict=True))
            return total, good
        winner = first[:, self._order]
        loser = winner if second is first else second[:, self._order]
        good = np.zeros(len(first))
        for step in self._kept if self._kept is not None else self._steps():
            good += step.share * step.weigh(winner, loser)
        return self._all.weigh(winner, loser), good

    @cached_property
    def _all(self) -> _Step:
        everyone = np.arange(len(self._value), dtype=np.int32)
        return self._within(everyone, np.zeros(len(everyone), np.int32), 1.0)

    def _steps(self) -> Iterator[_Step]:
        """A group of equal upper bits is parted alone while it is large, then all its bits in one go."""
        groups = [(np.arange(len(self._value), dtype=np.int32), self._value, self._bits)]
        while groups:
            place, value, bit = groups.pop()
            alone = len(place) > _BLOCK
            while bit > 0:
                high = value & (1 << bit) != 0
                winner = high & (value & 1 == 1)
                before = np.cumsum(winner, dtype=np.int32)
                low, lifted = np.flatnonzero(~high), np.flatnonzero(high)
                since = None if alone else _group_starts(value >> (bit + 1), before)[low]
                zeros, ones = place[low], place[lifted]
                yield _Step(place[winner], zeros, before[low], since, 1.0)
                bit -= 1
                if alone:
                    groups += [(zeros, value[low], bit), (ones, value[lifted], bit)]
                    break
                place, value = np.concatenate([zeros, ones]), np.concatenate([value[low], value[lifted]])
            else:
                yield self._within(place, value >> 1, 0.5)

    def _within(self, place: Places, group: Places, share: float) -> _Step:
        """All pairs within groups, those of two events of one day left out."""
        event, moment = self._value[place] & 1 == 1, self._moment[place]
        before = np.append(np.int32(0), np.cumsum(event, dtype=np.int32))
        starts = np.flatnonzero(np.append(True, (group[1:] != group[:-1]) | (moment[1:] != moment[:-1])))
        until = np.repeat(before[starts], np.diff(np.append(starts, len(place))))
        since = _group_starts(group, before[1:])
        pairs = until > since
        return _Step(place[event], place[pairs], until[pairs], since[pairs], share)


def _group_starts(group: Places, before: Places) -> Places:
    """For each row, the running count before the first row of its group; groups lie together."""
    opens = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    counts = np.append(np.int32(0), before)[opens]
    return np.repeat(counts, np.diff(np.append(opens, len(group))))


def dense_ranks(values: Array) -> NDArray[np.int64]:
    """Rank of each value among the distinct ones, from 0."""
    order = np.argsort(values)
    ordered = values[order]
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.append(0, np.cumsum(ordered[1:] != ordered[:-1]))
    return ranks
