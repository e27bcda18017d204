"""Likelihoods and curves on a grid: against loops, at the edges of what numbers can be, and against quadrature."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import LabelError, ShapeError
from ehrsequencing.objectives.survival import (
    at_days,
    check_edges,
    competing_risks_nll,
    cumulative_incidence,
    curves,
    discrete_time_nll,
    log_softplus,
    marginal_logits,
    piecewise_nats,
    piecewise_nll,
    place,
    quantile_edges,
    ranking_loss,
    survival_curve,
    uniform_edges,
)

EDGES = torch.tensor([0.0, 10.0, 30.0, 100.0], dtype=torch.float64)


def drawn(seed: int, *, batch: int = 9, causes: int = 2, scale: float = 2.0):
    """Logits, days and causes, float64; days lie on edges, tie and pass the grid now and then."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, causes, 3, generator=generator, dtype=torch.float64)
    days = torch.randint(1, 24, (batch,), generator=generator).double() * 5
    return logits, days, torch.randint(0, causes + 1, (batch,), generator=generator)


def hazard(logits: torch.Tensor, row: int, interval: int) -> list[float]:
    """Hazards of the causes by the definition."""
    odds = [math.exp(value) for value in logits[row, :, interval].tolist()]
    return [value / (1 + sum(odds)) for value in odds]


