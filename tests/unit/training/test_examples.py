"""Which labels make which examples, and which are refused."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.labels import NO_CATEGORY, validate_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import SplitStore, SplitWriter
from ehrsequencing.errors import LabelError
from ehrsequencing.training.examples import labelled_examples, refuse_survival

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


DAYS = [(1, 1, 10.0), (2, 0, 30.5), (3, 2, 40.0), (11, 1, 5.0), (12, 0, 9.0), (21, 1, 7.0), (22, 2, 3.0)]


def times(rows=DAYS):
    frame = pl.DataFrame(rows, schema=["subject_id", "integer_value", "float_value"], orient="row", strict=False)
    return validate_labels(frame.with_columns(prediction_time=pl.lit(DAY).cast(pl.Datetime("us"))), "test")


def test_survival_labels_are_days_and_causes(store):
    for manifest in ({}, {"kind": "survival"}):
        examples, notes = labelled_examples(store, times(), manifest, "x", SPLITS)
        assert examples["train"].target.tolist() == [[10, 1], [30.5, 0], [40, 2]]
        assert examples["train"].target.dtype == np.float64
        assert examples["tuning"].causes == ("event", "competing event") and not examples["tuning"].categories
        assert notes == []
    named = {"causes": ["stroke", "death", "emigration"]}
    examples, notes = labelled_examples(store, times(), named, "x", SPLITS)
    assert examples["held_out"].causes == ("stroke", "death", "emigration")
    assert notes == ["no emigration in train, so this cause cannot be learned"]
    alone, _ = labelled_examples(store, times([(1, 1, 1.0), (2, 0, 2.0)]), {}, "x", ("train",))
    assert alone["train"].causes == ("event",)
    more, _ = labelled_examples(store, times([(1, 1, 1.0), (2, 3, 2.0)]), {}, "x", ("train",))
    assert more["train"].causes == ("event", "competing event", "competing event 3")


def changed(position: int, *row):
    return [*DAYS[:position], row, *DAYS[position + 1 :]]


@pytest.mark.parametrize(
    ("rows", "manifest", "message"),
    [
        (changed(0, 1, 1, 0.0), {}, "1 durations are no lengths of time; got 0 days, of subject 1; expected finite"),
        (changed(1, 2, 0, -4.0), {}, r"got -4 days, of subject 2; .* above 0 \(an event before it is no outcome\)"),
        (changed(1, 2, 0, float("nan")), {}, "1 durations are no lengths of time; got nan days"),
        (changed(1, 2, 0, float("inf")), {}, "1 durations are no lengths of time; got inf days"),
        (changed(1, 2, -1, 3.0), {}, "1 rows have an integer_value that names no cause; got -1; expected 0 censored"),
        (DAYS, {"causes": ["event"]}, "2 rows have an integer_value that names no cause; got 2; .* 1 to 1: event"),
        (DAYS, {"causes": ["event", "event"]}, "the manifest's causes are malformed"),
        (DAYS, {"causes": ["event", "survival"]}, "the manifest's causes are malformed; .* none of them survival"),
        (changed(2, 3, 90, 3.0), {}, "integer_value is no status of survival; got 90 in a row"),
        (DAYS, {"entry_days": "entry"}, "the manifest states entry after the prediction time; got entry_days"),
        ([(s, 0, d) for s, _, d in DAYS], {}, "split train has no pair of subjects to compare; got no event, of 3"),
        ([(s, min(c, 1) if s > 10 else 0, d) for s, c, d in DAYS], {}, "split train .* got no event, of 3"),
        (
            [*DAYS[:3], (11, 1, 5.0), *DAYS[5:]],
            {},
            "split tuning .* nobody was watched for longer .*, of 1; expected a subject with event, and another",
        ),
        (
            changed(4, 12, 1, 5.0),
            {},
            "split tuning .* got nobody was watched for longer than the first event took, of 2",
        ),
        ([*DAYS, (99, 1, 1.0)], {}, "1 labels are of subjects that .* does not hold; got subject 99"),
        (DAYS[:5], {}, "no label belongs to split held_out"),
    ],
)
def test_survival_labels_that_cannot_be_learned_are_refused(store, rows, manifest, message):
    with pytest.raises(LabelError, match=message):
        labelled_examples(store, times(rows), manifest, "x", SPLITS)


def test_a_manifest_that_says_survival_of_other_rows_is_refused(store):
    binary = labels([(1, True), (2, False)], "boolean_value")
    with pytest.raises(
        LabelError, match="not every row has an integer_value and a float_value alone; got values in bool"
    ):
        labelled_examples(store, binary, {"kind": "survival"}, "x", SPLITS)


def test_a_column_of_entry_is_refused_where_there_are_times_and_nowhere_else():
    frame = times().with_columns(Entry=pl.lit(2.0))
    with pytest.raises(LabelError, match="survival labels x say when a subject entered, .*; got column Entry"):
        validate_labels(frame, "x")
    binary = labels([(1, True)], "boolean_value").select("subject_id", "prediction_time", "boolean_value")
    assert validate_labels(binary.with_columns(entry=pl.lit(2.0)), "x").height == 1


def test_what_reads_no_survival_refuses_it_by_name(store):
    examples, _ = labelled_examples(store, times(), {}, "x", SPLITS)
    with pytest.raises(LabelError, match="labels.parquet: this verb reads binary and multi-label tasks; got durations"):
        refuse_survival(examples, "labels.parquet", "this verb")


def test_asked_examples_look_at_no_outcome(store):
    asked = Examples.asked(store.split("train"), labels([row for row in ROWS if row[0] < 10]))
    assert asked.subject_id.tolist() == [1, 2, 3] and asked.target is None
