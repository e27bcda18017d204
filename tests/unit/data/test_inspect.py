"""Counts of an inspection against counts by hand, on datasets and stores."""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspected import TODAY, day, event, healthy, write

from ehrsequencing.data.inspect import inspect, spread
from ehrsequencing.data.inspect_tallies import MAX_DISTINCT, Totals, tally
from ehrsequencing.data.inspect_values import GRID, value_table
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import EVENT_SCHEMA
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import DataError, SplitError, StoreError
from ehrsequencing.tracking.inspection import inspection_page


def test_a_healthy_dataset_is_counted_and_nothing_is_found(tmp_path):
    found = inspect(write(tmp_path / "meds", healthy()), today=TODAY)
    assert found.findings == ()
    assert found.errors == 0
    document = found.document
    assert document["counts"] == {
        "subjects": 120, "events": 120 * 13, "visits": 720, "codes": 4, "static_rows": 120,
        "events_with_number": 720, "births": 120, "deaths": 0,
    }  # fmt: skip
    assert document["splits"]["tuning"] == {"subjects": 30, "events": 390, "visits": 180, "static": 30, "deaths": 0}
    assert document["sexes"] == {"F": 60, "M": 60}
    assert document["span"]["first"] == "2010-01-01"
    assert document["span"]["last"] == str(day(450 + 49).date())
    assert [row["kind"] for row in document["kinds"]] == ["diagnosis", "lab", "demographic"]
    system = document["systems"][0]
    assert (system["system"], system["codes"], system["events"]) == ("ICD10CM", 1, 720)
    assert system["most_frequent"][0] == {
        "code": "ICD10CM//I10", "description": None, "events": 720, "subjects": 120
    }  # fmt: skip
    assert sum(share["share"] for share in document["systems"]) == pytest.approx(1)
    assert document["distributions"]["events_per_visit"]["bins"] == [[2, 3, 720]]
    assert document["distributions"]["visits_per_subject"]["p50"] == 6
    assert sum(count for _, count in document["months"]) == 1440 == sum(count for _, count in document["ages"])
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_shards_mixed_splits_and_single_files_count_alike(tmp_path):
    rows = [row for shard in healthy().values() for row in shard]
    whole = write(tmp_path / "whole", {"all": rows})
    half = len(rows) // 2
    parts = write(tmp_path / "parts", {"a": rows[:half], "b": rows[half:]})
    one, two = (inspect(path, today=TODAY).document for path in (whole, parts))
    for document in (one, two):
        del document["path"], document["shards"]
    assert one == two
    assert inspect(parts, today=TODAY).document["counts"]["subjects"] == 120


def test_ages_are_whole_years_at_events(tmp_path):
    rows = [
        event(1, datetime(1960, 1, 1), "MEDS_BIRTH"),
        event(1, datetime(1960, 1, 1), "A"),
        event(1, datetime(2000, 7, 1), "A"),
        event(2, datetime(2000, 7, 1), "A"),
    ]
    document = inspect(write(tmp_path / "meds", {"train/0": rows}), today=TODAY).document
    assert document["ages"] == [[0, 1], [40, 1]]
    assert document["distributions"]["age_years"]["n"] == 2


def test_a_store_counts_as_its_dataset_does(tmp_path):
    shards = healthy()
    shards["train/0"] += [
        event(1, day(600), "RARE//1", numeric_value=2.0),
        event(500, day(3), "A"),
        event(501, None, "MEDS_DEATH"),
    ]
    shards["train/0"].sort(key=lambda row: row["subject_id"])
    meds = write(tmp_path / "meds", shards)
    prepare(meds, tmp_path / "store")
    of_meds, of_store = inspect(meds, today=TODAY), inspect(tmp_path / "store", today=TODAY)
    one, two = of_meds.document, of_store.document
    assert two["artefact"] == "token store"
    assert {**one["counts"], "codes": 5} == two["counts"], "two rare codes are one [UNK]"
    for key in ("splits", "span", "sexes", "distributions", "months", "ages"):
        assert one[key] == two[key], key
    assert [row for row in one["values"] if row["code"] != "RARE//1"] == two["values"]
    tokens = two["tokens"]
    assert tokens["vocabulary"] == len(TokenStore.open(tmp_path / "store").vocabulary)
    assert {row["kind"]: row["unknown"] for row in tokens["unknown"]} == {
        "diagnosis": 0, "lab": 0, "demographic": 0, "other": 2
    }  # fmt: skip
    assert (tokens["longer"], tokens["subjects_with_tokens"]) == (0, 121)
    unknown = next(finding for finding in of_store.findings if finding.check == "unknown")
    assert (unknown.count, unknown.of, unknown.details) == (2, 2, ("other: 100.0 %",))
    assert not [finding for finding in of_store.findings if finding.check == "duplicates"]


