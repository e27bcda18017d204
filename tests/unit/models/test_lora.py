"""Adapters act, learn, are saved whole, restored exactly, refused where they do not belong, and merged."""

import copy
import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from small_models import make_config, make_inputs, mlm_labels

import ehrsequencing
from ehrsequencing.errors import AdapterError, CheckpointError, ConfigError
from ehrsequencing.models.behrt import (
    BEHRT,
    BEHRTConfig,
    BEHRTForMLM,
    BEHRTForNextVisitPrediction,
    BEHRTForSequenceClassification,
)
from ehrsequencing.models.folder import state_hash
from ehrsequencing.models.lora import (
    apply_lora_to_behrt,
    base_hash,
    count_parameters,
    group_of,
    is_adapter,
    load_lora_weights,
    merge_lora,
    note_gradients,
    parameter_report,
    save_lora_weights,
)

ADAPTED = tuple(
    f"encoder.layers.{layer}.{name}"
    for layer in range(2)
    for name in (
        "self_attn.query_proj",
        "self_attn.key_proj",
        "self_attn.value_proj",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    )
)


def pretrained(head=BEHRTForMLM, **options):
    """A model that says its weights came from pretraining."""
    torch.manual_seed(3)
    model = head(make_config(dropout=0.0), **options)
    model.mark_pretrained()
    return model


def adapted(head=BEHRTForMLM, rank=4, **options):
    torch.manual_seed(4)
    return apply_lora_to_behrt(pretrained(head), rank=rank, lora_feedforward=True, **options)


def labels_for(model, inputs):
    return mlm_labels(inputs) if isinstance(model, BEHRTForMLM) else torch.tensor([1.0, 0.0, 0.0, 1.0])


def train(model, steps=3):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        inputs = make_inputs(lengths=[12, 5, 9, 7], seed=step)
        optimiser.zero_grad()
        model(**inputs, labels=labels_for(model, inputs)).loss.backward()
        note_gradients(model)
        optimiser.step()
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ADAPTED)
def test_perturbing_any_adapter_moves_the_output(name, training):
    model = adapted().train(training)
    inputs = make_inputs()
    before = model(**inputs).logits
    layer = model.get_submodule(f"behrt.{name}")
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.1)
    assert (model(**inputs).logits - before).abs().max() > 1e-3


def test_train_and_eval_mode_agree_without_dropout():
    model, inputs = train(adapted()), make_inputs(lengths=[12, 6, 1, 0])
    with torch.inference_mode():
        assert torch.equal(model.eval()(**inputs).logits, model.train()(**inputs).logits)


def test_adapting_changes_no_output_at_first():
    plain, inputs = pretrained(), make_inputs()
    before = plain(**inputs).logits
    assert torch.equal(apply_lora_to_behrt(plain, lora_feedforward=True)(**inputs).logits, before)


@pytest.mark.parametrize("head", [BEHRTForMLM, BEHRTForSequenceClassification])
def test_every_adapter_receives_a_gradient_after_one_step(head):
    model = train(adapted(head), steps=2)
    adapters = [(name, p) for name, p in model.named_parameters() if is_adapter(name)]
    assert len(adapters) == 2 * len(ADAPTED)
    for name, parameter in adapters:
        assert parameter.grad is not None and parameter.grad.count_nonzero(), name
    report = parameter_report(model)
    assert report["no_gradient"] == []
    assert report["groups"]["lora"]["gradient"] == count_parameters(model)["lora"]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (group_of(name) != "encoder")
        assert (parameter.grad is None) == (group_of(name) == "encoder")


def test_the_returned_object_keeps_its_interface():
    model = pretrained()
    result = apply_lora_to_behrt(model, rank=4)
    assert result is model and type(result) is BEHRTForMLM and isinstance(result.config, BEHRTConfig)
    inputs = make_inputs()
    logits, loss = result(**inputs, labels=mlm_labels(inputs))
    assert logits.ndim == 2 and loss.ndim == 0
    assert any("lora" in name for name, _ in result.named_modules())


