"""InfoNCE: pairs, directions, chance."""

import math

import pytest
import torch

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.objectives.contrastive import info_nce, info_nce_statistics, similarities


def test_chance_is_the_logarithm_of_the_batch():
    logits = torch.zeros(8, 8)
    assert info_nce(logits).item() == pytest.approx(math.log(8))
    assert info_nce_statistics(logits)["loss_sum"].tolist() == pytest.approx([math.log(8)] * 8)


def test_the_partner_is_on_the_diagonal():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(6, 16, generator=generator)
    logits = similarities(own * 3.0, own * 0.2, 0.1)
    torch.testing.assert_close(logits.diagonal(), torch.full((6,), 10.0))
    assert info_nce_statistics(logits)["correct"].tolist() == [1.0] * 6
    shifted = similarities(own, own.roll(1, dims=0), 0.1)
    assert info_nce_statistics(shifted)["correct"].sum() == 0
    assert info_nce(shifted) > info_nce(logits)


def test_both_directions_count():
    logits = torch.tensor([[4.0, 0.0], [4.0, 1.0]])
    forward = (math.log1p(math.exp(-4)) + math.log1p(math.exp(3))) / 2
    backward = (math.log(2) + math.log1p(math.exp(-1))) / 2
    assert info_nce(logits).item() == pytest.approx((forward + backward) / 2)
    assert float(info_nce_statistics(logits)["loss_sum"].mean()) == pytest.approx((forward + backward) / 2)


def test_wrong_temperature_and_shapes_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        similarities(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)
    with pytest.raises(ShapeError, match="second"):
        similarities(torch.zeros(2, 3), torch.zeros(3, 3), 1.0)
