"""Labels of a prediction task over a MEDS dataset: who, when, and what happens next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import polars as pl

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.events import collect
from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.schema import LABEL_SCHEMA, SPLITS
from ehrsequencing.errors import CohortError, ConfigError, LabelError
from ehrsequencing.io import versions
from ehrsequencing.tasks.base import AdmissionRules, CohortRules, DischargeRules, Flow, Shard, Task
from ehrsequencing.tasks.codes import CodeTable
from ehrsequencing.tasks.parsing import SHARED_RULES, family_of, parse_task

ICD_VERSIONS = (("ICD9CM//", r"^(ICD9CM//|DIAGNOSIS//ICD//9//)"), ("ICD10CM//", r"^(ICD10CM//|DIAGNOSIS//ICD//10//)"))
"""Beginning of our codes, and what marks a version in any spelling."""
KEY = ["subject_id", "prediction_time"]


def build_labels(
    dataset: MedsDataset,
    task: Task | str,
    rules: CohortRules | DischargeRules | AdmissionRules | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Labels of a task, one shard in memory at a time; `TASK_FAMILIES` and docs/tasks.md state the rules of each.

    The rules that decide who is asked and when look back only; the outcome is read last. Rows whose answer nobody can
    know (follow-up ends before the window does) are left out and counted, never called negative.

    Args:
        dataset: The MEDS dataset.
        task: A task or its name, see `parse_task`.
        rules: Cohort rules of the class that the task takes; the task's own when None.
        progress: Called with (shards done, shards).

    Returns:
        Labels with the columns of `LABEL_SCHEMA` by subject and time, and the manifest with rules and flow counts.

    Raises:
        ConfigError: unknown task, or rules of another class.
        LabelError: the dataset lacks what the task is about, nobody is left, or all labels are alike; with the flow's
            counts.
    """
    task = parse_task(task) if isinstance(task, str) else task
    rules = task.rules if rules is None else rules
    if type(rules) is not type(task.rules):
        raise ConfigError(
            f"task {task.name} takes other rules", got=", ".join(asdict(rules)), expected=", ".join(asdict(task.rules))
        )
    flow, matched, codes = Flow(), set[str](), CodeTable.of(dataset)
    shards = [
        (split, path, frame)
        for split in SPLITS
        for path, frame in zip(dataset.shards(split), dataset.frames(split), strict=True)
    ]
    ends = dataset.observation_end()
    labelled, date_only = [], True
    for done, (split, path, frame) in enumerate(shards, start=1):
        events = collect(frame.select("subject_id", "time", "code", "visit_id"), str(path))
        date_only &= bool(events.select((pl.col("time") == pl.col("time").dt.truncate("1d")).all()).item())
        shard = Shard.of(events, ends, codes, matched)
        found = task.outcomes(task.examples(shard, rules, flow), shard, flow)
        labelled.append(found.with_columns(split=pl.lit(split)))
        if progress is not None:
            progress(done, len(shards))
    labels = pl.concat(labelled)
    task.refuse_missing(flow)
    categories: list[str] = []
    absent: list[str] = []
    if task.kind == "multilabel":
        labels, categories, absent = _with_train_categories(labels, task, flow)
    labels = labels.sort([*KEY, "categorical_value"] if task.kind == "multilabel" else KEY)
    _refuse_useless(labels, task, flow)
    asked = rules.asked(family_of(task).asked) if isinstance(rules, CohortRules) else family_of(task).asked
    manifest = {
        "task": task.name,
        "kind": task.kind,
        "codes": list(task.codes),
        "matched_codes": sorted(matched),
        "horizon_days": task.horizon_days,
        "prediction_time": asked,
        "window": f"(prediction time, prediction time + {task.horizon_days} days]" if task.horizon_days else None,
        "options": rules.stated() if isinstance(rules, CohortRules) else asdict(rules),
        "rules": _rules(task, asked),
        "notes": _notes(task, dataset),
        "date_only": date_only,
        "flow": flow.as_list(),
        "splits": _splits(labels, task),
        "dataset": {"source": dataset.manifest.get("source"), "fingerprint": dataset.fingerprint},
        "versions": versions(),
        **({"categories": categories, "absent_categories": absent} if task.kind == "multilabel" else {}),
        **({"causes": _causes(labels, task)} if task.kind == "survival" else {}),
        **task.details(),
    }
    empty = (
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in LABEL_SCHEMA.items() if name not in labels.columns
    )
    return labels.with_columns(empty).select(pl.col(name).cast(LABEL_SCHEMA[name]) for name in LABEL_SCHEMA), manifest


