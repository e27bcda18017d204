"""The exact chance of an attack given the record, for conditions that hang on one small hidden state.

A forward algorithm (Rabiner 1989, doi:10.1109/5.18626) over a two-state chain and the place of a cyclic pattern.
Everything else in a subject is independent of the chain given the record, except for what ends follow-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrsequencing.data.synthetic_disease import BURN_IN_MONTHS, BURN_IN_STEPS, DAYS_PER_STEP
from ehrsequencing.data.synthetic_model import RING, Model, log_rate, threshold
from ehrsequencing.data.synthetic_patterns import (
    REACTION_ATTACK,
    REACTION_FIDELITY,
    REACTION_STATE,
    RING_ATTACK,
    RING_FIDELITY,
    RING_SIZE,
    RING_STATE,
    SPELL_ATTACK,
    SPELL_FIDELITY,
    SPELL_SIZE,
    SPELL_STATE,
)
from ehrsequencing.data.synthetic_visits import ACUTE_DAYS, CLINIC_DAYS, FIRST_ACUTE_DAY, MINUTES_PER_DAY

MINUTES_PER_STEP = DAYS_PER_STEP * MINUTES_PER_DAY
STATE_OF = {SPELL_ATTACK: SPELL_STATE, REACTION_ATTACK: REACTION_STATE, RING_ATTACK: RING_STATE}
"""Conditions that can be filtered, and the hidden state that each hangs on."""


@dataclass(frozen=True)
class Chain:
    """A hidden two-state chain and the attacks that it brings.

    Attributes:
        start: Float [2], P(absent), P(present) at entry.
        moves: Float [2, 2], transition per step, from row to column.
        attack: Float [2], chance of an attack in a step by the state before the step.
    """

    start: np.ndarray
    moves: np.ndarray
    attack: np.ndarray


@dataclass(frozen=True)
class Signals:
    """What the record shows of a chain, by step, phase of the step (0 clinic, 1 hospital) and subject.

    Attributes:
        moved: Bool [steps, 2, n]; the pattern moved by one place: forwards with the fidelity where the state is
            present, backwards with the fidelity where it is absent.
        likelihood: Float [steps, 2, n, 2, places]; of what was seen, by state and (new) place.
        attack: Bool [steps, n]; an attack was coded in the step.
        fidelity: Chance that a move goes the way of the state.
    """

    moved: np.ndarray
    likelihood: np.ndarray
    attack: np.ndarray
    fidelity: float


def chain_of(model: Model, attack: str) -> Chain:
    """The chain behind a condition of `STATE_OF`, from the tables of the model."""
    conditions, hidden, number = model.conditions, model.condition(STATE_OF[attack]), model.condition(attack)

    def chance(log_hazard: float) -> float:
        return float(threshold(np.array([int(log_hazard)]))[0]) / 2**32

    def transition(months: int) -> np.ndarray:
        shift = log_rate(12 * months)
        rise, fall = chance(conditions.onset[hidden] + shift), chance(conditions.recede[hidden] + shift)
        return np.array([[1 - rise, rise], [fall, 1 - fall]])

    shift = log_rate(12)
    (effect,) = conditions.onset_effects[number]
    calm = conditions.onset[number] + shift
    start = np.array([1.0, 0.0]) @ np.linalg.matrix_power(transition(BURN_IN_MONTHS), BURN_IN_STEPS)
    return Chain(start, transition(1), np.array([chance(calm), chance(calm + effect.size)]))


def read_signals(model: Model, attack: str, events: pl.DataFrame, entry_day: np.ndarray, steps: int) -> Signals:
    """What records show of the chain behind a condition.

    Args:
        model: The disease model.
        attack: One of `STATE_OF`.
        events: Columns `subject` (int, 0 to n - 1), `time`, `code`, `numeric_value`, by subject and time.
        entry_day: int64 [n], days since 1970.
        steps: Steps to cover.
    """
    n = len(entry_day)
    minute = events["time"].dt.timestamp("us").to_numpy() // 60_000_000
    subject = events["subject"].to_numpy().astype(np.int64)
    since_entry = minute - entry_day[subject] * MINUTES_PER_DAY
    step, within = since_entry // MINUTES_PER_STEP, since_entry % MINUTES_PER_STEP
    phase = (within >= CLINIC_DAYS * MINUTES_PER_DAY).astype(np.int64)
    code, value = events["code"].to_numpy(), events["numeric_value"].to_numpy()
    keep = (step >= 0) & (step < steps)
    subject, step, phase, code, value = (array[keep] for array in (subject, step, phase, code, value))

    def members(role: str) -> list[str]:
        return [model.book.codes[index] for index in model.book.roles[role][0]]

    places = RING_SIZE if attack == RING_ATTACK else 1
    moved = np.zeros((steps, 2, n), dtype=bool)
    likelihood = np.ones((steps, 2, n, 2, places))
    attacks = np.zeros((steps, n), dtype=bool)
    had = np.isin(code, members(f"dx/{attack}/1"))
    attacks[step[had], subject[had]] = True
    if attack == RING_ATTACK:
        number = next(i for i, lab in enumerate(model.labs) if any(effect.term[0] == RING for effect in lab.effects))
        at = code == model.labs[number].code
        moved[step[at], phase[at], subject[at]] = True
        likelihood[step[at], phase[at], subject[at]] = ring_likelihood(model, number, value[at])[:, None, :]
        return Signals(moved, likelihood, attacks, RING_FIDELITY)
    # A pattern's two codes of a visit follow each other, with nothing of the pattern in between.
    if attack == SPELL_ATTACK:
        complaints = members("pattern/spell")
        both = np.flatnonzero(np.isin(code, complaints))
        place = np.array([complaints.index(one) for one in code[both]], dtype=np.int64)
        at, fidelity = both[::2], SPELL_FIDELITY
        agrees = (place[1::2] - place[::2]) % SPELL_SIZE == 1
    else:
        both = np.flatnonzero(np.isin(code, [*members("pattern/drug"), *members("pattern/reaction")]))
        at, fidelity = both[::2], REACTION_FIDELITY
        agrees = np.isin(code[at], members("pattern/drug"))
    likelihood[step[at], phase[at], subject[at], 0, 0] = np.where(agrees, 1 - fidelity, fidelity)
    likelihood[step[at], phase[at], subject[at], 1, 0] = np.where(agrees, fidelity, 1 - fidelity)
    return Signals(moved, likelihood, attacks, fidelity)


def ring_likelihood(model: Model, number: int, value: np.ndarray) -> np.ndarray:
    """Chance of rounded values of the lab that reads the cycle, by place, float [values, places]."""
    lab = model.labs[number]
    (effect,) = lab.effects
    mean = lab.centre + effect.size * np.arange(RING_SIZE)
    half = 0.5 * 10.0**-lab.decimals
    high, low = (value[:, None] + half - mean) / lab.within, (value[:, None] - half - mean) / lab.within
    return _normal_distribution(high) - _normal_distribution(low) + 1e-12


def _normal_distribution(x: np.ndarray) -> np.ndarray:
    """Distribution function of `synthetic_random.normal`: the sum of four uniforms, scaled to variance 1."""
    total = np.clip(x / np.sqrt(3.0) + 2.0, 0.0, 4.0)
    terms = (((-1) ** k) * c * np.maximum(total - k, 0.0) ** 4 for k, c in enumerate((1, 4, 6, 4, 1)))
    return sum(terms, start=np.zeros_like(total)) / 24


def filter_chain(
    chain: Chain, signals: Signals, subject: np.ndarray, step: np.ndarray, after_acute: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Belief about the hidden state at ends of visits, given all that the record shows until then.

    Args:
        chain, signals: Of n subjects.
        subject, step: int64 [rows], subject and step of each visit.
        after_acute: bool [rows]; whether the visit is the acute one of its step.

    Returns:
        Float [rows, 2] each: P(state), and P(state and no attack in the visit's own step after it).
    """
    steps, _, n, _, places = signals.likelihood.shape
    belief = np.zeros((len(subject), 2))
    safe = np.zeros((len(subject), 2))
    by_step = np.argsort(step, kind="stable")
    bounds = np.searchsorted(step[by_step], np.arange(steps + 1))
    alpha = np.broadcast_to(chain.start[:, None] / places, (n, 2, places)).copy()
    for now in range(steps):
        attacked = signals.attack[now][:, None, None]
        no_attack = alpha * (1 - chain.attack)[None, :, None]
        likelihood_of_attack = np.where(attacked, alpha - no_attack, no_attack)
        clinic, spared, known = (
            _observe(np.einsum("nsp,st->ntp", before, chain.moves), signals, now, 0)
            for before in (alpha, no_attack, likelihood_of_attack)
        )
        alpha = _observe(known, signals, now, 1)
        rows = by_step[bounds[now] : bounds[now + 1]]
        who, late = subject[rows], after_acute[rows][:, None]
        here = np.where(late, alpha[who].sum(-1), clinic[who].sum(-1))
        after = np.where(late, here, spared[who].sum(-1))
        total = here.sum(-1, keepdims=True)
        belief[rows], safe[rows] = here / total, after / total
        alpha /= alpha.sum((1, 2), keepdims=True)
    return belief, safe


