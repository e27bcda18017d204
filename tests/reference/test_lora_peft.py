"""Adapters are those of the paper, computed by hand, and those of PEFT's own model class."""

import torch
from peft import LoraConfig, get_peft_model

from ehrsequencing.models.behrt import BEHRT, BEHRTConfig
from ehrsequencing.models.lora import apply_lora_to_behrt, is_adapter, merge_lora

CONFIG = BEHRTConfig.small(100, dropout=0.0)
LAYERS = (
    "self_attn.query_proj",
    "self_attn.key_proj",
    "self_attn.value_proj",
    "self_attn.out_proj",
    "linear1",
    "linear2",
)


def random_adapters(rank: int = 3, alpha: float = 5.0) -> BEHRT:
    torch.manual_seed(0)
    model = BEHRT(CONFIG)
    model.mark_pretrained()
    apply_lora_to_behrt(model, rank=rank, alpha=alpha, lora_feedforward=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.1)
    return model.double().eval()


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(5, 100, (3, 11), generator=generator)
    ages = torch.randint(0, 100, (3, 11), generator=generator)
    mask = torch.arange(11) < torch.tensor([[11], [6], [2]])
    return codes, ages, torch.arange(11).expand(3, -1), mask


def test_delta_is_alpha_over_rank_b_a_x():
    model = random_adapters()
    for layer in model.encoder.layers:
        for name in LAYERS:
            module = layer.get_submodule(name)
            x = torch.randn(4, module.in_features, dtype=torch.float64)
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            expected = module.base_layer(x) + 5.0 / 3 * x @ a.T @ b.T
            torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=1e-12)


def test_merged_weights_are_base_plus_product():
    model = random_adapters()
    expected = {}
    for index, layer in enumerate(model.encoder.layers):
        for name in LAYERS:
            module = layer.get_submodule(name)
            delta = 5.0 / 3 * module.lora_B["default"].weight @ module.lora_A["default"].weight
            expected[f"encoder.layers.{index}.{name}.weight"] = (module.base_layer.weight + delta).detach()
    before = model(*inputs()).detach()
    merged = merge_lora(model)
    state = merged.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(state[name], weight, atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(merged(*inputs()), before, atol=1e-11, rtol=1e-11)


def test_same_as_pefts_model_with_the_same_adapters():
    ours = random_adapters()
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[name.rsplit(".", 1)[-1] for name in LAYERS])
    theirs = get_peft_model(BEHRT(CONFIG).double(), config, autocast_adapter_dtype=False).double().eval()
    prefix = "base_model.model."
    theirs.load_state_dict({prefix + name: tensor for name, tensor in ours.state_dict().items()})
    assert torch.equal(theirs(*inputs()), ours(*inputs()))
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(merged(*inputs()), merge_lora(ours)(*inputs()), atol=1e-12, rtol=1e-12)
