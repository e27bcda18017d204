"""What a trained model looks like inside: embeddings, adapters and attention heads, in numbers that a doctor reads."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.data.vocabulary import NUM_SPECIAL
from ehrsequencing.models.attention import SelfAttention
from ehrsequencing.models.embeddings import BEHRTEmbedding
from ehrsequencing.models.encoder import TransformerEncoder
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.lora import parameter_report

TOKENS, HISTORIES = 2048, 256
"""Tokens and histories that heads and representations are looked at on."""
CODES = 4096
"""Most frequent codes whose embeddings are compared."""


class Judged(Protocol):
    """What an examination reads of a plan."""

    config: Any
    tuning: BatchSource


@torch.no_grad()
def examine(model: PretrainedModel, plan: Judged, device: torch.device) -> dict[str, Any]:
    """Look at a model on a few tuning histories, in evaluation mode.

    Returns:
        parameters: as `parameter_report`, the long lists of names left out. embeddings: `geometry` of the codes that
        the histories hold. representations: `geometry` of the mean hidden state of each history (transformers).
        heads: `head_outputs` by layer. adapters: `adapter_effects`; absent without adapters.
    """
    trained = model.training
    model.eval()
    histories = _histories(plan.tuning).to(device)
    inputs = histories.inputs(plan.config.input_names)
    report = parameter_report(model)
    found: dict[str, Any] = {
        "parameters": {key: report[key] for key in ("counts", "groups", "frozen_at_random", "no_gradient")}
    }
    for module in model.modules():
        if isinstance(module, BEHRTEmbedding):
            used = torch.unique(histories.codes[histories.mask])
            used = used[used >= NUM_SPECIAL][:CODES]
            found["embeddings"] = geometry(module.code.weight[used])
    heads: dict[str, list[float]] = {}
    hidden: list[Tensor] = []
    hooks = [
        module.register_forward_hook(
            lambda module, given, _, name=name: heads.update({name: head_outputs(module, given, histories.mask)})
        )
        for name, module in model.named_modules()
        if isinstance(module, SelfAttention)
    ]
    hooks += [
        module.register_forward_hook(lambda _, __, result: hidden.append(result))
        for module in model.modules()
        if isinstance(module, TransformerEncoder)
    ]
    try:
        _encoder(model)(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found["heads"] = heads
    if hidden:
        weight = histories.mask[..., None].to(hidden[0].dtype)
        found["representations"] = geometry((hidden[0] * weight).sum(1) / weight.sum(1).clamp(min=1))
    if effects := adapter_effects(model):
        found["adapters"] = effects
    model.train(trained)
    return found


def _encoder(model: PretrainedModel) -> nn.Module:
    return getattr(model, "behrt", model)


def _histories(source: BatchSource) -> Batch:
    """Histories of tuning, spread evenly over their lengths, in one batch."""
    order = torch.as_tensor(source.lengths).argsort(stable=True)
    most = max(2, min(HISTORIES, len(order)))
    chosen = order[torch.linspace(0, len(order) - 1, most).long().unique()]
    return source.build(chosen.numpy())


def geometry(vectors: Tensor) -> dict[str, float | int]:
    """How a cloud of vectors lies, Float [n, width].

    Returns:
        n, width. mean_cosine: mean cosine of two different vectors. effective_rank: exponential of the entropy of the
        normalised singular values, after centring; 1 where all lie on a line, `min(n - 1, width)` where they are
        spread evenly.

    Source: Roy & Vetterli 2007, The effective rank, EUSIPCO (effective rank); Ethayarajh 2019, arXiv:1909.00512 (mean
    cosine as anisotropy).

    >>> geometry(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))["effective_rank"]
    2.0
    """
    cloud = vectors.detach().double().cpu()
    n, width = cloud.shape
    unit = nn.functional.normalize(cloud, dim=1)
    # Of the sum of all unit vectors the squared length is n plus the sum of all cosines of pairs.
    cosine = float((unit.sum(0).square().sum() - unit.square().sum()) / max(1, n * (n - 1)))
    singular = torch.linalg.svdvals(cloud - cloud.mean(0))
    total = float(singular.sum())
    rank = 1.0
    if total > 0:
        share = singular[singular > 0] / total
        rank = float((-(share * share.log()).sum()).exp())
    return {"n": n, "width": width, "mean_cosine": round(cosine, 4), "effective_rank": round(rank, 2)}


def head_outputs(attention: SelfAttention, given: tuple[Any, ...], mask: Tensor) -> list[float]:
    """How much each head adds that differs between tokens: root mean square around its mean, one number per head.

    A head whose output is the same for every token is a bias: whatever it attends to, nothing of it arrives.

    Args:
        attention: The layer.
        given: Its positional inputs: hidden states Float [batch, length, width], and keys to read.
        mask: Bool [batch, length].
    """
    mixed: list[Tensor] = []
    hook = attention.out_proj.register_forward_pre_hook(lambda _, inner: mixed.append(inner[0]))
    try:
        # The layer's own forward, past the hooks that called this.
        attention.forward(*given)
    finally:
        hook.remove()
    rows = mixed[0][mask]
    rows = rows[:: max(1, len(rows) // TOKENS)]
    width = rows.shape[1] // attention.num_heads
    found = []
    for head in range(attention.num_heads):
        alone = torch.zeros_like(rows)
        alone[:, head * width : (head + 1) * width] = rows[:, head * width : (head + 1) * width]
        output = attention.out_proj(alone).double()
        found.append(float((output - output.mean(0)).square().sum(1).mean().sqrt()))
    return found


def adapter_effects(model: nn.Module) -> dict[str, float]:
    """By layer: norm of what an adapter adds to a weight matrix, as a share of the matrix's own."""
    found: dict[str, float] = {}
    for place, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            base = layer.get_base_layer()
            added = sum(float(layer.get_delta_weight(name).detach().norm()) for name in layer.active_adapters)
            share = added / float(base.weight.detach().norm())
            found[place] = share if math.isfinite(share) else 0.0
    return found
