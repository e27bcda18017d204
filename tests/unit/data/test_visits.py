from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_data import day

from ehrsequencing.data import visits
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.visits import RowsWithoutVisitError, VisitRule, number_visits
from ehrsequencing.errors import ConfigError, DataError

quarters = st.integers(0, 16).map(lambda quarter: day(quarter / 4))
rows_strategy = st.lists(
    st.tuples(st.integers(1, 3), st.one_of(st.none(), st.integers(-1, 2)), st.one_of(st.none(), quarters)), max_size=25
)
RULES = ["day", "gap:6h", "gap:0h", "gap:30h", "visit_id+day", "visit_id+gap:6h", "visit_id+gap:13.5h"]


def numbered(rows, rule):
    """Visit of each row, whatever the order of the rows."""
    order = sorted(range(len(rows)), key=lambda index: (rows[index][0], rows[index][2] or datetime.min))
    subject = np.array([rows[index][0] for index in order])
    time = [STATIC_TIME if rows[index][2] is None else microseconds(rows[index][2]) for index in order]
    visit, counts = number_visits(
        np.r_[len(rows) > 0, subject[1:] != subject[:-1]][: len(rows)],
        np.array(time, dtype=np.int64),
        np.array([rows[index][1] or 0 for index in order], dtype=np.int64),
        np.array([rows[index][1] is not None for index in order], dtype=bool),
        rule,
    )
    result = [0] * len(rows)
    for place, index in enumerate(order):
        result[index] = int(visit[place])
    most = [
        1 + max(result[index] for index in order if rows[index][0] == owner) for owner in sorted(set(subject.tolist()))
    ]
    assert counts.tolist() == most
    return result


def microseconds(time):
    return (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def plainly(rows, rule):
    """Visit of each row by a loop over subjects and events."""
    result = [-1] * len(rows)
    for subject in {row[0] for row in rows}:
        dated = [index for index, row in enumerate(rows) if row[0] == subject and row[2] is not None]
        own = [index for index in dated if rule.by_id and rows[index][1] is not None]
        groups = {}
        for index in own:
            groups.setdefault((0, rows[index][1]), []).append(index)
        last = start = None
        for index in sorted(set(dated) - set(own), key=lambda index: rows[index][2]):
            time = rows[index][2]
            if not rule.by_day and (last is None or (time - last).total_seconds() > rule.gap_hours * 3600):
                start = time
            groups.setdefault((1, time.date() if rule.by_day else start), []).append(index)
            last = time
        first = {key: min(rows[index][2] for index in group) for key, group in groups.items()}
        for number, key in enumerate(sorted(groups, key=lambda key: (first[key], key))):
            for index in groups[key]:
                result[index] = number
    return result


@settings(max_examples=40)
@given(rows_strategy, st.sampled_from(RULES), st.randoms())
@example([(1, 5, day(0)), (1, None, day(0.25)), (1, 5, day(3)), (2, 5, day(1))], "visit_id+gap:6h", None)
@example([(1, None, day(0.75)), (1, None, day(1))], "gap:6h", None)
@example([(1, 2, day(0)), (1, 1, day(0)), (1, None, day(0))], "visit_id+day", None)
def test_visits_are_those_of_a_loop_over_events_in_any_order_of_rows(rows, rule, random):
    """Interleaved and overlapping visits, equal and null times, a `visit_id` that two subjects share."""
    parsed = VisitRule.parse(rule)
    found = numbered(rows, parsed)
    assert found == plainly(rows, parsed)
    if random is not None:
        order = random.sample(range(len(rows)), len(rows))
        assert numbered([rows[i] for i in order], parsed) == [found[i] for i in order]


@settings(max_examples=10)
@given(rows_strategy, st.integers(1, 3))
def test_other_subjects_change_nothing(rows, subject):
    mine = [row for row in rows if row[0] == subject]
    for rule in map(VisitRule.parse, RULES):
        everyone = [visit for visit, row in zip(numbered(rows, rule), rows, strict=True) if row[0] == subject]
        assert everyone == numbered(mine, rule)


def test_visits_by_their_identifier_alone_need_one_in_every_dated_event():
    rule = VisitRule.parse("visit_id")
    rows = [(1, 9, day(2)), (1, None, None), (1, 4, day(1)), (2, 9, day(0)), (1, 9, day(0))]
    assert numbered(rows, rule) == [0, -1, 1, 0, 0]
    with pytest.raises(RowsWithoutVisitError, match="2 rows without a visit_id"):
        numbered([*rows, (2, None, day(1)), (1, None, day(2))], rule)


def test_rows_without_a_visit_are_named(write_meds, tmp_path):
    events = [(1, day(1), "A", None, 7), (2, day(1), "A"), (1, day(2), "A"), (1, None, "A")]
    message = r"needs a visit_id.*got 2 events without one, first of subject 1 at 2020-01-03 00:00:00.*visit_id\+day"
    with pytest.raises(DataError, match=message):
        prepare(write_meds(train=[events]), tmp_path / "store", min_count=1, visits="visit_id")


@pytest.mark.parametrize("factor", [0, 1])
def test_visits_that_share_a_hash_are_told_apart(monkeypatch, factor):
    monkeypatch.setattr(visits, "_ODD", (factor, factor, factor))
    random = np.random.default_rng(2)
    rows = [
        (int(subject), None if visit > 4 else int(visit), day(int(quarter) / 4))
        for subject, visit, quarter in random.integers(0, 9, (300, 3))
    ]
    assert numbered(rows, VisitRule()) == plainly(rows, VisitRule())


def test_a_gap_counts_from_the_event_before_and_must_be_exceeded():
    rows = [(1, None, day(hours / 24)) for hours in (0, 20, 40, 64, 88.01)]
    assert numbered(rows, VisitRule.parse("gap:24h")) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("text", ["visit_id", "day", "gap:24h", "gap:0.5h", "visit_id+day", "visit_id+gap:24h"])
def test_rules_are_written_as_they_are_read(text):
    assert str(VisitRule.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "+", "visit_id+", "+day", "day+visit_id", "gap", "gap:24", "gap:h", "gap:-1h", "gap:nanh", "gap:1e3h",
     "gap:1000001h", "visit_idday", "visit_id+visit_id", "week", "visit_id+gap:24h\n"],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match=r"the rule of visits; got .*expected visit_id, day, gap:24h"):
        VisitRule.parse(text)
