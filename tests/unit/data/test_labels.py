import datetime as dt

import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import LabelSchema

from ehrsequencing.data.labels import (
    NO_CATEGORY,
    labels_hash,
    read_labels,
    trained_categories,
    validate_labels,
    write_labels,
)
from ehrsequencing.data.schema import LABEL_SCHEMA
from ehrsequencing.errors import CheckpointError, LabelError
from ehrsequencing.io import hash_file

DAY = dt.datetime(2020, 1, 1)


def binary(subjects=(2, 1), times=(DAY, DAY), values=(True, False)):
    return pl.DataFrame(
        {"subject_id": subjects, "prediction_time": times, "boolean_value": values},
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean},
    )


def test_round_trip_follows_the_meds_schema(tmp_path):
    write_labels(tmp_path / "a.parquet", binary(), {"task": "t"})
    LabelSchema.validate(pq.read_table(tmp_path / "a.parquet"))
    labels, manifest = read_labels(tmp_path / "a.parquet")
    assert manifest == {"task": "t"}
    assert dict(labels.schema) == LABEL_SCHEMA
    assert labels["subject_id"].to_list() == [1, 2]
    assert labels["boolean_value"].to_list() == [False, True]
    assert labels["float_value"].null_count() == 2


def test_labels_of_other_tools_open(tmp_path):
    """A folder of shards, nanoseconds, a time zone, an extra column, no manifest."""
    time = pl.Series([dt.datetime(2020, 1, 1, 1, tzinfo=dt.UTC)]).cast(pl.Datetime("ns", "UTC"))
    time = time.dt.convert_time_zone("Europe/Berlin")
    for shard, subject in enumerate((7, 5)):
        frame = pl.DataFrame(
            {"subject_id": [subject], "prediction_time": time, "boolean_value": [True], "trigger": ["x"]}
        )
        frame.with_columns(pl.col("subject_id").cast(pl.Int32)).write_parquet(tmp_path / f"{shard}.parquet")
    labels, manifest = read_labels(tmp_path)
    assert manifest == {}
    assert labels.select("subject_id", "prediction_time").rows() == [
        (5, dt.datetime(2020, 1, 1, 1)),
        (7, dt.datetime(2020, 1, 1, 1)),
    ]


def test_multi_label_has_one_row_per_category(tmp_path):
    frame = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [DAY, DAY], "categorical_value": ["b", "a"]})
    write_labels(tmp_path / "m.parquet", frame, {})
    assert read_labels(tmp_path / "m.parquet")[0]["categorical_value"].to_list() == ["a", "b"]


def test_an_example_without_a_category_has_one_row(tmp_path):
    frame = pl.DataFrame(
        {"subject_id": [1, 1, 2], "prediction_time": DAY, "categorical_value": ["b", "a", NO_CATEGORY]}
    )
    write_labels(tmp_path / "m.parquet", frame, {})
    assert read_labels(tmp_path / "m.parquet")[0]["categorical_value"].to_list() == ["a", "b", "[none]"]
    mixed = frame.with_columns(subject_id=pl.lit(1))
    with pytest.raises(LabelError, match=r"labels a have examples with \[none\] beside a category; got 2 rows"):
        validate_labels(mixed, "a")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (binary((), (), ()), "labels a are empty"),
        (binary((1, 1)), "repeat a subject and prediction time; got 1 repeated rows"),
        (binary((1, None)), "rows without subject_id; got 1 of 2"),
        (binary(times=(DAY, None)), "rows without prediction_time; got 1 of 2"),
        (binary(values=(True, None)), "rows without a value; got 1 of 2"),
        (binary().drop("boolean_value"), "lack a value column; got columns subject_id, prediction_time"),
        (binary().drop("prediction_time"), "lack prediction_time"),
        (
            binary().with_columns(prediction_time=pl.lit("soon")),
            "column prediction_time of labels a has the wrong type",
        ),
        (binary().with_columns(boolean_value=pl.lit("maybe")), r"2 wrong values; got 'maybe' \(String\) in row 1"),
        (binary().with_columns(note=pl.lit("x")), "extra columns; got note"),
        (binary().with_columns(integer_value=pl.Series([1, None])), "missing values; got nulls in integer_value"),
    ],
)
def test_bad_labels_are_refused_and_nothing_is_written(tmp_path, frame, message):
    with pytest.raises(LabelError, match=message):
        write_labels(tmp_path / "a.parquet", frame, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [[True, False], [1, 0], [1.0, 0.0]])