@pytest.mark.parametrize(("events", "found"), [(512, False), (513, True)])
def test_histories_longer_than_a_model_sees(tmp_path, events, found):
    rows = [event(1, day(number), "A") for number in range(events)]
    prepare(write(tmp_path / "meds", {"train/0": rows}), tmp_path / "store")
    named = [finding for finding in inspect(tmp_path / "store", today=TODAY).findings if finding.check == "length"]
    assert bool(named) == found
    if named:
        assert named[0].amount() == "1 of 1 subjects (100.0 %)"


def test_pieces_of_a_store_are_whole_subjects(tmp_path, monkeypatch):
    prepare(write(tmp_path / "meds", healthy()), tmp_path / "store")
    whole = inspect(tmp_path / "store", today=TODAY).document
    monkeypatch.setattr("ehrsequencing.data.inspect_store.ROWS_AT_ONCE", 400)
    seen = []
    document = inspect(
        tmp_path / "store", today=TODAY, progress=lambda done, total: seen.append((done, total))
    ).document
    assert document == whole
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80)


@settings(max_examples=25)
@given(numbers)
def test_percentiles_are_those_of_the_values(values):
    counts = Counter(value + 0.0 for value in values)
    rows = [("A", "", value, count, 1, 0) for value, count in sorted(counts.items())]
    columns = {"code": pl.String, "unit": pl.String, "value": pl.Float32, "count": pl.Int64, "subject": pl.Int64}
    table = value_table(pl.DataFrame(rows, schema={**columns, "cut": pl.Int32}, orient="row"))
    assert table["n"].item() == len(values)
    expected = np.percentile(np.array(values, dtype=np.float32), GRID, method="inverted_cdf")
    np.testing.assert_array_equal([table[f"p{percent}"].item() for percent in GRID], expected)


@settings(max_examples=25)
@given(st.lists(st.integers(-5, 3000), min_size=1, max_size=60))
def test_histograms_hold_every_value_once(values):
    found = spread(pl.DataFrame(list(Counter(values).items()), schema=["value", "count"], orient="row"))
    for low, high, count in found["bins"]:
        assert count == sum(low <= value <= high for value in values)
    assert sum(count for *_, count in found["bins"]) == len(values) == found["n"]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["p50"] == np.percentile(values, 50, method="inverted_cdf")


def test_many_distinct_values_are_estimated_closely_in_little_memory():
    totals = Totals()
    drawn = np.random.default_rng(0).lognormal(3, 1, (4, 30_000)).astype(np.float32)
    for shard, values in enumerate(drawn):
        frame = pl.DataFrame({"subject_id": [shard] * len(values), "numeric_value": values}).with_columns(
            time=pl.lit(day(0)), code=pl.lit("A"), split=pl.lit("train"), visit_id=None, unit=None, text_value=None
        )
        totals.add(tally(frame.select(*EVENT_SCHEMA, "split"), f"shard {shard}", TODAY))
    frames = totals.frames()
    assert len(frames["values"]) <= MAX_DISTINCT
    row = value_table(frames["values"]).row(0, named=True)
    assert row["estimated"]
    assert row["n"] == drawn.size
    for percent in (5, 50, 95):
        assert row[f"p{percent}"] == pytest.approx(np.percentile(drawn, percent), rel=0.016)


def test_few_distinct_values_are_exact_whatever_their_number(tmp_path):
    rows = [event(1, day(number / 10), "A", numeric_value=0.1 * (number % 1000)) for number in range(8000)]
    value = inspect(write(tmp_path / "meds", {"train/0": rows}), today=TODAY).document["values"][0]
    assert not value["estimated"]
    assert dict(value["percentiles"])[100] == pytest.approx(99.9)


def test_what_is_listed_is_limited_and_what_is_counted_is_not(tmp_path):
    rows = [event(1, day(number), f"S{number % 7}//{number}", numeric_value=1.0) for number in range(40)]
    document = inspect(write(tmp_path / "meds", {"train/0": rows}), today=TODAY, most=3).document
    assert len(document["codes"]) == len(document["values"]) == 3
    assert document["counts"]["codes"] == document["pairs"] == 40
    assert sum(row["codes"] for row in document["systems"]) == 40


