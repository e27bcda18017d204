"""The first pass against a plain sort of the same rows, and files of every layout."""

import json
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import day, microseconds

from ehrsequencing.data import rows as rows_module
from ehrsequencing.data import stages
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.rows import Reading, read_rows, value_order
from ehrsequencing.data.schema import EVENT_SCHEMA, KINDS, STATIC_TIME
from ehrsequencing.data.shards import Piece, read_piece
from ehrsequencing.data.visits import VisitRule
from ehrsequencing.errors import DataError

CODES = ("RXNORM//1", "ICD10CM//B", "ICD10CM//A", "HOUSE//x", "MEDS_BIRTH")
KIND = {"RXNORM//1": 1, "ICD10CM//B": 0, "ICD10CM//A": 0, "HOUSE//x": 3}
rows_strategy = st.lists(
    st.tuples(
        st.integers(-1, 4),
        st.one_of(st.none(), st.integers(0, 5)),
        st.sampled_from(CODES[:-1]),
        st.sampled_from([None, float("nan"), -1.5, 0.0, 2.0, 2.5]),
        st.one_of(st.none(), st.integers(0, 2)),
        st.sampled_from([None, "", "g", "mg"]),
    ),
    max_size=40,
)


def write(folder, events, **options):
    names = [name for name in EVENT_SCHEMA if name != "text_value"]
    frame = pl.DataFrame(events, schema={name: EVENT_SCHEMA[name] for name in names}, orient="row")
    pq.write_table(frame.to_arrow(), folder / "0.parquet", **options)
    (folder / "kinds.json").write_text(json.dumps({"HOUSE//x": 3}))
    return folder / "0.parquet"


