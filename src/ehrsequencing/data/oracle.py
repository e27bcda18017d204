"""The best that any model could predict on synthetic records: P(outcome | full state) and P(outcome | history).

docs/oracle.md says what each conditions on.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import horizon_of
from ehrsequencing.data.schema import DEATH_CODE, SPLITS
from ehrsequencing.data.synthetic import BLOCK, MAX_DEFAULT_WORKERS, RELEASE, SUBJECTS_PER_SEED, entry_days
from ehrsequencing.data.synthetic_disease import MAX_STEPS, static_keys
from ehrsequencing.data.synthetic_filter import (
    MINUTES_PER_STEP,
    STATE_OF,
    attack_times,
    chain_of,
    coded_by,
    filter_chain,
    read_signals,
)
from ehrsequencing.data.synthetic_forward import imagine, stand, steps_ahead
from ehrsequencing.data.synthetic_model import Model, load_model
from ehrsequencing.data.synthetic_particles import ISLANDS, filter_particles, standard_error
from ehrsequencing.data.synthetic_random import subject_keys
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY
from ehrsequencing.errors import ConfigError, DataError, LabelError
from ehrsequencing.io import hash_bytes, write_bytes

FUTURES = 1_000
FOLDER = "oracle"
_ROWS = 512
Filter = Literal["exact", "particles"]


@dataclass(frozen=True)
class Outcome:
    """What a label is about, as far as an oracle needs to know.

    Attributes:
        codes: Prefixes; the outcome is the first of these codes after the prediction time. Empty: death.
        horizons_days: Ends of windows that begin after the prediction time, ascending.
    """

    codes: tuple[str, ...]
    horizons_days: tuple[int, ...]

    def wanted(self, model: Model) -> np.ndarray:
        """Codes of the book that count, bool [codes].

        Raises:
            ConfigError: none does.
        """
        wanted = np.array([code.startswith(self.codes) if self.codes else False for code in model.book.codes])
        if self.codes and not wanted.any():
            raise ConfigError("no synthetic code matches the outcome", got=", ".join(self.codes))
        return wanted

    def attack(self, model: Model) -> str | None:
        """The condition of `STATE_OF` whose codes are exactly the outcome's, None where there is no such."""
        wanted = set(np.flatnonzero(self.wanted(model)).tolist())
        own = {name: set(model.book.roles[f"dx/{name}/1"][0].tolist()) for name in STATE_OF}
        return next((name for name, codes in own.items() if codes == wanted), None)


def outcome_of(manifest: dict[str, Any], horizons_days: tuple[int, ...] = ()) -> Outcome:
    """Read the outcome from the manifest of labels.

    Understood are onset tasks and any other with `codes` and `horizon_days`; `mortality_{D}d`, `readmission_{D}d`
    (next stay begins within D days of a discharge), and `time_to:CODE` or `time_to:death` at `horizons_days`.

    Raises:
        ConfigError: another task, or no horizon.
    """
    task = str(manifest.get("task", ""))
    if competing := manifest.get("competing_codes"):
        raise ConfigError(
            "the oracle knows death as a competing cause alone", got=", ".join(map(str, competing)),
            expected="a task without competing codes",
        )  # fmt: skip
    named = re.fullmatch(r"(mortality|readmission)_(\d+)d", task)
    codes = tuple(manifest.get("codes") or ())
    if named:
        codes = () if named[1] == "mortality" else ("VISIT//inpatient",)
    elif task.startswith("time_to:"):
        codes = codes or tuple(part for part in task.removeprefix("time_to:").split("@")[0].split(",") if part)
        codes = () if codes in (("death",), (DEATH_CODE,)) else codes
    elif not codes:
        raise ConfigError(
            "the oracle does not know this task", got=task or "a manifest without a task",
            expected="onset:..., mortality_30d, readmission_30d, time_to:...",
        )  # fmt: skip
    horizon = int(named[2]) if named else horizon_of(manifest)
    horizons = horizons_days or ((int(horizon),) if horizon else ())
    if not horizons or min(horizons) < 1:
        raise ConfigError("the oracle needs a horizon in days", got=f"{horizons}", remedy="pass horizons_days")
    return Outcome(codes, tuple(sorted(horizons)))