def test_dates_at_the_ends_of_time(tmp_path):
    rows = [event(1, day(0), "A"), event(1, day(1), "A"), event(2, day(2), "A")]
    meds = write(tmp_path / "meds", {"train/0": rows})
    file = meds / "data/train/0.parquet"
    extreme = pl.Series([-(10**18), 10**18, 0]).cast(pl.Datetime("us"))
    pl.read_parquet(file).with_columns(time=extreme).write_parquet(file)
    found = inspect(meds, today=TODAY)
    assert json.dumps(found.document)
    assert {finding.check for finding in found.findings} >= {"dates", "birth"}


def test_what_is_no_dataset_or_store(tmp_path):
    with pytest.raises(DataError, match="nowhere is neither a MEDS dataset nor a token store; got no such folder"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "file.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="got a file; expected a folder"):
        inspect(tmp_path / "file.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is not a MEDS dataset; got no data/\*\*/\*.parquet"):
        inspect(tmp_path / "empty")
    with pytest.raises(DataError, match="has no events; got 1 empty shards"):
        inspect(write(tmp_path / "none", {"train/0": []}))
    both = write(tmp_path / "both", {"train/0": [event(1, day(0), "A")], "tuning/0": [event(1, day(0), "A")]})
    with pytest.raises(SplitError, match="1 subjects are in two splits"):
        inspect(both)


def test_damaged_shards_and_stores(tmp_path):
    meds = write(tmp_path / "meds", healthy())
    prepare(meds, tmp_path / "store")
    shard = meds / "data/train/0.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-20])
    with pytest.raises(DataError, match="0.parquet is not readable parquet"):
        inspect(meds)
    shard.write_bytes(content[:8] + b"\xff" * 400 + content[408:])
    with pytest.raises(DataError, match="0.parquet is not readable parquet"):
        inspect(meds)
    column = tmp_path / "store/train/time.npy"
    column.write_bytes(column.read_bytes()[:-8])
    with pytest.raises(StoreError, match="time.npy is truncated"):
        inspect(tmp_path / "store")


texts = st.sampled_from(
    ["", "//", "//x", "A//", "A//B//C", "GENDER//", "SEX//x", "MEDS_BIRTH", "MEDS_DEATH", "\u00b5//\n", "[UNK]"]
)
times = st.one_of(
    st.none(), st.datetimes(datetime(1700, 1, 1), datetime(2500, 1, 1)), st.sampled_from([datetime.min, datetime.max])
)
rows = st.tuples(
    st.integers(-3, 3), times, texts,
    st.one_of(st.none(), st.floats(width=32)), st.one_of(st.none(), st.integers(-2, 2)),
    st.sampled_from([None, "", "mg/dL", "umol/L", "%"]), st.sampled_from([None, "", "7", "1e999", "x", "-,5", "\x00"]),
)  # fmt: skip


@settings(max_examples=25)
@given(st.lists(rows, min_size=1, max_size=40))
def test_whatever_a_dataset_holds_it_is_counted(drawn):
    """Hostile rows: the counts are those by hand, every finding can be written down, and so can the page."""
    with TemporaryDirectory() as folder:
        meds = write(Path(folder), {"all": [dict(zip(EVENT_SCHEMA, row, strict=True)) for row in drawn]})
        found = inspect(meds, today=TODAY)
    tokens = [row for row in drawn if row[2] not in ("MEDS_BIRTH", "MEDS_DEATH")]
    counts = found.document["counts"]
    assert counts["subjects"] == len({row[0] for row in drawn})
    assert counts["events"] == len(tokens)
    assert counts["codes"] == len({row[2] for row in tokens})
    assert counts["static_rows"] == sum(row[1] is None for row in tokens)
    assert counts["events_with_number"] == sum(row[3] is not None and row[3] == row[3] for row in tokens)
    assert counts["visits"] == len(
        {(row[0], row[4], row[1].date() if row[4] is None else None) for row in tokens if row[1]}
    )
    assert sum(count for _, count in found.document["months"]) == sum(row[1] is not None for row in tokens)
    json.dumps(found.document, allow_nan=False)
    assert inspection_page(found.document).endswith("</html>\n")
    for finding in found.findings:
        assert finding.count > 0
        assert finding.remedy
        assert set(finding.subjects) <= {row[0] for row in drawn}
