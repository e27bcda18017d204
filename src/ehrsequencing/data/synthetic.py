"""Realistic synthetic records without credentials, and their unlearnable negative control.

The disease model is stated in docs/synthetic.md; tables, process and record are in the modules `synthetic_*`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.dataset import OBSERVATION_FILE, MedsWriter
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, SPLITS
from ehrsequencing.data.splits import split_of
from ehrsequencing.data.synthetic_disease import DAYS_PER_STEP, newborn, replay, static_keys
from ehrsequencing.data.synthetic_events import Events, emit
from ehrsequencing.data.synthetic_model import MEMORY, TRAITS, Model, load_model
from ehrsequencing.data.synthetic_random import derive, integers, subject_keys, uniform
from ehrsequencing.data.synthetic_statistics import BlockStatistics, summarise
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY, Trajectories, Visits, collect, plan_visits
from ehrsequencing.errors import ConfigError, DataError

Mode = Literal["realistic", "random"]
SUBJECTS_PER_SEED = 10_000_000
MAX_SEED = 900_000_000
"""Bounds that keep `subject_id` and `visit_id` unique over all seeds within int64."""
VISITS_PER_SUBJECT = 1_000
BLOCK = 2_500
"""Subjects per block: one set of shards, and what a worker holds in memory at a time."""
MAX_DEFAULT_WORKERS = 8
RACES = (("white", 0.60), ("hispanic", 0.17), ("black", 0.13), ("asian", 0.06), ("other", 0.04))
FIRST_ENTRY, ENTRY_DAYS = np.datetime64("2010-01-01", "D"), 4 * 365
RELEASE = 3
"""Raised whenever the records of a (seed, subject) change."""
_RANDOM_LEVEL = 5
NOTES = (
    "Synthetic: no row describes a person. Rates are set for teaching and testing, not for epidemiology.",
    "Diagnoses of a stay are stamped at discharge; clinic visits have one time for all their events, "
    "what is noted before them apart.",
    "metadata/observation.parquet holds the administrative end of observation, which does not depend on health.",
    "latent/*.npz holds the states behind the records, for an oracle; no model may read them.",
)
RANDOM_NOTES = (
    "Negative control: every dated event is drawn uniformly and independently from the code book, without a value; "
    "times within a visit are one minute apart so that no canonical order can reveal a code; no static rows.",
)


@dataclass(frozen=True)
class _Task:
    """One block to write."""

    writer: MedsWriter
    number: int
    first: int
    count: int
    seed: int
    mode: Mode


def subject_ids(seed: int, subjects: np.ndarray) -> np.ndarray:
    """int64 identifiers of subject numbers: seed * 10,000,000 + number + 1, so that seeds share nobody."""
    return np.int64(seed) * SUBJECTS_PER_SEED + np.asarray(subjects, dtype=np.int64) + 1


def trajectories(model: Model, seed: int, subjects: np.ndarray) -> Trajectories:
    """Live through the follow-up of subjects, from (seed, number) alone.

    Args:
        model: The disease model.
        seed: Seed of the dataset.
        subjects: int64 [n], numbers from 0.
    """
    keys = subject_keys(seed, subjects)
    states, entry, steps = newborn(model, keys)
    length, n = int(steps.max()) + 1, len(keys)
    rows = replay(model, keys, length - 1)
    first = np.zeros(n, dtype=np.int64)
    return collect(model, rows, length, keys, static_keys(keys), first, states, entry, steps)


def entry_days(static: np.ndarray) -> np.ndarray:
    """Day of entry, int64 [n], days since 1970-01-01, from `static_keys`."""
    return FIRST_ENTRY.astype(np.int64) + integers(static, 20, ENTRY_DAYS)


def block_frame(
    model: Model, seed: int, subjects: np.ndarray, mode: Mode = "realistic"
) -> tuple[pl.DataFrame, Trajectories, Visits]:
    """Records of subjects in `EVENT_SCHEMA` (without `text_value`), sorted, with the states behind them."""
    paths = trajectories(model, seed, subjects)
    visits = plan_visits(model, paths)
    events = _ordered(visits, emit(model, paths, visits))
    ids, entry = subject_ids(seed, subjects), entry_days(paths.static) * MINUTES_PER_DAY
    subject = visits.subject[events.visit]
    minute, code, value = events.minute, events.code.astype(np.int64), events.value
    if mode == "random":
        minute, code, value = _randomise(model, paths, subject, minute)
    first = np.r_[True, visits.subject[1:] != visits.subject[:-1]]
    ordinal = np.arange(len(visits)) - np.maximum.accumulate(np.where(first, np.arange(len(visits)), 0))
    visit_id = (ids[visits.subject] * VISITS_PER_SUBJECT + ordinal)[events.visit]
    names = pl.Series("code", model.book.codes)
    units = {model.book.index(lab.code): lab.unit for lab in model.labs}
    unit_names = pl.Series("unit", [units.get(index) for index in range(len(model.book.codes))], dtype=pl.String)
    has_value = ~np.isnan(value)
    dated = pl.DataFrame(
        {
            "subject_id": ids[subject],
            "time": pl.Series((entry[subject] + minute) * 60_000_000).cast(pl.Datetime("us")),
            "code": names.gather(code),
            "numeric_value": pl.Series(value, dtype=pl.Float32).fill_nan(None),
            "visit_id": visit_id,
            "unit": unit_names.gather(code).zip_with(
                pl.Series(has_value), pl.Series([None], dtype=pl.String).new_from_index(0, len(code))
            ),
        }
    )
    frame = pl.concat([_person_rows(model, paths, visits, ids, entry, mode), dated], how="diagonal")
    return frame.sort("subject_id", "time", nulls_last=False, maintain_order=True), paths, visits


def _ordered(visits: Visits, events: Events) -> Events:
    """Events by subject and time, within a time by kind and code; one row per visit, time and unmeasured code."""
    key = (visits.subject[events.visit] << 40) + (events.minute << 11) + events.code
    order = np.argsort(key, kind="stable")
    repeated = np.r_[False, np.diff(key[order]) == 0]
    order = order[~repeated]
    return Events(events.visit[order], events.minute[order], events.code[order], events.value[order])


def _randomise(
    model: Model, paths: Trajectories, subject: np.ndarray, minute: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uniform over the book, no values, events of one time spread over minutes. Rows in order of time."""
    rows = np.arange(len(subject))
    new_subject = np.r_[True, subject[1:] != subject[:-1]]
    new_time = new_subject | np.r_[True, minute[1:] != minute[:-1]]
    in_subject = rows - np.maximum.accumulate(np.where(new_subject, rows, 0))
    in_time = rows - np.maximum.accumulate(np.where(new_time, rows, 0))
    drawable = np.flatnonzero([code not in (BIRTH_CODE, DEATH_CODE) for code in model.book.codes])
    code = drawable[integers(derive(derive(paths.keys[subject], _RANDOM_LEVEL), in_subject), 0, len(drawable))]
    return minute + in_time, code, np.full(len(code), np.nan, dtype=np.float32)