@given(seed=st.integers(0, 10_000), causes=st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_likelihood_equals_a_loop(seed, causes):
    logits, days, cause = drawn(seed, causes=causes)
    placed = place(days, cause, EDGES)
    expected = []
    for row in range(len(days)):
        chance = 1.0
        for interval in range(int(placed.interval[row]) + 1):
            own = hazard(logits, row, interval)
            if interval < placed.interval[row]:
                chance *= 1 - sum(own)
            elif placed.cause[row]:
                chance *= own[int(placed.cause[row]) - 1]
            else:
                chance *= (1 - sum(own)) ** float(placed.share[row])
        expected.append(-math.log(chance))
    found = competing_risks_nll(logits, placed.interval, placed.cause, share=placed.share)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_one_cause_is_the_cross_entropy_of_logistic_hazards():
    logits, days, cause = drawn(3, causes=1)
    placed = place(days, cause, EDGES)
    order = torch.arange(3)
    target = ((order == placed.interval[:, None]) & (placed.cause > 0)[:, None]).double()
    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    expected = (cells * (order <= placed.interval[:, None])).sum(1).mean()
    found = discrete_time_nll(logits[:, 0], placed.interval, placed.cause > 0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [90.0, -90.0])
@pytest.mark.parametrize("observed", [True, False])
def test_extreme_logits_have_losses_and_gradients(size, observed):
    for loss in ("discrete", "piecewise"):
        logits = torch.full((2, 2, 3), size, requires_grad=True)
        cause = torch.tensor([1, 2]) if observed else torch.tensor([0, 0])
        days = torch.tensor([20.0, 100.0])
        if loss == "discrete":
            placed = place(days, cause, EDGES)
            value = competing_risks_nll(logits, placed.interval, placed.cause, share=placed.share)
        else:
            value = piecewise_nll(logits, days, cause, EDGES)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()
        # What was wrong by 90 nats is pulled back with full strength; what was right may rest.
        if observed == (size < 0):
            assert logits.grad.abs().max() > 0.1
        if observed and size < 0:
            assert value > 80


def test_at_ninety_the_loss_is_what_it_should_be():
    one = torch.tensor([[90.0, -90.0]])
    assert discrete_time_nll(one, torch.tensor([0]), torch.tensor([True])).item() == pytest.approx(0, abs=1e-5)
    assert discrete_time_nll(one, torch.tensor([0]), torch.tensor([False])).item() == pytest.approx(90)
    assert discrete_time_nll(one, torch.tensor([1]), torch.tensor([True])).item() == pytest.approx(180)


@given(seed=st.integers(0, 10_000), causes=st.integers(1, 3), scale=st.sampled_from([0.5, 5.0, 60.0]))
@settings(deadline=None, max_examples=25)
def test_survival_and_incidences_add_up_to_one(seed, causes, scale):
    logits, _, _ = drawn(seed, causes=causes, scale=scale)
    days = torch.linspace(0, 100, 37, dtype=torch.float64)
    for found in (curves(logits), at_days(curves(logits), EDGES, days)):
        total = found.survival + found.incidence.sum(1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
        assert (found.survival.diff(dim=1) <= 1e-15).all()
        assert (found.incidence.diff(dim=2) >= -1e-15).all()
    assert torch.equal(curves(logits).survival[:, 0], torch.ones(len(logits), dtype=torch.float64))
    assert torch.equal(curves(logits).incidence[:, :, 0], torch.zeros(len(logits), causes, dtype=torch.float64))


def test_curves_at_edges_are_products_of_hazards():
    logits, _, _ = drawn(5)
    survival, incidence = survival_curve(logits), cumulative_incidence(logits)
    alive, fallen = 1.0, 0.0
    for interval in range(3):
        own = hazard(logits, 4, interval)
        fallen += alive * own[1]
        alive *= 1 - sum(own)
        assert survival[4, interval + 1].item() == pytest.approx(alive, rel=1e-12)
        assert incidence[4, 1, interval + 1].item() == pytest.approx(fallen, rel=1e-12)


def test_between_edges_the_hazard_is_constant_and_edges_are_themselves():
    logits, _, _ = drawn(6)
    at_edges = curves(logits)
    again = at_days(at_edges, EDGES, EDGES)
    torch.testing.assert_close(again.survival, at_edges.survival, rtol=1e-12, atol=0)
    torch.testing.assert_close(again.incidence, at_edges.incidence, rtol=1e-12, atol=1e-15)
    within = at_days(at_edges, EDGES, torch.tensor([10.0, 15.0, 20.0, 25.0, 30.0], dtype=torch.float64)).survival.log()
    step = within.diff(dim=1)
    torch.testing.assert_close(step, step[:, :1].expand_as(step), rtol=1e-10, atol=0)


def test_a_grid_that_nobody_survives_has_curves_without_nan():
    logits = torch.full((1, 2, 3), 90.0)
    found = at_days(curves(logits), EDGES.float(), torch.tensor([0.0, 5.0, 10.0, 50.0, 100.0]))
    assert torch.isfinite(found.survival).all()
    assert found.incidence[0, :, -1].tolist() == pytest.approx([0.5, 0.5])
    never = at_days(curves(-logits), EDGES.float(), torch.tensor([50.0, 100.0]))
    assert never.survival.tolist() == [[1.0, 1.0]]


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=10)
def test_piecewise_density_is_the_slope_of_its_incidence(seed):
    logits, days, cause = drawn(seed, batch=1)
    days = days.clamp(max=97.0) + 0.5
    cause = cause.clamp(min=1)
    near = torch.stack((days - 1e-5, days + 1e-5))[:, 0]
    incidence = at_days(curves(logits), EDGES, near).incidence[0, int(cause) - 1]
    slope = (incidence[1] - incidence[0]) / (near[1] - near[0])
    assert piecewise_nll(logits, days, cause, EDGES).item() == pytest.approx(-math.log(slope.item()), abs=1e-4)


def test_piecewise_censored_is_survival_and_entry_conditions_on_it():
    logits, _, _ = drawn(8, batch=1)
    days = torch.tensor([47.0], dtype=torch.float64)
    none = torch.tensor([0])
    whole = piecewise_nll(logits, days, none, EDGES).item()
    survival = at_days(curves(logits), EDGES, torch.tensor([20.0, 47.0], dtype=torch.float64)).survival[0]
    assert whole == pytest.approx(-math.log(survival[1].item()), rel=1e-9)
    late = piecewise_nats(logits, days, none, EDGES, entry=torch.tensor([20.0], dtype=torch.float64)).item()
    assert late == pytest.approx(-math.log((survival[1] / survival[0]).item()), rel=1e-9)
    beyond = piecewise_nats(logits, days + 100, none + 1, EDGES, entry=torch.tensor([120.0], dtype=torch.float64))
    assert beyond.item() == 0


def test_log_softplus_and_its_gradient_meet_the_definition():
    x = torch.linspace(-40, 40, 801, dtype=torch.float64, requires_grad=True)
    found = log_softplus(x)
    expected = torch.log1p(x.detach().exp()).log()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-8, atol=1e-8)
    found.sum().backward()
    slope = torch.sigmoid(x.detach()) / torch.log1p(x.detach().exp())
    torch.testing.assert_close(x.grad, slope, rtol=1e-6, atol=1e-8)


