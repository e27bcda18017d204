import datetime as dt

import polars as pl
import pytest

from ehrsequencing.data.events import normalise_events
from ehrsequencing.data.schema import EVENT_SCHEMA
from ehrsequencing.errors import DataError

NOON_UTC = dt.datetime(2020, 6, 1, 12)


@pytest.mark.parametrize(
    "time",
    [
        pl.Series([NOON_UTC]).cast(pl.Datetime("ns")),
        pl.Series([NOON_UTC]).cast(pl.Datetime("ms")),
        pl.Series([NOON_UTC]).dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York"),
        pl.Series(["2020-06-01T12:00:00"]),
        pl.Series(["2020-06-01 12:00:00"]),
    ],
    ids=["ns", "ms", "zone", "iso", "blank"],
)
def test_times_become_naive_utc_microseconds(time):
    frame = pl.LazyFrame({"subject_id": [1], "time": time, "code": ["A"]})
    events = normalise_events(frame, "x").collect()
    assert dict(events.schema) == EVENT_SCHEMA
    assert events["time"].to_list() == [NOON_UTC]


def test_dates_and_absent_times():
    frame = pl.LazyFrame({"subject_id": [1, 1], "time": [dt.date(2020, 6, 1), None], "code": ["A", "B"]})
    assert normalise_events(frame, "x").collect()["time"].to_list() == [dt.datetime(2020, 6, 1), None]
    frame = pl.LazyFrame({"subject_id": [1], "time": [None], "code": ["A"]})
    assert normalise_events(frame, "x").collect()["time"].to_list() == [None]


def test_categorical_codes():
    frame = pl.LazyFrame({"subject_id": [1], "time": [NOON_UTC], "code": pl.Series(["A"], dtype=pl.Categorical)})
    assert normalise_events(frame, "x").collect()["code"].to_list() == ["A"]


def test_first_bad_time_is_named():
    frame = pl.LazyFrame({"subject_id": [1, 2, 3], "time": ["2020-06-01", "tomorrow", "later"], "code": ["A"] * 3})
    with pytest.raises(
        DataError, match=r"column time of shard\.parquet .* got 2, first 'tomorrow'; expected timestamps"
    ):
        normalise_events(frame, "shard.parquet")


def test_a_number_too_large_for_float32_is_named_and_an_infinite_one_left_to_others():
    frame = pl.DataFrame(
        {"subject_id": [1, 1, 2], "time": [None] * 3, "code": ["LOINC//1", "LOINC//2", "LOINC//3"],
         "numeric_value": [3.4e38, -1e300, float("inf")]}
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"a.parquet has values too large for float32; got 1, the first -1e\+300 of code LOINC//2"
    ):
        normalise_events(frame.lazy(), "a.parquet")
    rest = normalise_events(frame.filter(pl.col("code") != "LOINC//2").lazy(), "a.parquet").collect()
    assert rest["numeric_value"].is_infinite().to_list() == [False, True]
