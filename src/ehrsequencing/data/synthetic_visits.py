"""Trajectories of hidden states, and the visits that they lead to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ehrsequencing.data.synthetic_disease import DAYS_PER_STEP, EMERGENCY, INPATIENT, OUTPATIENT, States
from ehrsequencing.data.synthetic_model import MEMORY, NEVER, Model
from ehrsequencing.data.synthetic_random import derive, integers, uniform

MINUTES_PER_DAY = 1_440
REMOTE = 8
"""Kind of visit beside OUTPATIENT, EMERGENCY, INPATIENT: a clinic visit without a body to measure."""
REMOTE_SHARE = 0.10
CLINIC_DAYS, FIRST_ACUTE_DAY, ACUTE_DAYS = 13, 14, 5
"""Days of a step on which a clinic visit may fall, from 0; first of those of an acute visit, and their number."""
DEATHS_IN_STAY = 0.7
"""Share of deaths in a step with a stay that happen in the stay."""
_PLAN = 50_000


@dataclass(frozen=True)
class Trajectories:
    """States of n subjects over time, step first: row 0 is entry, row k+1 the state after step k.

    Attributes:
        keys: uint64 [n], of visits and what they show.
        static: uint64 [n], of what never changes in a subject.
        first: int64 [n], number of the step that follows row 0; 0 in a record, later in a fork.
        level, known, drug: uint8 or bool [steps + 1, n, conditions or drugs].
        known_midway, drug_midway: bool, as `States` has them.
        memory: uint8 [steps + 1, n, 3].
        visit, cause: uint8 [steps + 1, n].
        alive: bool [steps + 1, n].
        male, smoker: uint8 [n]; traits: int8 [n, 4]; entry_months, steps: int64 [n].
    """

    keys: np.ndarray
    static: np.ndarray
    first: np.ndarray
    level: np.ndarray
    known: np.ndarray
    drug: np.ndarray
    known_midway: np.ndarray
    drug_midway: np.ndarray
    memory: np.ndarray
    visit: np.ndarray
    cause: np.ndarray
    alive: np.ndarray
    male: np.ndarray
    smoker: np.ndarray
    traits: np.ndarray
    entry_months: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class Visits:
    """Visits of a block in order of subject and time, [v].

    Attributes:
        subject: Row of the subject in the block.
        step: Step of follow-up, from 0.
        row: Row of the trajectories at the start of the step; the next is its end.
        kind: OUTPATIENT, EMERGENCY, INPATIENT or REMOTE.
        cause: Condition behind an acute visit, else `NEVER`.
        start, end: Minutes since entry.
        keys: uint64.
        second: Whether a clinic visit came before in the same step.
        died: Whether the subject dies in this stay.
    """

    subject: np.ndarray
    step: np.ndarray
    row: np.ndarray
    kind: np.ndarray
    cause: np.ndarray
    start: np.ndarray
    end: np.ndarray
    keys: np.ndarray
    second: np.ndarray
    died: np.ndarray

    @property
    def at_hospital(self) -> np.ndarray:
        """Whether the visit is an acute one, bool [v]."""
        return (self.kind == EMERGENCY) | (self.kind == INPATIENT)

    def __len__(self) -> int:
        return len(self.subject)


def collect(
    model: Model, rows: Iterable[States], length: int, keys: np.ndarray, static: np.ndarray, first: np.ndarray,
    person: States, entry_months: np.ndarray, steps: np.ndarray,
) -> Trajectories:  # fmt: skip
    """Trajectories of states that come one row at a time.

    Args:
        rows: `length` states of n subjects.
        keys, static, first, entry_months, steps: As in `Trajectories`.
        person: States with what never changes.
    """
    n, conditions, drugs = len(keys), len(model.conditions.names), len(model.drugs.names)
    shapes = {
        "level": (np.uint8, conditions), "known": (np.bool_, conditions), "drug": (np.bool_, drugs),
        "known_midway": (np.bool_, conditions), "drug_midway": (np.bool_, drugs), "memory": (np.uint8, len(MEMORY)),
        "visit": (np.uint8, 0), "cause": (np.uint8, 0), "alive": (np.bool_, 0),
    }  # fmt: skip
    found: dict[str, np.ndarray] = {
        name: np.empty((length, n, *([width] * (width > 0))), dtype) for name, (dtype, width) in shapes.items()
    }
    for row, now in enumerate(rows):
        for name, array in found.items():
            array[row] = getattr(now, name).T
    return Trajectories(
        keys=keys, static=static, first=first, **found, male=person.male, smoker=person.smoker,
        traits=person.traits.T.copy(), entry_months=entry_months, steps=steps,
    )  # fmt: skip


def plan_visits(model: Model, paths: Trajectories) -> Visits:
    """Place visits within their steps: clinics on days 0 to 12, acute ones from day 14 on, ended by day 28."""
    length = paths.visit.shape[0] - 1
    observed = np.arange(length)[:, None] < (paths.steps - paths.first)[None, :]
    visit = np.where(observed, paths.visit[1:], 0)
    clinic_row, clinic_subject = np.nonzero(visit & OUTPATIENT)
    acute_row, acute_subject = np.nonzero(visit & (EMERGENCY | INPATIENT))
    row, subject = np.append(clinic_row, acute_row), np.append(clinic_subject, acute_subject)
    step = row + paths.first[subject]
    acute = np.arange(len(step)) >= len(clinic_row)
    keys = derive(derive(paths.keys[subject], _PLAN), 2 * step + acute)
    kind = np.where(acute, visit[row, subject] & (EMERGENCY | INPATIENT), OUTPATIENT)
    kind = np.where(~acute & (step > 0) & (uniform(keys, 0) < REMOTE_SHARE), REMOTE, kind)
    cause = np.where(acute, paths.cause[row + 1, subject], NEVER)
    day = np.where(acute, FIRST_ACUTE_DAY + integers(keys, 1, ACUTE_DAYS), integers(keys, 1, CLINIC_DAYS))
    minute = np.where(acute, integers(keys, 2, MINUTES_PER_DAY), 8 * 60 + 15 * integers(keys, 2, 36))
    start = (step * DAYS_PER_STEP + day) * MINUTES_PER_DAY + minute
    typical = np.append(model.conditions.stay, np.ones(NEVER + 1 - len(model.conditions.stay), dtype=np.int64))[cause]
    nights = np.clip(typical - 1 + integers(keys, 3, 3), 2, 9)
    end = start + np.where(kind == INPATIENT, nights * MINUTES_PER_DAY, 0)
    died = ~paths.alive[row + 1, subject] & (kind == INPATIENT) & (uniform(keys, 4) < DEATHS_IN_STAY)
    second = acute & (visit[row, subject] & OUTPATIENT > 0)
    order = np.lexsort((start, subject))
    columns = (subject, step, row, kind, cause, start, end, keys, second, died)
    return Visits(*(column[order] for column in columns))
