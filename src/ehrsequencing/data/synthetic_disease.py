"""The disease process: what a subject is at a step, and one pure transition to the next.

Events are made elsewhere, from the trajectories. So a subject can be replayed to any step from (seed, number) and a
future forked from there under other keys, without a record being written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from ehrsequencing.data.synthetic_model import MEMORY, NEVER, TRAITS, Effect, Model, Term, log_rate, threshold
from ehrsequencing.data.synthetic_random import derive, integers, uniform, uniform32

DAYS_PER_STEP = 30
MONTHS_PER_STEP, BURN_IN_STEPS, BURN_IN_MONTHS = 1, 15, 12
"""Before entry a subject lives through 15 yearly steps of the same process, so that some arrive ill and treated."""
MIN_STEPS, MAX_STEPS = 49, 122
"""Follow-up of 4.0 to 10.0 years."""
OUTPATIENT, EMERGENCY, INPATIENT = 1, 2, 4
"""Bits of `States.visit`."""
SCAR, NSAID_HARM, EARLY_METFORMIN = 0, 1, 2
_STEP_LEVEL, _STATIC_LEVEL, _BURN_LEVEL = 1, 2, 3
_STREAM_DETECT, _STREAM_START, _STREAM_STOP, _STREAM_OTHER = 1_000, 2_000, 3_000, 4_000
_FORK_LEVEL, _HOSPITAL_STREAMS = 4, 500
_DEATH_RATE_AT_60, _DEATH_AGE_SLOPE = 0.0035, 9
_BASE_VISITS, _DISCHARGE_VISITS, _CARE_VISITS, _MAX_VISITS = 7, 25, 1, 55
"""Visits to a clinic: hundredths of an expected visit per month; after a discharge; per point of `care`; at most."""
_FULL = np.uint32(2**32 - 1)


@dataclass(frozen=True)
class States:
    """Everything the next step depends on; C conditions, D drug classes, n subjects.

    Attributes:
        male, smoker: uint8 [n].
        traits: int8 [4, n], -2 to 2, order of `TRAITS`.
        age_months: int32 [n].
        alive: bool [n].
        level: uint8 [C, n]; 0 is absent.
        since: uint8 [C, n]; months since the latest onset, at most 254, `NEVER` when there was none.
        known: bool [C, n]; diagnosed at some visit.
        drug: bool [D, n]; taken now.
        known_midway, drug_midway: bool; the same two after the clinic visit of the latest step, before its acute one.
        memory: uint8 [3, n], order of `MEMORY`.
        discharged: uint8 [n]; months since the last hospital or emergency visit, as `since`.
        visit: uint8 [n]; visits of this step, bits OUTPATIENT, EMERGENCY, INPATIENT.
        cause: uint8 [n]; condition number behind an acute visit, `NEVER` without one.
    """

    male: np.ndarray
    smoker: np.ndarray
    traits: np.ndarray
    age_months: np.ndarray
    alive: np.ndarray
    level: np.ndarray
    since: np.ndarray
    known: np.ndarray
    drug: np.ndarray
    known_midway: np.ndarray
    drug_midway: np.ndarray
    memory: np.ndarray
    discharged: np.ndarray
    visit: np.ndarray
    cause: np.ndarray

    def select(self, subjects: np.ndarray) -> States:
        """States of some subjects, repeated ones included (so that each can be forked many times)."""
        return States(**{field.name: getattr(self, field.name)[..., subjects] for field in fields(self)})


class _Terms:
    """Values of effect terms, computed when first asked for."""

    def __init__(self, model: Model, states: States) -> None:
        self.model, self.states = model, states
        self.cache: dict[Term, np.ndarray] = {}

    def __getitem__(self, term: Term) -> np.ndarray:
        if term not in self.cache:
            self.cache[term] = self._compute(*term).astype(np.int16)
        return self.cache[term]

    def _compute(self, name: str, kind: str, argument: int) -> np.ndarray:
        values = term_rows(self.model, name, self.states, recent=kind == "recent")
        if kind == "level":
            return values
        if kind == "equals":
            return values == argument
        return values < argument if kind == "recent" else values > 0


def term_rows(model: Model, name: str, states: States, recent: bool = False) -> np.ndarray:
    """The array that a term reads: level (or months since onset), drug, trait, memory or static, [n]."""
    if name in model.conditions.names:
        return (states.since if recent else states.level)[model.condition(name)]
    if name in model.drugs.names:
        return states.drug[model.drug(name)]
    if name in TRAITS:
        return states.traits[TRAITS.index(name)]
    if name in MEMORY:
        return states.memory[MEMORY.index(name)]
    return getattr(states, name)


def step_keys(keys: np.ndarray, step: int | np.ndarray, burn_in: bool = False) -> np.ndarray:
    """Keys of one step, uint64 [n]; `step` is one number or one per key."""
    return derive(derive(keys, _BURN_LEVEL if burn_in else _STEP_LEVEL), step)


def static_keys(keys: np.ndarray) -> np.ndarray:
    """Keys of what never changes in a subject, uint64 [n]."""
    return derive(keys, _STATIC_LEVEL)


def step(
    model: Model, states: States, keys: np.ndarray, *, months: int = MONTHS_PER_STEP, mortal: bool = True,
    intake: bool | np.ndarray = False, later: np.ndarray | None = None, last: np.ndarray | None = None,
) -> States:  # fmt: skip
    """One transition; pure: the same states and keys give the same next states.

    Three phases, in order of time: chronic and hidden conditions move and a clinic may be visited; acute conditions
    strike and bring their visit; the subject may die. Each draws from its own keys, so that the rest of a step can be
    drawn anew from a visit on.

    Args:
        model: The disease model.
        states: Of n subjects.
        keys: uint64 [n], one per subject and step, from `step_keys`.
        months: Length of the step.
        mortal: Whether subjects can die in it.
        intake: Whether all visit a clinic in it, as at entry; one bool, or one per subject.
        later: uint64 [n], keys of the second phase; `keys` by default.
        last: uint64 [n], keys of the third phase; `keys` by default.

    Returns:
        States at the end of the step. The dead keep their states and have no visits.
    """
    later, last = keys if later is None else later, keys if last is None else last
    level, since = _progress(model, states, keys, later, months)
    after = replace(states, level=level, since=since, age_months=states.age_months + months * states.alive)
    visit, cause = _visits(model, after, keys, later, months, intake)
    acute = (visit & (EMERGENCY | INPATIENT)) > 0
    after = replace(after, visit=visit, cause=cause)
    known, drug = _attend(model, after, (visit & OUTPATIENT) > 0, keys, at_hospital=False)
    after = replace(after, known=known, drug=drug, known_midway=known, drug_midway=drug)
    known, drug = _attend(model, after, acute, later, at_hospital=True)
    after = replace(after, known=known, drug=drug)
    passed = np.minimum(states.discharged.astype(np.int32) + months, 254)
    passed = np.where(states.discharged == NEVER, NEVER, passed)
    after = replace(
        after,
        memory=_remember(model, states, after),
        discharged=np.where(acute, 0, passed).astype(np.uint8),
    )
    return replace(after, alive=_survive(model, after, last, months)) if mortal else after


def _attend(
    model: Model, states: States, visiting: np.ndarray, keys: np.ndarray, at_hospital: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Diagnoses known and drugs taken after a visit of some subjects, [C, n] and [D, n]."""
    known, drug = states.known.copy(), states.drug.copy()
    seen = np.flatnonzero(visiting)
    if len(seen):
        here, seen_keys = states.select(seen), keys[seen]
        here = replace(here, known=_detect(model, here, seen_keys, at_hospital))
        known[:, seen] = here.known
        drug[:, seen] = _prescribe(model, here, seen_keys, at_hospital)
    return known, drug


