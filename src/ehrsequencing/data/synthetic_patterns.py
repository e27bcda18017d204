"""Three hidden states that show in the order of the record alone, small enough to be filtered exactly.

Each is a two-state chain of its own (`synthetic_conditions.csv`), which nothing moves and which moves one acute
condition only. While it is present a pattern goes one way with probability `*_FIDELITY`, while it is absent the other
way, so that no count of codes or mean of values tells the two apart; docs/synthetic.md states them.
"""

from __future__ import annotations

import numpy as np

SPELL_STATE, SPELL_ATTACK = "turning", "vertigo_attack"
SPELL_SIZE, SPELL_SHOWN, SPELL_FIDELITY = 3, 0.6, 0.92
"""Two of three complaints come one after the other, forwards or backwards in their cycle, before clinic visits."""
REACTION_STATE, REACTION_ATTACK = "sensitised", "angioedema"
REACTION_SHOWN, REACTION_FIDELITY = 0.5, 0.92
"""A drug and a complaint come before clinic visits, the drug first or the complaint first."""
RING_STATE, RING_ATTACK = "tide", "lupus_flare"
RING_SIZE, RING_FIDELITY = 4, 0.82
"""A lab moves by one place of a cycle at each measurement, up or down; beyond the ends it comes round."""
SPELL_MINUTES, REACTION_MINUTES = (-40, -30), (-20, -10)
"""When the two codes of a pattern are noted, from the start of the visit."""


def ring_places(subject: np.ndarray, forward: np.ndarray, start: np.ndarray, size: int) -> np.ndarray:
    """Places after single moves in a cycle, int64 [moves].

    Args:
        subject: int64 [moves], ascending.
        forward: bool [moves].
        start: int64 [subjects], place before the first move.
        size: Places of the cycle.

    >>> ring_places(np.array([0, 0, 1]), np.array([True, True, False]), np.array([2, 0]), 3)
    array([0, 1, 2])
    """
    total = np.cumsum(np.where(forward, 1, -1))
    first = np.flatnonzero(np.r_[True, subject[1:] != subject[:-1]][: len(subject)])
    before = np.repeat(np.r_[0, total[first[1:] - 1]][: len(first)], np.diff(np.r_[first, len(subject)]))
    return (start[subject] + total - before) % size


def latest_before(subject: np.ndarray, shown: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The latest of some marked rows before each row, within its subject; int64 [rows], -1 where there is none.

    Args:
        subject: int64 [rows], ascending.
        shown: int64 [marks], rows that are marked, ascending.
        which: int64 [marks], what they are marked with.

    >>> latest_before(np.array([0, 0, 0, 1]), np.array([0, 1]), np.array([5, 6]))
    array([-1,  5,  6, -1])
    """
    before = np.searchsorted(shown, np.arange(len(subject)), side="left") - 1
    found = np.append(which, -1)[before]
    same = (before >= 0) & (subject[np.append(shown, 0)[before]] == subject)
    return np.where(same, found, -1)
