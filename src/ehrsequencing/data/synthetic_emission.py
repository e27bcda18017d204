"""How likely each code is at each visit, for who knows all: the same visits emitted again under the same states.

States, plans of visits (kind, times, death in the stay), habits and what patterns showed earlier stay; what a visit
shows is drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from ehrsequencing.data.synthetic_events import (
    BEFORE_DISCHARGE,
    PANELS,
    REFILL_VISIT,
    REPEATED_PANELS,
    Emitter,
)
from ehrsequencing.data.synthetic_model import Model
from ehrsequencing.data.synthetic_patterns import (
    REACTION_MINUTES,
    RING_SIZE,
    SPELL_MINUTES,
    SPELL_SIZE,
    latest_before,
)
from ehrsequencing.data.synthetic_random import derive, uniform
from ehrsequencing.data.synthetic_visits import Trajectories, Visits
from ehrsequencing.data.values import ValueStatistics

COLUMNS = 40_000
"""Visits emitted again that are held at a time, about 300 MB."""
LEAST, MOST = 1e-9, 1 - 1e-6
"""No code is quite impossible or quite certain."""
PATTERN_MINUTES = (*SPELL_MINUTES, *REACTION_MINUTES)
BEFORE_VISIT = -min(PATTERN_MINUTES)
"""Minutes by which the record of a visit may come before its start."""
_FRESH_LEVEL, _MINUTE_BITS = 6, 20


class Recorder(Emitter):
    """The real record of a block, noting what a visit's patterns hang on: earlier visits, and the pair it shows."""

    def __init__(self, model: Model, paths: Trajectories, visits: Visits) -> None:
        super().__init__(model, paths, visits, None)
        count = len(visits)
        self.before, self.spell = np.zeros(count, dtype=np.int64), np.zeros((2, count), dtype=np.int64)
        self.drug_early = np.zeros(count, dtype=bool)
        self.measurements()
        self.patterns()

    def walk(self, measured: np.ndarray, forward: np.ndarray) -> np.ndarray:
        place = super().walk(measured, forward)
        latest = latest_before(self.visits.subject, measured, place)
        self.before = np.where(latest < 0, self.first_places()[self.visits.subject], latest)
        return place

    def spell_places(self, shown: np.ndarray, forward: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = super().spell_places(shown, forward, first)
        self.spell[:, shown] = places
        return places

    def drug_first(self, shown: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        self.drug_early[shown] = drawn
        return drawn


@dataclass(frozen=True)
class Groups:
    """What is asked of a record: groups of codes that share a visit and a minute.

    Attributes:
        visit: int64 [groups], rows of the visits.
        minute: int64 [groups], from the visit's start; groups ascend by visit and minute.
    """

    visit: np.ndarray
    minute: np.ndarray

    @property
    def key(self) -> np.ndarray:
        """Visit and minute as one number, ascending."""
        return group_key(self.visit, self.minute)


@dataclass(frozen=True)
class Emission:
    """How likely the codes of groups are.

    Attributes:
        chance: Float [2, groups, codes of the book]; P(code is shown), at visits without and with a refill of drugs.
        refill: Float [groups]; P(refill).
    """

    chance: np.ndarray
    refill: np.ndarray


def group_key(visit: np.ndarray, minute: np.ndarray) -> np.ndarray:
    """One number for a visit and a minute of it, in their order."""
    return np.asarray((visit.astype(np.int64) << _MINUTE_BITS) + minute + BEFORE_VISIT)


def split_key(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Visit and minute of a `group_key`."""
    return key >> _MINUTE_BITS, (key & ((1 << _MINUTE_BITS) - 1)) - BEFORE_VISIT


class _Again(Emitter):
    """Visits of a record emitted again, counting items: codes of the book, then roles, then panels.

    A role counts for its codes by their weights, so that rare codes need not be drawn. Layers: 1 and 2 are listed drugs
    at visits without and with a refill, 0 is all else.
    """

    def __init__(self, real: Recorder, of: np.ndarray, keys: np.ndarray, groups: np.ndarray) -> None:
        columns = {field.name: getattr(real.visits, field.name)[of] for field in fields(Visits)}
        super().__init__(real.model, real.paths, Visits(**columns | {"keys": keys}), None)
        self.real, self.of, self.groups = real, of, groups
        self.items = {name: len(self.model.book.codes) + number for number, name in enumerate(item_names(self.model))}
        self.width = len(self.model.book.codes) + len(self.items)
        self.layer = 1 + self.refilled().astype(np.int64)
        self.cells: list[np.ndarray] = []

    def tally(self, visit: np.ndarray, minute: np.ndarray, item: int | np.ndarray, layered: bool = False) -> None:
        """Count an item at visits, where the record shows anything at that minute."""
        key = group_key(self.of[visit], minute - self.visits.start[visit])
        group = np.searchsorted(self.groups, key).clip(max=len(self.groups) - 1)
        there = np.flatnonzero(self.groups[group] == key)
        layer = self.layer[visit[there]] if layered else 0
        item = item[there].astype(np.int64) if isinstance(item, np.ndarray) else item
        self.cells.append((layer * len(self.groups) + group[there]) * self.width + item)

    def add(
        self, visit: np.ndarray, minute: np.ndarray, code: int | np.ndarray, value: np.ndarray | None = None
    ) -> None:
        self.tally(visit, minute, code)

    def pick(self, role: str, where: np.ndarray, minute: np.ndarray, stream: int, personal: bool = False) -> None:
        item: int | np.ndarray = self.items[role]
        if personal:
            item = self.choose(role, uniform(self.static[self.visits.subject[where]], stream))
        self.tally(where, minute[where], item, layered=role.startswith("rx/"))

    def measurements(self) -> None:
        visits, again = self.visits, self.remeasured()
        for panel, where in self.panels().items():
            self.tally(where, visits.start[where], self.items[f"panel/{panel}"])
        for panel in REPEATED_PANELS:
            self.tally(again, visits.end[again] - BEFORE_DISCHARGE, self.items[f"panel/{panel}"])
        self.ring = self.cycle_places(np.arange(len(visits)))

    def walk(self, measured: np.ndarray, forward: np.ndarray) -> np.ndarray:
        return np.asarray((self.real.before[self.of[measured]] + np.where(forward, 1, -1)) % RING_SIZE)

    def spell_places(self, shown: np.ndarray, forward: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Each complaint of a pair as the other, which the record shows, lets expect it.
        early, late = self.real.spell[:, self.of[shown]]
        move = np.where(forward, 1, -1)
        return (late - move) % SPELL_SIZE, (early + move) % SPELL_SIZE

    def drug_first(self, shown: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        # Which of the two kinds comes first is seen from the other.
        return np.asarray(self.real.drug_early[self.of[shown]])


def item_names(model: Model) -> list[str]:
    """Roles, then panels."""
    return [*model.book.roles, *(f"panel/{panel}" for panel in PANELS)]


def panel_members(model: Model) -> dict[str, np.ndarray]:
    """Codes of the book that each panel measures together."""
    return {
        panel: np.array(sorted(model.book.index(lab.code) for lab in model.labs if lab.panel == panel), dtype=np.int64)
        for panel in PANELS
    }


def _weights(model: Model) -> np.ndarray:
    """Share of each code in each item after the codes, float [items, codes]."""
    weights = np.zeros((len(item_names(model)), len(model.book.codes)))
    for row, (members, cumulative) in zip(weights, model.book.roles.values(), strict=False):
        np.add.at(row, members, np.diff(cumulative, prepend=0.0))
    for row, members in zip(weights[len(model.book.roles) :], panel_members(model).values(), strict=True):
        row[members] = 1
    return weights


def _replicates(real: Recorder, visit: np.ndarray, groups: np.ndarray, replicates: int) -> Iterator[_Again]:
    """The visits emitted again, as many replicates at a time as memory allows, one after the other."""
    chunk = max(1, COLUMNS // max(len(visit), 1))
    for first in range(0, replicates if len(visit) else 0, chunk):
        number = np.arange(first, min(first + chunk, replicates))
        of = np.tile(visit, len(number))
        keys = derive(derive(real.visits.keys[of], _FRESH_LEVEL), np.repeat(number, len(visit)))
        yield _Again(real, of, keys, groups)


def emit_again(real: Recorder, groups: Groups, replicates: int) -> Emission:
    """Estimate what visits show from as many emissions under fresh keys.

    Rates are drawn towards those of groups of the same kind of visit and moment, by the weight of one emission.

    Args:
        real: The record.
        groups: What is asked of it.
        replicates: Emissions of each visit.
    """
    model, visits = real.model, real.visits
    asked, column = np.unique(groups.visit, return_inverse=True)
    width = len(model.book.codes) + len(item_names(model))
    counts, refills = np.zeros(3 * len(groups.visit) * width), np.zeros(len(asked))
    for again in _replicates(real, asked, groups.key, replicates):
        again.run()
        counts += np.bincount(np.concatenate(again.cells), minlength=len(counts))
        refills += (again.layer == 2).reshape(-1, len(asked)).sum(0)
    shaped = counts.reshape(3, len(groups.visit), width)
    expected = shaped[..., : len(model.book.codes)] + shaped[..., len(model.book.codes) :] @ _weights(model)
    tries = np.stack([np.full(len(column), replicates), replicates - refills[column], refills[column]])
    stay = visits.end[groups.visit] - visits.start[groups.visit]
    moments = [0, stay, stay - BEFORE_DISCHARGE, *PATTERN_MINUTES]
    moment = np.select([groups.minute == one for one in moments], range(len(moments)), len(moments))
    kind = visits.kind[groups.visit].astype(np.int64) * (len(moments) + 1) + moment
    rate = np.empty_like(expected)
    for one in np.unique(kind):
        alike = kind == one
        common = expected[:, alike].sum(1) / np.maximum(tries[:, alike].sum(1), 1)[:, None]
        rate[:, alike] = (expected[:, alike] + common[:, None]) / (tries[:, alike, None] + 1)
    rate = rate.clip(0, 1)
    chance = 1 - (1 - rate[0]) * (1 - rate[1:])
    return Emission(chance.clip(LEAST, MOST), np.where(visits.at_hospital[groups.visit], 0.0, REFILL_VISIT))


def value_bins(
    real: Recorder, groups: Groups, of: np.ndarray, lab: np.ndarray, values: ValueStatistics, replicates: int
) -> np.ndarray:
    """Distribution of the bin that labs would show if measured, float [asked, 1 + bins].

    Bins are drawn towards an even distribution by the weight of one emission.

    Args:
        real, groups, replicates: As `emit_again` takes them.
        of: int64 [asked], number of the group.
        lab: int64 [asked], number of the lab.
        values: Bins of the labs.
    """
    labs = real.model.labs
    rows = values.rows([one.code for one in labs], [one.unit or "" for one in labs])
    bins = np.full((len(of), 1 + values.bins), 1 / values.bins)
    bins[:, 0] = 0
    asked, column = np.unique(groups.visit[of], return_inverse=True)
    late = groups.minute[of] > 0
    for again in _replicates(real, asked, groups.key, replicates):
        again.ring = again.cycle_places(np.arange(len(again.of)))
        for number, repeat in sorted(set(zip(lab.tolist(), late.tolist(), strict=True))):
            some = np.flatnonzero((lab == number) & (late == repeat))
            where = (np.arange(0, len(again.of), len(asked))[:, None] + column[some]).ravel()
            value = again.values(number, where, int(repeat))
            found = values.bin(np.full(len(where), rows[number]), value)
            np.add.at(bins, (np.tile(some, len(where) // len(some)), found), 1)
    return bins / bins.sum(1, keepdims=True)