def oracle_frame(
    dataset: MedsDataset, labels: pl.DataFrame, manifest: dict[str, Any], *, horizons_days: tuple[int, ...] = (),
    futures: int = FUTURES, filter: Filter = "exact", workers: int | None = None, cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:  # fmt: skip
    """What an oracle predicts for labelled rows of a synthetic dataset.

    Args:
        dataset: Realistic synthetic records of this release.
        labels: Columns `subject_id`, `prediction_time` (the end of a visit); a part of the file will do, such as the
            held-out rows: the cost is about 40 ms a row and core for a horizon of a year at 1,000 futures.
        manifest: Of the labels.
        horizons_days: Instead of the manifest's.
        futures: Futures per row.
        filter: How the attainable optimum is computed: exactly, or by the particles of `synthetic_particles`.
        workers: Processes; None takes one per core, at most 8. They do not change the result.
        cache: Keep the result in the dataset's folder `oracle/`, and take it from there.
        progress: Called with (rows done, rows).

    Returns:
        One row per row of `labels` and in their order, for each horizon: `subject_id`, `prediction_time`,
        `horizon_days`, `ceiling` (P(outcome by the horizon | full state)), `ceiling_se` (its Monte-Carlo standard
        error), `attainable` (P(outcome | history); NaN where there is no filter), `attainable_se` (its Monte-Carlo
        standard error; 0 for the exact filter), `window_observed` (whether the administrative end of observation leaves
        the whole window visible; labels of other rows depend on the outcome).

    Raises:
        ConfigError: see `outcome_of` and `Outcome.wanted`; another filter.
        DataError: not realistic synthetic records of this release, or records changed since.
        LabelError: a subject or prediction time that is not in the records.
    """
    if filter not in get_args(Filter):
        raise ConfigError("unknown filter", got=filter, expected=" or ".join(get_args(Filter)))
    model = load_model()
    seed = seed_of(dataset, model)
    outcome = outcome_of(manifest, horizons_days)
    wanted = outcome.wanted(model)
    rows = labels.select("subject_id", pl.col("prediction_time").cast(pl.Datetime("us")))
    ids, time = rows["subject_id"].to_numpy(), rows["prediction_time"].dt.timestamp("us").to_numpy()
    name = hash_bytes(dataset.fingerprint.encode(), ids.tobytes(), time.tobytes(), repr((outcome, filter)).encode())[
        :20
    ]
    file = dataset.path / FOLDER / f"{name}-{futures}.parquet"
    if cache and file.exists():
        return pl.read_parquet(file)
    subjects = ids - np.int64(seed) * SUBJECTS_PER_SEED - 1
    entry = entry_days(static_keys(subject_keys(seed, subjects.clip(0))))
    minutes = time // 60_000_000 - entry * MINUTES_PER_DAY
    _refuse_strangers(dataset, rows, subjects, minutes)
    parts = [
        (seed, subjects[part], minutes[part], wanted, outcome.horizons_days, futures)
        for part in np.split(np.arange(len(rows)), np.arange(_ROWS, len(rows), _ROWS))
    ]
    found = []
    for result in _run(parts, min(workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS), len(parts))):
        found.append(result)
        if progress is not None:
            progress(min(len(found) * _ROWS, len(rows)), len(rows))
    ceiling, error, step, late, observed = (np.concatenate([getattr(r, n) for r in found])
                                            for n in ("ceiling", "error", "step", "late", "observed"))  # fmt: skip
    if (step < 0).any():
        first = int(np.flatnonzero(step < 0)[0])
        raise LabelError(
            "prediction times are not ends of visits", got=f"{int((step < 0).sum())} of {len(rows)} rows, first "
            f"subject {ids[first]} at {rows['prediction_time'][first]}", expected="the time of a visit's last event",
        )  # fmt: skip
    width = max(r.alive.shape[1] for r in found)
    alive = np.concatenate([np.pad(r.alive, ((0, 0), (0, width - r.alive.shape[1]))) for r in found])
    attainable, attainable_error = np.full(ceiling.shape, np.nan), np.full(ceiling.shape, np.nan)
    if (attack := outcome.attack(model)) is not None:
        attainable, attainable_error = _attainable(
            model, dataset, attack, filter, rows, entry, step, late, minutes, alive, outcome.horizons_days
        )
    horizons = np.array(outcome.horizons_days)
    ends = minutes[:, None] + horizons * MINUTES_PER_DAY
    many = len(horizons)
    frame = pl.DataFrame(
        {
            "subject_id": np.repeat(ids, many),
            "prediction_time": rows["prediction_time"].gather(np.repeat(np.arange(len(rows)), many)),
            "horizon_days": np.tile(horizons, len(rows)),
            "ceiling": ceiling.ravel(),
            "ceiling_se": error.ravel(),
            "attainable": attainable.ravel(),
            "attainable_se": attainable_error.ravel(),
            "window_observed": (ends <= observed[:, None]).ravel(),
        }
    )
    if cache:
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        write_bytes(file, buffer.getvalue())
    return frame


