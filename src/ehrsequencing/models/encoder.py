"""Transformer encoder and the pooling of its output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ehrsequencing.models.attention import RotaryPositions, SelfAttention
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.dropout import Dropout


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection.

    Same function as `torch.nn.TransformerEncoderLayer` with the same weights; it has no separate path for
    evaluation, so training and evaluation run the same modules.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.pre_norm = config.norm == "pre"
        self.activation = F.gelu if config.activation == "gelu" else F.relu
        rotary = RotaryPositions(width // config.num_heads, config.max_length) if config.position == "rotary" else None
        self.self_attn = SelfAttention(width, config.num_heads, config.attention_dropout, rotary)
        self.linear1 = nn.Linear(width, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, width)
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
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(hidden)))))


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; with pre-normalisation a last layer norm bounds the output."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_dim) if config.norm == "pre" else nn.Identity()

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Encode.

        Args:
            hidden: Float [batch, length, hidden_dim].
            mask: Bool [batch, length], True at real tokens. None: no padding, which the fast kernels like best.

        Returns:
            Float [batch, length, hidden_dim], exactly 0 at padding.
        """
        attend = None
        if mask is not None:
            # A row of nothing but padding reads all of it: a softmax over no key at all is NaN.
            attend = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, attend)
        hidden = self.norm(hidden)
        return hidden if mask is None else hidden.masked_fill(~mask[..., None], 0.0)


class Pooling(nn.Module):
    """One vector per sequence, reading real tokens only; zeros for a row without any.

    Args:
        hidden_dim: Width.
        mode: "cls" (the first real token), "mean", or "attention" (weights learned from the hidden states).
    """

    def __init__(self, hidden_dim: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.score = nn.Linear(hidden_dim, 1) if mode == "attention" else None

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Float [batch, length, hidden_dim], 0 at padding, and Bool [batch, length] -> Float [batch, hidden_dim]."""
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
