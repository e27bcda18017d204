"""The best that could be predicted, beside what was: the oracle's rows of a comparison on synthetic records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.benchmarks.arms import Arm
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.oracle import FUTURES, oracle_frame
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, StoreError
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.tasks.signal import signal_oracle
from ehrsequencing.tracking.summary import ORACLE

CEILING, ATTAINABLE = f"{ORACLE}ceiling", f"{ORACLE}attainable optimum"
NOTES = {
    CEILING: "P(outcome | full state, hidden conditions included): bounds every model, may be out of reach of all",
    ATTAINABLE: "P(outcome | history): what a perfect model of the record would predict (survival from the full state)",
}


def oracle_arms(
    data: str | Path,
    store: TokenStore,
    held_out: Examples,
    manifest: dict[str, Any],
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> tuple[list[Arm], list[str]]:
    """The ceiling and, where it can be computed, the attainable optimum on held-out histories; and what to note.

    Args:
        data: The synthetic MEDS dataset that the store was prepared from.
        store: Token store.
        held_out: Histories with a binary target.
        manifest: Of the labels.
        progress: Told (name, done, total).

    Raises:
        StoreError: the store was prepared from another dataset.
        ConfigError: a task whose outcome the oracle does not know, or that is not binary.
        DataError: not realistic synthetic records of this release.
    """
    if held_out.categories:
        raise ConfigError("the oracle is of binary tasks", got=f"the multi-label task {manifest.get('task')}")
    frame = _futures(data, store, held_out, manifest, progress)
    arms = [_arm(CEILING, frame["ceiling"].to_numpy())]
    error = float(np.median(frame["ceiling_se"]))
    notes = [
        f"The ceiling comes from {FUTURES:,} futures per history; its Monte-Carlo standard error is {error:.4f} at the "
        "median, so that its ranking is, if anything, slightly too low."
    ]
    if not frame["attainable"].is_nan().any():
        arms.append(_arm(ATTAINABLE, frame["attainable"].to_numpy()))
    else:
        notes.append("The attainable optimum is not known for this task; the ceiling may lie far above it.")
    if unseen := int((~frame["window_observed"]).sum()):
        notes.append(
            f"The windows of {unseen:,} of {len(frame):,} held-out histories pass the end of observation; "
            "the oracle's probabilities count what lies beyond it too."
        )
    return arms, notes


def survival_oracles(
    data: str | Path,
    store: TokenStore,
    held_out: Examples,
    manifest: dict[str, Any],
    notes: list[str],
    days: Sequence[float],
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Arm]:
    """The same two of a survival task: incidence of its first cause by some days; competing ones are not told apart.

    Of an outcome that was made from the record (`tasks.signal`) the attainable optimum alone: its true hazard.

    Args:
        notes: What to note is added here.
        days: Rising; where figures are taken.

    Raises:
        StoreError, ConfigError, DataError: as `oracle_arms`.
    """
    if made := manifest.get("signal"):
        dataset, rows = _asked(data, store, held_out)
        known = signal_oracle(dataset, rows, manifest, tuple(days))
        placed = rows.join(known, on=["subject_id", "prediction_time"], how="left", maintain_order="left")
        curves = placed.select(f"survival@{day:g}" for day in days).to_numpy()
        risk = placed["log_hazard"].to_numpy()
        notes.append(f"The outcome was made from the record; the best C in expectation is {made['best_c']:g}.")
        return [_arm(ATTAINABLE, SurvivalPrediction.of_one_cause(days, curves, risk), "the true hazard")]
    frame = _futures(data, store, held_out, manifest, progress, horizons_days=tuple(days))
    arms = []
    for name, column in ((CEILING, "ceiling"), (ATTAINABLE, "attainable")):
        wide = frame[column].to_numpy().reshape(len(held_out), len(days))
        if np.isnan(wide).any():
            notes.append("The attainable optimum is not known for this task; the ceiling may lie far above it.")
            continue
        # Each day's figure has an error of its own, so that a curve may fall by a fraction of it.
        rising = np.maximum.accumulate(wide, axis=1)
        arms.append(_arm(name, SurvivalPrediction.of_one_cause(days, 1 - rising)))
    error = float(np.median(frame["ceiling_se"].to_numpy()))
    notes.append(
        f"The ceiling comes from {FUTURES:,} futures per history; the Monte-Carlo standard error of an incidence is "
        f"{error:.4f} at the median. Between the judged days its hazard is taken as constant."
    )
    return arms


def _futures(
    data: str | Path,
    store: TokenStore,
    held_out: Examples,
    manifest: dict[str, Any],
    progress: Callable[[str, int, int], None],
    **options: Any,
) -> pl.DataFrame:
    """`oracle_frame` of held-out histories."""
    dataset, rows = _asked(data, store, held_out)
    return oracle_frame(
        dataset, rows, manifest, progress=lambda done, total: progress("futures of the oracle", done, total), **options
    )


def _asked(data: str | Path, store: TokenStore, held_out: Examples) -> tuple[MedsDataset, pl.DataFrame]:
    """The dataset of the store, and subject and prediction time of held-out histories."""
    dataset = MedsDataset.open(Path(data))
    if dataset.fingerprint != store.manifest["dataset_fingerprint"]:
        raise StoreError(
            f"{store.path} was not prepared from {data}",
            got=dataset.fingerprint[:16], expected=str(store.manifest["dataset_fingerprint"])[:16],
            remedy="name the dataset that the store was prepared from",
        )  # fmt: skip
    return dataset, pl.DataFrame(
        {"subject_id": held_out.subject_id, "prediction_time": pl.Series(held_out.until).cast(pl.Datetime("us"))}
    )


def _arm(name: str, predicted: Any, notes: str = "") -> Arm:
    return Arm(
        name=name, kind="oracle", tuning=[], held_out=[predicted], seconds=0.0,
        notes=notes or NOTES[name],
    )  # fmt: skip
