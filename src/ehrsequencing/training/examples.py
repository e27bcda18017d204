"""From labels to examples: which task they are of, and whether they belong to the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples, filled_columns
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import LabelError

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
    """Labelled histories per split, of a binary or a multi-label task, and what a reader should know of them.

    Labels are multi-label where their manifest says so, or where they fill `categorical_value` alone. The categories
    are the manifest's; without one, those that the rows of train name.

    Raises:
        LabelError: see `binary_examples` and `multilabel_examples`.
    """
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