def test_ranking_counts_comparable_pairs_of_a_cause_alone():
    days = torch.tensor([5.0, 20.0, 20.0, 50.0, 5.0])
    cause = torch.tensor([1, 2, 1, 0, 0])
    placed = place(days, cause, EDGES.float())
    incidence = torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(0))
    total, pairs = 0.0, 0
    for i in range(5):
        for j in range(5):
            comparable = days[j] > days[i] or (days[j] == days[i] and cause[j] == 0)
            if cause[i] and comparable:
                at = int(placed.interval[i]) + 1
                own, other = (incidence[k, int(cause[i]) - 1, at].item() for k in (i, j))
                total += math.exp((other - own) / 0.2)
                pairs += 1
    assert ranking_loss(incidence, placed, days, sigma=0.2).item() == pytest.approx(total / pairs, rel=1e-5)
    assert pairs == 6
    with pytest.raises(ShapeError, match="sigma of the ranking term.*above 0"):
        ranking_loss(incidence, placed, days, sigma=0.0)


def test_ranking_without_a_pair_is_zero_with_a_gradient():
    incidence = torch.rand(3, 1, 4, requires_grad=True)
    placed = place(torch.tensor([5.0, 6.0, 7.0]), torch.zeros(3, dtype=torch.int64), EDGES.float())
    loss = ranking_loss(incidence, placed, torch.tensor([5.0, 6.0, 7.0]))
    loss.backward()
    assert loss.item() == 0
    assert (incidence.grad == 0).all()


def test_ranking_prefers_the_right_order():
    placed = place(torch.tensor([5.0, 50.0]), torch.tensor([1, 1]), EDGES.float())
    right, wrong = (torch.tensor([[[0, a, a, a]], [[0, 1 - a, 1 - a, 1 - a]]]) for a in (0.9, 0.1))
    days = torch.tensor([5.0, 50.0])
    assert ranking_loss(right, placed, days) < ranking_loss(wrong, placed, days)


def test_marginal_logits_give_the_product_limit_where_there_is_much_data():
    generator = torch.Generator().manual_seed(0)
    days = torch.rand(20_000, generator=generator).double() * 120
    cause = torch.randint(1, 3, (20_000,), generator=generator)
    placed = place(days.clamp(min=1e-3), cause, EDGES)
    found = curves(marginal_logits(placed, 2, 3)[None])
    for edge, survival in zip(EDGES[1:], found.survival[0, 1:], strict=True):
        assert survival.item() == pytest.approx((days > edge).double().mean().item(), abs=1e-3)
    assert found.incidence[0, 0, -1].item() == pytest.approx(
        ((days <= 100) & (cause == 1)).double().mean().item(), abs=1e-3
    )


def test_marginal_logits_are_finite_where_nobody_is_left_and_a_cause_never_came():
    placed = place(torch.tensor([5.0, 6.0]), torch.tensor([1, 0]), EDGES)
    found = marginal_logits(placed, 2, 3)
    assert torch.isfinite(found).all()
    assert (found[1] < found[0]).all()


