"""The best that could be predicted, beside what was: the oracle's rows of a comparison on synthetic records."""

from __future__ import annotations

from collections.abc import Callable
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
    dataset = MedsDataset.open(Path(data))
    if dataset.fingerprint != store.manifest["dataset_fingerprint"]:
        raise StoreError(
            f"{store.path} was not prepared from {data}",
            got=dataset.fingerprint[:16], expected=str(store.manifest["dataset_fingerprint"])[:16],
            remedy="name the dataset that the store was prepared from",
        )  # fmt: skip
    if held_out.categories:
        raise ConfigError("the oracle is of binary tasks", got=f"the multi-label task {manifest.get('task')}")
    rows = pl.DataFrame(
        {"subject_id": held_out.subject_id, "prediction_time": pl.Series(held_out.until).cast(pl.Datetime("us"))}
    )
    frame = oracle_frame(
        dataset, rows, manifest, progress=lambda done, total: progress("futures of the oracle", done, total)
    )
    arms = [_arm(CEILING, frame["ceiling"])]
    error = float(np.median(frame["ceiling_se"]))
    notes = [
        f"The ceiling comes from {FUTURES:,} futures per history; its Monte-Carlo standard error is {error:.4f} at the "
        "median, so that its ranking is, if anything, slightly too low."
    ]
    if not frame["attainable"].is_nan().any():
        arms.append(_arm(ATTAINABLE, frame["attainable"]))
    else:
        notes.append("The attainable optimum is not known for this task; the ceiling may lie far above it.")
    if unseen := int((~frame["window_observed"]).sum()):
        notes.append(
            f"The windows of {unseen:,} of {len(frame):,} held-out histories pass the end of observation; "
            "the oracle's probabilities count what lies beyond it too."
        )
    return arms, notes


def _arm(name: str, probabilities: pl.Series) -> Arm:
    return Arm(
        name=name, kind="oracle", tuning=[], held_out=[np.asarray(probabilities, dtype=np.float64)], seconds=0.0,
        notes=NOTES[name],
    )  # fmt: skip
