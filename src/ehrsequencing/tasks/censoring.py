"""Subjects who leave before the end of follow-up, drawn over survival labels: independently, or by their state."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.oracle import seed_of
from ehrsequencing.data.schema import DAYS_PER_YEAR, MICROSECONDS_PER_DAY
from ehrsequencing.data.synthetic import BLOCK, SUBJECTS_PER_SEED, entry_days
from ehrsequencing.data.synthetic_disease import log_hazard_of_death, static_keys
from ehrsequencing.data.synthetic_forward import stand
from ehrsequencing.data.synthetic_model import UNIT, load_model
from ehrsequencing.data.synthetic_random import derive, subject_keys
from ehrsequencing.data.synthetic_visits import MINUTES_PER_DAY
from ehrsequencing.errors import ConfigError, LabelError

Array = NDArray[np.float64]
MAX_RATE_PER_YEAR, MAX_STRENGTH = 1000.0, 10.0
_ROOT = 4_001
"""Of the random numbers of outcomes and censoring, apart from any seed's records."""
LEAVING, OUTCOME = 0, 1
"""Streams of `exponentials`."""


SCORE = "log-hazard of death of the hidden state at the first prediction time, standardised"


@dataclass(frozen=True)
class Censoring:
    """Who leaves, and when: exponential times since the subject's first prediction.

    Attributes:
        rate_per_year: Of a subject of average state.
        strength: Added to the log-rate per standard deviation of the hidden state's log-hazard of death at the first
            prediction; 0 leaves regardless of the state (independent censoring), above 0 the ill leave first.

    Raises:
        ConfigError: a rate that is not above 0 or above `MAX_RATE_PER_YEAR`, a strength beyond +-`MAX_STRENGTH`.
    """

    rate_per_year: float
    strength: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.rate_per_year <= MAX_RATE_PER_YEAR and abs(self.strength) <= MAX_STRENGTH):
            raise ConfigError(
                "censoring is out of range", got=asdict(self),
                expected=f"rate_per_year above 0 and up to {MAX_RATE_PER_YEAR:g}, strength up to {MAX_STRENGTH:g}",
            )  # fmt: skip

    def rates_per_day(self, score: Array) -> Array:
        """Rates at standardised scores of the state, float [n]."""
        rates: Array = self.rate_per_year / DAYS_PER_YEAR * np.exp(self.strength * score)
        return rates


def exponentials(rows: pl.DataFrame, stream: int, seed: int = 0) -> Array:
    """Standard exponential numbers, float [n], of each row's subject and prediction time alone."""
    subject = subject_keys(_ROOT + seed, rows["subject_id"].to_numpy().astype(np.uint64))
    time = rows["prediction_time"].dt.timestamp("us").to_numpy().astype(np.uint64)
    bits = derive(derive(subject, stream), time) >> np.uint64(11)
    return -np.log((bits.astype(np.float64) + 0.5) * 2.0**-53)


def state_scores(dataset: MedsDataset, rows: pl.DataFrame) -> Array:
    """Log-hazard of death of the hidden state at each prediction time, less a constant, float [n].

    Args:
        dataset: Realistic synthetic records of this release.
        rows: Columns `subject_id`, `prediction_time` (ends of visits).

    Raises:
        DataError: not such records.
        LabelError: a subject that is not in them, or a prediction time at which no visit ends.
    """
    model = load_model()
    seed = seed_of(dataset, model)
    subjects = rows["subject_id"].to_numpy() - seed * SUBJECTS_PER_SEED - 1
    if ((subjects < 0) | (subjects >= int(dataset.manifest["options"]["subjects"]))).any():
        raise LabelError("labels are not about this dataset", expected="labels made from it")
    entry = entry_days(static_keys(subject_keys(seed, subjects)))
    minutes = rows["prediction_time"].dt.timestamp("us").to_numpy() // 60_000_000 - entry * MINUTES_PER_DAY
    score = np.empty(len(rows))
    for part in np.split(np.arange(len(rows)), np.arange(BLOCK, len(rows), BLOCK)):
        standing, matched = stand(model, seed, subjects[part], minutes[part])
        if not matched.all():
            first = int(part[np.flatnonzero(~matched)[0]])
            raise LabelError(
                "a state is known at the ends of visits alone",
                got=f"subject {rows['subject_id'][first]} at {rows['prediction_time'][first]}",
                expected="a cohort without stated landmarks, or censoring that does not depend on the state",
            )  # fmt: skip
        score[part] = log_hazard_of_death(model, standing.states) * UNIT
    return score