def test_grids():
    assert uniform_edges(2, 50.0).tolist() == [0, 25, 50]
    tied = quantile_edges(torch.full((100,), 7.0), 10, 90.0)
    assert tied.tolist() == [0, 90], "all events on one day leave one interval"
    assert quantile_edges(torch.tensor([3.0]), 5, 3.0).tolist() == [0, 3]
    spread = quantile_edges(torch.arange(1, 101).double(), 4, 200.0)
    assert spread.tolist() == [0, 25, 50, 75, 200]
    with pytest.raises(LabelError, match="a quantile grid needs events; got none within 30 days"):
        quantile_edges(torch.tensor([31.0]), 4, 30.0)
    for wrong in ([0.0], [1.0, 2.0], [0.0, 5.0, 5.0], [0.0, math.nan], [0.0, math.inf]):
        with pytest.raises(ShapeError, match="edges of the grid.*two or more rising days"):
            check_edges(torch.tensor(wrong))


@given(seed=st.integers(0, 10_000), intervals=st.integers(1, 30))
@settings(deadline=None, max_examples=25)
def test_every_interval_of_a_quantile_grid_has_an_event(seed, intervals):
    generator = torch.Generator().manual_seed(seed)
    days = torch.randint(1, 15, (int(torch.randint(1, 40, (1,), generator=generator)),), generator=generator).double()
    edges = quantile_edges(days, intervals, 40.0)
    check_edges(edges)
    placed = place(days, torch.ones(len(days), dtype=torch.int64), edges)
    assert len(edges) <= intervals + 1
    assert (torch.bincount(placed.interval, minlength=len(edges) - 1) > 0).all()


def test_an_event_beyond_the_grid_is_censored_at_its_end_and_said():
    placed = place(torch.tensor([100.0, 100.5]), torch.tensor([1, 1]), EDGES.float())
    assert placed.beyond.tolist() == [False, True]
    assert placed.cause.tolist() == [1, 0]
    assert placed.interval.tolist() == [2, 2]
    assert placed.share.tolist() == [1, 1]


@pytest.mark.parametrize("days", [0.0, -3.0, math.nan, math.inf])
def test_impossible_durations_are_refused(days):
    with pytest.raises(ShapeError, match="durations has the wrong.*finite, above 0"):
        place(torch.tensor([5.0, days]), torch.tensor([1, 1]), EDGES)
    with pytest.raises(ShapeError, match="durations"):
        piecewise_nll(torch.zeros(2, 1, 3), torch.tensor([5.0, days]), torch.tensor([0, 0]), EDGES)


def test_what_lies_beyond_the_logits_is_refused():
    logits = torch.zeros(2, 3)
    two = torch.tensor([True, False])
    with pytest.raises(ShapeError, match="interval has the wrong shape or range; got 0 to 3; expected 0 to 2"):
        discrete_time_nll(logits, torch.tensor([0, 3]), two)
    with pytest.raises(ShapeError, match="interval.*got -1 to 0"):
        discrete_time_nll(logits, torch.tensor([0, -1]), two)
    with pytest.raises(ShapeError, match="cause.*got 0 to 2; expected 0 to 1"):
        competing_risks_nll(logits[:, None], torch.tensor([0, 1]), torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="hazard_logits.*got no subject"):
        discrete_time_nll(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ShapeError, match="interval"):
        discrete_time_nll(logits, torch.tensor([0]), two)
    with pytest.raises(ShapeError, match=r"days.*got \[100.5\].*0 to 100 where the grid ends.*longer"):
        at_days(curves(torch.zeros(1, 1, 3)), EDGES, torch.tensor([5.0, 100.5]))
    with pytest.raises(ShapeError, match="entry"):
        piecewise_nats(
            logits[:, None], torch.tensor([5.0, 6.0]), torch.tensor([0, 0]), EDGES, entry=torch.tensor([5.0, 0])
        )
