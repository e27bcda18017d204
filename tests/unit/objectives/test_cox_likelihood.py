"""The partial likelihood against its definition, with ties, without events and at log-hazards of 90."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.objectives.cox import baseline_log_increments, cox_nll, proportional_logits
from ehrsequencing.objectives.survival import curves


def drawn(seed: int, batch: int = 12, days: int = 6):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(batch, generator=generator, dtype=torch.float64)
    durations = torch.randint(1, days + 1, (batch,), generator=generator).double()
    return score, durations, torch.rand(batch, generator=generator) < 0.6


def by_definition(score, durations, observed, ties: str) -> float:
    total = 0.0
    for day in durations[observed].unique().tolist():
        tied = score[(durations == day) & observed]
        risk = score[durations >= day].exp().sum().item()
        for rank in range(len(tied)):
            taken = rank / len(tied) * tied.exp().sum().item() if ties == "efron" else 0.0
            total += math.log(risk - taken)
        total -= tied.sum().item()
    return total / max(1, int(observed.sum()))


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_equals_its_definition(ties, seed):
    score, durations, observed = drawn(seed)
    expected = by_definition(score, durations, observed, ties)
    assert cox_nll(score, durations, observed, ties=ties).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_equals_the_gradient_of_its_definition():
    score, durations, observed = drawn(4)
    score.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: cox_nll(given, durations, observed), (score,))


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_log_hazards_of_ninety_are_safe_in_single_precision(ties):
    _, durations, observed = drawn(1)
    score = torch.tensor([90.0, -90.0] * 6, requires_grad=True)
    loss = cox_nll(score, durations, observed, ties=ties)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(score.grad).all()
    exact = score.detach().double().requires_grad_()
    again = cox_nll(exact, durations, observed, ties=ties)
    again.backward()
    assert loss.item() == pytest.approx(again.item(), rel=1e-5)
    torch.testing.assert_close(score.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    assert score.grad.abs().max() > 0.01


def test_a_common_shift_changes_nothing():
    score, durations, observed = drawn(2)
    assert cox_nll(score + 500, durations, observed).item() == pytest.approx(
        cox_nll(score, durations, observed).item(), rel=1e-10
    )


def test_without_an_event_the_loss_is_zero_and_has_a_gradient():
    score, durations, _ = drawn(3)
    score.requires_grad_()
    loss = cox_nll(score, durations, torch.zeros(len(score), dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (score.grad == 0).all()
    one = cox_nll(torch.tensor([5.0]), torch.tensor([3.0]), torch.tensor([True]))
    assert one.item() == 0, "one subject says nothing of order"


def test_what_is_no_score_or_duration_is_refused():
    two, yes = torch.zeros(2), torch.tensor([True, True])
    for durations in ([1.0, math.nan], [1.0, 0.0], [1.0, -2.0], [1.0, math.inf]):
        with pytest.raises(ShapeError, match="durations.*days above 0"):
            cox_nll(two, torch.tensor(durations), yes)
    with pytest.raises(ShapeError, match="log_hazard has the wrong.*a score that is not finite"):
        cox_nll(torch.tensor([0.0, math.inf]), torch.ones(2), yes)
    with pytest.raises(ShapeError, match=r"log_hazard, durations, event_observed.*\[batch\] each"):
        cox_nll(two, torch.ones(3), yes)
    with pytest.raises(ConfigError, match="ties; got exact; expected efron or breslow"):
        cox_nll(two, torch.ones(2), yes, ties="exact")


def test_breslow_baseline_of_equal_subjects_is_nelson_aalen():
    score, durations, observed = drawn(5, batch=40)
    edges = torch.tensor([0.0, 2.0, 4.5, 6.0, 9.0], dtype=torch.float64)
    found = baseline_log_increments(torch.zeros_like(score), durations, observed, edges).exp()
    for low, high, added in zip(edges[:-1], edges[1:], found, strict=True):
        days = [day for day in durations.unique().tolist() if low < day <= high]
        expected = sum(int(((durations == day) & observed).sum()) / int((durations >= day).sum()) for day in days)
        assert added.item() == pytest.approx(expected, abs=1e-12)


def test_proportional_logits_have_the_curves_of_the_model():
    log_hazard = torch.tensor([[0.5, -1.0], [90.0, 80.0], [-90.0, -90.0]], dtype=torch.float64)
    increments = torch.tensor([[0.1, 0.02, 1e-30], [0.05, 1e-30, 1e-30]], dtype=torch.float64)
    found = curves(proportional_logits(log_hazard, increments.log()))
    assert torch.isfinite(found.survival).all()
    assert torch.isfinite(found.incidence).all()
    total = increments.cumsum(1)
    expected = torch.exp(-(total * log_hazard[0].exp()[:, None]).sum(0))
    torch.testing.assert_close(found.survival[0, 1:], expected, rtol=1e-10, atol=0)
    first = 0.1 * math.exp(0.5) / (0.1 * math.exp(0.5) + 0.05 * math.exp(-1))
    assert found.incidence[0, 0, 1].item() == pytest.approx(first * (1 - expected[0].item()), rel=1e-10)
    assert found.survival[1, 1].item() == 0
    assert found.survival[2, -1].item() == 1