def test_scale_is_alpha_over_rank_and_alpha_twice_the_rank():
    layer = "behrt.encoder.layers.0.self_attn.query_proj"
    assert adapted(rank=4).get_submodule(layer).scaling == {"default": 2.0}
    assert adapted(rank=4, alpha=1).get_submodule(layer).scaling == {"default": 0.25}


@pytest.mark.parametrize("freeze_base", [True, False])
@pytest.mark.parametrize("train_embeddings", [True, False])
@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize(
    "head", [BEHRT, BEHRTForMLM, BEHRTForNextVisitPrediction, BEHRTForSequenceClassification], ids=lambda h: h.__name__
)
def test_what_trains(head, freeze_base, train_embeddings, train_head):
    options = {"freeze_base": freeze_base, "train_embeddings": train_embeddings, "train_head": train_head}
    model = apply_lora_to_behrt(pretrained(head), rank=2, **options)
    expected = {
        "lora": True,
        "encoder": not freeze_base,
        "embeddings": train_embeddings,
        "head": train_head or head is not BEHRTForMLM,
    }
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == expected[group_of(name)], name


def test_counts():
    model = apply_lora_to_behrt(pretrained(), rank=4, train_embeddings=False, train_head=False)
    counts = count_parameters(model)
    assert counts["lora"] == counts["trainable"] == 2 * 4 * (32 * 4 + 4 * 32)
    assert counts["total"] == pretrained().count_parameters() + counts["lora"] == counts["trainable"] + counts["frozen"]
    assert counts["lora_percent"] == pytest.approx(100 * counts["lora"] / counts["total"])


