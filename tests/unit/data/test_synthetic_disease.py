from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from ehrsequencing.data.synthetic_disease import (
    EARLY_METFORMIN,
    EMERGENCY,
    INPATIENT,
    NSAID_HARM,
    OUTPATIENT,
    SCAR,
    fork,
    fresh_keys,
    newborn,
    replay,
    step,
    step_keys,
)
from ehrsequencing.data.synthetic_model import NEVER, load_model
from ehrsequencing.data.synthetic_random import subject_keys

SUBJECTS, STEPS = 400, 40


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def keys():
    return subject_keys(3, np.arange(SUBJECTS))


@pytest.fixture(scope="module")
def path(model, keys):
    return list(replay(model, keys, STEPS))


def equal(left, right):
    return all(np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))


def at_entry(model, keys, **changes):
    """Subjects of 60 without any condition, drug or memory."""
    states, _, _ = newborn(model, keys)
    return replace(states, age_months=np.full(len(keys), 720, dtype=np.int32), **changes)


def test_step_is_pure(model, keys, path):
    before = path[10]
    copies = {f.name: getattr(before, f.name).copy() for f in fields(before)}
    first = step(model, before, step_keys(keys, 10))
    assert equal(first, path[11])
    assert all(np.array_equal(getattr(before, name), copy) for name, copy in copies.items())


def test_subject_is_the_same_alone_and_in_company(model, keys, path):
    chosen = np.array([5, 217])
    alone = list(replay(model, keys[chosen], STEPS))
    assert equal(alone[-1], path[-1].select(chosen))


def test_states_stay_in_range(model, path):
    conditions = model.conditions
    for now, later in pairwise(path):
        assert (later.level <= conditions.levels[:, None]).all()
        assert not (later.alive & ~now.alive).any()
        assert (later.age_months >= now.age_months).all()
        chronic = conditions.courses == "chronic"
        rise = later.level[chronic].astype(int) - now.level[chronic]
        assert rise.max() <= 1 and rise.min() >= -1
        assert not (now.known & ~later.known).any()
        assert ((later.visit & EMERGENCY > 0) & (later.visit & INPATIENT > 0)).sum() == 0
        assert ((later.cause != NEVER) == ((later.visit & (EMERGENCY | INPATIENT)) > 0)).all()
        assert (later.visit[~now.alive] == 0).all()
    assert (path[1].visit & OUTPATIENT > 0).all(), "all visit a clinic at entry"


def test_sex_bound_conditions(model, path):
    for name, sex in (("breast_cancer", 0), ("prostate_cancer", 1), ("bph", 1)):
        ever = path[-1].since[model.condition(name)] != NEVER
        assert set(path[-1].male[ever].tolist()) <= {sex}


def test_drugs_need_a_known_indication(model, path):
    metformin, diabetes = model.drug("metformin"), model.condition("diabetes")
    for now, later in pairwise(path):
        begun = later.drug[metformin] & ~now.drug[metformin]
        assert later.known[diabetes][begun].all()
        assert (later.visit[begun] > 0).all()


def onset_share(model, states, keys, name, steps=12):
    """Share with an onset of a condition within some steps."""
    number = model.condition(name)
    had = np.zeros(len(keys), dtype=bool)
    for count in range(steps):
        states = step(model, states, step_keys(keys, count), mortal=False)
        had |= states.level[number] > 0
    return had.mean()


def test_heart_failure_depends_on_trend_recency_and_order(model):
    """The same conditions and drugs, differing in one thing: a rising trend, when, or in which order."""
    keys = subject_keys(9, np.arange(3_000))
    calm = at_entry(model, keys)
    base = onset_share(model, calm, keys, "heart_failure")

    level = calm.level.copy()
    level[model.condition("strain")] = 3
    strained = onset_share(model, replace(calm, level=level), keys, "heart_failure")
    rising_level = level.copy()
    rising_level[model.condition("rising")] = 1
    rising = onset_share(model, replace(calm, level=rising_level), keys, "heart_failure")
    assert base < strained < rising

    def after_infarct(months, scar):
        since, memory = calm.since.copy(), calm.memory.copy()
        since[model.condition("mi")], memory[SCAR] = months, scar
        return onset_share(
            model, replace(calm, level=level, since=since, memory=memory), keys, "heart_failure", steps=5
        )

    assert after_infarct(60, 1) < after_infarct(0, 1)
    assert after_infarct(60, 1) < after_infarct(60, 2)


