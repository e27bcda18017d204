"""The snippets that the project's first users wrote, as they wrote them."""

import pytest
import torch


def test_first_forward_pass(capsys):
    from ehrsequencing.models.behrt import BEHRT, BEHRTConfig

    config = BEHRTConfig.small(vocab_size=1000)
    model = BEHRT(config)
    print(f"Parameters: {model.count_parameters():,}")  # noqa: T201

    # Test forward pass
    codes = torch.randint(0, 1000, (16, 50))
    ages = torch.randint(0, 100, (16, 50))
    visit_ids = torch.arange(50).unsqueeze(0).expand(16, -1)
    mask = torch.ones(16, 50, dtype=torch.bool)

    output = model(codes, ages, visit_ids, mask)
    print(f"Output shape: {output.shape}")  # noqa: T201  # [16, 50, 128]

    assert capsys.readouterr().out == "Parameters: 542,528\nOutput shape: torch.Size([16, 50, 128])\n"


def test_parameter_counts_before_and_after_lora(tmp_path, monkeypatch):
    from ehrsequencing.models.behrt import BEHRT, BEHRTConfig
    from ehrsequencing.models.lora import apply_lora_to_behrt, count_parameters, save_lora_weights

    monkeypatch.chdir(tmp_path)
    config = BEHRTConfig.large(vocab_size=1000)
    model = BEHRT(config)

    # Before LoRA
    params = count_parameters(model)
    assert f"Before LoRA: {params['trainable_percent']:.1f}% trainable" == "Before LoRA: 100.0% trainable"

    # After LoRA; the model was never pretrained, which is said
    with pytest.warns(UserWarning, match="encoder"):
        model = apply_lora_to_behrt(model, rank=16)
    params = count_parameters(model)
    assert set(params) == {"total", "trainable", "frozen", "lora", "trainable_percent", "lora_percent"}
    assert 2 < params["trainable_percent"] < 10
    f"Total: {params['total']:,} Trainable: {params['trainable']:,} LoRA: {params['lora']:,}"

    # Save only LoRA weights
    save_lora_weights(model, "lora_weights.pt")
    assert (tmp_path / "lora_weights.pt").stat().st_size < 8_000_000

    # Check which layers have LoRA
    found = [name for name, module in model.named_modules() if "lora" in name.lower()]
    assert any(name.startswith("encoder.layers.0.self_attn.out_proj.lora") for name in found)
    assert any(name.startswith("encoder.layers.5.self_attn.query_proj.lora") for name in found)


def test_lora_with_embeddings_and_head_learned_from_scratch():
    from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM
    from ehrsequencing.models.lora import apply_lora_to_behrt

    model = BEHRTForMLM(BEHRTConfig.small(vocab_size=1000))
    with pytest.warns(UserWarning, match="random initial values"):
        model = apply_lora_to_behrt(
            model,
            rank=16,
            freeze_base=True,  # Freeze transformer encoder
            train_embeddings=True,  # Unfreeze embeddings (must learn from scratch)
            train_head=True,  # Unfreeze MLM head (must learn to predict)
        )
    assert model.behrt.embeddings.code.weight.requires_grad and model.head.transform.weight.requires_grad
    assert not model.behrt.encoder.layers[0].linear1.weight.requires_grad


def test_names_of_the_first_package():
    from ehrsequencing.models.embeddings import (
        AgeEmbedding,
        BEHRTEmbedding,
        PositionalEmbedding,
        SinusoidalPositionalEncoding,
        VisitEmbedding,
    )

    assert AgeEmbedding(8)(torch.tensor([[0, 120]])).shape == (1, 2, 8)
    assert VisitEmbedding(8)(torch.tensor([[0, 511]])).shape == (1, 2, 8)
    assert PositionalEmbedding(8)(5).shape == SinusoidalPositionalEncoding(8)(5).shape == (5, 8)
    assert BEHRTEmbedding.__name__ == "BEHRTEmbedding"


def test_masked_language_model_loss():
    """Loss over masked positions only, ignoring -100."""
    from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM, BEHRTForNextVisitPrediction

    config = BEHRTConfig.small(vocab_size=1000)
    codes, ages = torch.randint(5, 1000, (4, 20)), torch.randint(0, 100, (4, 20))
    visit_ids, mask = torch.arange(20).expand(4, -1), torch.ones(4, 20, dtype=torch.bool)
    labels = codes.masked_fill(torch.rand(4, 20) > 0.15, -100)
    labels[0, 0] = codes[0, 0]
    mlm_loss = BEHRTForMLM(config)(codes, ages, visit_ids, mask, labels=labels).loss
    next_visit = torch.zeros(4, 1000).index_fill_(1, torch.tensor([7, 9]), 1.0)
    nvp_loss = BEHRTForNextVisitPrediction(config)(codes, ages, visit_ids, mask, labels=next_visit).loss
    loss = 0.5 * mlm_loss + 0.5 * nvp_loss
    loss.backward()
    assert torch.isfinite(loss)
