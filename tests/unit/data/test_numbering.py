import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrsequencing.data import numbering
from ehrsequencing.data.numbering import number_visits
from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME

QUARTER = MICROSECONDS_PER_DAY // 4
row = st.tuples(
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(-6, 30)),
    st.one_of(st.none(), st.integers(0, 2), st.sampled_from([-1, 2**62, -(2**62)])),
)


def one_by_one(rows):
    """Visits by a loop over the rows of each subject."""
    numbers, counts = [-1] * len(rows), []
    for subject in sorted({owner for owner, _, _ in rows}):
        visits = {}
        for position, (owner, quarter, visit_id) in enumerate(rows):
            if owner == subject and quarter is not None:
                key = (0, visit_id) if visit_id is not None else (1, quarter // 4)
                first, members = visits.setdefault(key, (quarter, []))
                visits[key] = (min(first, quarter), [*members, position])
        for number, key in enumerate(sorted(visits, key=lambda key: (visits[key][0], key))):
            for position in visits[key][1]:
                numbers[position] = number
        counts.append(len(visits))
    return numbers, counts


def numbered(rows):
    subject = np.array([owner for owner, _, _ in rows])
    return number_visits(
        np.r_[True, subject[1:] != subject[:-1]] if rows else np.zeros(0, dtype=bool),
        np.array([STATIC_TIME if quarter is None else quarter * QUARTER for _, quarter, _ in rows], dtype=np.int64),
        np.array([visit_id or 0 for _, _, visit_id in rows], dtype=np.int64),
        np.array([visit_id is not None for _, _, visit_id in rows], dtype=bool),
    )


def in_order(rows):
    return sorted(rows, key=lambda item: (item[0], item[1] is not None, item[1] or 0))


@given(st.lists(row, max_size=30).map(in_order))
def test_visits_are_those_of_a_loop_over_the_rows(rows):
    visit, counts = numbered(rows)
    assert (visit.tolist(), counts.tolist()) == one_by_one(rows)


@pytest.mark.parametrize("factor", [0, 1])
def test_visits_that_share_a_hash_are_told_apart(monkeypatch, factor):
    monkeypatch.setattr(numbering, "_ODD", (factor, factor, factor))
    random = np.random.default_rng(2)
    rows = in_order(
        [
            (
                int(random.integers(1, 9)),
                int(random.integers(0, 20)),
                None if random.random() < 0.5 else int(random.integers(9)),
            )
            for _ in range(400)
        ]
    )
    visit, counts = numbered(rows)
    assert (visit.tolist(), counts.tolist()) == one_by_one(rows)