def standardised(values: Array, name: str) -> Array:
    """Less the mean, over the standard deviation.

    Raises:
        LabelError: all values are alike.
    """
    if not (spread := float(values.std())) > 0:
        raise LabelError(f"{name} is the same in all rows", got=f"{len(values)} rows", expected="rows that differ")
    return (values - values.mean()) / spread


def censor(
    dataset: MedsDataset, labels: pl.DataFrame, manifest: dict[str, Any], censoring: Censoring
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Survival labels with subjects who leave.

    Of a subject with several rows the time counts from the first; rows at which it has left are taken out and counted.
    The ceiling of an outcome does not change: what would have happened does not depend on who is there to see it.

    Args:
        dataset: What the labels were made from.
        labels: Columns of `LABEL_SCHEMA`, with `integer_value` and `float_value` (days).
        manifest: Of the labels.
        censoring: Rate and strength.

    Returns:
        The labels by subject and time, and the manifest with `censoring` and further steps of the flow.

    Raises:
        LabelError: labels of another kind, nobody or no event is left; also as `state_scores`.
    """
    if manifest.get("kind") != "survival":
        raise LabelError("only survival labels are censored", got=f"kind {manifest.get('kind')}", expected="survival")
    if "censoring" in manifest:
        raise LabelError("the labels are censored already", got=str(manifest["censoring"]), expected="labels as built")
    first = labels.sort("subject_id", "prediction_time").unique("subject_id", keep="first", maintain_order=True)
    kind, score = "independent", np.zeros(len(first))
    stated: dict[str, Any] = asdict(censoring)
    if censoring.strength:
        kind, score = "informative", state_scores(dataset, first)
        stated |= {"score": SCORE, "score_mean": float(score.mean()), "score_sd": float(score.std())}
        score = standardised(score, "the state")
    days = exponentials(first, LEAVING) / censoring.rates_per_day(score)
    # A century and more is beyond any follow-up; without a bound, slow rates would leave the range of dates.
    stay = pl.Series("stay", (np.minimum(days, 1e6) * MICROSECONDS_PER_DAY).astype(np.int64))
    leaves = pl.col("prediction_time") + pl.duration(microseconds="stay")
    first = first.with_columns(stay).select("subject_id", leaves=leaves)
    rows = labels.join(first, on="subject_id", maintain_order="left")
    left = (pl.col("leaves") - pl.col("prediction_time")).dt.total_microseconds() / MICROSECONDS_PER_DAY
    rows = rows.with_columns(left=left)
    gone = rows.filter(pl.col("left") <= 0)
    rows = rows.filter(pl.col("left") > 0)
    early = pl.col("left").cast(pl.Float32) < pl.col("float_value")
    flow = [
        *manifest.get("flow", []),
        _step("excluded: left before the prediction time", gone),
        _step("left before follow-up ended", rows.filter(early)),
        _step("of them before an event or a competing one", rows.filter(early & (pl.col("integer_value") > 0))),
    ]
    rows = rows.with_columns(
        integer_value=pl.when(early).then(0).otherwise("integer_value"),
        float_value=pl.when(early).then(pl.col("left").cast(pl.Float32)).otherwise("float_value"),
    )
    flow.append(_step("event that is seen", rows.filter(pl.col("integer_value") == 1)))
    if not flow[-1]["rows"]:
        raise LabelError(
            "nobody has the event before leaving", got=f"{len(labels)} rows", remedy="lower the rate of censoring"
        )
    stated = {"kind": kind, "since": "the subject's first prediction time, exponential"} | stated
    splits = split_counts(dataset, rows)
    return rows.select(labels.columns), manifest | {"censoring": stated, "flow": flow, "splits": splits}


def split_counts(dataset: MedsDataset, labels: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Rows, subjects and events (`integer_value` 1) of each split."""
    counts = labels.join(dataset.subject_splits(), on="subject_id").group_by("split").agg(
        rows=pl.len(), subjects=pl.col("subject_id").n_unique(), positives=(pl.col("integer_value") == 1).sum()
    )  # fmt: skip
    return {row.pop("split"): row for row in counts.sort("split").to_dicts()}


def _step(name: str, rows: pl.DataFrame) -> dict[str, Any]:
    return {"step": name, "rows": len(rows), "subjects": rows["subject_id"].n_unique()}