def seed_of(dataset: MedsDataset, model: Model) -> int:
    """Seed of realistic synthetic records of this release, as they were written; DataError for any others."""
    options, made = dataset.manifest.get("options", {}), dataset.manifest.get("model", {})
    if dataset.manifest.get("source") != "synthetic" or options.get("mode") != "realistic":
        raise DataError(
            f"{dataset.path} has no oracle", got=f"source {dataset.manifest.get('source')}, mode {options.get('mode')}",
            expected="realistic synthetic records", remedy="make them with `ehrseq synth`",
        )  # fmt: skip
    written = dataset.manifest.get("fingerprint")
    if made.get("release") != RELEASE or made.get("tables") != model.fingerprint or written is None:
        raise DataError(
            f"{dataset.path} was made by another release of the disease model",
            got=f"release {made.get('release')}" + ("" if written else " without a fingerprint of its records"),
            expected=f"release {RELEASE} with this package's tables", remedy="make the records anew",
        )  # fmt: skip
    if written != dataset.fingerprint:
        raise DataError(
            f"records of {dataset.path} are not those that were made", got=f"fingerprint {dataset.fingerprint}",
            expected=str(written), remedy="make the records anew with `ehrseq synth`, and change nothing in them",
        )  # fmt: skip
    return int(options["seed"])


def _refuse_strangers(dataset: MedsDataset, rows: pl.DataFrame, subjects: np.ndarray, minutes: np.ndarray) -> None:
    wrong = (subjects < 0) | (subjects >= int(dataset.manifest["options"]["subjects"]))
    if rows.is_empty() or wrong.any():
        raise LabelError(
            "labels are not about this dataset", got=f"{int(wrong.sum())} of {len(rows)} rows with other subjects",
            expected="labels made from it",
        )  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """Results of some rows: [rows, horizons], [rows], and `alive` [rows, steps]; `step` is -1 where no visit ends."""

    ceiling: np.ndarray
    error: np.ndarray
    step: np.ndarray
    late: np.ndarray
    observed: np.ndarray
    alive: np.ndarray


