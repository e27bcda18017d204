"""Temporal validation: labels whose outcome was known before a date to learn from, later ones to be judged on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl

from ehrsequencing.data.calendar import dates_note
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import horizon_of
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.errors import ConfigError, LabelError


def parse_date(text: str, option: str) -> datetime:
    """Midnight of a date written as YYYY-MM-DD.

    Raises:
        ConfigError: it is none.

    >>> parse_date("2019-07-01", "--train-before")
    datetime.datetime(2019, 7, 1, 0, 0)
    """
    try:
        return datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise ConfigError(f"{option} is no date", got=text, expected="YYYY-MM-DD, for example 2019-07-01") from None


def split_by_time(
    dataset: MedsDataset,
    labels: pl.DataFrame,
    manifest: dict[str, Any],
    *,
    train_before: datetime,
    test_after: datetime | None = None,
    horizon_days: int | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Labels for a temporal validation, from those of any task.

    Subjects keep their splits, so they stay disjoint as well. Of train and tuning, the rows stay whose whole label
    window ends before `train_before`: prediction time + horizon < `train_before`, so that nothing learned from
    happened on or after that date. Of held_out, the rows stay that are predicted at `test_after` or later. Whoever
    reads the labels (fine-tuning, baselines, evaluation) follows without knowing.

    Args:
        dataset: The dataset that the labels are about.
        labels: Columns of `LABEL_SCHEMA`.
        manifest: Of the labels.
        train_before: First instant that nothing is learned from.
        test_after: First prediction time that is judged, `train_before` by default; not before it.
        horizon_days: Length of the label window; the manifest's by default.

    Returns:
        The rows that stay, and the manifest with `temporal`, two more steps of the flow, and new counts per split.

    Raises:
        ConfigError: `test_after` lies before `train_before`, or the horizon is unknown, negative or shorter than
            the manifest's.
        LabelError: the dataset's dates are no calendar dates, a subject is in no split, the labels were cut by time
            before, durations are longer than the horizon, a split is left without rows, or nothing was left out.
    """
    if (note := dates_note(dataset.manifest)) is not None:
        raise LabelError(
            f"{dataset.path} has no calendar dates, so time cannot split it", got=f"the note '{note}'",
            remedy="use the split by subject",
        )  # fmt: skip
    if "temporal" in manifest:
        raise LabelError("the labels were split by time already", got=manifest["temporal"]["train_before"])
    test_after = test_after or train_before
    if test_after < train_before:
        raise ConfigError(
            "testing would begin before training ends", got=f"{test_after.date()} before {train_before.date()}",
            expected="--test-after on or after --train-before",
        )  # fmt: skip
    stated = horizon_of(manifest)
    horizon = stated if horizon_days is None else horizon_days
    if not isinstance(horizon, int) or horizon < 0:
        raise ConfigError(
            "the length of the label window is unknown", got=horizon, expected="days, 0 or more",
            remedy="pass --horizon-days: outcomes must be known before --train-before",
        )  # fmt: skip
    if isinstance(stated, int) and horizon < stated:
        raise ConfigError(
            "--horizon-days is shorter than the label window", got=horizon, expected=f"{stated} days or more",
            remedy="leave it out: outcomes must be known before --train-before",
        )  # fmt: skip
    longest = labels["float_value"].max() if manifest.get("kind") == "survival" else None
    if isinstance(longest, float) and longest > horizon:
        raise LabelError(
            "durations run past the label window", got=f"{longest:.0f} days", expected=f"{horizon} days or fewer",
            remedy="build a task that follows so long only, such as time_to:CODE@DAYS",
        )  # fmt: skip
    rows = labels.join(dataset.subject_splits(), on="subject_id", how="left", maintain_order="left")
    if strangers := rows["split"].null_count():
        raise LabelError(
            f"{strangers} labels are of subjects that {dataset.path} does not hold",
            remedy="give the dataset that the labels were made from",
        )  # fmt: skip
    learned = pl.col("split") != "held_out"
    time = pl.col("prediction_time")
    early = time + pl.duration(days=horizon) < train_before
    kept = rows.filter((learned & early) | (~learned & (time >= test_after)))
    if len(kept) == len(rows):
        raise LabelError(
            "the dates leave nothing out", got=_range_of(rows), remedy="choose dates within the predictions' range"
        )
    for split in SPLITS:
        if not (kept["split"] == split).any():
            raise LabelError(
                f"no label of split {split} is left", got=_range_of(rows.filter(split=split)),
                expected=f"predictions on or after {test_after.date()}" if split == "held_out"
                else f"windows of {horizon} days that end before {train_before.date()}",
                remedy="choose other dates or a shorter horizon",
            )  # fmt: skip
    temporal = {
        "train_before": train_before.isoformat(),
        "test_after": test_after.isoformat(),
        "horizon_days": horizon,
        "rule": "train and tuning: prediction time + horizon < train_before; held_out: prediction time >= test_after",
    }
    flow = [
        *manifest.get("flow", []),
        _step(f"train and tuning with outcomes known before {train_before.date()}", kept.filter(learned)),
        _step(f"held out and predicted on or after {test_after.date()}", kept.filter(~learned)),
    ]
    return kept.drop("split"), {**manifest, "temporal": temporal, "flow": flow, "splits": _counts(kept)}


def _range_of(rows: pl.DataFrame) -> str:
    first, last = rows.select(first=pl.col("prediction_time").min(), last=pl.col("prediction_time").max()).row(0)
    return f"{len(rows)} predictions from {first} to {last}"


def _step(step: str, rows: pl.DataFrame) -> dict[str, Any]:
    return {"step": step, **_sizes(rows)}


def _sizes(rows: pl.DataFrame) -> dict[str, int]:
    """Examples, each once however many categories it has, and their subjects."""
    return {"rows": rows.n_unique(["subject_id", "prediction_time"]), "subjects": rows["subject_id"].n_unique()}


def _counts(rows: pl.DataFrame) -> dict[str, dict[str, int]]:
    found = {}
    for split in SPLITS:
        part = rows.filter(split=split)
        found[split] = _sizes(part)
        if part["boolean_value"].null_count() == 0:
            found[split]["positives"] = int(part["boolean_value"].sum())
    return found