def test_memory_is_of_order(model):
    """An anti-inflammatory drug harms only where it follows the diagnosis; early metformin only within a year."""
    keys = subject_keys(4, np.arange(2_000))
    states = at_entry(model, keys)
    level, known, since = states.level.copy(), states.known.copy(), states.since.copy()
    for name in ("osteoarthritis", "diabetes"):
        level[model.condition(name)], known[model.condition(name)] = 1, True
    since[model.condition("diabetes")] = np.where(np.arange(2_000) % 2, 3, 60)
    known[model.condition("hypertension")] = np.arange(2_000) % 2 == 0
    states = replace(states, level=level, known=known, since=since)
    after = step(model, states, step_keys(keys, 0), intake=True)
    nsaid, even = after.drug[model.drug("nsaid")], np.arange(2_000) % 2 == 0
    assert nsaid[even].any() and nsaid[~even].any()
    assert (after.memory[NSAID_HARM] == (nsaid & even)).all()
    metformin = after.drug[model.drug("metformin")]
    assert (after.memory[EARLY_METFORMIN] == (metformin & ~even)).all()
    # A drug that came first stays harmless when the diagnosis follows.
    known = after.known.copy()
    known[model.condition("hypertension")] = True
    again = step(model, replace(after, known=known), step_keys(keys, 1), intake=True)
    kept = nsaid & ~even & again.drug[model.drug("nsaid")] & again.alive
    assert kept.any() and not again.memory[NSAID_HARM][kept].any()


def test_treatment_changes_the_course(model):
    keys = subject_keys(5, np.arange(4_000))
    states = at_entry(model, keys)
    level = states.level.copy()
    level[model.condition("diabetes")] = 1
    drug = states.drug.copy()
    drug[model.drug("metformin")] = True
    untreated = replace(states, level=level)
    treated = replace(states, level=level, drug=drug)

    def progressed(start):
        for count in range(12):
            start = step(model, start, step_keys(keys, count), mortal=False)
        return (start.level[model.condition("diabetes")] > 1).mean()

    assert progressed(treated) < progressed(untreated)


@pytest.mark.parametrize("after_acute", [False, True])
def test_a_fork_under_the_own_keys_is_the_replay(model, keys, path, after_acute):
    steps, late = np.full(SUBJECTS, 20), np.full(SUBJECTS, after_acute)
    futures = list(fork(model, path[20], keys, keys, steps, late, 5))
    assert all(equal(future, path[21 + number]) for number, future in enumerate(futures))


def test_forks_start_after_the_visit(model, keys, path):
    """What the step drew before the visit stays; what comes after it is drawn anew, and differs between futures."""
    steps, none = np.full(SUBJECTS, 20), np.zeros(SUBJECTS, dtype=bool)
    acute = model.conditions.courses == "acute"

    def forked(late, future):
        return next(fork(model, path[20], keys, fresh_keys(keys, steps, np.array(future)), steps, late, 1))

    real, other = path[21], forked(none, 0)
    for name in ("known_midway", "drug_midway"):
        assert np.array_equal(getattr(other, name), getattr(real, name))
    assert np.array_equal(other.level[~acute], real.level[~acute])
    assert np.array_equal(other.visit & OUTPATIENT, real.visit & OUTPATIENT)
    assert not np.array_equal(other.level[acute], real.level[acute])
    assert equal(other, forked(none, 0)) and not equal(other, forked(none, 1))
    late = forked(~none, 0)
    for name in ("level", "known", "drug", "memory", "visit", "cause"):
        assert np.array_equal(getattr(late, name), getattr(real, name))
    deaths = [forked(~none, future).alive for future in range(20)]
    assert np.std([alive.sum() for alive in deaths]) > 0, "death is still open"


def test_both_visits_of_a_step_are_told_apart(model, keys, path):
    """The clinic's visit comes first: it knows no acute condition of the step and starts no drug for one."""
    acute = model.conditions.courses == "acute"
    both = 0
    for before, after in pairwise(path):
        seen = (after.visit & OUTPATIENT > 0) & (after.visit & (EMERGENCY | INPATIENT) > 0)
        both += seen.sum()
        assert np.array_equal(after.known_midway[acute], before.known[acute])
        struck = (after.level[acute] > 0) & ~before.known[acute] & after.alive
        assert after.known[acute][struck].all()
        quiet = after.visit & (EMERGENCY | INPATIENT) == 0
        assert np.array_equal(after.known[:, quiet], after.known_midway[:, quiet])
    assert both > 50


def test_states_can_be_repeated(path):
    repeated = path[20].select(np.repeat(7, 3))
    assert repeated.level.shape[1] == 3 and (repeated.level[:, 0] == path[20].level[:, 7]).all()
