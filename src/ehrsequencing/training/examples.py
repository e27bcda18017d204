"""From labels to examples: which task they are of, and whether they belong to the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.labels import ENTRY_COLUMNS, NO_CATEGORY
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples, filled_columns
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import LabelError

MOST_UNNAMED_CAUSES = 8
"""A larger status without names is taken for something else."""
_ELSEWHERE = "build the labels from the dataset the store was prepared from"


def check_origin(store: TokenStore, manifest: dict[str, Any], source: str) -> None:
    """Labels and store must come from one dataset, where both say from which.

    Raises:
        LabelError: they do not.
    """
    labelled = manifest.get("dataset", {}).get("fingerprint")
    prepared = store.manifest.get("dataset_fingerprint")
    if labelled and prepared and labelled != prepared:
        raise LabelError(
            f"{source} was built from another dataset than {store.path}",
            got=labelled[:16],
            expected=prepared[:16],
            remedy=_ELSEWHERE,
        )


def labelled_examples(
    store: TokenStore, labels: pl.DataFrame, manifest: dict[str, Any], source: str, splits: tuple[str, ...]
) -> tuple[dict[str, Examples], list[str]]:
    """Labelled histories per split, of a binary, multi-label or survival task, and what a reader should know of them.

    Labels are multi-label where their manifest says so, or where they fill `categorical_value` alone. The categories
    are the manifest's; without one, those that the rows of train name. They are of survival where their manifest says
    so, or where they fill `integer_value` and `float_value` alone.

    Raises:
        LabelError: see `binary_examples`, `multilabel_examples` and `survival_examples`.
    """
    if manifest.get("kind") == "survival" or filled_columns(labels) == ["integer_value", "float_value"]:
        return survival_examples(store, labels, manifest, source, splits)
    if manifest.get("kind") == "multilabel" or filled_columns(labels) == ["categorical_value"]:
        return multilabel_examples(store, labels, manifest, source, splits)
    return binary_examples(store, labels, source, splits), []


def binary_examples(
    store: TokenStore, labels: pl.DataFrame, source: str, splits: tuple[str, ...]
) -> dict[str, Examples]:
    """Labelled histories per split.

    Raises:
        LabelError: no boolean value, a subject that the store does not hold, or a split without a labelled history or
            with one class.
    """
    if labels["boolean_value"].null_count() == len(labels):
        raise LabelError(
            f"{source}: boolean_value is empty", expected="the labels of a binary task, or categorical_value alone"
        )
    _check_subjects(store, labels, source)
    examples = _by_split(store, labels, splits)
    for split, rows in examples.items():
        positives = int(np.asarray(rows.target).sum())
        if positives in (0, len(rows.index)):
            raise LabelError(
                f"{source}: split {split} has one class only",
                got=f"{positives} positives of {len(rows.index)}",
                expected="both classes",
                remedy="choose a longer window, another task or more subjects",
            )
    return examples


def multilabel_examples(
    store: TokenStore, labels: pl.DataFrame, manifest: dict[str, Any], source: str, splits: tuple[str, ...]
) -> tuple[dict[str, Examples], list[str]]:
    """Labelled histories per split with a bool [n, categories] target, and notes on the categories.

    Raises:
        LabelError: a row without a category, categories that the manifest lacks or states twice, a subject that the
            store does not hold, a split without a labelled history or
            without any category that has both classes.
    """
    if filled_columns(labels) != ["categorical_value"] or labels["categorical_value"].null_count():
        raise LabelError(
            f"{source}: not every row has a categorical_value alone",
            got=f"values in {', '.join(filled_columns(labels))}",
            expected=f"one row per positive category, and {NO_CATEGORY} where there is none",
        )
    _check_subjects(store, labels, source)
    named = set(labels["categorical_value"].unique()) - {NO_CATEGORY}
    stated, notes = manifest.get("categories"), []
    if stated is None:
        in_train = pl.Series(store.split("train").index_of(labels["subject_id"].to_numpy()) >= 0)
        categories = sorted(set(labels.filter(in_train)["categorical_value"].unique()) - {NO_CATEGORY})
        notes.append(f"the labels state no categories: the {len(categories)} that rows of train name are predicted")
        if dropped := len(named - set(categories)):
            notes.append(f"{dropped} categories that only tuning or held-out rows name are left out")
    else:
        categories = _stated_categories(stated, named, source)
    if not categories:
        raise LabelError(f"{source}: no row of train names a category", expected="at least one positive")
    examples = _by_split(store, labels, splits, categories)
    for split, rows in examples.items():
        share = np.asarray(rows.target).mean(0)
        if not ((share > 0) & (share < 1)).any():
            raise LabelError(
                f"{source}: split {split} has no category with and without positives",
                got=f"{int(np.asarray(rows.target).sum())} positives in {len(rows)} examples",
                expected="both classes in at least one category",
                remedy="choose a longer window, another task or more subjects",
            )
    if "train" in examples and (absent := int((~np.asarray(examples["train"].target).any(0)).sum())):
        notes.append(f"{absent} of {len(categories)} categories have no positive in train and cannot be learned")
    return examples, notes


def _stated_categories(stated: Any, named: set[str], source: str) -> list[str]:
    whole = isinstance(stated, list) and bool(stated) and all(isinstance(name, str) for name in stated)
    if not whole or len(set(stated)) < len(stated) or NO_CATEGORY in stated:
        raise LabelError(
            f"{source}: the manifest's categories are malformed",
            got=str(stated)[:80],
            expected=f"a list of distinct names without {NO_CATEGORY}",
        )
    if unknown := sorted(named - set(stated)):
        raise LabelError(
            f"{source}: rows name categories that the manifest does not state",
            got=f"{len(unknown)}, for one {unknown[0]}",
            expected=f"one of its {len(stated)} categories",
            remedy="build the labels again",
        )
    return stated


def survival_examples(
    store: TokenStore, labels: pl.DataFrame, manifest: dict[str, Any], source: str, splits: tuple[str, ...]
) -> tuple[dict[str, Examples], list[str]]:
    """Labelled histories per split with days and causes, and notes on them.

    Causes are named by the manifest's `causes`, cause k being `integer_value` k; by default they are "event",
    "competing event" and "competing event 3", ...

    Raises:
        LabelError: a row without days or cause, days that are not finite or not above 0, a cause that is none, entry
            after the prediction time, a subject that the store does not hold, or a split without a labelled history,
            without an event of the first cause, or in which nobody was watched for longer than it took.
    """
    if late := [name for name in ENTRY_COLUMNS if manifest.get(name)]:
        raise LabelError(
            f"{source}: the manifest states entry after the prediction time", got=late[0],
            expected="subjects watched from the prediction time on (no left truncation)",
            remedy="make the time of entry the prediction time",
        )  # fmt: skip
    lacking = [column for column in ("integer_value", "float_value") if labels[column].null_count()]
    if lacking or filled_columns(labels) != ["integer_value", "float_value"]:
        raise LabelError(
            f"{source}: not every row has an integer_value and a float_value alone",
            got=f"values in {', '.join(filled_columns(labels))}",
            expected="integer_value: 0 censored, 1 event, 2 and up competing; float_value: days",
        )
    _check_subjects(store, labels, source)
    days, cause = labels["float_value"].cast(pl.Float64).to_numpy(), labels["integer_value"].to_numpy()
    if len(wrong := np.flatnonzero(~(np.isfinite(days) & (days > 0)))):
        raise LabelError(
            f"{source}: {len(wrong)} durations are no lengths of time",
            got=f"{days[wrong[0]]:g} days, of subject {labels['subject_id'][int(wrong[0])]}",
            expected="finite days since the prediction time, above 0 (an event before it is no outcome)",
            remedy="correct or leave out those rows",
        )
    causes = _stated_causes(manifest.get("causes"), int(cause.max()), source)
    if len(wrong := np.flatnonzero((cause < 0) | (cause > len(causes)))):
        raise LabelError(
            f"{source}: {len(wrong)} rows have an integer_value that names no cause", got=int(cause[wrong[0]]),
            expected=f"0 censored, or 1 to {len(causes)}: {', '.join(causes)}",
        )  # fmt: skip
    examples = {name: Examples.from_labels(store.split(name), labels, causes=causes) for name in splits}
    notes = []
    for split, rows in examples.items():
        lasted, ended = np.asarray(rows.target).T
        events = lasted[ended == 1]
        if not len(events) or not ((lasted > events.min()) | (ended > 1)).any():
            what = "nobody was watched for longer than the first event took" if len(events) else f"no {causes[0]}"
            raise LabelError(
                f"{source}: split {split} has no pair of subjects to compare", got=f"{what}, of {len(rows)}",
                expected=f"a subject with {causes[0]}, and another who was watched beyond it",
                remedy="choose a longer follow-up, another task or more subjects",
            )  # fmt: skip
        if split == "train":
            absent = [name for cause_id, name in enumerate(causes, 1) if not (ended == cause_id).any()]
            notes += [f"no {name} in train, so this cause cannot be learned" for name in absent]
    return examples, notes


def _stated_causes(stated: Any, largest: int, source: str) -> tuple[str, ...]:
    if stated is None:
        if largest > MOST_UNNAMED_CAUSES:
            raise LabelError(
                f"{source}: integer_value is no status of survival", got=f"{largest} in a row",
                expected=f"0 censored, 1 event, 2 to {MOST_UNNAMED_CAUSES} competing",
                remedy="name all causes in `causes` of the manifest, if there are so many",
            )  # fmt: skip
        return ("event", "competing event", *(f"competing event {k}" for k in range(3, largest + 1)))[: max(largest, 1)]
    whole = isinstance(stated, list) and bool(stated) and all(isinstance(name, str) and name for name in stated)
    if not whole or len(set(stated)) < len(stated) or "survival" in stated:
        raise LabelError(
            f"{source}: the manifest's causes are malformed", got=str(stated)[:80],
            expected="a list of distinct names of events, none of them survival",
        )  # fmt: skip
    return tuple(stated)


def refuse_survival(examples: dict[str, Examples], source: str | Path, what: str) -> None:
    """LabelError where `what` is asked of labels of survival."""
    if any(rows.causes for rows in examples.values()):
        raise LabelError(
            f"{source}: {what} reads binary and multi-label tasks", got="durations and causes of a survival task",
            remedy="`ehrseq predict RUN STORE LABELS --at DAYS` writes a survival run's curves",
        )  # fmt: skip


def _check_subjects(store: TokenStore, labels: pl.DataFrame, source: str) -> None:
    ids = labels["subject_id"].to_numpy()
    known = np.zeros(len(ids), dtype=bool)
    for split in SPLITS:
        known |= store.split(split).index_of(ids) >= 0
    if not known.all():
        raise LabelError(
            f"{source}: {int((~known).sum())} labels are of subjects that {store.path} does not hold",
            got=f"subject {int(ids[~known][0])} for one",
            remedy=_ELSEWHERE,
        )


def _by_split(
    store: TokenStore, labels: pl.DataFrame, splits: tuple[str, ...], categories: Sequence[str] = ()
) -> dict[str, Examples]:
    return {name: Examples.from_labels(store.split(name), labels, categories) for name in splits}
