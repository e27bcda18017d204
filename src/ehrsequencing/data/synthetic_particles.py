"""The chance of what a record does not show, by particles: for processes that no exact filter can follow.

A bootstrap filter (Gordon, Salmond & Smith 1993, doi:10.1049/ip-f-2.1993.0015) with systematic resampling (Kitagawa
1996, doi:10.1080/10618600.1996.10474692). Each subject is followed by several islands that never exchange particles, so
that their spread is the Monte-Carlo error, resampling included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ehrsequencing.data.synthetic_filter import Chain, Signals
from ehrsequencing.errors import ConfigError, DataError

PARTICLES, ISLANDS = 2_048, 8
COLUMNS = 400_000
"""Particles of all subjects that are followed at a time, about 100 MB."""

Guess = tuple[np.ndarray, ...]
"""Hidden state of particles: arrays [rows, particles]."""


class Process(Protocol):
    """A hidden process of n subjects and what their records show of it, in slots of time.

    Rows are islands: `owner` (int64 [rows]) tells the subject of each. What was shown is held by the process.
    """

    slots: int

    def begin(self, owner: np.ndarray, particles: int, random: np.random.Generator) -> Guess:
        """Guesses before the first slot, as likely as the process makes them."""
        ...

    def advance(
        self, slot: int, guess: Guess, owner: np.ndarray, random: np.random.Generator
    ) -> tuple[Guess, np.ndarray]:
        """Guesses after a slot, and the likelihood of what it showed, float [rows, particles]."""
        ...

    def answer(self, slot: int, guess: Guess) -> tuple[np.ndarray, ...]:
        """What is asked for, given the guess: numbers [rows, particles]; their weighted means are the filter's."""
        ...


@dataclass(frozen=True)
class Followed:
    """What particles say at asked rows.

    Attributes:
        islands: Float [islands, rows, answers]; NaN where none of an island's particles could have left the record.
        effective: Float [rows], effective sample size 1 / sum(w^2), over all islands, before resampling. It counts
            uneven weights and not common ancestors; the error counts both.
    """

    islands: np.ndarray
    effective: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Float [rows, answers]."""
        return np.asarray(np.nanmean(self.islands, axis=0))

    @property
    def error(self) -> np.ndarray:
        """Monte-Carlo standard error of the mean, float [rows, answers]."""
        return standard_error(self.islands)


def standard_error(islands: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis, islands that died out (NaN) left out."""
    alive = np.isfinite(islands).sum(0)
    return np.asarray(np.nanstd(islands, axis=0, ddof=1) / np.sqrt(alive))


