"""Prediction tasks over a MEDS dataset: who, when, and what happens next."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, LABEL_SCHEMA, MICROSECONDS_PER_DAY, SPLITS
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.io import versions

MAX_DAYS = 36_500
"""Horizon, history and spacing are at most a century; longer ones would leave the range of dates."""
MAX_MINIMUM_AGE = 150.0


@dataclass(frozen=True)
class TaskPattern:
    """One kind of task, or one task with a name, as `ehrseq task list` shows it."""

    pattern: str
    task: str
    description: str


TASK_PATTERNS = (
    TaskPattern("onset:CODE[,CODE]@DAYS", "onset:ICD10CM//E11@365", "First CODE (prefix) within DAYS after a visit"),
    TaskPattern("heart_failure_1y", "onset:ICD10CM//I50,ICD9CM//428@365", "Onset of heart failure within a year"),
    TaskPattern("type_2_diabetes_1y", "onset:ICD10CM//E11@365", "Onset of type 2 diabetes within a year"),
    TaskPattern("chronic_kidney_disease_1y", "onset:ICD10CM//N18,ICD9CM//585@365", "Onset of CKD within a year"),
    TaskPattern("vertigo_1y", "onset:ICD10CM//H81@365", "Onset of vestibular disease within a year"),
    TaskPattern("angioedema_1y", "onset:ICD10CM//T78.3@365", "Onset of angioedema within a year"),
    TaskPattern("lupus_flare_1y", "onset:ICD10CM//M32@365", "Onset of systemic lupus within a year"),
)
NAMED_TASKS = {pattern.pattern: pattern.task for pattern in TASK_PATTERNS if ":" not in pattern.pattern}


@dataclass(frozen=True)
class OnsetTask:
    """Binary: does the first code of a set appear within a horizon after the prediction time?

    Attributes:
        name: The task as written, for example "onset:ICD10CM//I50@365".
        codes: Prefixes; "ICD10CM//I50" matches "ICD10CM//I50.9".
        horizon_days: The window is (prediction time, prediction time + horizon_days]; 1 to `MAX_DAYS`.

    Raises:
        ConfigError: the horizon is out of range.
    """

    name: str
    codes: tuple[str, ...]
    horizon_days: int

    def __post_init__(self) -> None:
        if not 1 <= self.horizon_days <= MAX_DAYS:
            raise ConfigError(f"the horizon of task {self.name[:80]} is out of range", expected=f"1 to {MAX_DAYS} days")


def parse_task(name: str) -> OnsetTask:
    """Read a task's name: one of `NAMED_TASKS`, or `onset:CODE[,CODE]@DAYS`.

    Raises:
        ConfigError: neither of them, or no whole number of days from 1 to `MAX_DAYS`.

    >>> parse_task("onset:ICD10CM//I50,ICD10CM//I11.0@365")
    OnsetTask(name='onset:ICD10CM//I50,ICD10CM//I11.0@365', codes=('ICD10CM//I50', 'ICD10CM//I11.0'), horizon_days=365)
    """
    written = NAMED_TASKS.get(name, name)
    match = re.fullmatch(r"onset:(?P<codes>[^@]+)@(?P<days>[1-9]\d*)", written)
    codes = tuple(code.strip() for code in match["codes"].split(",")) if match else ()
    if match is None or not all(codes):
        raise ConfigError(
            "unknown task", got=name, expected="onset:CODE[,CODE]@DAYS or " + ", ".join(NAMED_TASKS),
            remedy="see `ehrseq task list`; for example onset:ICD10CM//I50@365",
        )  # fmt: skip
    # Python refuses to read numbers of thousands of digits; the first ten show that it is too large.
    return OnsetTask(name, codes, int(match["days"][:10]))


@dataclass(frozen=True)
class CohortRules:
    """Who is asked, and how often.

    Attributes:
        history_days: The first prediction lies at least this long after the subject's first dated event.
        spacing_days: At least this long between two predictions of a subject.
        minimum_age_years: Age at prediction; above 0 it leaves out subjects of unknown age.

    Raises:
        ConfigError: history outside 0 to `MAX_DAYS`, spacing outside 1 to `MAX_DAYS`, or age outside 0 to
            `MAX_MINIMUM_AGE`.
    """

    history_days: int = 365
    spacing_days: int = 365
    minimum_age_years: float = 18.0

    def __post_init__(self) -> None:
        days = 0 <= self.history_days <= MAX_DAYS and 1 <= self.spacing_days <= MAX_DAYS
        if not days or not 0 <= self.minimum_age_years <= MAX_MINIMUM_AGE:
            raise ConfigError(
                "cohort rules are out of range", got=asdict(self),
                expected=f"history_days 0 to {MAX_DAYS}, spacing_days 1 to {MAX_DAYS}, "
                f"minimum_age_years 0 to {MAX_MINIMUM_AGE:g}",
            )  # fmt: skip


class _Flow:
    """Rows and subjects after each step, summed over shards in the order the steps first came."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, int]] = {}

    def add(self, step: str, rows: pl.DataFrame) -> None:
        counts = self.steps.setdefault(step, {"rows": 0, "subjects": 0})
        counts["rows"] += len(rows)
        counts["subjects"] += rows["subject_id"].n_unique()

    def as_list(self) -> list[dict[str, Any]]:
        return [{"step": step, **counts} for step, counts in self.steps.items()]

    def __str__(self) -> str:
        return "; ".join(f"{step}: {counts['rows']}" for step, counts in self.steps.items())


