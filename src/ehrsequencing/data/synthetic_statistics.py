"""What a synthetic dataset holds, counted per block and added up for the manifest."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE
from ehrsequencing.data.synthetic_disease import DAYS_PER_STEP
from ehrsequencing.data.synthetic_model import Model
from ehrsequencing.data.synthetic_visits import Trajectories, Visits

MIN_ONSET_AGE_YEARS = 40
_PER_PERSON = ("events", "visits", "years")


@dataclass(frozen=True)
class BlockStatistics:
    """Counts of a block; adding two gives those of both.

    Attributes:
        events, visits: int64 [n], per subject; dated events without birth and death.
        years: float64 [n], follow-up.
        codes: int64 [codes of the book], how often each occurs.
        entry, end, ever: int64 [conditions], subjects in whom a condition is present at entry, is present at the end
            of observation, was ever diagnosed.
        landmarks, onsets: int64 [1], person-years that begin at a whole year of follow-up, alive, aged 40 or more and
            without diagnosed heart failure; those in which it is diagnosed.
        deaths: int64 [1].
    """

    events: np.ndarray
    visits: np.ndarray
    years: np.ndarray
    codes: np.ndarray
    entry: np.ndarray
    end: np.ndarray
    ever: np.ndarray
    landmarks: np.ndarray
    onsets: np.ndarray
    deaths: np.ndarray

    @classmethod
    def empty(cls, model: Model) -> BlockStatistics:
        """Counts of nobody."""
        none, conditions, one = np.zeros(0, np.int64), len(model.conditions.names), np.zeros(1, np.int64)
        zero = np.zeros(conditions, np.int64)
        return cls(
            none, none, none.astype(float), np.zeros(len(model.book.codes), np.int64), zero, zero, zero, one, one, one
        )

    @classmethod
    def of(cls, model: Model, frame: pl.DataFrame, paths: Trajectories, visits: Visits) -> BlockStatistics:
        """Counts of a block's records and the states behind them."""
        n = len(paths.keys)
        counted = frame.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]))
        per_subject = counted.group_by("subject_id").len().sort("subject_id")["len"].to_numpy().astype(np.int64)
        used = frame.group_by("code").len()
        order = pl.DataFrame({"code": model.book.codes}).join(used, on="code", how="left", maintain_order="left")
        alive_until = np.where(paths.alive.all(axis=0), len(paths.alive), paths.alive.argmin(axis=0) - 1)
        last = np.minimum(paths.steps, alive_until)
        rows = np.arange(n)
        return cls(
            events=per_subject,
            visits=np.bincount(visits.subject, minlength=n).astype(np.int64),
            years=last * DAYS_PER_STEP / DAYS_PER_YEAR,
            codes=order["len"].fill_null(0).to_numpy().astype(np.int64),
            entry=(paths.level[0] > 0).sum(axis=0),
            end=(paths.level[last, rows] > 0).sum(axis=0),
            ever=paths.known[last, rows].sum(axis=0),
            deaths=np.array([(alive_until < paths.steps).sum()]),
            **_onsets(model, paths),
        )

    def __add__(self, other: BlockStatistics) -> BlockStatistics:
        def total(name: str) -> np.ndarray:
            mine, theirs = getattr(self, name), getattr(other, name)
            return np.concatenate([mine, theirs]) if name in _PER_PERSON else mine + theirs

        return BlockStatistics(**{field.name: total(field.name) for field in fields(self)})


def _onsets(model: Model, paths: Trajectories) -> dict[str, np.ndarray]:
    """Yearly landmarks and first diagnoses of heart failure within a year of them."""
    known = paths.known[:, :, model.condition("heart_failure")]
    landmarks = onsets = 0
    for year in range(1, 10):
        start = round(year * DAYS_PER_YEAR / DAYS_PER_STEP)
        stop = round((year + 1) * DAYS_PER_YEAR / DAYS_PER_STEP)
        if stop >= len(known):
            break
        old_enough = paths.entry_months + start >= 12 * MIN_ONSET_AGE_YEARS
        at_risk = (paths.steps >= stop) & paths.alive[start] & ~known[start] & old_enough
        landmarks += int(at_risk.sum())
        onsets += int((at_risk & known[stop]).sum())
    return {"landmarks": np.array([landmarks]), "onsets": np.array([onsets])}


def summarise(model: Model, counts: BlockStatistics) -> dict[str, Any]:
    """Plain numbers for the manifest; shares are of subjects."""
    n = len(counts.events)

    def spread(values: np.ndarray) -> dict[str, float]:
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        return {"p05": float(low), "median": float(middle), "p95": float(high), "mean": float(values.mean())}

    shares = {
        name: {
            "group": model.conditions.groups[number],
            "at_entry": round(counts.entry[number] / n, 4),
            "at_end": round(counts.end[number] / n, 4),
            "ever_diagnosed": round(counts.ever[number] / n, 4),
        }
        for number, name in enumerate(model.conditions.names)
    }
    return {
        "subjects": n,
        "events": int(counts.events.sum()),
        "events_per_subject": spread(counts.events),
        "visits_per_subject": spread(counts.visits),
        "follow_up_years": spread(counts.years),
        "codes_in_use": int((counts.codes > 0).sum()),
        "codes_in_book": len(model.book.codes),
        "deaths": int(counts.deaths[0]),
        "heart_failure_one_year": {
            "landmarks": int(counts.landmarks[0]),
            "onsets": int(counts.onsets[0]),
            "rate": round(float(counts.onsets[0] / max(1, counts.landmarks[0])), 5),
        },
        "conditions": shares,
    }
