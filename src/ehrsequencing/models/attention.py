"""Multi-head self-attention with a linear layer of its own for query, key, value and output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """Turns each pair of query and key components by an angle that grows with the position.

    The product of a query and a key then depends on their distance alone, so "the token before" is one pattern to
    learn and not one per position.

    Args:
        head_dim: Width of a head, even.
        max_length: Longest sequence.

    Source: Su et al. 2021, RoFormer, arXiv:2104.09864.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, max_length: int) -> None:
        super().__init__()
        rate = 10_000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.arange(max_length, dtype=torch.float64)[:, None] * rate
        self.register_buffer("cosine", angle.cos().float(), persistent=False)
        self.register_buffer("sine", angle.sin().float(), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """Float [batch, heads, length, head_dim] -> the same, turned."""
        length = heads.shape[-2]
        cosine, sine = self.cosine[:length].to(heads.dtype), self.sine[:length].to(heads.dtype)
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention.

    The four projections are plain linear layers, which is what lets an adapter wrap any of them:
    `torch.nn.MultiheadAttention` reads the weights of its output projection directly, past any wrapper.

    Args:
        hidden_dim: Width of input and output.
        num_heads: Divides `hidden_dim`.
        dropout: On attention weights, in training.
        rotary: Positions to turn queries and keys by, or None.
    """

    def __init__(
        self, hidden_dim: int, num_heads: int, dropout: float = 0.0, rotary: RotaryPositions | None = None
    ) -> None:
        super().__init__()
        self.rotary = rotary
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_proj = nn.Linear(hidden_dim, hidden_dim)
        self.key_proj = nn.Linear(hidden_dim, hidden_dim)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, hidden: Tensor, attend: Tensor | None) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden: Float [batch, length, hidden_dim].
            attend: Bool [batch, 1, 1, length], True at keys to read; each row needs one True. None: all keys.

        Returns:
            Float [batch, length, hidden_dim].
        """
        batch, length, width = hidden.shape
        heads = (batch, length, self.num_heads, width // self.num_heads)
        query = self.query_proj(hidden).view(heads).transpose(1, 2)
        key = self.key_proj(hidden).view(heads).transpose(1, 2)
        value = self.value_proj(hidden).view(heads).transpose(1, 2)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attend, dropout_p=rate)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