def _estimate(
    seed: int, subjects: np.ndarray, minutes: np.ndarray, wanted: np.ndarray, horizons: tuple[int, ...], futures: int
) -> _Found:
    model = load_model()
    standing, matched = stand(model, seed, subjects, minutes)
    step = np.full(len(subjects), -1)
    step[matched] = standing.step
    shape = (len(subjects), len(horizons))
    if not matched.all():
        nothing = np.zeros(len(subjects), dtype=bool)
        return _Found(np.zeros(shape), np.zeros(shape), step, nothing, minutes, np.zeros((len(subjects), 1)))
    ends = np.array(horizons) * MINUTES_PER_DAY
    hits, total, squares = np.zeros(shape), np.zeros(len(subjects)), np.zeros(len(subjects))
    alive = np.zeros((len(subjects), steps_ahead(standing, max(horizons))))
    for rows, future in imagine(model, standing, wanted, max(horizons), futures):
        when = future.code if wanted.any() else future.death
        hits[rows] += (future.weight[:, :, None] * (when[:, :, None] <= ends)).sum(1)
        total[rows] += future.weight.sum(1)
        squares[rows] += (future.weight**2).sum(1)
        alive[rows, : len(future.alive)] += np.einsum("srf,rf->rs", future.alive, future.weight)
    ceiling = hits / total[:, None]
    # Laplace's estimate in the error alone, so that none of 1,000 is not taken for certainty.
    guess = (hits + 1) / (total[:, None] + 2)
    error = np.sqrt(guess * (1 - guess) * squares[:, None]) / total[:, None]
    return _Found(ceiling, error, step, standing.after_acute, standing.observed, alive / total[:, None])


def _run(parts: list[tuple], processes: int) -> Iterator[_Found]:
    """Results in the order of the parts; in this process when one is enough."""
    if processes == 1:
        yield from starmap(_estimate, parts)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_estimate, *zip(*parts, strict=True))


def _attainable(
    model: Model, dataset: MedsDataset, attack: str, filter: Filter, rows: pl.DataFrame, entry: np.ndarray,
    step: np.ndarray, late: np.ndarray, minutes: np.ndarray, alive: np.ndarray, horizons: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """P(attack coded by each horizon | history) and its Monte-Carlo standard error, float [rows, horizons] each.

    `alive` [rows, steps] is the share of futures in which the subject lives to see a step.
    """
    safe = np.zeros((1 if filter == "exact" else ISLANDS, len(rows), 2))
    chain = chain_of(model, attack)
    codes = [model.book.codes[index] for role in (f"dx/{attack}/1", *_SHOWN_BY[attack])
             for index in model.book.roles[role][0]]  # fmt: skip
    codes += [lab.code for lab in model.labs if lab.panel == "complement"]
    numbered = rows.with_row_index("row").with_columns(pl.Series("entry", entry))
    for split in SPLITS:
        for shard in dataset.frames(split):
            events = shard.filter(pl.col("code").is_in(codes)).collect()
            owners = shard.select("subject_id").unique().collect()
            asked = numbered.join(owners, on="subject_id", how="semi", maintain_order="left")
            people = asked.group_by("subject_id", maintain_order=True).agg(pl.col("entry").first())
            for part in people.iter_slices(BLOCK):
                part = part.with_row_index("subject")
                of = asked.join(part, on="subject_id", how="inner", maintain_order="left")
                seen = events.join(part, on="subject_id", how="inner", maintain_order="left")
                signals = read_signals(
                    model, attack, seen.with_columns(pl.col("subject").cast(pl.Int64)), part["entry"].to_numpy(),
                    MAX_STEPS + 1,
                )  # fmt: skip
                at = of["row"].to_numpy()
                asked_for = chain, signals, of["subject"].to_numpy(), step[at], late[at]
                if filter == "exact":
                    _, safe[0, at] = filter_chain(*asked_for)
                else:
                    safe[:, at] = filter_particles(*asked_for).islands[..., 2:]
    begins = (step[:, None] + np.arange(alive.shape[1])) * MINUTES_PER_STEP
    ends = minutes[:, None] + np.array(horizons) * MINUTES_PER_DAY
    coded = np.stack([coded_by(end[:, None] - begins) for end in ends.T])
    found = np.stack([np.einsum("rs,hrs->rh", attack_times(chain, one, alive.shape[1]) * alive, coded) for one in safe])
    if filter == "exact":
        return found[0], np.zeros_like(found[0])
    return np.nanmean(found, axis=0), standard_error(found)


_SHOWN_BY = {
    "vertigo_attack": ("pattern/spell",),
    "angioedema": ("pattern/drug", "pattern/reaction"),
    "lupus_flare": (),
}
