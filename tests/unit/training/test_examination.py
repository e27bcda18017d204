"""What a trained model looks like inside."""

from __future__ import annotations

import pytest
import torch

from ehrsequencing.models.attention import SelfAttention
from ehrsequencing.models.behrt import BEHRT, BEHRTConfig
from ehrsequencing.models.lora import apply_lora_to_behrt
from ehrsequencing.training.examination import adapter_effects, geometry, head_outputs


def test_vectors_spread_evenly_have_the_rank_of_their_space():
    generator = torch.Generator().manual_seed(0)
    cloud = geometry(torch.randn(2000, 16, generator=generator))
    assert cloud["effective_rank"] == pytest.approx(16, abs=0.1)
    assert cloud["mean_cosine"] == pytest.approx(0, abs=0.01)


def test_vectors_that_are_one_have_rank_one_and_one_direction():
    assert geometry(torch.ones(30, 8)) == {"n": 30, "width": 8, "mean_cosine": 1.0, "effective_rank": 1.0}
    line = torch.linspace(1, 2, 30)[:, None] * torch.arange(1.0, 9.0)
    assert geometry(line)["effective_rank"] == pytest.approx(1, abs=0.01)


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    pairs = [float(unit[i] @ unit[j]) for i in range(7) for j in range(7) if i != j]
    assert geometry(vectors)["mean_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)


def test_a_single_vector_is_no_cloud():
    assert geometry(torch.ones(1, 8))["effective_rank"] == 1.0


def test_a_head_without_values_adds_nothing():
    torch.manual_seed(0)
    attention = SelfAttention(16, 4)
    with torch.no_grad():
        attention.value_proj.weight[4:8] = 0.0
    hidden, mask = torch.randn(2, 9, 16), torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        outputs = head_outputs(attention, (hidden, None), mask)
    # Its value bias still passes, the same for every token, which is what a bias of the output could do.
    assert outputs[1] == pytest.approx(0, abs=1e-6)
    assert min(outputs[0], *outputs[2:]) > 1e-3


def test_an_untouched_adapter_adds_nothing_and_a_moved_one_its_product():
    model = BEHRT(BEHRTConfig.small(vocab_size=30))
    model.mark_pretrained()
    apply_lora_to_behrt(model, rank=2, alpha=4.0)
    assert set(adapter_effects(model).values()) == {0.0}
    layer = model.encoder.layers[0].self_attn.query_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.5)
        added = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        share = float(added.norm() / layer.base_layer.weight.norm())
    assert adapter_effects(model)["encoder.layers.0.self_attn.query_proj"] == pytest.approx(share, rel=1e-5)