def death_minutes(paths: Trajectories, visits: Visits) -> np.ndarray:
    """Minutes from entry to death, float64 [n], NaN where the subject survives follow-up; never before an event."""
    row = paths.alive.argmin(axis=0) - 1
    died = ~paths.alive.all(axis=0) & (row < paths.steps - paths.first)
    last_day = (paths.first + row) * DAYS_PER_STEP + DAYS_PER_STEP - 1
    minutes = np.where(died, last_day * MINUTES_PER_DAY + 720.0, np.nan)
    stays = np.flatnonzero(visits.died & died[visits.subject])
    # Half a day after the last code of the stay, so that no event ever follows death, in either mode.
    minutes[visits.subject[stays]] = visits.end[stays] + 720
    return minutes


def _person_rows(
    model: Model, paths: Trajectories, visits: Visits, ids: np.ndarray, entry: np.ndarray, mode: Mode
) -> pl.DataFrame:
    """Static rows (realistic mode), birth and death."""
    static = paths.static
    birth = (entry // MINUTES_PER_DAY - np.rint(paths.entry_months * 30.4375).astype(np.int64)) * MINUTES_PER_DAY
    cumulative = np.cumsum([share for _, share in RACES])
    race = np.searchsorted(cumulative, uniform(static, 21), side="right").clip(0, len(RACES) - 1)
    death = death_minutes(paths, visits)
    dead = np.flatnonzero(~np.isnan(death))
    time = pl.Datetime("us")
    parts = [
        pl.DataFrame({"subject_id": ids, "time": pl.Series(birth * 60_000_000).cast(time)}).with_columns(
            code=pl.lit(BIRTH_CODE)
        ),
        pl.DataFrame(
            {
                "subject_id": ids[dead],
                "time": pl.Series((entry[dead] + death[dead].astype(np.int64)) * 60_000_000).cast(time),
            }
        ).with_columns(code=pl.lit(DEATH_CODE)),
    ]
    if mode == "realistic":
        for codes in (
            pl.Series(["GENDER//F", "GENDER//M"]).gather(paths.male),
            pl.Series([f"RACE//{name}" for name, _ in RACES]).gather(race),
        ):
            parts.append(pl.DataFrame({"subject_id": ids, "code": codes}).with_columns(time=pl.lit(None, dtype=time)))
    return pl.concat(parts, how="diagonal")


def latent_bytes(model: Model, first: int, paths: Trajectories) -> bytes:
    """The states of a block as a compressed npz.

    Arrays: `first_subject`; `conditions`, `drugs`, `traits_names`, `memory_names`; `keys` uint64 [n]; `level` uint8
    [steps + 1, n, conditions]; `drug`, `known` packed bits along the last axis; `memory`; `visit`; `alive`; `steps`;
    `entry_day`; `entry_months`; `male`; `smoker`; `traits`. Row 0 is entry, row k + 1 the end of step k.
    """
    arrays = {
        "first_subject": np.int64(first), "conditions": np.array(model.conditions.names),
        "drugs": np.array(model.drugs.names), "traits_names": np.array(TRAITS), "memory_names": np.array(MEMORY),
        "keys": paths.keys, "level": paths.level, "drug": np.packbits(paths.drug, axis=-1),
        "known": np.packbits(paths.known, axis=-1), "memory": paths.memory, "visit": paths.visit,
        "alive": paths.alive, "steps": paths.steps, "entry_day": entry_days(paths.static),
        "entry_months": paths.entry_months, "male": paths.male, "smoker": paths.smoker, "traits": paths.traits,
    }  # fmt: skip
    buffer = io.BytesIO()
    # numpy.savez_compressed has no level: level 1 takes a third of the time for a fifth more bytes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _write_block(task: _Task) -> tuple[int, BlockStatistics, pl.DataFrame]:
    model = load_model()
    subjects = np.arange(task.first, task.first + task.count)
    frame, paths, visits = block_frame(model, task.seed, subjects, task.mode)
    ids = subject_ids(task.seed, subjects)
    splits = split_of(ids)
    for split in SPLITS:
        chosen = ids[splits == split]
        if len(chosen):
            part = frame.filter(pl.col("subject_id").is_in(chosen.tolist()))
            task.writer.write_events(split, task.number, part)
    task.writer.write_file(f"latent/{task.number}.npz", latent_bytes(model, task.first, paths))
    # The end of the study, for the dead as well: an end at death would depend on health.
    end = paths.steps * DAYS_PER_STEP * MINUTES_PER_DAY
    start = entry_days(paths.static) * MINUTES_PER_DAY
    observed = pl.DataFrame(
        {
            "subject_id": ids,
            "observation_start": pl.Series(start * 60_000_000).cast(pl.Datetime("us")),
            "observation_end": pl.Series((start + end) * 60_000_000).cast(pl.Datetime("us")),
        }
    )
    return task.count, BlockStatistics.of(model, frame, paths, visits), observed


def synthesise(
    out: Path, *, subjects: int, seed: int = 0, mode: Mode = "realistic", workers: int | None = None,
    progress: Callable[[int, int], None] | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write a MEDS dataset of synthetic subjects.

    Subject i depends on (`seed`, i) alone: 4,718 subjects are the first 4,718 of 5,000, at any number of workers.

    Args:
        out: Folder to make.
        subjects: How many, up to 10,000,000.
        seed: 0 to 900,000,000. Seeds share no subject and no identifier.
        mode: "realistic", or "random": the same visits with codes that nothing can predict.
        workers: Processes; None takes one per core, at most 8. Each holds one block of 2,500 subjects (about 400 MB).
            Processes are spawned: a script that asks for more than 2,500 subjects needs the guard
            `if __name__ == "__main__":`.
        progress: Called with (subjects done, subjects in all).
        overwrite: Replace `out`.

    Returns:
        `out`, a folder with MEDS shards, metadata, statistics in the manifest and `latent/` states.

    Raises:
        ConfigError: an argument is out of range, or `out` lies in a dataset or token store.
        DataError: a worker process died.
        RunError: `out` exists and `overwrite` is False.
    """
    out = Path(out)
    if not 1 <= subjects <= SUBJECTS_PER_SEED:
        raise ConfigError("subjects is out of range", got=subjects, expected=f"1 to {SUBJECTS_PER_SEED}")
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError("seed is out of range", got=seed, expected=f"0 to {MAX_SEED}")
    if mode not in ("realistic", "random"):
        raise ConfigError("unknown mode", got=mode, expected="realistic or random")
    if workers is not None and workers < 1:
        raise ConfigError("workers is out of range", got=workers, expected="1 or more")
    refuse_in_data(out)
    model = load_model()
    with MedsWriter(out, overwrite=overwrite) as writer:
        tasks = [
            _Task(writer, number, first, min(BLOCK, subjects - first), seed, mode)
            for number, first in enumerate(range(0, subjects, BLOCK))
        ]
        processes = min(workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS), len(tasks))
        done, statistics, observed = 0, BlockStatistics.empty(model), []
        for count, found, part in _run(tasks, processes):
            done += count
            statistics = statistics + found
            observed.append(part)
            if progress is not None:
                progress(done, subjects)
        buffer = io.BytesIO()
        pl.concat(observed).sort("subject_id").write_parquet(buffer)
        writer.write_file(str(OBSERVATION_FILE), buffer.getvalue())
        book = model.book
        codes = pl.DataFrame(
            {"code": book.codes, "description": book.descriptions, "kind": book.kinds, "numeric": book.numeric}
        )
        writer.finish(
            codes,
            source="synthetic",
            options={"subjects": subjects, "seed": seed, "mode": mode},
            notes=[*NOTES, *(RANDOM_NOTES if mode == "random" else ())],
            fixed_code_book=True,
            extra={"statistics": summarise(model, statistics), "model": _identity(model)},
        )
    return out


def _identity(model: Model) -> dict[str, Any]:
    return {"release": RELEASE, "tables": model.fingerprint, "days_per_step": DAYS_PER_STEP, "block": BLOCK}


def _run(tasks: list[_Task], processes: int) -> Iterator[tuple[int, BlockStatistics, pl.DataFrame]]:
    """Results of the blocks as they finish; in this process when one is enough."""
    if processes == 1:
        yield from map(_write_block, tasks)
        return
    # Spawned, not forked: the caller may hold threads (torch, polars) that a fork would freeze.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(_write_block, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died while writing synthetic records", remedy="free memory or pass fewer workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
