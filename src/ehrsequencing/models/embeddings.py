"""Embeddings of tokens, ages, visits, positions, kinds, times and values."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from ehrsequencing.models.configuration import BEHRTConfig, SequenceConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.inputs import OptionalInputs

CONTEXT_STD_SHARE = 0.2
"""Initial standard deviation of ages, visits, positions and kinds, as a share of the codes'.

The sum of embeddings is normalised, so only their ratio counts. With equal shares three quarters of a token's
initial representation would be context; docs/models.md has what the scale and the ratio are worth.
"""


def code_std(embedding_dim: int) -> float:
    """Initial standard deviation of code embeddings: tied logits then start with one of 0.8 at any width."""
    return 0.8 / math.sqrt(embedding_dim)


class AgeEmbedding(nn.Module):
    """One vector per age in whole years; index `max_age` means unknown.

    Forward: Long [batch, length], 0 to `max_age` inclusive -> Float [batch, length, embedding_dim].
    """

    def __init__(self, embedding_dim: int, max_age: int = 120) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_age + 1, embedding_dim)

    def forward(self, ages: Tensor) -> Tensor:
        return self.embedding(ages)


class VisitEmbedding(nn.Module):
    """One vector per visit id, so that tokens of one visit share it.

    Forward: Long [batch, length], below `max_visits` -> Float [batch, length, embedding_dim].
    """

    def __init__(self, embedding_dim: int, max_visits: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_visits, embedding_dim)

    def forward(self, visit_ids: Tensor) -> Tensor:
        return self.embedding(visit_ids)


class PositionalEmbedding(nn.Module):
    """A learned vector per position.

    Forward: length (int) -> Float [length, embedding_dim].
    """

    def __init__(self, embedding_dim: int, max_length: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_length, embedding_dim)

    def forward(self, length: int) -> Tensor:
        return self.embedding.weight[:length]


class SinusoidalPositionalEncoding(nn.Module):
    """Fixed sines and cosines of geometrically spaced wavelengths; nothing to learn.

    Forward: length (int) -> Float [length, embedding_dim].

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    table: Tensor

    def __init__(self, embedding_dim: int, max_length: int = 512) -> None:
        super().__init__()
        # Computed in double precision: float32 loses digits in the angle at long positions.
        position = torch.arange(max_length, dtype=torch.float64)[:, None]
        rate = torch.exp(torch.arange(0, embedding_dim, 2, dtype=torch.float64) * (-math.log(10_000.0) / embedding_dim))
        table = torch.stack((torch.sin(position * rate), torch.cos(position * rate)), dim=-1).flatten(1)
        # Sines (root mean square 0.71) would drown the codes in the sum; they enter at the scale that learned
        # positions start from.
        scale = CONTEXT_STD_SHARE * code_std(embedding_dim) * math.sqrt(2)
        self.register_buffer("table", (table * scale).float(), persistent=False)

    def forward(self, length: int) -> Tensor:
        return self.table[:length]


class TimeEmbedding(nn.Module):
    """Days before the prediction time or since the visit before, on a logarithmic scale from one day to a lifetime.

    Forward: Float [batch, length] days, at least 0 -> Float [batch, length, embedding_dim].
    """

    frequencies: Tensor

    def __init__(self, embedding_dim: int, num_frequencies: int = 8) -> None:
        super().__init__()
        # log1p of 100 years is 10.5, so the slowest wave is monotone over a life and the fastest has a
        # period of 0.08 in log days, which tells consecutive days of the last two weeks apart.
        self.register_buffer("frequencies", torch.pi / 10.5 * 2.0 ** torch.arange(num_frequencies), persistent=False)
        self.projection = nn.Linear(2 * num_frequencies + 1, embedding_dim)
        self.input_norm = math.sqrt(num_frequencies)
        """Norm of the sines and cosines: each pair has one of 1."""

    def forward(self, days: Tensor) -> Tensor:
        log_days = torch.log1p(days.clamp(min=0)).to(self.frequencies.dtype)[..., None]
        angles = log_days * self.frequencies
        return self.projection(torch.cat((log_days / 10.5, torch.sin(angles), torch.cos(angles)), dim=-1))


