import pytest
import torch

from ehrsequencing.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(0)
    x = torch.ones(400, 1001)
    y = Dropout(p)(x)
    assert abs((y == 0).float().mean().item() - p) < 0.005
    assert abs(y.mean().item() - 1) < 0.02


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(200_000)) > 0).float()
    for lag in (1, 7, 8):
        assert abs(torch.corrcoef(torch.stack((kept[:-lag], kept[lag:])))[0, 1].item()) < 0.01


def test_gradient_flows_where_kept_only():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(x.grad, y.detach())


def test_eval_and_zero_change_nothing():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_seeded_draws_repeat():
    x = torch.ones(999)
    torch.manual_seed(3)
    first = Dropout(0.2)(x)
    torch.manual_seed(3)
    assert torch.equal(first, Dropout(0.2)(x))