def test_adapting_nothing_is_an_error():
    with pytest.raises(AdapterError, match="matched no layer"):
        apply_lora_to_behrt(pretrained(), lora_attention=False)
    with pytest.raises(AdapterError, match="already"):
        apply_lora_to_behrt(adapted())
    for wrong in ({"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            apply_lora_to_behrt(pretrained(), **wrong)
    for use in (merge_lora, partial(save_lora_weights, path="never-written.pt")):
        with pytest.raises(AdapterError, match="no LoRA adapters"):
            use(pretrained())


def test_freezing_random_weights_warns_by_name():
    with pytest.warns(UserWarning, match=r"encoder\.layers\.0.*encoder\.layers\.1") as caught:
        apply_lora_to_behrt(BEHRTForMLM(make_config()))
    assert len(caught) == 1 and "behrt.embeddings" not in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"behrt\.embeddings\.code"):
        apply_lora_to_behrt(BEHRTForMLM(make_config()), train_embeddings=False)
    with pytest.warns(UserWarning, match=r"embeddings\.code") as caught:
        apply_lora_to_behrt(BEHRTForMLM(make_config()), freeze_base=False, train_embeddings=False)
    assert "layers" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_lora_to_behrt(BEHRTForMLM(make_config()), freeze_base=False)
        apply_lora_to_behrt(pretrained(), train_embeddings=False)


def test_a_report_names_what_is_frozen_at_random(tmp_path):
    pretrained().save_pretrained(tmp_path / "base")
    model = BEHRTForSequenceClassification.from_pretrained(tmp_path / "base")
    report = parameter_report(apply_lora_to_behrt(model, rank=2, train_embeddings=False))
    assert report["frozen_at_random"] == []
    assert {group_of(name) for name in report["scratch"]} == {"head", "lora"}
    assert {group_of(name) for name in report["frozen"]} == {"encoder", "embeddings"}
    assert all(".base_layer." not in name for key in ("pretrained", "frozen") for name in report[key])
    assert set(report["no_gradient"]) == set(report["scratch"])
    with pytest.warns(UserWarning):
        report = parameter_report(apply_lora_to_behrt(BEHRT(make_config()), rank=2))
    assert {group_of(name) for name in report["frozen_at_random"]} == {"encoder"}


@pytest.mark.parametrize("name", ["adapter", "lora_weights.pt"])
@pytest.mark.parametrize("head", [BEHRTForMLM, BEHRTForSequenceClassification])
@pytest.mark.parametrize("options", [{}, {"freeze_base": False}, {"train_embeddings": False, "train_head": False}])
def test_reload_is_exact(head, name, options, tmp_path):
    model = train(adapted(head, **options))
    save_lora_weights(model, tmp_path / name)
    inputs = make_inputs(lengths=[12, 5, 1, 9])
    labels = labels_for(model, inputs)
    torch.manual_seed(77)
    loaded = load_lora_weights(pretrained(head), tmp_path / name)
    for mode in (True, False):
        again, before = loaded.train(mode)(**inputs, labels=labels), model.train(mode)(**inputs, labels=labels)
        assert torch.equal(again.loss, before.loss) and torch.equal(again.logits, before.logits)
    assert state_hash(loaded) == state_hash(model)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert loaded.adaptation == model.adaptation


def test_reload_in_a_fresh_process_gives_the_same_loss(tmp_path):
    pretrained().save_pretrained(tmp_path / "base")
    model = train(apply_lora_to_behrt(BEHRTForMLM.from_pretrained(tmp_path / "base"), rank=4)).eval()
    save_lora_weights(model, tmp_path / "adapter")
    save_lora_weights(model, tmp_path / "lora_weights.pt")
    inputs = make_inputs(lengths=[12, 5, 1, 9])
    labels = mlm_labels(inputs)
    torch.save({**inputs, "labels": labels}, tmp_path / "inputs.pt")
    program = """
import torch
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.models.lora import load_lora_weights
inputs = torch.load("inputs.pt", weights_only=True)
for name in ("adapter", "lora_weights.pt"):
    model = load_lora_weights(BEHRTForMLM.from_pretrained("base"), name).eval()
    print(model(**inputs).loss.item().hex())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ehrsequencing.__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [model(**inputs, labels=labels).loss.item().hex()] * 2


def test_a_fresh_head_is_the_same_base(tmp_path):
    pretrained().save_pretrained(tmp_path / "base")
    model = BEHRTForSequenceClassification.from_pretrained(tmp_path / "base")
    model = train(apply_lora_to_behrt(model, rank=4)).eval()
    save_lora_weights(model, tmp_path / "adapter")
    torch.manual_seed(1234)
    other_head = BEHRTForSequenceClassification.from_pretrained(tmp_path / "base")
    inputs = make_inputs()
    assert torch.equal(
        load_lora_weights(other_head, tmp_path / "adapter").eval()(**inputs).logits, model(**inputs).logits
    )


def test_another_base_is_refused(tmp_path):
    model = train(adapted())
    save_lora_weights(model, tmp_path / "adapter")
    original = pretrained()
    hash_before = base_hash(original, model.adaptation.trained)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_hash"] == hash_before
    other = pretrained()
    with torch.no_grad():
        other.behrt.encoder.layers[1].linear2.weight[0, 0] += 1e-6
    with pytest.raises(AdapterError, match=hash_before) as refusal:
        load_lora_weights(other, tmp_path / "adapter")
    assert base_hash(other, model.adaptation.trained) in str(refusal.value)
    assert other.adaptation is None and all("lora" not in name for name, _ in other.named_modules())
    with pytest.raises(AdapterError, match="BEHRTForMLM"):
        load_lora_weights(pretrained(BEHRTForSequenceClassification), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="already"):
        load_lora_weights(model, tmp_path / "adapter")


def test_a_frozen_head_belongs_to_the_base(tmp_path):
    save_lora_weights(apply_lora_to_behrt(pretrained(), rank=2, train_head=False), tmp_path / "adapter")
    other = pretrained()
    with torch.no_grad():
        other.head.bias[7] = 1.0
    with pytest.raises(AdapterError, match="another base"):
        load_lora_weights(other, tmp_path / "adapter")


@pytest.mark.parametrize("name", ["adapter", "lora_weights.pt"])
def test_damaged_adapters_are_refused(name, tmp_path):
    save_lora_weights(adapted(), tmp_path / name)
    path = tmp_path / name / "adapter_model.safetensors" if name == "adapter" else tmp_path / name
    content = path.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_lora_weights(pretrained(), tmp_path / name)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_lora_weights(pretrained(), tmp_path / name)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    for content in ({"model": torch.zeros(2)}, torch.zeros(3), {"manifest": {}, "tensors": {}}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match="no readable adapters"):
            load_lora_weights(pretrained(), tmp_path / "other.pt")


def test_adapters_alone_are_small(tmp_path):
    model = apply_lora_to_behrt(pretrained(), rank=2, train_embeddings=False, train_head=False)
    for name in ("adapter", "lora_weights.pt"):
        save_lora_weights(model, tmp_path / name)
    size = 4 * count_parameters(model)["lora"]
    assert size < (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < size + 4000
    assert size < (tmp_path / "lora_weights.pt").stat().st_size < size + 20_000
    torch.load(tmp_path / "lora_weights.pt", weights_only=True)


@pytest.mark.parametrize("head", [BEHRTForMLM, BEHRTForSequenceClassification])
def test_merge_is_the_adapted_model_without_adapters(head, tmp_path):
    model = train(adapted(head)).eval()
    inputs = make_inputs(lengths=[12, 5, 1, 9])
    before = model(**inputs).logits
    merged = merge_lora(copy.deepcopy(model))
    assert type(merged) is head
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in pretrained(head).named_parameters()}
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(merged(**inputs).logits, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(**inputs).logits, before)
    merged.save_pretrained(tmp_path / "merged")
    again = head.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(again(**inputs).logits, merged(**inputs).logits)
    apply_lora_to_behrt(again, rank=2)


def test_the_tie_survives_adapting_saving_loading_and_merging(tmp_path):
    def is_tied(model):
        return model.decoder_weight.data_ptr() == model.behrt.embeddings.code.weight.data_ptr()

    model = adapted()
    assert is_tied(model)
    before = model.behrt.embeddings.code.weight.detach().clone()
    train(model)
    assert is_tied(model) and not torch.equal(model.behrt.embeddings.code.weight, before)
    save_lora_weights(model, tmp_path / "adapter")
    loaded = load_lora_weights(pretrained(), tmp_path / "adapter")
    merged = merge_lora(loaded)
    merged.save_pretrained(tmp_path / "model")
    for later in (merged, BEHRTForMLM.from_pretrained(tmp_path / "model"), copy.deepcopy(merged)):
        assert is_tied(later)
        assert torch.equal(later.decoder_weight, model.decoder_weight)
        # Gradients through the decoder and through the lookup meet in one tensor.
        inputs = make_inputs()
        inputs["codes"][inputs["codes"] == 33] = 34
        later(**inputs).logits.logsumexp(-1).sum().backward()
        gradient = later.behrt.embeddings.code.weight.grad
        assert gradient[33].count_nonzero() and gradient[34].count_nonzero()


def test_adapters_act_under_autocast():
    model, inputs = train(adapted()).eval(), make_inputs(lengths=[12, 5, 1, 9])
    exact = model(**inputs, labels=mlm_labels(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**inputs, labels=mlm_labels(inputs))
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss, atol=0.02, rtol=0.02)
    rounded.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_training_only_adapters_leaves_everything_else_alone():
    model = adapted(train_embeddings=False, train_head=False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not is_adapter(name)), name


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_would_silence_or_break_the_adapters_is_refused(alpha):
    model = BEHRTForMLM(make_config())
    with pytest.raises(ConfigError, match=r"alpha of LoRA.*expected a number above 0"):
        apply_lora_to_behrt(model, rank=4, alpha=alpha)
    assert model.adaptation is None
