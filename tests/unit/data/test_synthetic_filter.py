from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.synthetic import block_frame, entry_days
from ehrsequencing.data.synthetic_disease import newborn, replay, step, step_keys
from ehrsequencing.data.synthetic_filter import (
    STATE_OF,
    Chain,
    Signals,
    attack_times,
    chain_of,
    coded_by,
    filter_chain,
    read_signals,
    ring_likelihood,
)
from ehrsequencing.data.synthetic_model import RING, load_model
from ehrsequencing.data.synthetic_patterns import latest_before, ring_places
from ehrsequencing.data.synthetic_random import normal, subject_keys

MODEL = load_model()
STEPS, PLACES = 5, 3


@pytest.fixture
def tiny():
    """A chain of 5 steps with 3 places, moves and likelihoods at random, no outcome seen before the last step."""
    random = np.random.default_rng(0)
    chain = Chain(np.array([0.7, 0.3]), np.array([[0.8, 0.2], [0.35, 0.65]]), np.array([0.05, 0.4]))
    moved = random.random((STEPS, 2, 1)) < 0.6
    likelihood = np.where(moved[..., None, None], random.random((STEPS, 2, 1, 2, PLACES)), random.random(
        (STEPS, 2, 1, 2, 1)))  # fmt: skip
    attack = np.zeros((STEPS, 1), dtype=bool)
    attack[1] = True
    return chain, Signals(moved, likelihood, attack, 0.85)


def enumerate_histories(chain, signals, last, late):
    """P(state), P(state, no attack in the last step) from every path of states and places."""
    weight = np.zeros(2)
    safe = np.zeros(2)
    slots = [(now, phase) for now in range(last + 1) for phase in (0, 1) if (now, phase) <= (last, int(late))]
    moves = [slot for slot in slots if signals.moved[(*slot, 0)]]
    for first, *states in product((0, 1), repeat=last + 2):
        for place in range(PLACES):
            for directions in product((1, -1), repeat=len(moves)):
                way = dict(zip(moves, directions, strict=True))
                p, at, before, open_step = chain.start[first] / PLACES, place, first, 1.0
                for now, state in enumerate(states):
                    hazard = chain.attack[before]
                    p *= chain.moves[before, state]
                    if now < last or late:
                        p *= hazard if signals.attack[now, 0] else 1 - hazard
                    else:
                        open_step = 1 - hazard
                    for phase in (0, 1):
                        if (now, phase) in slots:
                            if (now, phase) in way:
                                forward = way[now, phase] == 1
                                p *= signals.fidelity if forward == (state == 1) else 1 - signals.fidelity
                                at = (at + way[now, phase]) % PLACES
                            p *= signals.likelihood[now, phase, 0, state, at]
                    before = state
                weight[before] += p
                safe[before] += p * open_step
    return weight / weight.sum(), safe / weight.sum()


@pytest.mark.parametrize("late", [False, True])
def test_exact_filtering_equals_enumeration(tiny, late):
    chain, signals = tiny
    rows = np.arange(STEPS - 1)
    belief, safe = filter_chain(chain, signals, np.zeros_like(rows), rows, np.full(len(rows), late))
    for row in rows:
        expected = enumerate_histories(chain, signals, row, late)
        np.testing.assert_allclose((belief[row], safe[row]), expected, rtol=1e-10)
    assert (safe.sum(1) < 1).all() or late


def test_attack_times_equal_enumeration(tiny):
    chain, _ = tiny
    safe = np.array([[0.5, 0.3]])
    expected = [0.2]
    for length in (1, 2, 3):
        total = 0.0
        for path in product((0, 1), repeat=length):
            p = safe[0, path[0]]
            for before, after in pairwise(path):
                p *= (1 - chain.attack[before]) * chain.moves[before, after]
            total += p * chain.attack[path[-1]]
        expected.append(total)
    np.testing.assert_allclose(attack_times(chain, safe, 4)[0], expected)


@pytest.mark.parametrize("attack", sorted(STATE_OF))
def test_chain_is_that_of_the_process(attack):
    """Shares at entry, moves and attacks of the simulated process are those of the chain, within chance."""
    chain, hidden, number = chain_of(MODEL, attack), MODEL.condition(STATE_OF[attack]), MODEL.condition(attack)
    keys = subject_keys(77, np.arange(4_000))
    path = list(replay(MODEL, keys, 12))
    share = (path[0].level[hidden] > 0).mean()
    assert abs(share - chain.start[1]) < 4 * np.sqrt(0.25 / 4_000)
    counts, attacks, times = np.zeros((2, 2)), np.zeros(2), np.zeros(2)
    for now, later in pairwise(path):
        alive = now.alive
        before, after = now.level[hidden][alive] > 0, later.level[hidden][alive] > 0
        np.add.at(counts, (before.astype(int), after.astype(int)), 1)
        struck = later.level[number][alive] > 0
        for state in (0, 1):
            times[state] += (before == state).sum()
            attacks[state] += (struck & (before == state)).sum()
            assert later.known[number][alive][struck].all(), "coded whenever it strikes"
    share = counts / counts.sum(1, keepdims=True)
    assert np.abs(share - chain.moves).max() < 0.003
    expected = chain.attack * times
    assert (np.abs(attacks - expected) < 4 * np.sqrt(expected) + 1).all()


