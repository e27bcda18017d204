"""Where labelled subjects stand in the disease process, and what their other futures would show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np

from ehrsequencing.data.synthetic import death_minutes, trajectories
from ehrsequencing.data.synthetic_disease import DAYS_PER_STEP, States, fork, fresh_keys, newborn, replay, static_keys
from ehrsequencing.data.synthetic_events import emit
from ehrsequencing.data.synthetic_model import Model
from ehrsequencing.data.synthetic_random import subject_keys
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY, Trajectories, Visits, collect, plan_visits

COLUMNS = 20_000
"""Futures that live side by side in memory, about 100 MB."""


@dataclass(frozen=True)
class Standing:
    """Subjects at the ends of visits; [n] each.

    Attributes:
        states: At the start of the visit's step.
        keys: uint64, the subjects' own.
        step: int64, number of the visit's step.
        after_acute: bool; whether the visit is the acute one of its step.
        died: bool; whether the visit is a stay that ended in death, so that the record shows it.
        minute: int64, end of the visit in minutes since entry.
        entry_months: int64, age at entry.
        observed: int64, minutes from entry to the administrative end of observation.
    """

    states: States
    keys: np.ndarray
    step: np.ndarray
    after_acute: np.ndarray
    died: np.ndarray
    minute: np.ndarray
    entry_months: np.ndarray
    observed: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def select(self, rows: np.ndarray) -> Standing:
        """Some rows, repeated ones included."""
        rest = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "states"}
        return Standing(self.states.select(rows), **rest)


@dataclass(frozen=True)
class Futures:
    """What follows a visit; minutes are counted from its end, infinite for what does not come in time.

    Attributes:
        code: Float [rows, futures], first wanted code.
        death: Float [rows, futures].
        weight: Float [rows, futures], 0 for futures that the record at the visit rules out (death in that very stay).
        alive: Bool [steps, rows, futures]; alive at the start of the visit's step, of the next, and so on.
    """

    code: np.ndarray
    death: np.ndarray
    weight: np.ndarray
    alive: np.ndarray


def stand(model: Model, seed: int, subjects: np.ndarray, minutes: np.ndarray) -> tuple[Standing, np.ndarray]:
    """Replay subjects to the ends of visits.

    Args:
        model: The disease model.
        seed: Seed of the dataset.
        subjects: int64 [rows], numbers from 0.
        minutes: int64 [rows], minutes since the subject's entry.

    Returns:
        The standing of the rows at which a visit ends, and which rows these are, bool [rows].
    """
    unique, column = np.unique(subjects, return_inverse=True)
    paths = trajectories(model, seed, unique)
    visits = plan_visits(model, paths)
    span = int(visits.end.max()) + 1
    key = visits.subject * span + visits.end
    found = np.searchsorted(key, column * span + np.minimum(minutes, span - 1)).clip(0, len(key) - 1)
    matched = (visits.subject[found] == column) & (visits.end[found] == minutes)
    found, column = found[matched], column[matched]
    step = visits.step[found]
    keys = subject_keys(seed, unique)
    parts, places = [], []
    for number, now in enumerate(replay(model, keys, int(step.max(initial=-1)))):
        if len(rows := np.flatnonzero(step == number)):
            parts.append(now.select(column[rows]))
            places.append(rows)
    order = np.argsort(np.concatenate(places)) if places else np.zeros(0, dtype=np.int64)
    parts = parts or [newborn(model, keys)[0].select(order)]
    states = States(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=-1)[..., order]
            for field in fields(States)
        }
    )
    standing = Standing(
        states=states,
        keys=keys[column],
        step=step,
        after_acute=visits.at_hospital[found],
        died=visits.died[found],
        minute=visits.end[found],
        entry_months=paths.entry_months[column],
        observed=paths.steps[column] * DAYS_PER_STEP * MINUTES_PER_DAY,
    )
    return standing, matched


def live_on(
    model: Model, standing: Standing, fresh: np.ndarray, length: int
) -> tuple[Trajectories, Visits, np.ndarray]:
    """One future per row: trajectories from the start of the visit's step, visits after it, and which rows stay.

    Args:
        model: The disease model.
        standing: Of n rows.
        fresh: uint64 [n], keys of the future; the subjects' own give what really happened.
        length: Steps, the visit's own included.

    Returns:
        Trajectories of `length` steps, visits later than the standing's, and bool [n], False for a future that the
        record at the visit rules out.
    """
    before, first = standing.states, standing.step
    ends = fork(model, before, standing.keys, fresh, first, standing.after_acute, length)
    paths = collect(
        model, chain([before], ends), length + 1, fresh, static_keys(standing.keys), first, before,
        standing.entry_months, first + length,
    )  # fmt: skip
    visits = plan_visits(model, paths)
    later = (visits.row > 0) | (visits.at_hospital & ~standing.after_acute[visits.subject])
    possible = np.ones(len(first), dtype=bool)
    own = np.flatnonzero(~later & visits.at_hospital)
    possible[visits.subject[own]] = visits.died[own] == standing.died[visits.subject[own]]
    return paths, Visits(*(getattr(visits, field.name)[later] for field in fields(Visits))), possible


def first_events(
    model: Model, standing: Standing, paths: Trajectories, visits: Visits, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minutes from the standing's visits to the first wanted code and to death, float [n] each, infinite for none."""
    code = np.full(len(standing), np.inf)
    if wanted.any():
        events = emit(model, paths, visits, wanted)
        subject = visits.subject[events.visit]
        np.minimum.at(code, subject, (events.minute - standing.minute[subject]).astype(np.float64))
    death = death_minutes(paths, visits) - standing.minute
    return code, np.where(np.isnan(death), np.inf, death)


