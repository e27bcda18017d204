import datetime as dt

import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import LabelSchema

from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.schema import LABEL_SCHEMA
from ehrsequencing.errors import LabelError

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
        (binary().with_columns(boolean_value=pl.lit("maybe")), "has the wrong type"),
        (binary().with_columns(note=pl.lit("x")), "extra columns; got note"),
        (binary().with_columns(integer_value=pl.Series([1, None])), "missing values; got nulls in integer_value"),
    ],
)
def test_bad_labels_are_refused_and_nothing_is_written(tmp_path, frame, message):
    with pytest.raises(LabelError, match=message):
        write_labels(tmp_path / "a.parquet", frame, {})
    assert list(tmp_path.iterdir()) == []


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
