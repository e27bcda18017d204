"""Which labels make which examples, and which are refused."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.labels import NO_CATEGORY, validate_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.store import SplitStore, SplitWriter
from ehrsequencing.errors import LabelError
from ehrsequencing.training.examples import labelled_examples

DAY = 86_400_000_000
ROWS = [(1, "A"), (2, "B"), (2, "A"), (3, NO_CATEGORY), (11, "A"), (12, NO_CATEGORY), (21, "B"), (22, NO_CATEGORY)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three splits whose subjects have one event each: 1 to 3, 11 and 12, 21 and 22."""
    folder = tmp_path_factory.mktemp("store")
    splits = {}
    for name, ids in zip(SPLITS, ([1, 2, 3], [11, 12], [21, 22]), strict=True):
        subjects = np.array(ids, dtype=np.int64)
        one = np.ones(len(subjects), dtype=np.int64)
        columns = {"code": 5 * one, "visit": 0 * one, "time": 0 * one, "value": np.nan * one, "statistic": -one,
                   "kind": 0 * one}  # fmt: skip
        writer = SplitWriter(folder / name)
        writer.write_subjects(subjects, one, birth_time=0 * one, death_time=0 * one)
        writer.write_rows(0, columns)
        splits[name] = SplitStore(folder, name)
    return SimpleNamespace(split=splits.__getitem__, path=folder, manifest={})


def labels(rows=ROWS, column="categorical_value"):
    frame = pl.DataFrame(rows, schema=["subject_id", column], orient="row")
    return validate_labels(frame.with_columns(prediction_time=pl.lit(DAY).cast(pl.Datetime("us"))), "test")


def test_categories_are_those_of_the_manifest(store):
    manifest = {"kind": "multilabel", "categories": ["A", "B", "C"]}
    examples, notes = labelled_examples(store, labels(), manifest, "x", SPLITS)
    assert examples["train"].target.tolist() == [[True, False, False], [True, True, False], [False] * 3]
    assert examples["held_out"].target.tolist() == [[False, True, False], [False] * 3]
    assert notes == ["1 of 3 categories have no positive in train and cannot be learned"]


def test_without_a_manifest_they_are_those_of_train_and_this_is_said(store):
    rows = [row if row != (21, "B") else (21, "Z") for row in ROWS] + [(21, "A")]
    examples, notes = labelled_examples(store, labels(rows), {}, "x", SPLITS)
    assert all(rows.categories == ("A", "B") for rows in examples.values())
    assert examples["held_out"].target.tolist() == [[True, False], [False, False]]
    assert notes == [
        "the labels state no categories: the 2 that rows of train name are predicted",
        "1 categories that only tuning or held-out rows name are left out",
    ]


def test_binary_labels_stay_binary(store):
    rows = [(1, True), (2, False), (11, True), (12, False)]
    examples, notes = labelled_examples(store, labels(rows, "boolean_value"), {}, "x", ("train", "tuning"))
    assert examples["train"].target.tolist() == [1, 0]
    assert examples["train"].categories == () and notes == []


@pytest.mark.parametrize(
    ("rows", "manifest", "message"),
    [
        (ROWS, {"categories": ["A"]}, "categories that the manifest does not state; got 1, for one B"),
        (ROWS, {"categories": ["A", "B", "A"]}, "the manifest's categories are malformed"),
        (ROWS, {"categories": ["A", "B", NO_CATEGORY]}, "the manifest's categories are malformed"),
        (ROWS, {"categories": "AB"}, "the manifest's categories are malformed; got AB"),
        ([(1, NO_CATEGORY), (2, NO_CATEGORY)], {}, "no row of train names a category"),
        ([*ROWS, (99, "A")], {}, "1 labels are of subjects that .* does not hold; got subject 99"),
        ([row for row in ROWS if row != (11, "A")], {}, "split tuning has no category with and without positives"),
        ([(1, "A"), (2, "A"), (3, "A")], {}, "split train has no category with and without positives; got 3 positives"),
        ([row for row in ROWS if row[0] < 20], {}, "no label belongs to split held_out"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(store, rows, manifest, message):
    splits = ("train",) if len(rows) == 3 else SPLITS
    with pytest.raises(LabelError, match=message):
        labelled_examples(store, labels(rows), manifest, "x", splits)


def test_a_manifest_that_says_multilabel_of_binary_rows_is_refused(store):
    binary = labels([(1, True), (2, False)], "boolean_value")
    with pytest.raises(LabelError, match="not every row has a categorical_value alone; got values in boolean_value"):
        labelled_examples(store, binary, {"kind": "multilabel"}, "x", SPLITS)