def _observe(alpha: np.ndarray, signals: Signals, step: int, phase: int) -> np.ndarray:
    """Joint weights of state and place after what a phase of a step shows."""
    # Forwards where the state is present, with the fidelity; backwards where it is absent, with the fidelity.
    forward = np.array([1 - signals.fidelity, signals.fidelity])[None, :, None]
    moved = forward * np.roll(alpha, 1, axis=-1) + (1 - forward) * np.roll(alpha, -1, axis=-1)
    alpha = np.where(signals.moved[step, phase][:, None, None], moved, alpha)
    return alpha * signals.likelihood[step, phase]


def attack_times(chain: Chain, safe: np.ndarray, length: int) -> np.ndarray:
    """Chance that the first attack comes in the visit's own step, the next, and so on; float [rows, length].

    Args:
        safe: Float [rows, 2], second result of `filter_chain`.
        length: Steps, the visit's own included.
    """
    found = np.empty((len(safe), length))
    found[:, 0] = 1 - safe.sum(1)
    for number in range(1, length):
        found[:, number] = safe @ chain.attack
        safe = (safe * (1 - chain.attack)) @ chain.moves
    return found


def coded_by(minute: np.ndarray) -> np.ndarray:
    """Chance that an attack of a step is coded by some minute of the step: acute visits fall on it uniformly."""
    first = FIRST_ACUTE_DAY * MINUTES_PER_DAY
    return np.clip((np.floor(minute) - first + 1) / (ACUTE_DAYS * MINUTES_PER_DAY), 0.0, 1.0)