def test_boolean_labels_are_booleans_or_zero_and_one(values):
    frame = binary().with_columns(boolean_value=pl.Series(values))
    assert validate_labels(frame, "a")["boolean_value"].to_list() == [False, True]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("boolean_value", [1.0, float("nan")], r"1 wrong values; got nan \(Float64\) in row 2; expected booleans"),
        ("boolean_value", [1, -1], r"got -1 \(Int64\) in row 2; expected booleans, or the numbers 0 and 1"),
        ("boolean_value", [2, 1], r"got 2 \(Int64\) in row 1"),
        ("boolean_value", [0.5, 1.0], r"got 0.5 \(Float64\) in row 1"),
        ("boolean_value", ["0", "1"], r"got '0' \(String\) in row 1"),
        ("subject_id", [1.5, 2.0], r"got 1.5 \(Float64\) in row 1; expected integers"),
        ("subject_id", ["1", "2"], r"got '1' \(String\) in row 1; expected integers"),
        ("subject_id", [True, False], r"got True \(Boolean\) in row 1; expected integers"),
        ("integer_value", [1.0, 1.5], r"got 1.5 \(Float64\) in row 2; expected whole numbers"),
        ("integer_value", [float("inf"), 1.0], r"got inf \(Float64\) in row 1"),
        ("float_value", ["1.5", "x"], r"got '1.5' \(String\) in row 1; expected numbers"),
    ],
)
def test_no_value_is_changed_by_a_cast(column, values, message):
    with pytest.raises(LabelError, match=f"column {column} of labels a has .*{message}"):
        validate_labels(binary().with_columns(pl.Series(column, values)), "a")


def test_a_folder_names_the_shard_that_is_wrong_and_skips_empty_ones(tmp_path):
    folder = tmp_path / "aces"
    (folder / "train").mkdir(parents=True)
    binary().write_parquet(folder / "train" / "0.parquet")
    binary((), (), ()).write_parquet(folder / "train" / "1.parquet")
    assert len(read_labels(folder)[0]) == 2
    pl.DataFrame(
        {"subject_id": [3.0, 4.5], "prediction_time": [DAY, DAY], "boolean_value": [True, True]}
    ).write_parquet(folder / "train" / "2.parquet")
    with pytest.raises(LabelError, match=r"subject_id of labels aces/train/2\.parquet has 2 wrong values; got 3\.0"):
        read_labels(folder)
    binary().write_parquet(folder / "train" / "2.parquet")
    with pytest.raises(LabelError, match="labels aces repeat a subject and prediction time; got 2 repeated rows"):
        read_labels(folder)


def test_the_hash_covers_a_file_or_all_shards(tmp_path):
    write_labels(tmp_path / "a.parquet", binary(), {})
    assert labels_hash(tmp_path / "a.parquet") == hash_file(tmp_path / "a.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    binary((1,), (DAY,), (True,)).write_parquet(folder / "0.parquet")
    binary((2,), (DAY,), (True,)).write_parquet(folder / "1.parquet")
    before = labels_hash(folder)
    assert before == labels_hash(folder)
    (folder / "1.parquet").rename(folder / "2.parquet")
    renamed = labels_hash(folder)
    binary((2,), (DAY,), (False,)).write_parquet(folder / "2.parquet")
    assert len({before, renamed, labels_hash(folder)}) == 3
    with pytest.raises(LabelError, match="no labels at"):
        labels_hash(tmp_path / "none")


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(LabelError, match=r"no labels at .*a\.parquet"):
        read_labels(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(LabelError, match="not readable parquet"):
        read_labels(tmp_path / "a.parquet")
    write_labels(tmp_path / "b.parquet", binary(), {})
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(LabelError, match=r"b\.json is not readable JSON"):
        read_labels(tmp_path / "b.parquet")


def test_a_damaged_list_of_categories_is_an_error(tmp_path):
    assert trained_categories(tmp_path) == []
    (tmp_path / "categories.json").write_text('{"categories": [1]}')
    with pytest.raises(CheckpointError, match=r"names no categories; got \[1\]; expected a list of names"):
        trained_categories(tmp_path)