def _log_hazards(
    base: np.ndarray, rows: np.ndarray, effects: tuple[tuple[Effect, ...], ...], terms: _Terms, n: int
) -> np.ndarray:
    """Log-hazards of some conditions in units, int16 [rows, n]: base [C] or [C, n] plus effects."""
    total = np.empty((len(rows), n), dtype=np.int16)
    for row, condition in zip(total, rows, strict=True):
        row[:] = base[condition]
        for effect in effects[condition]:
            row += terms[effect.term] * np.int16(effect.size)
    return total


def _progress(
    model: Model, states: States, keys: np.ndarray, later: np.ndarray, months: int
) -> tuple[np.ndarray, np.ndarray]:
    """Levels after onsets, progressions and recessions, and months since the latest onset."""
    conditions, terms, n = model.conditions, _Terms(model, states), len(states.alive)
    shift, never = log_rate(12 * months), log_rate(0)
    every = np.arange(len(conditions.names))
    years = (states.age_months // 12 - 60).astype(np.int16)
    aged = conditions.age.astype(np.int16)[:, None] * years + (conditions.onset + shift).astype(np.int16)[:, None]
    bar = threshold(_log_hazards(aged, every, conditions.onset_effects, terms, n))
    acute = (conditions.courses == "acute")[:, None]
    previous = np.where(acute, np.uint8(0), states.level)
    absent = previous == 0
    grows = np.flatnonzero(conditions.progress > never)
    growth = threshold(_log_hazards(conditions.progress + shift, grows, conditions.progress_effects, terms, n))
    bar[grows] = np.where(absent[grows], bar[grows], growth)

    draw = uniform32(keys, every)
    if later is not keys:
        draw[conditions.acute] = uniform32(later, conditions.acute)
    allowed = states.alive & (previous < conditions.levels[:, None])
    allowed &= (conditions.sexes[:, None] == 2) | (conditions.sexes[:, None] == states.male)
    for condition in np.flatnonzero(conditions.requires >= 0):
        allowed[condition] &= states.level[conditions.requires[condition]] > 0
    up = allowed & (draw < bar)
    level = previous + up
    fades = np.flatnonzero(conditions.recede > never)
    fading = threshold(_log_hazards(conditions.recede + shift, fades, conditions.recede_effects, terms, n))
    # The upper tail of the same draw: a level never rises and falls in one step.
    level[fades] -= ~absent[fades] & states.alive & ~up[fades] & (_FULL - draw[fades] < fading)
    since = np.where(states.since == NEVER, NEVER, np.minimum(states.since, np.uint8(254 - months)) + np.uint8(months))
    since = np.where(up & absent, np.uint8(0), since.astype(np.uint8))
    dead = np.flatnonzero(~states.alive)
    level[:, dead], since[:, dead] = states.level[:, dead], states.since[:, dead]
    return level, since


def _visits(
    model: Model, states: States, keys: np.ndarray, later: np.ndarray, months: int, intake: bool | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Visits of the step and the condition behind an acute one."""
    conditions, acute = model.conditions, model.conditions.acute
    present = states.level[acute] > 0
    cause = np.where(present.any(axis=0), acute[present.argmax(axis=0)], NEVER)
    cause = np.where(states.alive, cause, NEVER).astype(np.uint8)
    is_acute = cause != NEVER
    admit = np.append(conditions.admit, np.zeros(NEVER + 1 - len(conditions.admit)))[cause]
    admitted = is_acute & (uniform(later, _STREAM_OTHER) < admit)

    expected = np.full(len(cause), _BASE_VISITS, dtype=np.int32)
    for condition in np.flatnonzero(conditions.visits):
        expected += conditions.visits[condition] * (states.level[condition] > 0)
    expected += _DISCHARGE_VISITS * (states.discharged < 2) + _CARE_VISITS * states.traits[3].astype(np.int32)
    expected = np.clip(expected, 2, _MAX_VISITS) * months
    table = np.rint(-np.expm1(-np.arange(_MAX_VISITS * months + 1) / 100) * (2**32 - 1)).astype(np.uint32)
    clinic = uniform32(keys, _STREAM_OTHER + 1) < table[expected]
    clinic = (clinic | intake) & states.alive
    visit = clinic * OUTPATIENT + (is_acute & ~admitted) * EMERGENCY + admitted * INPATIENT
    return visit.astype(np.uint8), cause


def _detect(model: Model, here: States, keys: np.ndarray, at_hospital: bool) -> np.ndarray:
    """Diagnoses known after a visit, [C, visiting]; acute ones at a hospital, always."""
    conditions = model.conditions
    draw = uniform32(keys, _STREAM_DETECT + _HOSPITAL_STREAMS * at_hospital + np.arange(len(conditions.names)))
    acute = (conditions.courses == "acute")[:, None]
    return here.known | ((here.level > 0) & np.where(acute, at_hospital, draw < conditions.detect[:, None]))


def _prescribe(model: Model, here: States, keys: np.ndarray, at_hospital: bool) -> np.ndarray:
    """Drugs taken after a visit, [D, visiting]: started where indicated and known, stopped by chance or for want."""
    drugs = model.drugs
    streams = _HOSPITAL_STREAMS * at_hospital + np.arange(len(drugs.names))
    start = uniform32(keys, _STREAM_START + streams) < drugs.start[:, None]
    stop = uniform32(keys, _STREAM_STOP + streams)
    taken = here.drug.copy()
    for number, indications in enumerate(drugs.indications):
        indicated = np.zeros(len(keys), dtype=bool)
        for condition, least in indications:
            chronic = model.conditions.courses[condition] != "acute"
            enough = here.level[condition] >= least if chronic else True
            indicated |= here.known[condition] & enough
        after = drugs.after[number]
        may_start = indicated & (here.drug[after] if after >= 0 else True)
        stops = stop[number] < np.where(indicated, drugs.stop[number], np.uint32(2**30))
        taken[number] = np.where(here.drug[number], ~stops, may_start & start[number])
    return taken


def _remember(model: Model, before: States, after: States) -> np.ndarray:
    """Order of events that the body remembers, [3, n].

    scar: 2 after an infarction that met neither a beta blocker nor a statin, 1 after a protected one; the worst stays.
    nsaid_harm: an anti-inflammatory drug begun while hypertension, chronic kidney disease or coronary disease was
    known; the same drug begun before them does no harm.
    early_metformin: metformin begun within a year of the onset of diabetes; stays.
    """
    memory = before.memory.copy()
    infarct = (after.since[model.condition("mi")] == 0) & after.alive
    protected = before.drug[model.drug("bblocker")] | before.drug[model.drug("statin")]
    memory[SCAR] = np.maximum(memory[SCAR], np.where(infarct, np.where(protected, 1, 2), 0))
    nsaid = model.drug("nsaid")
    risk = np.zeros(len(infarct), dtype=bool)
    for name in ("hypertension", "ckd", "cad"):
        risk |= before.known[model.condition(name)]
    begun = after.drug[nsaid] & ~before.drug[nsaid]
    memory[NSAID_HARM] = after.drug[nsaid] & (memory[NSAID_HARM].astype(bool) | (begun & risk))
    metformin = model.drug("metformin")
    early = after.drug[metformin] & ~before.drug[metformin] & (after.since[model.condition("diabetes")] <= 12)
    memory[EARLY_METFORMIN] |= early
    return memory


def _survive(model: Model, states: States, keys: np.ndarray, months: int) -> np.ndarray:
    """Who is alive after the step."""
    hazard = log_hazard_of_death(model, states) + log_rate(12 * months)
    return states.alive & ~(uniform32(keys, _STREAM_OTHER + 2) < threshold(hazard))


def log_hazard_of_death(model: Model, states: States) -> np.ndarray:
    """In the unit of `log_rate`, but for the length of the step, int [n]."""
    hazard = log_rate(_DEATH_RATE_AT_60) + _DEATH_AGE_SLOPE * (states.age_months // 12 - 60)
    for condition in np.flatnonzero(model.conditions.mortality):
        hazard += model.conditions.mortality[condition] * states.level[condition].astype(np.int32)
    hazard += 20 * states.traits[0].astype(np.int32) + 35 * states.smoker
    return hazard


def newborn(model: Model, keys: np.ndarray) -> tuple[States, np.ndarray, np.ndarray]:
    """States 15 years before entry, months of age at entry int64 [n], and steps of follow-up int64 [n]."""
    static, n = static_keys(keys), len(keys)
    entry = 30 * 12 + integers(static, 0, 26 * 12) + integers(static, 1, 26 * 12)
    steps = MIN_STEPS + integers(static, 2, MAX_STEPS - MIN_STEPS + 1)
    male = (uniform(static, 3) < 0.48).astype(np.uint8)
    smoker = (uniform(static, 4) < np.where(male == 1, 0.24, 0.17)).astype(np.uint8)
    # Sum of four fair bits less two: -2 to 2 with variance 1.
    traits = np.stack([integers(static, 5 + t, 16) for t in range(4)])
    traits = (np.array([bin(bits).count("1") for bits in range(16)])[traits] - 2).astype(np.int8)
    conditions, drugs = len(model.conditions.names), len(model.drugs.names)
    states = States(
        male=male,
        smoker=smoker,
        traits=traits,
        age_months=(entry - BURN_IN_STEPS * BURN_IN_MONTHS).astype(np.int32),
        alive=np.ones(n, dtype=bool),
        level=np.zeros((conditions, n), dtype=np.uint8),
        since=np.full((conditions, n), NEVER, dtype=np.uint8),
        known=np.zeros((conditions, n), dtype=bool),
        drug=np.zeros((drugs, n), dtype=bool),
        known_midway=np.zeros((conditions, n), dtype=bool),
        drug_midway=np.zeros((drugs, n), dtype=bool),
        memory=np.zeros((3, n), dtype=np.uint8),
        discharged=np.full(n, NEVER, dtype=np.uint8),
        visit=np.zeros(n, dtype=np.uint8),
        cause=np.full(n, NEVER, dtype=np.uint8),
    )
    return states, entry, steps


def replay(model: Model, keys: np.ndarray, steps: int) -> Iterator[States]:
    """States at entry, then after each of `steps` steps of follow-up: `steps + 1` in all.

    Args:
        model: The disease model.
        keys: uint64 [n], from `subject_keys`.
        steps: Steps to live through; a subject's own follow-up may be shorter.
    """
    states, _, _ = newborn(model, keys)
    for number in range(BURN_IN_STEPS):
        states = step(model, states, step_keys(keys, number, burn_in=True), months=BURN_IN_MONTHS, mortal=False)
    yield states
    for number in range(steps):
        states = step(model, states, step_keys(keys, number), intake=number == 0)
        yield states


def fresh_keys(keys: np.ndarray, steps: np.ndarray, futures: np.ndarray) -> np.ndarray:
    """Keys of another future of subjects from a step on, uint64 [n]; arguments broadcast to [n]."""
    return derive(derive(derive(keys, _FORK_LEVEL), steps), futures)


def fork(
    model: Model, before: States, keys: np.ndarray, fresh: np.ndarray, steps: np.ndarray, after_acute: np.ndarray,
    length: int,
) -> Iterator[States]:  # fmt: skip
    """Other futures of subjects who stand at the end of a visit, from the rest of its step on.

    What the step drew up to the visit stays as it was; what comes after it is drawn under `fresh`. With `fresh` equal
    to `keys` this is the replay.

    Args:
        model: The disease model.
        before: States at the start of the visit's step, of n subjects.
        keys: uint64 [n], the subjects' own, from `subject_keys`.
        fresh: uint64 [n], from `fresh_keys`.
        steps: int64 [n], number of the visit's step.
        after_acute: bool [n]; whether the visit is the acute one of its step (then only death is still open) or the
            clinic's (then acute conditions and their visit are open too).
        length: How many ends of steps to yield, the visit's own first.
    """
    own, new = step_keys(keys, steps), step_keys(fresh, steps)
    later = np.where(after_acute, own, new)
    states = step(model, before, own, intake=steps == 0, later=later, last=new)
    yield states
    for number in range(1, length):
        states = step(model, states, step_keys(fresh, steps + number))
        yield states