def build_labels(
    dataset: MedsDataset,
    task: OnsetTask,
    rules: CohortRules | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Labels of an onset task, one shard in memory at a time.

    Prediction times are ends of visits (the time of a visit's last event; visits by `visit_id`, events without one by
    calendar day). The rules that decide whether a visit is asked (history, age, alive, no matching code so far) look
    back only; the spacing is applied to what they leave; the outcome is read last:

    - positive: the first matching code lies in (t, t + horizon_days];
    - negative: observed to the end of the window, or dead within it without onset (counted: death competes);
    - else censored, left out and counted.

    A subject is observed until the last event (death included) or the dataset's `observation_end`, whichever is later.
    In a dataset of dates without time of day, a day's events all carry its midnight: they are known at a prediction
    on that day, and the window begins the next day.

    Args:
        dataset: The MEDS dataset.
        task: From `parse_task`.
        rules: Defaults of `CohortRules` when None.
        progress: Called with (shards done, shards).

    Returns:
        Labels with the columns of `LABEL_SCHEMA` by subject and time, and the manifest with rules and flow counts.

    Raises:
        LabelError: no subject has a matching code, nobody is left, or all labels are alike; with the flow's counts.
    """
    rules = rules or CohortRules()
    flow = _Flow()
    shards = [(split, frame) for split in SPLITS for frame in dataset.frames(split)]
    ends = dataset.observation_end()
    labelled, date_only = [], True
    for done, (split, frame) in enumerate(shards, start=1):
        events = frame.select("subject_id", "time", "code", "visit_id").collect()
        date_only &= bool(events.select((pl.col("time") == pl.col("time").dt.truncate("1d")).all()).item())
        subjects = _subjects(events, task, ends)
        flow.add("subjects", subjects)
        flow.add("subjects with a matching code", subjects.filter(pl.col("onset").is_not_null()))
        rows = _at_risk(_visit_ends(events), subjects, rules, flow)
        rows = _spaced(rows, rules.spacing_days)
        flow.add(f"at least {rules.spacing_days} days apart", rows)
        labelled.append(_outcomes(rows, task, flow).with_columns(split=pl.lit(split)))
        if progress is not None:
            progress(done, len(shards))
    labels = pl.concat(labelled).sort("subject_id", "prediction_time")
    _refuse_useless(labels, task, flow)
    manifest = _manifest(dataset, task, rules, labels, flow, date_only, ends is not None)
    absent = (
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in LABEL_SCHEMA.items() if name not in labels.columns
    )
    return labels.with_columns(absent).select(*LABEL_SCHEMA), manifest


def _matches(codes: tuple[str, ...]) -> pl.Expr:
    return pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in codes)


def _subjects(events: pl.DataFrame, task: OnsetTask, ends: pl.DataFrame | None) -> pl.DataFrame:
    """One row per subject: birth, first, onset, death, observed_until; onset without a date is before everything."""
    code, time = pl.col("code"), pl.col("time")
    dated = time.filter(code != BIRTH_CODE)
    matching = events.filter(_matches(task.codes)).group_by("subject_id").agg(
        onset=pl.when(time.is_null().any()).then(pl.datetime(1, 1, 1, time_unit="us")).otherwise(time.min())
    )  # fmt: skip
    subjects = (
        events.group_by("subject_id", maintain_order=True)
        .agg(
            birth=time.filter(code == BIRTH_CODE).min(),
            first=dated.min(),
            death=time.filter(code == DEATH_CODE).min(),
            observed_until=dated.max(),
        )
        .join(matching, on="subject_id", how="left", maintain_order="left")
    )
    if ends is None:
        return subjects
    return subjects.join(ends, on="subject_id", how="left", maintain_order="left").with_columns(
        observed_until=pl.max_horizontal("observed_until", "observation_end")
    )


def _visit_ends(events: pl.DataFrame) -> pl.DataFrame:
    """Distinct (subject_id, prediction_time), ascending."""
    day = pl.when(pl.col("visit_id").is_null()).then(pl.col("time").dt.truncate("1d"))
    return (
        events.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]))
        .group_by("subject_id", "visit_id", day.alias("day"))
        .agg(prediction_time=pl.col("time").max())
        .select("subject_id", "prediction_time")
        .unique()
        .sort("subject_id", "prediction_time")
    )


def _at_risk(visit_ends: pl.DataFrame, subjects: pl.DataFrame, rules: CohortRules, flow: _Flow) -> pl.DataFrame:
    rows = visit_ends.join(subjects, on="subject_id", how="left", maintain_order="left")
    flow.add("ends of visits", rows)
    t = pl.col("prediction_time")
    age = (t - pl.col("birth")).dt.total_microseconds() / (MICROSECONDS_PER_DAY * DAYS_PER_YEAR)
    history = pl.col("first") + pl.duration(days=rules.history_days)
    steps = [
        (f"at least {rules.history_days} days after the first event", t >= history),
        (f"aged {rules.minimum_age_years:g} or older", age >= rules.minimum_age_years),
        ("alive", pl.col("death").is_null() | (pl.col("death") > t)),
        ("no matching code so far", pl.col("onset").is_null() | (pl.col("onset") > t)),
    ]
    for name, keep in steps:
        if rules.minimum_age_years > 0 or not name.startswith("aged"):
            rows = rows.filter(keep)
            flow.add(name, rows)
    return rows


def _spaced(rows: pl.DataFrame, spacing_days: int) -> pl.DataFrame:
    """Earliest row of each subject, then each next one at least `spacing_days` after the last taken.

    `rows` ascend by subject and time. One sort finds, for every row, the row that would follow it if it were taken;
    then all subjects walk their chains together, one step per prediction of the busiest subject.
    """
    subject = rows["subject_id"].to_numpy()
    time = rows["prediction_time"].dt.timestamp("us").to_numpy()
    n = len(rows)
    due = np.concatenate([time, time + spacing_days * MICROSECONDS_PER_DAY])
    is_due = np.repeat([False, True], n)
    # A due time sorts before a row at the same instant, so the rows before it are those too early to follow.
    order = np.lexsort((~is_due, due, np.tile(subject, 2)))
    rows_before = np.cumsum(~is_due[order])
    following = np.empty(n, dtype=np.int64)
    following[order[is_due[order]] - n] = rows_before[is_due[order]]
    taken = np.zeros(n, dtype=bool)
    current = np.flatnonzero(np.r_[True, subject[1:] != subject[:-1]][:n])
    while len(current):
        taken[current] = True
        ahead = following[current]
        same = ahead < n
        same[same] = subject[ahead[same]] == subject[current[same]]
        current = ahead[same]
    return rows.filter(pl.Series(taken, dtype=pl.Boolean))


def _outcomes(rows: pl.DataFrame, task: OnsetTask, flow: _Flow) -> pl.DataFrame:
    """Columns subject_id, prediction_time, boolean_value."""
    end = pl.col("prediction_time") + pl.duration(days=task.horizon_days)
    rows = rows.with_columns(
        onset_within=(pl.col("onset") <= end).fill_null(False),
        died_within=(pl.col("death") <= end).fill_null(False),
        observed=pl.col("observed_until") >= end,
    )
    negative = ~pl.col("onset_within")
    kept = rows.filter(pl.col("onset_within") | pl.col("observed") | pl.col("died_within"))
    flow.add(
        "excluded: censored within the window", rows.filter(negative & ~pl.col("observed") & ~pl.col("died_within"))
    )
    flow.add("labelled", kept)
    flow.add("positive", kept.filter("onset_within"))
    flow.add("negative", kept.filter(negative))
    flow.add("negative that died within the window without onset", kept.filter(negative & pl.col("died_within")))
    return kept.select("subject_id", "prediction_time", boolean_value="onset_within")


def _refuse_useless(labels: pl.DataFrame, task: OnsetTask, flow: _Flow) -> None:
    if not flow.steps.get("subjects with a matching code", {}).get("rows"):
        raise LabelError(
            f"no subject has a code of task {task.name}", got=flow,
            expected=f"codes that start with {', '.join(task.codes)}",
            remedy="metadata/codes.parquet of the dataset lists its codes",
        )  # fmt: skip
    if labels.is_empty():
        raise LabelError(
            f"task {task.name} has an empty cohort", got=flow, remedy="loosen the cohort rules or the horizon"
        )
    if labels["boolean_value"].n_unique() == 1:
        raise LabelError(
            f"task {task.name} has one class", got=flow, expected="positives and negatives",
            remedy="loosen the cohort rules, change the horizon, or use more subjects",
        )  # fmt: skip


def _manifest(
    dataset: MedsDataset,
    task: OnsetTask,
    rules: CohortRules,
    labels: pl.DataFrame,
    flow: _Flow,
    date_only: bool,
    observation_known: bool,
) -> dict[str, Any]:
    by_split = labels.group_by("split").agg(
        rows=pl.len(), subjects=pl.col("subject_id").n_unique(), positives=pl.col("boolean_value").sum()
    )
    return {
        "task": task.name,
        "kind": "binary",
        "codes": list(task.codes),
        "horizon_days": task.horizon_days,
        "prediction_time": "end of a visit (time of its last event), inclusive",
        "window": f"(prediction time, prediction time + {task.horizon_days} days]",
        "options": asdict(rules),
        "rules": [
            "visits by visit_id, events without one by calendar day",
            f"at least {rules.history_days} days after the first dated event other than birth",
            f"at most one prediction per {rules.spacing_days} days and subject, the earliest first",
            f"age at prediction at least {rules.minimum_age_years:g} years",
            "alive, no matching code at or before the prediction time; an undated matching code excludes the subject",
            "positive where the first matching code lies in the window, whatever follows",
            "negative where observed to the end of the window, or dead within it without onset",
            "otherwise censored and left out",
            "observed until the last event or death"
            + (", or the dataset's observation_end where that is later" if observation_known else ""),
        ],
        "date_only": date_only,
        "flow": flow.as_list(),
        "splits": {row.pop("split"): row for row in by_split.sort("split").to_dicts()},
        "dataset": {"source": dataset.manifest.get("source"), "fingerprint": dataset.fingerprint},
        "versions": versions(),
    }


def check_labels(labels: pl.DataFrame, subjects: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Check labels against the subjects they are about, before anything is trained on them.

    Args:
        labels: Columns of `LABEL_SCHEMA`.
        subjects: Columns `subject_id`, `split`, and optionally `first_time` (Datetime; null where a subject has no
            dated event), for example `MedsDataset.subject_splits()`.

    Returns:
        Per split the number of rows, subjects and, for boolean labels, positives.

    Raises:
        LabelError: a subject is not in the dataset, a row is repeated, a prediction lies before the subject's first
            event, a split has no labels or (boolean labels) one class.
    """
    key = ["subject_id", "prediction_time", "categorical_value"]
    if repeated := len(labels) - labels.n_unique(key):
        raise LabelError(
            "labels repeat a subject and prediction time", got=f"{repeated} repeated rows", expected="each once"
        )
    joined = labels.join(subjects, on="subject_id", how="left", maintain_order="left")
    strangers = joined.filter(pl.col("split").is_null())["subject_id"].unique().sort()
    if len(strangers):
        raise LabelError(
            f"{len(strangers)} labelled subjects are not in the dataset", got=f"subject {strangers[0]}",
            expected="labels made from this dataset",
        )  # fmt: skip
    if "first_time" in joined.columns:
        early = joined.filter(pl.col("prediction_time") < pl.col("first_time"))
        if len(early):
            raise LabelError(
                f"{len(early)} prediction times lie before the subject's first event",
                got=f"subject {early['subject_id'][0]} at {early['prediction_time'][0]}",
                remedy="leave out predictions without any history",
            )  # fmt: skip
    binary = labels["boolean_value"].null_count() == 0
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        rows = joined.filter(split=split)
        counts[split] = {"rows": len(rows), "subjects": rows["subject_id"].n_unique()}
        if rows.is_empty():
            raise LabelError(f"split {split} has no labels", got=f"{len(labels)} rows in the other splits")
        if binary:
            counts[split]["positives"] = positives = int(rows["boolean_value"].sum())
            if positives in (0, len(rows)):
                raise LabelError(
                    f"split {split} has one class", got=f"{positives} positives of {len(rows)} rows",
                    expected="positives and negatives", remedy="use more subjects, a commoner code or a longer horizon",
                )  # fmt: skip
    return counts