def steps_ahead(standing: Standing, days: int) -> int:
    """Steps that cover `days` after every visit, the visit's own included."""
    into = standing.minute - standing.step * DAYS_PER_STEP * MINUTES_PER_DAY
    return int(np.max(into + days * MINUTES_PER_DAY) // (DAYS_PER_STEP * MINUTES_PER_DAY)) + 1


def imagine(
    model: Model, standing: Standing, wanted: np.ndarray, days: int, futures: int, first: int = 0
) -> Iterator[tuple[slice, Futures]]:
    """Other futures of every row, a bounded number of columns at a time.

    Args:
        model: The disease model.
        standing: Where the subjects stand.
        wanted: bool [codes of the book], codes to look for.
        days: How far to look.
        futures: How many per row.
        first: Number of the first future; other numbers are other futures.

    Yields:
        Rows, and their futures (all of them, or as many as fit `COLUMNS`: the same rows then come again).
    """
    chunk = min(futures, COLUMNS)
    height = max(1, COLUMNS // chunk)
    for top in range(0, len(standing), height):
        rows = np.arange(top, min(top + height, len(standing)))
        length = steps_ahead(standing.select(rows), days)
        for begin in range(0, futures, chunk):
            number = np.arange(begin, min(begin + chunk, futures)) + first
            many = standing.select(np.repeat(rows, len(number)))
            fresh = fresh_keys(many.keys, many.step, np.tile(number, len(rows)))
            paths, visits, possible = live_on(model, many, fresh, length)
            code, death = first_events(model, many, paths, visits, wanted)
            # A stay that ended in death is followed by death half a day later, whatever the fork drew.
            shown = many.died
            code, death = np.where(shown, np.inf, code), np.where(shown, 720.0, death)
            shape = (len(rows), len(number))
            yield (
                slice(top, top + len(rows)),
                Futures(
                    code=code.reshape(shape),
                    death=death.reshape(shape),
                    weight=(possible | shown).reshape(shape).astype(np.float64),
                    alive=(paths.alive[:-1] & ~shown).reshape(-1, *shape),
                ),
            )


def real_future(model: Model, standing: Standing, wanted: np.ndarray, days: int) -> tuple[np.ndarray, np.ndarray]:
    """What really followed, by the same path as `imagine` under the subjects' own keys: minutes to code and death.

    Administrative censoring is left out of account: life goes on in the same way after the end of observation.
    """
    paths, visits, _ = live_on(model, standing, standing.keys, steps_ahead(standing, days))
    return first_events(model, standing, paths, visits, wanted)