def _notes(task: Task, dataset: MedsDataset) -> list[str]:
    """What the reader of the labels should doubt."""
    asked = {version for version in ICD_VERSIONS if any(code.startswith(version[0]) for code in task.codes)}
    held = {version for version in ICD_VERSIONS if dataset.codes()["code"].str.contains(version[1]).any()}
    if len(asked) != 1 or len(held) < 2:
        return []
    (named,), (other,) = ([version[0].rstrip("/") for version in chosen] for chosen in (asked, held - asked))
    return [
        f"The task names {named} codes alone, and the records also hold {other}: a disease recorded under the other "
        "version before counts as new."
    ]


def _causes(labels: pl.DataFrame, task: Task) -> list[str]:
    """Names of the causes, up to the last that occurs: where nobody dies, death is none."""
    last = labels["integer_value"].max()
    return list(task.causes[: int(last)]) if isinstance(last, int) else []


def _rules(task: Task, asked: str) -> list[str]:
    row = family_of(task)
    return [
        f"asked: {asked}",
        f"label: {row.label}",
        f"left out: {row.excluded}",
        f"follow-up: {row.follow_up}",
        f"death: {row.death}",
        *SHARED_RULES,
    ]


def _with_train_categories(labels: pl.DataFrame, task: Task, flow: Flow) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Labels whose categories occur often enough in train, these categories, and those left out.

    What is asked is fitted on train alone. An example that loses its last category keeps a row of `NO_CATEGORY`.
    """
    category = pl.col("categorical_value")
    counts = labels.filter(category != NO_CATEGORY).group_by("categorical_value").agg(
        train=(pl.col("split") == "train").sum()
    )  # fmt: skip
    kept = counts.filter(pl.col("train") >= task.min_examples)["categorical_value"].sort()
    absent = counts.filter(pl.col("train") < task.min_examples)["categorical_value"].sort()
    positive = labels.join(kept.to_frame(), on="categorical_value", how="semi")
    empty = labels.unique(KEY).join(positive, on=KEY, how="anti").with_columns(categorical_value=pl.lit(NO_CATEGORY))
    flow.add("with a category", positive.unique(KEY))
    flow.add("with no category", empty)
    return pl.concat([positive, empty]), kept.to_list(), absent.to_list()


def _splits(labels: pl.DataFrame, task: Task) -> dict[str, dict[str, int]]:
    """Examples, subjects and positives (multilabel: examples with a category; survival: events) of each split."""
    positive = {
        "binary": lambda: pl.col("boolean_value"),
        "multilabel": lambda: pl.col("categorical_value") != NO_CATEGORY,
        "survival": lambda: pl.col("integer_value") == 1,
    }[task.kind]()
    examples = labels.group_by("split", *KEY).agg(positive=positive.any())
    counts = examples.group_by("split").agg(
        rows=pl.len(), subjects=pl.col("subject_id").n_unique(), positives=pl.col("positive").sum()
    )
    return {row.pop("split"): row for row in counts.sort("split").to_dicts()}


def _refuse_useless(labels: pl.DataFrame, task: Task, flow: Flow) -> None:
    if labels.is_empty():
        raise CohortError(
            f"task {task.name} has an empty cohort",
            flow=flow.as_list(),
            remedy="loosen the cohort rules or the horizon",
        )
    if task.kind == "binary" and labels["boolean_value"].n_unique() == 1:
        raise CohortError(
            f"task {task.name} has one class", flow=flow.as_list(), expected="positives and negatives",
            remedy="loosen the cohort rules, change the horizon, or use more subjects",
        )  # fmt: skip
    if task.kind == "multilabel" and (labels["categorical_value"] == NO_CATEGORY).all():
        raise CohortError(
            f"task {task.name} has no category with {task.min_examples} positive training examples",
            flow=flow.as_list(), remedy="loosen the cohort rules, or use more subjects",
        )  # fmt: skip
    if task.kind == "survival" and not (labels["integer_value"] == 1).any():
        raise CohortError(
            f"task {task.name} has no event in follow-up", flow=flow.as_list(),
            remedy="loosen the cohort rules, or use more subjects",
        )  # fmt: skip


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
