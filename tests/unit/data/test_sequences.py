import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import day, microseconds, write_split

from ehrsequencing.data import sequences
from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.rules import Rules
from ehrsequencing.data.schema import LABEL_SCHEMA, STATIC_TIME
from ehrsequencing.data.sequences import Examples, history_bounds, truncated
from ehrsequencing.errors import DataError, LabelError

times = st.lists(st.one_of(st.just(STATIC_TIME), st.integers(-5, 5)), max_size=12).map(sorted)
subjects = st.dictionaries(st.integers(0, 50), times, min_size=1, max_size=5)
untils = st.one_of(st.just(STATIC_TIME), st.integers(-7, 7))


def split_of_times(folder, by_subject):
    return write_split(folder, {subject: [{"time": time} for time in rows] for subject, rows in by_subject.items()})


@given(subjects, st.data())
def test_a_history_is_every_row_up_to_and_including_the_time(by_subject, data):
    asked = data.draw(st.lists(st.tuples(st.integers(0, len(by_subject) - 1), untils), max_size=8))
    index, until = (np.array([pair[part] for pair in asked], dtype=np.int64) for part in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        split = split_of_times(Path(folder), by_subject)
        start, stop = history_bounds(split, index, until)
        for position, limit, first, last in zip(index, until, start, stop, strict=True):
            rows = by_subject[sorted(by_subject)[position]]
            assert first == split.offsets[position]
            assert split.time[first:last].tolist() == [time for time in rows if time <= limit]


@given(subjects, untils, st.integers(1, 8))
def test_truncation_keeps_static_rows_and_then_the_latest(by_subject, until, max_rows):
    with tempfile.TemporaryDirectory() as folder:
        split = split_of_times(Path(folder), by_subject)
        everyone = np.arange(len(split))
        windows = truncated(split, everyone, np.full(len(split), until), max_rows)
        for position, rows in enumerate(by_subject[subject] for subject in sorted(by_subject)):
            visible = [row for row in range(len(rows)) if rows[row] <= until]
            static = [row for row in visible if rows[row] == STATIC_TIME]
            if len(visible) > max_rows:
                static = static[: max_rows // 2]
            dated = [row for row in visible if rows[row] > STATIC_TIME]
            expected = static + dated[len(dated) - min(len(dated), max_rows - len(static)) :]
            offset = split.offsets[position]
            kept = [
                *range(windows.start[position], windows.start[position] + windows.static[position]),
                *range(windows.recent[position], windows.stop[position]),
            ]
            assert [row - offset for row in kept] == expected
            assert windows.lengths[position] == len(expected) <= max_rows


def test_positions_outside_the_split_are_refused(tmp_path):
    split = split_of_times(tmp_path, {1: [0]})
    for position in (-1, 1):
        with pytest.raises(DataError, match="outside split train"):
            history_bounds(split, np.array([position]), np.array([0]))


def test_whole_histories_are_every_subject_until_its_last_event(tmp_path):
    split = split_of_times(tmp_path, {4: [STATIC_TIME, 3, 9], 2: [], 8: [STATIC_TIME]})
    examples = Examples.whole_histories(split)
    assert examples.subject_id.tolist() == [2, 4, 8]
    assert examples.index.tolist() == [0, 1, 2]
    assert examples.until.tolist() == [STATIC_TIME, 9, STATIC_TIME]
    assert examples.target is None and len(examples) == 3


def labels(rows, column="boolean_value"):
    frame = pl.DataFrame(
        rows, schema={name: LABEL_SCHEMA[name] for name in ("subject_id", "prediction_time", column)}, orient="row"
    )
    return frame.with_columns(
        pl.lit(None, dtype=LABEL_SCHEMA[name]).alias(name) for name in LABEL_SCHEMA if name not in frame.columns
    )


@pytest.fixture
def split(tmp_path):
    rows = {4: [STATIC_TIME, microseconds(1)], 6: [microseconds(1), microseconds(2)], 9: []}
    return split_of_times(tmp_path, rows)


def test_labels_of_the_split_become_examples_in_their_order(split):
    frame = labels([(6, day(2), True), (77, day(5), True), (4, day(0.5), False), (6, day(1), False)])
    examples = Examples.from_labels(split, frame)
    assert examples.subject_id.tolist() == [6, 4, 6]
    assert examples.index.tolist() == [1, 0, 1]
    assert examples.until.tolist() == [microseconds(2), microseconds(0.5), microseconds(1)]
    assert examples.target.tolist() == [1, 0, 0]
    assert examples.target.dtype == np.float32


@pytest.mark.parametrize(("column", "value"), [("integer_value", 3), ("float_value", 2.5)])
def test_numbers_are_targets_as_they_are(split, column, value):
    assert Examples.from_labels(split, labels([(6, day(2), value)], column)).target.tolist() == [value]


def test_labels_before_the_first_event_are_counted_and_refused(split):
    frame = labels([(6, day(0.5), True), (6, day(1), True), (9, day(1), True), (4, day(-99), True)])
    with pytest.raises(LabelError, match=r"got 2 of 4, first subject 6 at 2020-01-01 12:00"):
        Examples.from_labels(split, frame)


def test_labels_of_other_subjects_or_without_one_number_are_refused(split):
    with pytest.raises(LabelError, match="no label belongs to split train"):
        Examples.from_labels(split, labels([(77, day(5), True)]))
    with pytest.raises(LabelError, match="values in categorical_value"):
        Examples.from_labels(split, labels([(6, day(2), "ICD10CM//A")], "categorical_value"))
    survival = labels([(6, day(2), 1)], "integer_value").with_columns(float_value=pl.lit(3.0, dtype=pl.Float32))
    with pytest.raises(LabelError, match="values in integer_value, float_value"):
        Examples.from_labels(split, survival)
    with pytest.raises(LabelError, match="one number per row"):
        Examples.from_labels(split, labels([(6, day(2), True), (6, day(3), None)]))


@given(subjects, untils, st.one_of(st.none(), st.integers(1, 8)))
def test_rows_of_a_window_are_those_it_keeps(by_subject, until, max_rows):
    with tempfile.TemporaryDirectory() as folder:
        split = split_of_times(Path(folder), by_subject)
        windows = truncated(split, np.arange(len(split)), np.full(len(split), until), max_rows)
        chosen = np.arange(len(split))[::-1]
        example, place, row = windows.rows(chosen)
        for position, subject in enumerate(chosen):
            kept = [
                *range(windows.start[subject], windows.start[subject] + windows.static[subject]),
                *range(windows.recent[subject], windows.stop[subject]),
            ]
            assert row[example == position].tolist() == kept
            assert place[example == position].tolist() == list(range(len(kept)))
        if max_rows is None:
            start, stop = history_bounds(split, chosen, np.full(len(split), until))
            assert len(row) == (stop - start).sum()


def test_rows_of_a_multi_label_example_become_one_target(split):
    frame = labels(
        [(6, day(2), "B"), (4, day(1), NO_CATEGORY), (6, day(2), "A"), (6, day(1), "C"), (77, day(1), "A")],
        "categorical_value",
    )
    examples = Examples.from_labels(split, frame, ["A", "B", "C"])
    assert examples.subject_id.tolist() == [6, 4, 6]
    assert examples.until.tolist() == [microseconds(2), microseconds(1), microseconds(1)]
    assert examples.target.dtype == np.bool_
    assert examples.target.tolist() == [[True, True, False], [False] * 3, [False, False, True]]
    assert examples.categories == ("A", "B", "C")
    fewer = Examples.from_labels(split, frame, ["B"])
    assert fewer.target.tolist() == [[True], [False], [False]], "an example stays where its categories are not asked"


def test_malformed_multi_label_rows_are_refused(split):
    both = labels([(6, day(2), "A"), (6, day(2), NO_CATEGORY)], "categorical_value")
    with pytest.raises(LabelError, match=r"say \[none\] beside a category; got 1 examples, first subject 6"):
        Examples.from_labels(split, both, ["A"])
    with pytest.raises(LabelError, match="one category per row; got values in boolean_value"):
        Examples.from_labels(split, labels([(6, day(2), True)]), ["A"])
    with pytest.raises(LabelError, match="before the first event of their subject; got 1 of 1"):
        Examples.from_labels(split, labels([(6, day(0), "A"), (6, day(0), "B")], "categorical_value"), ["A", "B"])


keyed_rows = st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 9)), st.integers(0, 4)), max_size=14)