class Time2Vec(nn.Module):
    """A quantity of time in years as one linear and several periodic functions of learned frequency; 0 at NaN.

    Forward: Float [batch, length], about 0 to 100 -> Float [batch, length, embedding_dim].

    Source: Kazemi et al. 2019, Time2Vec, arXiv:1907.05321.
    """

    def __init__(self, embedding_dim: int, num_frequencies: int = 16) -> None:
        super().__init__()
        # Periods start between 200 years and 0.4, evenly on a logarithmic scale: a lifetime to a season.
        self.frequencies = nn.Parameter(2 * math.pi / 200 * 500 ** torch.linspace(0, 1, num_frequencies))
        self.phases = nn.Parameter(torch.linspace(0, math.pi, num_frequencies))
        self.projection = nn.Linear(num_frequencies + 1, embedding_dim)
        self.input_norm = math.sqrt(num_frequencies / 2 + 0.25)

    def forward(self, years: Tensor) -> Tensor:
        absent = torch.isnan(years)[..., None]
        known = torch.nan_to_num(years, nan=0.0)[..., None].to(self.frequencies.dtype)
        waves = torch.sin(known * self.frequencies + self.phases)
        return self.projection(torch.cat((known / 100, waves), dim=-1)).masked_fill(absent, 0.0)


class ValueEmbedding(nn.Module):
    """A numeric value in [0, 1] (its empirical CDF); exactly zero where there is none (NaN).

    Forward: Float [batch, length] -> Float [batch, length, embedding_dim].
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(1, embedding_dim)
        self.outer = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, values: Tensor) -> Tensor:
        absent = torch.isnan(values)[..., None]
        centred = torch.nan_to_num(values, nan=0.0).to(self.inner.weight.dtype)[..., None] * 2 - 1
        return self.outer(nn.functional.gelu(self.inner(centred))).masked_fill(absent, 0.0)


class BEHRTEmbedding(nn.Module):
    """Sum of all embeddings that the configuration asks for, normalised, then mapped to the hidden width.

    Visits and positions are embedded for a BEHRT alone: a model that reads visit by visit knows their order.

    Forward: codes, ages, visit_ids Long [batch, length] and `OptionalInputs` where configured -> Float [batch, length,
    hidden_dim].

    Source: Li et al. 2020, BEHRT, doi:10.1038/s41598-020-62922-y (codes, ages, visit segments and positions summed).
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.code = nn.Embedding(config.vocab_size, width)
        self.age = AgeEmbedding(width, config.max_age) if config.age == "years" else None
        self.age_years = Time2Vec(width) if config.age == "continuous" else None
        position = config.position if isinstance(config, BEHRTConfig) else "none"
        self.visit = VisitEmbedding(width, config.max_visits) if isinstance(config, BEHRTConfig) else None
        self.position: PositionalEmbedding | SinusoidalPositionalEncoding | None = None
        if position == "learned":
            self.position = PositionalEmbedding(width, config.max_length)
        elif position == "sinusoidal":
            self.position = SinusoidalPositionalEncoding(width, config.max_length)
        self.kind = nn.Embedding(config.num_kinds + 1, width) if config.num_kinds else None
        self.time = TimeEmbedding(width) if config.time_embedding else None
        self.gap = TimeEmbedding(width) if config.gap_embedding else None
        self.calendar = Time2Vec(width) if config.calendar_embedding else None
        self.value = ValueEmbedding(width) if config.use_values else None
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)
        self.projection = nn.Linear(width, config.hidden_dim) if width != config.hidden_dim else nn.Identity()

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        **optional: Unpack[OptionalInputs],
    ) -> Tensor:
        total = self.code(codes)
        if self.age is not None:
            total = total + self.age(ages)
        if self.visit is not None:
            total = total + self.visit(visit_ids)
        if self.position is not None:
            total = total + self.position(codes.shape[1])
        for embed, given in (
            (self.kind, optional.get("kinds")),
            (self.time, optional.get("times")),
            (self.value, optional.get("values")),
            (self.gap, optional.get("gaps")),
            (self.age_years, optional.get("age_years")),
            (self.calendar, optional.get("calendar")),
        ):
            if embed is not None and given is not None:
                total = total + embed(given)
        return self.projection(self.dropout(self.norm(total)))