def follow(
    process: Process, subject: np.ndarray, slot: np.ndarray, *, particles: int = PARTICLES, islands: int = ISLANDS,
    seed: int = 0,
) -> Followed:  # fmt: skip
    """Filter a process with particles.

    Args:
        process: Of n subjects.
        subject, slot: int64 [rows]; whose answers are asked, after which slot.
        particles: Per subject, over all islands.
        islands: Independent groups of them.
        seed: Of the filter's own generator; the same arguments give the same result.

    Raises:
        ConfigError: fewer than two islands, or fewer than two particles in each.
        DataError: for some row fewer than two islands can have left the record.
    """
    each = particles // islands if islands else 0
    if islands < 2 or each < 2:
        raise ConfigError(
            "too few particles", got=f"{particles} in {islands} islands", expected="2 islands or more of 2 or more each"
        )
    random = np.random.default_rng([seed, 0x9A])
    who, place = np.unique(subject, return_inverse=True)
    found = np.empty((islands, len(subject), 0))
    effective = np.zeros(len(subject))
    height = max(1, COLUMNS // (islands * each))
    for top in range(0, len(who), height):
        rows = np.flatnonzero((place >= top) & (place < top + height))
        people = who[top : top + height]
        part, effective[rows] = _follow(process, people, place[rows] - top, slot[rows], each, islands, random)
        if not found.shape[-1]:
            found = np.empty((islands, len(subject), part.shape[-1]))
        found[:, rows] = part
    lost = np.isfinite(found).all(-1).sum(0) < 2
    if lost.any():
        first = int(np.flatnonzero(lost)[0])
        raise DataError(
            "no particle can have left the record", got=f"{int(lost.sum())} rows, first that of subject "
            f"{subject[first]} at slot {slot[first]}", remedy="pass more particles",
        )  # fmt: skip
    return Followed(found, effective)


def _follow(
    process: Process, people: np.ndarray, place: np.ndarray, slot: np.ndarray, each: int, islands: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Answers [islands, rows, answers] and effective sample sizes [rows] of some subjects; `place` in `people`."""
    owner = np.repeat(people, islands)
    guess = process.begin(owner, each, random)
    weight = np.full((len(owner), each), 1 / each)
    answers: list[np.ndarray] = [np.zeros(0)] * len(slot)
    effective = np.zeros(len(slot))
    by_slot = np.argsort(slot, kind="stable")
    bounds = np.searchsorted(slot[by_slot], np.arange(int(slot.max(initial=-1)) + 2))
    for now in range(len(bounds) - 1):
        guess, likelihood = process.advance(now, guess, owner, random)
        weight = weight * likelihood
        total = weight.sum(1, keepdims=True)
        dead = total[:, 0] <= 0
        # A dead island stays dead: its weights are NaN from here on, and it is never resampled.
        weight = np.divide(weight, total, out=np.full_like(weight, np.nan), where=total > 0)
        size = np.where(dead | np.isnan(weight[:, 0]), 0.0, 1 / np.maximum((weight**2).sum(1), 1e-300))
        rows = by_slot[bounds[now] : bounds[now + 1]]
        if len(rows):
            given = np.stack([(weight * value).sum(1) for value in process.answer(now, guess)], axis=-1)
            given = given.reshape(len(people), islands, -1)
            for row in rows:
                answers[row] = given[place[row]]
            effective[rows] = size.reshape(len(people), islands).sum(1)[place[rows]]
        thin = np.flatnonzero((size < each / 2) & (size > 0))
        if len(thin):
            chosen = resample(weight[thin], random.random(len(thin)))
            for array in guess:
                array[thin] = np.take_along_axis(array[thin], chosen, axis=1)
            weight[thin] = 1 / each
    return np.stack(answers, axis=1), effective


def resample(weight: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Systematic resampling of each row, int64 [rows, particles]: which particle each new one copies.

    Args:
        weight: Float [rows, particles], rows sum to 1.
        start: Float [rows] in [0, 1).

    >>> resample(np.array([[0.5, 0.0, 0.5, 0.0]]), np.array([0.3])).tolist()
    [[0, 0, 2, 2]]
    """
    rows, particles = weight.shape
    upto = np.ceil(particles * np.cumsum(weight, axis=1) - start[:, None]).clip(0, particles).astype(np.int64)
    # Whatever rounding left of the sum of weights, all places are filled, by a particle with weight.
    last = particles - 1 - (weight[:, ::-1] > 0).argmax(1)
    upto = np.where(np.arange(particles) >= last[:, None], particles, upto)
    copies = np.diff(upto, axis=1, prepend=0)
    return np.repeat(np.tile(np.arange(particles), rows), copies.ravel()).reshape(rows, particles)


class ChainProcess:
    """The chain of `synthetic_filter` as particles: hidden state before and after the step, and place of the pattern.

    Slots are phases of steps, two each. The answers are P(absent), P(present), and the same two without an attack in
    the step, as `filter_chain` has them.
    """

    def __init__(self, chain: Chain, signals: Signals) -> None:
        self.chain, self.signals = chain, signals
        steps, phases, _, _, self._places = signals.likelihood.shape
        self.slots = steps * phases

    def begin(self, owner: np.ndarray, particles: int, random: np.random.Generator) -> Guess:
        shape = (len(owner), particles)
        state = (random.random(shape) < self.chain.start[1]).astype(np.int8)
        return state.copy(), state, random.integers(0, self._places, shape, dtype=np.int8)

    def advance(
        self, slot: int, guess: Guess, owner: np.ndarray, random: np.random.Generator
    ) -> tuple[Guess, np.ndarray]:
        before, state, place = guess
        now, phase = divmod(slot, 2)
        if phase == 0:
            before = state
            state = (random.random(state.shape) < self.chain.moves[:, 1][before]).astype(np.int8)
            weight = np.ones(state.shape)
        else:
            hazard = self.chain.attack[before]
            weight = np.where(self.signals.attack[now, owner][:, None], hazard, 1 - hazard)
        moving = np.flatnonzero(self.signals.moved[now, phase, owner])
        if len(moving):
            agrees = random.random((len(moving), state.shape[1])) < self.signals.fidelity
            place = place.copy()
            place[moving] = (place[moving] + np.where(agrees == (state[moving] == 1), 1, -1)) % self._places
        seen = self.signals.likelihood[now, phase]
        telling = np.flatnonzero((seen != 1).any((1, 2))[owner])
        if len(telling):
            weight[telling] *= seen[owner[telling, None], state[telling], place[telling]]
        return (before, state, place), weight

    def answer(self, slot: int, guess: Guess) -> tuple[np.ndarray, ...]:
        before, state, _ = guess
        # After the acute phase the step's attack is history; before it, it is still open.
        spared = np.ones(state.shape) if slot % 2 else 1 - self.chain.attack[before]
        present = state.astype(np.float64)
        return 1 - present, present, (1 - present) * spared, present * spared


def filter_particles(
    chain: Chain, signals: Signals, subject: np.ndarray, step: np.ndarray, after_acute: np.ndarray, *,
    particles: int = PARTICLES, islands: int = ISLANDS, seed: int = 0,
) -> Followed:  # fmt: skip
    """`filter_chain` by particles: answers P(absent), P(present), and both without an attack in the visit's step.

    Args:
        chain, signals, subject, step, after_acute: As `filter_chain` takes them.
        particles, islands, seed: As `follow` takes them.

    Raises:
        ConfigError, DataError: as `follow`.
    """
    slot = 2 * np.asarray(step, dtype=np.int64) + np.asarray(after_acute, dtype=np.int64)
    return follow(ChainProcess(chain, signals), subject, slot, particles=particles, islands=islands, seed=seed)
