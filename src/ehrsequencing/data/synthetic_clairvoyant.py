"""The clairvoyant emission bound: how well hidden codes of synthetic records could be told by who knows all states.

Approximate: codes of a visit are taken as independent given the state, but for what docs/oracle.md names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.oracle import seed_of
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.data.synthetic import RACES, SUBJECTS_PER_SEED, entry_days, trajectories
from ehrsequencing.data.synthetic_emission import (
    BEFORE_VISIT,
    LEAST,
    MOST,
    Groups,
    Recorder,
    emit_again,
    group_key,
    panel_members,
    split_key,
    value_bins,
)
from ehrsequencing.data.synthetic_model import Model, load_model
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY, Trajectories, Visits, plan_visits
from ehrsequencing.data.values import ValueStatistics
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import ConfigError, DataError

NAME = "clairvoyant emission bound (approximate: codes of a visit taken as independent given the state)"
REPLICATES = 256
"""Times that each visit is emitted again."""
BLOCK = 250
"""Subjects at a time."""
UNIGRAM_SHARE = 1e-3
"""Share of every prediction that goes to the unigram, so that no code is impossible."""
_NEGLIGIBLE = 1e-4
"""Labs less likely than this take the distribution of values in train."""


@dataclass(frozen=True)
class Clairvoyance:
    """What the clairvoyant says of hidden codes, in order of their rows; [hidden] each.

    Attributes:
        subject: int64, position of the subject in the split.
        loss: Float, nats: -ln P(the code).
        correct: Bool; the likeliest code is the hidden one.
        confidence: Float, P(the likeliest code).
        top10: Bool; fewer than ten codes are likelier than the hidden one.
    """

    subject: np.ndarray
    loss: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    top10: np.ndarray


def clairvoyant_bound(
    dataset: MedsDataset, store: TokenStore, split: str, hidden: np.ndarray, *, replicates: int = REPLICATES
) -> Clairvoyance:
    """Tell hidden codes of synthetic records from the states behind them.

    Args:
        dataset: Realistic synthetic records of this release.
        store: Token store of the dataset.
        split: Name of the split.
        hidden: int64, rows of the split whose codes are hidden; all others of their subjects are shown.
        replicates: Times that each visit is emitted again, 64 or more.

    Raises:
        ConfigError: too few replicates.
        DataError: other records (the random mode has no states to know: its best loss is the logarithm of the number
            of codes), a store of another dataset, no hidden row or one outside the split.
    """
    if replicates < 64:
        raise ConfigError("too few replicates", got=replicates, expected="64 or more")
    model = load_model()
    seed = seed_of(dataset, model)
    if store.manifest["dataset_fingerprint"] != dataset.fingerprint:
        raise DataError(f"{store.path} was not prepared from {dataset.path}", remedy="run `ehrseq prepare` on it")
    part = store.split(split)
    hidden = np.unique(np.asarray(hidden, dtype=np.int64))
    if not len(hidden) or hidden[0] < 0 or hidden[-1] >= part.offsets[-1]:
        raise DataError(f"the hidden rows are not rows of split {split}", got=f"{len(hidden)} rows")
    owner = np.searchsorted(part.offsets, hidden, side="right") - 1
    people = np.unique(owner)
    reader = _Reader(model, store.vocabulary, store.values)
    found = []
    for top in range(0, len(people), BLOCK):
        some = people[top : top + BLOCK]
        own = hidden[(owner >= some[0]) & (owner <= some[-1])]
        found.append(_block(reader, seed, part, some, own, replicates))
    return Clairvoyance(owner, *(np.concatenate(columns) for columns in zip(*found, strict=True)))


class _Reader:
    """Codes of the book and bins of values behind token ids."""

    def __init__(self, model: Model, vocabulary: Vocabulary, values: ValueStatistics) -> None:
        self.model, self.values = model, values
        self.table = vocabulary.lookup_table(model.book.codes, values.bins)
        self.cell = np.full(len(vocabulary), -1, dtype=np.int64)
        self.cell[self.table[:, ::-1].ravel()] = np.arange(self.table.size).reshape(self.table.shape)[:, ::-1].ravel()
        counts = vocabulary.counts + 1.0
        self.unigram = counts / counts.sum()
        # A code without values has one token; the bins of one with values are as in train unless told better.
        share = np.where(np.r_[True, np.zeros(values.bins, dtype=bool)], 1.0, counts[self.table])
        numeric = np.asarray(model.book.numeric)
        share[numeric, 0], share[~numeric, 1:] = 0, 0
        self.share = share / share.sum(1, keepdims=True)
        self.panels = [members for members in panel_members(model).values() if len(members) > 1]


def _block(
    reader: _Reader, seed: int, split: SplitStore, people: np.ndarray, hidden: np.ndarray, replicates: int
) -> tuple[np.ndarray, ...]:
    """Loss, correct, confidence and top10 of the hidden rows of some subjects."""
    model, width = reader.model, reader.table.shape[1]
    paths = trajectories(model, seed, split.subject_id[people] - np.int64(seed) * SUBJECTS_PER_SEED - 1)
    visits = plan_visits(model, paths)
    lengths = split.offsets[people + 1] - split.offsets[people]
    owner = np.repeat(np.arange(len(people)), lengths)
    rows = np.arange(len(owner)) + np.repeat(split.offsets[people] - np.cumsum(lengths) + lengths, lengths)
    visit, minute = _place(split, visits, entry_days(paths.static), owner, rows)
    # Static rows are a group of their own, before all visits.
    keys, group = np.unique(np.where(visit < 0, owner - len(people), group_key(visit, minute)), return_inverse=True)
    cell = reader.cell[split.code[rows]]
    code = cell // width
    order = np.argsort(group, kind="stable")
    if (cell < 0).any() or ((np.diff(code[order]) <= 0) & (np.diff(group[order]) == 0)).any():
        raise DataError(
            "the rows are not those of the synthetic records", got="codes of a visit out of order or unknown",
            remedy="run `ehrseq prepare` again",
        )  # fmt: skip
    is_hidden = np.isin(rows, hidden)
    asked = np.unique(group[is_hidden])
    dated = asked[keys[asked] >= 0]
    groups, real = Groups(*split_key(keys[dated])), Recorder(model, paths, visits)
    emission = emit_again(real, groups, replicates)
    ends = np.searchsorted(group[order], np.arange(len(keys) + 1))
    told = np.empty((len(rows), len(model.book.codes)), dtype=np.float32)
    for number in asked:
        members = order[ends[number] : ends[number + 1]]
        codes, veiled = code[members], is_hidden[members]
        if keys[number] < 0:
            chance, prior = _static_chance(model, paths, int(keys[number]) + len(people)), np.ones(1)
        else:
            at = int(np.searchsorted(dated, number))
            refill = float(emission.refill[at])
            layers = 1 + (refill > 0)
            chance, prior = emission.chance[:layers, at], np.array([1 - refill, refill])[:layers]
        told[members[veiled]] = identify(complete_panels(chance, codes, veiled, reader.panels), prior, codes, veiled)
    # Every lab that may stand there has its own values, or the sharper ones would give the hidden lab away.
    labs = [model.book.index(lab.code) for lab in model.labs]
    guessed, lab = np.nonzero(told[is_hidden][:, labs] > _NEGLIGIBLE)
    guessed = np.flatnonzero(is_hidden)[guessed]
    bins = value_bins(real, groups, np.searchsorted(dated, group[guessed]), lab, reader.values, replicates)
    ends = np.searchsorted(guessed, np.arange(len(rows) + 1))
    results = np.zeros((4, len(rows)))
    for row in np.flatnonzero(is_hidden):
        share = reader.share.copy()
        own = slice(ends[row], ends[row + 1])
        share[np.array(labs)[lab[own]]] = bins[own]
        results[:, row] = _score(reader, told[row][:, None] * share, int(cell[row]))
    loss, correct, confidence, top10 = results[:, is_hidden]
    return loss, correct > 0, confidence, top10 > 0


def _place(
    split: SplitStore, visits: Visits, entry: np.ndarray, owner: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Visit of each row (-1 for static ones) and minute from its start."""
    bounds = np.searchsorted(visits.subject, np.arange(len(entry) + 1))
    ordinal, time = split.visit[rows].astype(np.int64), split.time[rows]
    dated = time != STATIC_TIME
    visit = np.where(dated, bounds[owner] + ordinal, -1)
    known = visit < bounds[owner + 1]
    at = np.where(dated & known, visit, 0)
    minute = np.where(dated, time // 60_000_000 - entry[owner] * MINUTES_PER_DAY - visits.start[at], 0)
    outside = (minute < -BEFORE_VISIT) | (minute > (visits.end - visits.start)[at])
    if not known.all() or (dated & outside).any():
        raise DataError("the rows are not those of the synthetic records", got="times outside the visits of the states")
    return visit, minute


def _static_chance(model: Model, paths: Trajectories, person: int) -> np.ndarray:
    """Chances of the codes without a date, float [1, codes]: sex is known, race is not."""
    chance = np.full((1, len(model.book.codes)), LEAST)
    chance[0, model.book.index("GENDER//M" if paths.male[person] else "GENDER//F")] = MOST
    for name, share in RACES:
        # Exactly one is shown, so that its share is what its odds have to be.
        chance[0, model.book.index(f"RACE//{name}")] = share / (1 + share)
    return chance


def complete_panels(chance: np.ndarray, codes: np.ndarray, hidden: np.ndarray, panels: list[np.ndarray]) -> np.ndarray:
    """Chances given that the codes of a panel come together: certain beside a shown one, impossible where they no
    longer all fit behind what is hidden.

    Args:
        chance: Float [layers, codes of the book].
        codes: int64 [shown and hidden], ascending.
        hidden: bool, of the same length.
        panels: Codes of each panel, ascending.
    """
    chance = chance.copy()
    shown = np.r_[-1, codes[~hidden], chance.shape[1]]
    room = np.diff(np.flatnonzero(np.r_[True, ~hidden, True])) - 1
    for members in panels:
        gap = np.searchsorted(shown, members, side="right") - 1
        if (shown[gap] == members).any():
            chance[:, members] = MOST
        elif (np.bincount(gap, minlength=len(room)) > room).any():
            chance[:, members] = LEAST
    return chance


def identify(chance: np.ndarray, prior: np.ndarray, codes: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Which codes the hidden ones are, given that they stand in order among those shown; float [hidden, codes].

    Codes are shown independently given a layer, so the hidden ones between two shown neighbours are a conditional
    Bernoulli sample (Chen & Liu 1997, Statistica Sinica 7:875): of k among candidates with odds o, the j-th is c in
    proportion to e[j-1](odds before c) o[c] e[k-j](odds after c), where e are elementary symmetric polynomials.

    Args:
        chance: Float [layers, codes of the book], P(code is shown) given the layer.
        prior: Float [layers].
        codes: int64 [shown and hidden], ascending.
        hidden: bool, of the same length.
    """
    odds = chance / (1 - chance)
    weight = np.log(prior) + np.log1p(-chance).sum(1) + np.log(odds[:, codes[~hidden]]).sum(1)
    result = np.zeros((len(prior), int(hidden.sum()), chance.shape[1]))
    at = np.flatnonzero(np.r_[True, ~hidden, True])
    fence = np.r_[-1, codes[~hidden], chance.shape[1]]
    done = 0
    for count, low, high in zip(np.diff(at) - 1, fence[:-1] + 1, fence[1:], strict=True):
        if not count:
            continue
        scale = odds[:, low:high].max(1, keepdims=True)
        some = odds[:, low:high] / scale
        before, after = _polynomials(some, count), _polynomials(some[:, ::-1], count)
        total = before[count][:, -1]
        for j in range(count):
            later = after[count - 1 - j][:, -2::-1]
            result[:, done + j, low:high] = before[j][:, :-1] * some * later / total[:, None]
        weight += np.log(total) + count * np.log(scale[:, 0])
        done += count
    posterior = np.exp(weight - weight.max())
    return np.asarray(np.einsum("z,zhc->hc", posterior / posterior.sum(), result))


def _polynomials(odds: np.ndarray, most: int) -> list[np.ndarray]:
    """Elementary symmetric polynomials of degree 0 to `most` of the first 0, 1, 2, ... odds; float [layers, n + 1]."""
    found = [np.ones((len(odds), odds.shape[1] + 1))]
    for _ in range(most):
        found.append(np.pad(np.cumsum(odds * found[-1][:, :-1], axis=1), ((0, 0), (1, 0))))
    return found


def _score(reader: _Reader, told: np.ndarray, cell: int) -> tuple[float, float, float, float]:
    """Loss, correct, confidence and top10 of one hidden code from probabilities by code and bin."""
    flat = told.ravel()
    best = int(flat.argmax())

    def blend(where: int) -> float:
        return float((1 - UNIGRAM_SHARE) * flat[where] + UNIGRAM_SHARE * reader.unigram[reader.table.ravel()[where]])

    return -np.log(blend(cell)), float(best == cell), blend(best), float((flat > flat[cell]).sum() < 10)
