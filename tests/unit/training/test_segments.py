"""Parts of histories: what belongs to them, and that nothing outside shows."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.small_data import write_split

from ehrsequencing.data.batching import UNKNOWN_AGE, Batch, BatchSource
from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.values import GRID_POINTS, ValueStatistics
from ehrsequencing.training.segments import segment

DAY = MICROSECONDS_PER_DAY
VALUES = ValueStatistics(["A"], [""], [101], [50.0], [29.0], [list(range(GRID_POINTS))], [[50.0]])


def rows(visits, static=1):
    """A subject's rows: static ones, then visits of (day, number of codes)."""
    found = [{"code": 5, "time": STATIC_TIME, "visit": -1, "value": np.nan, "kind": 7} for _ in range(static)]
    for number, (day, codes) in enumerate(visits):
        found += [
            {"code": 6 + number + k, "time": day * DAY, "visit": number, "value": 10.0 * k, "kind": number % 7}
            for k in range(codes)
        ]
    return [{"statistic": 0 if not np.isnan(row["value"]) else -1, **row} for row in found]


def batch_of(histories, until=None) -> Batch:
    with tempfile.TemporaryDirectory() as folder:
        split = write_split(Path(folder), dict(enumerate(map(rows, histories))), births={0: -9000 * DAY})
        examples = Examples.whole_histories(split)
        if until is not None:
            examples = dataclasses.replace(examples, until=np.asarray(until))
        return BatchSource(split, examples, VALUES, max_length=64).build(np.arange(len(histories)))


HISTORY = [(0, 2), (30, 1), (31, 3), (400, 2)]


@pytest.mark.parametrize("visit", [1, 2, 3, 4])
def test_a_prefix_is_the_history_as_it_was_at_that_visit(visit):
    whole = batch_of([HISTORY, [(0, 1)]]).rows(torch.tensor([0]))
    then = batch_of([HISTORY, [(0, 1)]], until=[HISTORY[visit - 1][0] * DAY, 0]).rows(torch.tensor([0]))
    cut = segment(whole, torch.tensor([0]), torch.tensor([visit]))
    width = cut["codes"].shape[1]
    for name, tensor in cut.items():
        expected = getattr(then, name)[:, :width]
        torch.testing.assert_close(tensor, expected, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")
    assert not then.mask[:, width:].any()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=5), min_size=1, max_size=4), st.data())
def test_halves_share_no_event_and_together_are_the_dated_history(sizes, data):
    batch = batch_of([[(10 * number, size) for number, size in enumerate(one)] for one in sizes])
    last = batch.visit_ids.amax(dim=1)
    cut = torch.tensor([data.draw(st.integers(1, len(one) - 1)) for one in sizes])
    earlier = segment(batch, torch.zeros_like(cut), cut, static=False, ages=False)
    later = segment(batch, cut, last, static=False, ages=False)
    for row in range(len(sizes)):
        halves = [half["codes"][row][half["mask"][row]][1:].tolist() for half in (earlier, later)]
        dated = batch.visit_ids[row] > 0
        assert halves[0] + halves[1] == batch.codes[row][dated].tolist()
    for half in (earlier, later):
        assert (half["ages"][half["mask"]] == UNKNOWN_AGE).all()
        assert torch.isnan(half["age_years"]).all()
        assert torch.isnan(half["calendar"]).all()
        assert (half["codes"][:, 0] == 2).all()
        dated = half["mask"] & (half["visit_ids"] > 0)
        assert half["visit_ids"][dated].min() == 1
        assert (half["times"][~dated] == 0).all()
        # The clock of a segment ends with it: nothing says how far away the other one is.
        assert torch.where(dated, half["times"], torch.inf).amin(dim=1).abs().max() == 0
