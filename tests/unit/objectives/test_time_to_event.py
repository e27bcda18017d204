"""Times to the next occurrence, and hazards that are constant within pieces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import ShapeError
from ehrsequencing.objectives.time_to_event import (
    SHORTEST_DAYS,
    exposures,
    next_times,
    piecewise_exponential_nll,
)


def test_the_clock_runs_from_the_end_of_a_visit_to_the_first_later_code():
    # CLS, visit 1 at 100 and 99 days before the end, visit 2 at 40, visit 3 at 10 and 0 days.
    visit_ids = torch.tensor([[0, 1, 1, 2, 3, 3, 0]])
    days = torch.tensor([[0.0, 100.0, 99.0, 40.0, 10.0, 0.0, 0.0]])
    columns = torch.tensor([[-1, 0, 1, 1, 0, 1, 0]])
    mask = torch.tensor([[True] * 6 + [False]])
    waited, came = next_times(columns, days, visit_ids, mask, torch.tensor([[0, 1], [0, 2]]), 3)
    assert waited.tolist() == [[89.0, 59.0, 99.0], [30.0, 40.0, 40.0]]
    assert came.tolist() == [[True, True, False], [True, True, False]]


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_next_times_equal_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    length, codes = 14, 3
    visit_ids = torch.sort(torch.randint(0, 6, (2, length), generator=generator), dim=1).values
    # Visits count without gaps.
    visit_ids = torch.stack(
        [torch.unique(torch.cat((torch.zeros(1), row)), return_inverse=True)[1][1:] for row in visit_ids]
    )
    days = torch.sort(torch.rand(2, length, generator=generator) * 50, dim=1, descending=True).values.double()
    columns = torch.randint(-1, codes, (2, length), generator=generator)
    mask = torch.arange(length).expand(2, -1) < torch.tensor([[length], [9]])
    asked = [[r, v] for r in range(2) for v in range(1, 6) if ((visit_ids[r] == v + 1) & mask[r]).any()]
    asked = [item for item in asked if ((visit_ids[item[0]] == item[1]) & mask[item[0]]).any()]
    if not asked:
        return
    waited, came = next_times(columns, days, visit_ids, mask, torch.tensor(asked), codes)
    for index, (r, v) in enumerate(asked):
        start = days[r][(visit_ids[r] == v) & mask[r]].min().item()
        for code in range(codes):
            later = days[r][(visit_ids[r] > v) & mask[r] & (columns[r] == code)]
            assert came[index, code].item() == (len(later) > 0)
            expected = start - (later.max().item() if len(later) else 0.0)
            assert waited[index, code].item() == pytest.approx(max(expected, SHORTEST_DAYS))


def test_exposure_and_likelihood_by_hand():
    boundaries = torch.tensor([0.0, 10.0, 30.0])
    lived, ended = exposures(torch.tensor([5.0, 10.0, 100.0]), torch.tensor([True, True, False]), boundaries)
    assert lived.tolist() == [[5, 0, 0], [10, 0, 0], [10, 20, 70]]
    assert ended.tolist() == [[True, False, False], [True, False, False], [False, False, False]]
    hazard = torch.tensor([0.1, 0.02, 0.005]).log()
    nll = piecewise_exponential_nll(
        hazard.expand(2, -1), torch.tensor([15.0, 40.0]), torch.tensor([True, False]), boundaries
    )
    assert nll.tolist() == pytest.approx([10 * 0.1 + 5 * 0.02 - math.log(0.02), 1 + 0.4 + 0.05], rel=1e-6)


def test_density_integrates_to_one():
    boundaries = torch.tensor([0.0, 3.0, 7.0], dtype=torch.float64)
    days = torch.arange(0.0005, 200, 0.001, dtype=torch.float64)
    log_hazard = torch.tensor([0.3, 0.05, 0.2], dtype=torch.float64).log().expand(len(days), -1)
    density = torch.exp(
        -piecewise_exponential_nll(log_hazard, days, torch.ones_like(days, dtype=torch.bool), boundaries)
    )
    assert (density.sum() * 0.001).item() == pytest.approx(1, abs=1e-4)


def test_the_best_constant_hazard_is_events_per_day():
    generator = torch.Generator().manual_seed(0)
    days = torch.rand(500, generator=generator) * 20
    observed = torch.rand(500, generator=generator) < 0.4
    best = math.log(observed.sum() / days.sum())

    def nll(log_hazard):
        return piecewise_exponential_nll(torch.full((500, 1), log_hazard), days, observed, torch.zeros(1)).mean()

    assert nll(best) < min(nll(best - 0.05), nll(best + 0.05))


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match="log_hazard"):
        piecewise_exponential_nll(torch.zeros(2, 3), torch.zeros(2), torch.ones(2, dtype=torch.bool), torch.zeros(2))
