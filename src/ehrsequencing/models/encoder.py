"""Transformer encoder and the pooling of its output."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ehrsequencing.models.attention import RotaryPositions, SelfAttention
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.dropout import Dropout


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection.

    Same function as `torch.nn.TransformerEncoderLayer` with the same weights; it has no separate path for
    evaluation, so training and evaluation run the same modules. Its gated feed-forward part ("swiglu"): Shazeer 2020,
    arXiv:2002.05202.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.pre_norm = config.norm == "pre"
        self.gated = config.activation == "swiglu"
        functions: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "swiglu": F.silu}
        self.activation = functions[config.activation]
        rotary = RotaryPositions(width // config.num_heads, config.max_length) if config.position == "rotary" else None
        self.self_attn = SelfAttention(width, config.num_heads, config.attention_dropout, rotary)
        inner = max(1, config.ffn_dim * 2 // 3) if self.gated else config.ffn_dim
        self.linear1 = nn.Linear(width, 2 * inner if self.gated else inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, attend: Tensor | None) -> Tensor:
        """Float [batch, length, hidden_dim] and keys to read (see `SelfAttention`) -> same shape as `hidden`."""
        if self.pre_norm:
            hidden = hidden + self.dropout(self.self_attn(self.norm1(hidden), attend))
            return hidden + self._feed_forward(self.norm2(hidden))
        hidden = self.norm1(hidden + self.dropout(self.self_attn(hidden, attend)))
        return self.norm2(hidden + self._feed_forward(hidden))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        inner = self.linear1(hidden)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.dropout(self.linear2(self.dropout(self.activation(gate) * inner)))
        return self.dropout(self.linear2(self.dropout(self.activation(inner))))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; with pre-normalisation a last layer norm bounds the output."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_dim) if config.norm == "pre" else nn.Identity()

    def forward(self, hidden: Tensor, mask: Tensor | None, readable: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            hidden: Float [batch, length, hidden_dim].
            mask: Bool [batch, length], True at real tokens. None: no padding, which the fast kernels like best.
            readable: Bool [batch, length, length], True where a token (second axis) may read another (third). None:
                everything.

        Returns:
            Float [batch, length, hidden_dim], exactly 0 at padding.
        """
        attend = None
        if readable is not None:
            itself = torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
            attend = (readable if mask is None else readable & mask[:, None, :]) | itself
            attend = attend[:, None]
        elif mask is not None:
            # A row of nothing but padding reads all of it: a softmax over no key at all is NaN.
            attend = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, attend)
        hidden = self.norm(hidden)
        return hidden if mask is None else hidden.masked_fill(~mask[..., None], 0.0)


def visit_causal(visit_ids: Tensor, apart: Tensor) -> Tensor:
    """Which token may read which, so that nothing at a visit depends on a later one.

    Args:
        visit_ids: Long [batch, length].
        apart: Bool [batch, length], True at tokens that read everything and that no other token reads.

    Returns:
        Bool [batch, length, length]; the second axis reads the third.
    """
    earlier = visit_ids[:, None, :] <= visit_ids[:, :, None]
    return (earlier & ~apart[:, None, :]) | apart[:, :, None]


def visit_means(hidden: Tensor, visit_ids: Tensor, chosen: Tensor, visits: Tensor) -> Tensor:
    """Mean of each visit's tokens.

    Args:
        hidden: Float [batch, length, hidden_dim].
        visit_ids: Long [batch, length].
        chosen: Bool [batch, length], the tokens that count.
        visits: Long [visits, 2], row of the batch and visit id.

    Returns:
        Float [visits, hidden_dim]; 0 where no token counts.
    """
    slots = int(visit_ids.max()) + 1
    row = torch.arange(len(hidden), device=hidden.device)[:, None]
    place = (row * slots + visit_ids).flatten()
    weight = chosen.flatten().to(hidden.dtype)
    total = hidden.new_zeros(len(hidden) * slots, hidden.shape[-1])
    total = total.index_add(0, place, hidden.flatten(0, 1) * weight[:, None])
    count = hidden.new_zeros(len(hidden) * slots).index_add(0, place, weight)
    cell = visits[:, 0] * slots + visits[:, 1]
    return total[cell] / count[cell, None].clamp(min=1)


class Pooling(nn.Module):
    """One vector per sequence, reading real tokens only; zeros for a row without any.

    Args:
        hidden_dim: Width.
        mode: "cls" (the first real token), "mean", "attention" (weights learned from the hidden states) or "last_visit"
            (mean over the visit with the highest id).
    """

    def __init__(self, hidden_dim: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.score = nn.Linear(hidden_dim, 1) if mode == "attention" else None

    def forward(self, hidden: Tensor, mask: Tensor, visit_ids: Tensor) -> Tensor:
        """Pool.

        Args:
            hidden: Float [batch, length, hidden_dim], 0 at padding.
            mask: Bool [batch, length].
            visit_ids: Long [batch, length].

        Returns:
            Float [batch, hidden_dim].
        """
        if self.mode == "last_visit":
            last = torch.where(mask, visit_ids, -1).amax(dim=1, keepdim=True)
            mask = mask & (visit_ids == last)
            return hidden.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        if self.mode == "cls":
            first = mask.to(torch.int8).argmax(dim=1)
            return hidden[torch.arange(len(hidden), device=hidden.device), first]
        if self.score is None:
            return hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        # The smallest finite number instead of minus infinity: uniform weights over zero vectors, not NaN,
        # where a row is all padding.
        scores = self.score(hidden).squeeze(-1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return (torch.softmax(scores, dim=1)[..., None] * hidden).sum(dim=1)