def test_hidden_states_stand_alone():
    """Nothing else moves a filtered chain, and it moves nothing but its attack, which changes no hazard."""
    effects = (MODEL.conditions.onset_effects, MODEL.conditions.progress_effects, MODEL.conditions.recede_effects)
    for attack, state in STATE_OF.items():
        hidden, number = MODEL.condition(state), MODEL.condition(attack)
        assert not any(found[hidden] for found in effects)
        readers = [
            condition
            for found in effects
            for condition, terms in enumerate(found)
            if any(term.term[0] in (state, attack) for term in terms)
        ]
        assert readers == [number]
        assert not any(effect.term[0] in (state, attack) for lab in MODEL.labs for effect in lab.effects)
        assert MODEL.conditions.mortality[number] == 0 == MODEL.conditions.visits[number]
        assert all(number != condition for found in MODEL.drugs.indications for condition, _ in found)


def test_lab_likelihood_is_that_of_the_noise():
    number = next(i for i, lab in enumerate(MODEL.labs) if lab.effects and lab.effects[0].term[0] == RING)
    lab = MODEL.labs[number]
    noise = normal(subject_keys(5, np.arange(200_000)), 9)
    value = np.round(lab.centre + lab.effects[0].size + lab.within * noise, lab.decimals)
    grid, counts = np.unique(value, return_counts=True)
    expected = ring_likelihood(MODEL, number, grid)[:, 1]
    assert expected.sum() == pytest.approx(1, abs=1e-3)
    assert np.abs(counts / 200_000 - expected).max() < 4 * np.sqrt(0.1 / 200_000)


@pytest.fixture(scope="module")
def records():
    frame, paths, _ = block_frame(MODEL, 8, np.arange(1_000))
    shown = frame.filter(pl.col("code").str.contains("ICD10CM//(H|L|T78|M32)|RXNORM//(6922|2582)|LOINC//4485-9"))
    return shown.with_columns(subject=pl.col("subject_id") - int(frame["subject_id"].min())), paths


@pytest.mark.parametrize("attack", sorted(STATE_OF))
def test_belief_is_calibrated(records, attack):
    """Among visits at which the filter says p, the hidden state is present in a share p, over all of p."""
    events, paths = records
    signals = read_signals(MODEL, attack, events, entry_days(paths.static), 60)
    subject = np.repeat(np.arange(1_000), 3)
    at = np.tile([15, 30, 45], 1_000)
    alive = paths.alive[at + 1, subject] & (paths.steps[subject] > at + 1)
    subject, at = subject[alive], at[alive]
    belief, _ = filter_chain(chain_of(MODEL, attack), signals, subject, at, np.ones(len(at), dtype=bool))
    present = paths.level[at + 1, subject, MODEL.condition(STATE_OF[attack])] > 0
    p = belief[:, 1]
    assert p.std() > 0.15, "the record says something about the state"
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        inside = (p >= low) & (p < high)
        error = 4 * np.sqrt((p[inside] * (1 - p[inside])).sum())
        assert abs(present[inside].sum() - p[inside].sum()) < error + 1, (low, high)


def test_patterns_by_hand():
    places = ring_places(np.array([0, 0, 0, 2]), np.array([True, False, False, True]), np.array([0, 1, 2]), 3)
    assert places.tolist() == [1, 0, 2, 0]
    assert ring_places(np.array([], dtype=int), np.array([], dtype=bool), np.array([1]), 3).tolist() == []
    assert latest_before(np.array([0, 0, 1]), np.array([], dtype=int), np.array([], dtype=int)).tolist() == [-1] * 3


def test_time_of_an_acute_visit_within_its_step():
    assert coded_by(np.array([0, 14 * 1_440 - 1, 14 * 1_440, 19 * 1_440 - 1, 43_200])).tolist() == [
        0, 0, 1 / 7_200, 1, 1,
    ]  # fmt: skip


def test_an_attack_leaves_the_hidden_state_alone():
    """The state after a step in which an attack struck moves as after any other."""
    keys = subject_keys(3, np.arange(2_000))
    states, _, _ = newborn(MODEL, keys)
    hidden = MODEL.condition("turning")
    level = states.level.copy()
    level[hidden] = 1
    calm = step(MODEL, replace(states, level=level), step_keys(keys, 0))
    struck = level.copy()
    struck[MODEL.condition("vertigo_attack")] = 1
    assert (step(MODEL, replace(states, level=struck), step_keys(keys, 0)).level[hidden] == calm.level[hidden]).all()