def stored(rows):
    """Rows (time, key of a visit) as prepare writes them: visits numbered by first time, static rows first."""
    first = {}
    for time, key in rows:
        if time is not None:
            first[key] = min(time, first.get(key, time))
    number = {key: index for index, key in enumerate(sorted(first, key=lambda key: (first[key], key)))}
    pairs = sorted((STATIC_TIME, -1) if time is None else (time, number[key]) for time, key in rows)
    return [{"time": time, "visit": visit} for time, visit in pairs]


@settings(max_examples=50)
@given(
    st.dictionaries(st.integers(0, 9), keyed_rows, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 10)), min_size=1, max_size=9),
    st.integers(1, 8),
    st.sampled_from([3, 2_000_000]),
)
def test_long_histories_are_cut_where_no_visit_is_divided(by_subject, asked, max_rows, rows_at_once):
    """Interleaved visits, prediction times inside a visit, several examples of a subject: against a loop."""
    rows_of = [stored(by_subject[subject]) for subject in sorted(by_subject)]
    index = np.array([position % len(rows_of) for position, _ in asked])
    until = np.array([limit for _, limit in asked], dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_ROWS_AT_ONCE", rows_at_once)
        Rules(long_histories="visits").save(Path(folder))
        split = write_split(Path(folder), {subject: stored(rows) for subject, rows in by_subject.items()})
        windows = truncated(split, index, until, max_rows)
        for example, (position, limit) in enumerate(zip(index, until, strict=True)):
            visible = [row for row in rows_of[position] if row["time"] <= limit]
            static = sum(row["time"] == STATIC_TIME for row in visible)
            kept = min(static, max_rows // 2) if len(visible) > max_rows else static
            visits = [row["visit"] for row in visible[static:]]
            earliest = max(0, len(visits) - (max_rows - kept))
            whole = [at for at in range(earliest, len(visits)) if not set(visits[:at]) & set(visits[at:])]
            assert windows.static[example] == kept
            start = windows.recent[example] - split.offsets[position] - static
            assert start == (whole[0] if whole else earliest)
            assert windows.stop[example] == split.offsets[position] + len(visible)
            assert windows.lengths[example] <= max_rows


@settings(max_examples=20)
@given(keyed_rows, st.integers(0, 9), st.integers(1, 8))
def test_the_future_does_not_move_the_cut(rows, until, max_rows):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        found = []
        known = [row for row in stored(rows) if row["time"] <= until]
        for folder, mine in ((one, stored(rows)), (other, known)):
            Rules(long_histories="visits").save(Path(folder))
            windows = truncated(write_split(Path(folder), {1: mine}), np.array([0]), np.array([until]), max_rows)
            found.append((windows.static[0], windows.recent[0], windows.stop[0]))
        assert found[0] == found[1]
