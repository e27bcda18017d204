"""Multi-head self-attention with a linear layer of its own for query, key, value and output."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention.

    The four projections are plain linear layers, which is what lets an adapter wrap any of them:
    `torch.nn.MultiheadAttention` reads the weights of its output projection directly, past any wrapper.

    Args:
        hidden_dim: Width of input and output.
        num_heads: Divides `hidden_dim`.
        dropout: On attention weights, in training.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
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
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attend, dropout_p=rate)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
