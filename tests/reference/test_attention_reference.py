"""The encoder layer is PyTorch's own, given the same weights."""

import pytest
import torch
from torch import nn

from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.embeddings import CONTEXT_STD_SHARE, SinusoidalPositionalEncoding, code_std
from ehrsequencing.models.encoder import EncoderLayer, TransformerEncoder


def copy_layer(reference: nn.TransformerEncoderLayer, layer: EncoderLayer) -> None:
    with torch.no_grad():
        projections = (layer.self_attn.query_proj, layer.self_attn.key_proj, layer.self_attn.value_proj)
        weights = reference.self_attn.in_proj_weight.chunk(3)
        biases = reference.self_attn.in_proj_bias.chunk(3)
        for projection, weight, bias in zip(projections, weights, biases, strict=True):
            projection.weight.copy_(weight)
            projection.bias.copy_(bias)
        for ours, theirs in (
            (layer.self_attn.out_proj, reference.self_attn.out_proj),
            (layer.linear1, reference.linear1),
            (layer.linear2, reference.linear2),
            (layer.norm1, reference.norm1),
            (layer.norm2, reference.norm2),
        ):
            ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("padded", [True, False])
def test_encoder_is_pytorchs(norm, activation, padded):
    torch.manual_seed(0)
    config = BEHRTConfig.small(100, norm=norm, activation=activation, dropout=0.0)
    reference_layer = nn.TransformerEncoderLayer(
        config.hidden_dim,
        config.num_heads,
        config.ffn_dim,
        dropout=0.0,
        activation=activation,
        batch_first=True,
        norm_first=norm == "pre",
    )
    last = nn.LayerNorm(config.hidden_dim) if norm == "pre" else None
    reference = nn.TransformerEncoder(
        reference_layer, config.num_layers, norm=last, enable_nested_tensor=False
    ).double()
    encoder = TransformerEncoder(config).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.2)
    for ours, theirs in zip(encoder.layers, reference.layers, strict=True):
        copy_layer(theirs, ours)
    if last is not None:
        encoder.norm.load_state_dict(last.state_dict())
    hidden = torch.randn(3, 9, config.hidden_dim, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]]) if padded else torch.ones(3, 9, dtype=torch.bool)
    for model in (encoder, reference):
        model.train()
    ours = encoder(hidden, mask if padded else None)
    theirs = reference(hidden, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-11, rtol=1e-11)
    ours[mask].square().sum().backward()
    theirs[mask].square().sum().backward()
    torch.testing.assert_close(
        encoder.layers[0].self_attn.out_proj.weight.grad,
        reference.layers[0].self_attn.out_proj.weight.grad,
        atol=1e-9,
        rtol=1e-9,
    )


def test_sinusoids_are_those_of_the_paper():
    """Vaswani et al. 2017, section 3.5: sin(pos / 10000^(2i/d)) and the cosine beside it."""
    table = SinusoidalPositionalEncoding(6, 512)(512).double() / (CONTEXT_STD_SHARE * code_std(6) * 2**0.5)
    for position in (0, 1, 37, 511):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * i / 6), dtype=torch.float64)
            assert table[position, 2 * i].item() == pytest.approx(torch.sin(angle).item(), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(torch.cos(angle).item(), abs=1e-6)