def plainly(rows):
    """Rows as the store has them, by sorting tuples."""
    visits = {}
    for subject, time, _, _, visit, _ in rows:
        if time is not None:
            key = (subject, visit is None, visit if visit is not None else time // 2)
            visits[key] = min(visits.get(key, time), time)
    ordered = []
    for subject, time, code, value, visit, unit in rows:
        number = -1
        if time is not None:
            mine = sorted((first, *key) for key, first in visits.items() if key[0] == subject)
            own = (subject, visit is None, visit if visit is not None else time // 2)
            number = mine.index((visits[own], *own))
        missing = value is None or value != value
        at = STATIC_TIME if time is None else microseconds(time / 2)
        split = 0 if subject % 2 else 1
        ordered.append(
            (split, subject, at, number, KIND[code], code, (not missing, 0 if missing else value), unit or "")
        )
    return sorted(ordered)


@settings(max_examples=60)
@given(rows_strategy, st.integers(1, 50), st.booleans())
def test_events_are_in_the_order_of_a_plain_sort(rows, part_rows, grouped):
    """Any order of rows, two splits in one file, ties in time, code and value, whatever the size of the parts."""
    subjects = sorted({row[0] for row in rows} | {9})
    events = [(subject, day(time / 2) if time is not None else None, *rest) for subject, time, *rest in rows]
    events += [(9, datetime(1960, 1, 1), "MEDS_BIRTH", None, None, None)]
    splits = np.array([0 if subject % 2 else 1 for subject in subjects], dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_PART_ROWS", part_rows)
        file = write(Path(name), events, **({"row_group_size": 3} if grouped else {}))
        piece = Piece(file, 0, len(events), -1, (np.array(subjects), splits))
        found = read_rows(piece, Reading(Path(name) / "kinds.json", None, VisitRule(), 125.0))
    owner = np.repeat(np.arange(len(found.subject_id)), found.rows)
    got = []
    for row in range(len(found.time)):
        code, unit, value = found.codes[found.pair[row]], found.units[found.pair[row]], float(found.value[row])
        place = (int(found.split[owner[row]]), int(found.subject_id[owner[row]]))
        known = (value == value, 0 if value != value else value)
        got.append((*place, int(found.time[row]), int(found.visit[row]), KIND[code], code, known, unit))
    assert got == plainly(rows)
    assert sorted(zip(found.split.tolist(), found.subject_id.tolist(), strict=True)) == list(
        zip(found.split.tolist(), found.subject_id.tolist(), strict=True)
    )
    assert found.birth_time[found.subject_id == 9].tolist() == [-315_619_200_000_000]


LABS = ("ICD10CM//A", "LOINC//1", "LOINC//2")
EVENTS = [
    (subject, day(number / 3), LABS[number % 3], float(number) if number % 3 else None,
     number // 4 if number % 2 else None, "mg" if number % 3 == 1 else None)
    for subject in range(30) for number in range(12)
]  # fmt: skip


def frame(events=EVENTS):
    names = [name for name in EVENT_SCHEMA if name != "text_value"]
    return pl.DataFrame(events, schema={name: EVENT_SCHEMA[name] for name in names}, orient="row")


LAYOUTS = {
    "arrow": lambda rows, file: pq.write_table(rows.to_arrow(), file),
    "without dictionaries": lambda rows, file: pq.write_table(rows.to_arrow(), file, use_dictionary=False),
    "row groups": lambda rows, file: pq.write_table(rows.to_arrow(), file, row_group_size=7),
    "polars": lambda rows, file: rows.write_parquet(file),
    "categories": lambda rows, file: rows.cast({"code": pl.Categorical, "unit": pl.Categorical}).write_parquet(file),
    "float64": lambda rows, file: rows.cast({"numeric_value": pl.Float64}).write_parquet(file),
    "int32": lambda rows, file: rows.cast({"subject_id": pl.Int32, "visit_id": pl.Int16}).write_parquet(file),
    "milliseconds": lambda rows, file: rows.cast({"time": pl.Datetime("ms")}).write_parquet(file),
    "zone": lambda rows, file: rows.with_columns(pl.col("time").dt.replace_time_zone("UTC")).write_parquet(file),
    "strings": lambda rows, file: rows.with_columns(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%S")).write_parquet(
        file
    ),
    "more columns": lambda rows, file: rows.select(pl.lit(1).alias("ward"), *reversed(rows.columns)).write_parquet(
        file
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_any_writer_reads_the_same(layout, tmp_path):
    LAYOUTS["arrow"](frame(), tmp_path / "plain.parquet")
    LAYOUTS[layout](frame(), tmp_path / "other.parquet")
    for start, stop in ((0, len(EVENTS)), (24, 60)):
        one, other = (read_piece(Piece(tmp_path / f"{name}.parquet", start, stop, 0)) for name in ("plain", "other"))
        for column in ("subject_id", "time", "value", "stated"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column), column)
        np.testing.assert_array_equal(one.visit_id[one.stated], other.visit_id[other.stated])
        for index, names in (("code", "codes"), ("unit", "units")):
            read = [[getattr(some, names)[row] for row in getattr(some, index).tolist()] for some in (one, other)]
            assert read[0] == read[1]


def test_optional_columns_may_be_absent(tmp_path):
    frame().select("subject_id", "time", "code").write_parquet(tmp_path / "bare.parquet")
    found = read_piece(Piece(tmp_path / "bare.parquet", 0, len(EVENTS), 0))
    assert np.isnan(found.value).all() and not found.stated.any()
    assert (found.units, found.unit.max()) == ([""], 0)


def test_a_large_shard_is_read_in_pieces_where_no_subject_is_cut(tmp_path, monkeypatch):
    for name in ("whole", "pieces"):
        (tmp_path / name / "data").mkdir(parents=True)
        pq.write_table(frame().to_arrow(), tmp_path / name / "data" / "0.parquet", row_group_size=50)
    whole = prepare(tmp_path / "whole", tmp_path / "one", min_count=1)
    monkeypatch.setattr(stages, "_PIECE_ROWS", 100)
    seen = []
    cut = prepare(tmp_path / "pieces", tmp_path / "two", min_count=1, progress=lambda *count: seen.append(count))
    assert len(seen) == 4 + 3
    for split in ("train", "tuning", "held_out"):
        for column in ("subject_id", "offsets", "code", "time", "visit", "value", "statistic", "kind"):
            np.testing.assert_array_equal(getattr(whole.split(split), column), getattr(cut.split(split), column))
    assert (whole.fingerprint, whole.manifest["checksums"]) == (cut.fingerprint, cut.manifest["checksums"])
    # In no order, it cannot be cut.
    frame(EVENTS[::-1]).write_parquet(tmp_path / "pieces" / "data" / "0.parquet")
    seen.clear()
    turned = prepare(tmp_path / "pieces", tmp_path / "three", min_count=1, progress=lambda *count: seen.append(count))
    assert len(seen) == 1 + 3
    assert turned.manifest["checksums"] == whole.manifest["checksums"]


def test_an_error_counts_the_whole_piece_whatever_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_PART_ROWS", 1)
    births = [(subject, datetime(2020, 1, 2), "MEDS_BIRTH", None, None, None) for subject in (3, 4)]
    file = write(tmp_path, [*EVENTS, *births])
    how = Reading(tmp_path / "kinds.json", None, VisitRule(), 125.0)
    with pytest.raises(
        DataError, match=r"6 events in .*0\.parquet lie before birth; got 2 subjects, such as subject 3: "
    ):
        read_rows(Piece(file, 0, len(EVENTS) + 2, 0), how)


def test_subjects_spread_over_many_shards_come_together_in_order(write_meds, tmp_path, monkeypatch):
    """Blocks of the store that draw on several pieces, in any interleaving."""
    from ehrsequencing.data import encode

    monkeypatch.setattr(encode, "BLOCK_ROWS", 50)
    parts = [[event for event in EVENTS if event[0] % 7 == part] for part in range(7)]
    one = prepare(write_meds("one", train=[EVENTS]), tmp_path / "a", min_count=1)
    many = prepare(write_meds("many", train=parts), tmp_path / "b", min_count=1, workers=3)
    assert one.manifest["checksums"] == many.manifest["checksums"]


def test_equal_numbers_in_other_units_are_in_the_order_of_their_statistics(write_meds, tmp_path):
    """With a reused fit rows of statistics are in any order, and a unit may have none."""
    home = [(1, day(number), "LOINC//1", float(number), None, unit) for number in range(9) for unit in ("z", "b")]
    first = prepare(write_meds("home", train=[home]), tmp_path / "home_store", min_count=1)
    assert first.values.units == ("b", "z")
    added = [(1, day(number), "LOINC//1", float(number), None, unit) for number in range(9) for unit in ("z", "a")]
    second = prepare(
        write_meds("more", train=[added]), tmp_path / "more_store", vocabulary_from=first.path, extend_vocabulary=True
    )
    assert second.values.units == ("b", "z", "a")
    away = [(2, day(1), "LOINC//1", 3.0, None, unit) for unit in ("c", "a", "z", "b", "a")]
    found = prepare(write_meds("away", train=[away]), tmp_path / "away_store", vocabulary_from=second.path)
    assert found.split("train").statistic.tolist() == [-1, 0, 1, 2, 2]


def test_order_of_values_is_that_of_numbers():
    values = np.float32([np.nan, -np.inf, -3e38, -1, -1e-40, 0, 1e-40, 1, 3e38, np.inf])
    assert (np.diff(value_order(values)) > 0).all()


def test_kinds_of_the_code_table_decide_the_order(tmp_path):
    file = write(tmp_path, [(1, day(1), code, None, None, None) for code in CODES[:-1]])
    (tmp_path / "kinds.json").write_text(json.dumps({"ICD10CM//B": KINDS.index("other")}))
    found = read_rows(Piece(file, 0, 4, 0), Reading(tmp_path / "kinds.json", None, VisitRule(), 125.0))
    assert [found.codes[pair] for pair in found.pair] == ["ICD10CM//A", "RXNORM//1", "HOUSE//x", "ICD10CM//B"]
