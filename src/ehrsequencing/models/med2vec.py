"""Med2Vec and skip-gram: vectors of codes, and of visits, from which codes occur together.

Source: Choi et al. 2016, Multi-layer representation learning for medical concepts, arXiv:1602.05568.

What the paper leaves open, and what holds here:
- Demographics d_t are "age, sex, ...": here the age at the visit in units of 100 years, whether it is unknown, and one
  0/1 column per token of the kind demographic, from rows without a date or of the visit itself. Such tokens are no
  codes of a visit.
- Equation 5 weighs the sum over all pairs of codes of a visit, whose number grows with the square of its size, against
  a handful of neighbours; the authors' program averages over pairs instead. `code_term` says which.
- The authors predict grouped codes to save time. Here every code is predicted, since the store's roll-up is the place
  where codes are grouped.
- They train with Adadelta and an L2 penalty of 0.001 on W_c; here AdamW with its weight decay, as all models have.
- W_s starts at 0.1 of what a linear layer starts with and b_s, in training, at the frequencies of codes around a visit.
- A code that a visit holds several times counts once; visits without a code are passed over and end the window.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.objectives.cooccurrence import (
    VisitSets,
    context_nll,
    neighbour_nll,
    neighbours,
    sums_of_codes,
    visit_sets,
)

CODE_TERMS = ("sum", "mean")
_START = 0.1
"""Code vectors start uniform within this, and scores with this share of a linear layer's usual weights.

The authors' 0.01 leaves the softmax over codes flat for epochs.
"""
_AGE_SCALE = 100.0


@dataclass(frozen=True)
class CodeVectorConfig:
    """Architecture of a model of code vectors.

    Args:
        vocab_size: Number of token ids, special tokens included.
        code_dim: Width m of a code's vector.
        visit_dim: Width n of a visit's vector; of Med2Vec alone.
        window: Visits to each side that are predicted (Med2Vec) or count as context (skip-gram, 0: the visit alone).
        code_term: How Med2Vec adds the loss of pairs of codes: "sum" (equation 5, nats per visit) or "mean" (nats per
            pair and nats per neighbour).
        demographic_ids: Token ids that are demographics and no codes.
        max_length: Tokens of a history at most.
        max_age: Age that means unknown.
        num_special: Ids below this are special tokens.

    Raises:
        ConfigError: a value is out of range.
    """

    vocab_size: int
    code_dim: int = 200
    visit_dim: int = 200
    window: int = 1
    code_term: str = "sum"
    demographic_ids: tuple[int, ...] = field(default=())
    max_length: int = 512
    max_age: int = 120
    num_special: int = 5
    family: ClassVar[str] = "code vectors"
    separators: ClassVar[bool] = False
    """A visit is a set here, and its end needs no token."""

    def __post_init__(self) -> None:
        for name in ("code_dim", "visit_dim", "max_length", "max_age"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a model of code vectors", got=getattr(self, name), expected="at least 1")
        if self.vocab_size <= self.num_special or self.window < 0:
            raise ConfigError(
                "vocab_size, window",
                got=(self.vocab_size, self.window),
                expected=f"more than {self.num_special} special tokens, and 0 or more visits",
            )
        if self.code_term not in CODE_TERMS:
            raise ConfigError("code_term", got=repr(self.code_term), expected=f"one of {', '.join(CODE_TERMS)}")
        if any(not self.num_special <= token < self.vocab_size for token in self.demographic_ids):
            raise ConfigError(
                "demographic_ids", got=self.demographic_ids, expected=f"{self.num_special} to {self.vocab_size - 1}"
            )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` takes."""
        return ("codes", "ages", "visit_ids", "mask")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"demographic_ids": list(self.demographic_ids)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; an unknown or missing key is a ConfigError."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown or "vocab_size" not in values:
            raise ConfigError(
                "options of a model of code vectors", got=", ".join(unknown) or "no vocab_size",
                remedy="check the spelling",
            )  # fmt: skip
        return cls(**{**values, "demographic_ids": tuple(values.get("demographic_ids", ()))})


class CodeVectorOutput(NamedTuple):
    """What a batch costs; the sums of its parts are the loss.

    Attributes:
        loss: Scalar, nats; see the model.
        visits: The visits of the batch.
        code_nats: Float [visits], of the pairs of codes.
        code_pairs: Long [visits].
        here, around: Long [pairs], the visit that predicts and the one that is predicted.
        visit_nats: Float [pairs].
        scores: Float [visits, vocab_size] of the codes around each visit; None of skip-gram.
    """

    loss: Tensor
    visits: VisitSets
    code_nats: Tensor
    code_pairs: Tensor
    here: Tensor
    around: Tensor
    visit_nats: Tensor
    scores: Tensor | None


class CodeVectorModel(PretrainedModel):
    """What Med2Vec and skip-gram share: a vector per token, and visits as sets of codes."""

    config_class: ClassVar[Any] = CodeVectorConfig
    demographic_column: Tensor

    def __init__(self, config: CodeVectorConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.code_dim)
        nn.init.uniform_(self.embeddings.weight, -_START, _START)
        columns = torch.full((config.vocab_size,), -1, dtype=torch.int64)
        columns[list(config.demographic_ids)] = torch.arange(len(config.demographic_ids))
        self.register_buffer("demographic_column", columns, persistent=False)

    def code_vectors(self) -> Tensor:
        """The vectors to take elsewhere, Float [vocab_size, code_dim]; those of special tokens mean nothing."""
        return self.embeddings.weight

    def visits_of(self, codes: Tensor, visit_ids: Tensor, mask: Tensor) -> VisitSets:
        """The visits as sets of codes; special and demographic tokens are none."""
        wanted = mask & (codes >= self.config.num_special) & (self.demographic_column[codes] < 0)
        return visit_sets(codes, visit_ids, wanted, vocab_size=self.config.vocab_size)


class Med2Vec(CodeVectorModel):
    """Vectors of codes that sum to vectors of visits.

    With x_t the multi-hot vector of a visit's codes and d_t its demographics:

    - u_t = ReLU(W_c x_t + b_c)                     equation 1
    - v_t = ReLU(W_v [u_t, d_t] + b_v)              equation 2
    - y_t = softmax(W_s v_t + b_s), which predicts the codes of each visit up to `window` away by binary
      cross-entropy                                 equation 3
    - p(c_j | c_i) = softmax over k of W'_k . W'_i with W' = ReLU(W_c), for all ordered pairs of codes of a visit
                                                    equation 4
    - both losses are added and divided by the number of visits    equation 5

    A code's vector is its column of W', non-negative, so that each of its coordinates can be read by itself.
    """

    def __init__(self, config: CodeVectorConfig) -> None:
        super().__init__(config)
        if config.window < 1:
            raise ConfigError("window of Med2Vec", got=config.window, expected="at least 1 visit")
        visit = nn.Linear(config.code_dim + 2, config.visit_dim)
        demographics = nn.Embedding(max(1, len(config.demographic_ids)), config.visit_dim)
        nn.init.normal_(demographics.weight, std=(config.code_dim + 2) ** -0.5)
        self.encoder = nn.ModuleDict({"visit": visit, "demographics": demographics})
        self.code_bias = nn.Parameter(torch.zeros(config.code_dim))
        self.head = nn.Linear(config.visit_dim, config.vocab_size)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(visit.bias)
        with torch.no_grad():
            self.head.weight.mul_(_START)

    def code_vectors(self) -> Tensor:
        return F.relu(self.embeddings.weight)

    def visit_vectors(self, codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor, visits: VisitSets) -> Tensor:
        """Equations 1 and 2, Float [visits, visit_dim].

        Args:
            codes, ages, visit_ids, mask: As in `forward`.
            visits: What `visits_of` made of them.
        """
        inner = F.relu(sums_of_codes(self.embeddings.weight, visits) + self.code_bias)
        oldest = torch.where(mask & (visit_ids > 0), ages, -1)
        slots = int(visit_ids.max()) + 1 if visit_ids.numel() else 1
        # All tokens of a visit that began on a birthday's eve need not agree: the age at its last one.
        by_visit = torch.full((len(codes), slots), -1, device=codes.device, dtype=ages.dtype)
        age = by_visit.scatter_reduce(1, visit_ids, oldest, "amax")[visits.row, visits.visit]
        unknown = age >= self.config.max_age
        years = torch.where(unknown, 0, age).to(inner.dtype) / _AGE_SCALE
        known = torch.stack((years, unknown.to(inner.dtype)), dim=1)
        total = self.encoder["visit"](torch.cat((inner, known), dim=1))
        return F.relu(total + self._demographics(codes, visit_ids, mask, visits, slots))

    def _demographics(self, codes: Tensor, visit_ids: Tensor, mask: Tensor, visits: VisitSets, slots: int) -> Tensor:
        """The demographic columns' part of equation 2, Float [visits, visit_dim]."""
        column = self.demographic_column[codes]
        row, position = (mask & (column >= 0)).nonzero(as_tuple=True)
        slot, column = visit_ids[row, position], column[row, position]
        place = visits.row * slots + visits.visit
        first = torch.searchsorted(visits.row, torch.stack((row, row + 1)))
        # A row without a date holds at every visit of the subject, any other one at its own.
        undated = slot == 0
        count = torch.where(undated, first[1] - first[0], 0)
        token = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
        step = torch.arange(len(token), device=row.device) - (count.cumsum(0) - count)[token]
        own = torch.searchsorted(place, row * slots + slot).clamp(max=max(0, len(place) - 1))
        dated = (~undated & (place[own] == row * slots + slot)).nonzero()[:, 0] if len(place) else row[:0]
        visit = torch.cat((first[0][token] + step, own[dated]))
        pair = torch.unique(visit * len(self.demographic_column) + torch.cat((column[token], column[dated])))
        visit, column = pair // len(self.demographic_column), pair % len(self.demographic_column)
        vectors = self.encoder["demographics"](column)
        return vectors.new_zeros(len(place), self.config.visit_dim).index_add(0, visit, vectors)

    def forward(self, codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor) -> CodeVectorOutput:
        """Cost of a batch.

        Args:
            codes: Long [batch, length], token ids.
            ages: Long [batch, length], years; `config.max_age` where unknown.
            visit_ids: Long [batch, length]; 0 is no visit.
            mask: Bool [batch, length].

        Raises:
            ShapeError: shapes differ.
        """
        check_shapes(codes, ages, visit_ids, mask)
        visits = self.visits_of(codes, visit_ids, mask)
        shared = self.code_vectors()
        code_nats, pairs = context_nll(shared, shared, visits, *neighbours(visits, 0))
        here, around = neighbours(visits, self.config.window)
        scores = self.head(self.visit_vectors(codes, ages, visit_ids, mask, visits))
        visit_nats = neighbour_nll(scores, visits, here, around)
        if self.config.code_term == "sum":
            loss = (code_nats.sum() + visit_nats.sum()) / max(1, len(visits.row))
        else:
            loss = code_nats.sum() / pairs.sum().clamp(min=1) + visit_nats.sum() / max(1, len(here))
        return CodeVectorOutput(loss, visits, code_nats, pairs, here, around, visit_nats, scores)


class SkipGram(CodeVectorModel):
    """Skip-gram over the codes of a visit, and of those around it where `window` says so, with the full softmax.

    Each code predicts every code around it: a visit has no order, so the whole of it is the context. No negatives are
    sampled: the normaliser of a code is shared by all of its pairs in a batch, which makes the exact loss cheap.
    The loss is in nats per pair of codes.
    """

    def __init__(self, config: CodeVectorConfig) -> None:
        super().__init__(config)
        self.outer = nn.Embedding(config.vocab_size, config.code_dim)
        # As in word2vec: the vectors that are predicted start at 0, so that the first softmax is flat.
        nn.init.zeros_(self.outer.weight)

    def forward(self, codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor) -> CodeVectorOutput:
        """Cost of a batch; arguments as for `Med2Vec`, of which ages are not read."""
        check_shapes(codes, ages, visit_ids, mask)
        visits = self.visits_of(codes, visit_ids, mask)
        here, around = neighbours(visits, self.config.window)
        nats, pairs = context_nll(self.embeddings.weight, self.outer.weight, visits, here, around)
        loss = nats.sum() / pairs.sum().clamp(min=1)
        return CodeVectorOutput(loss, visits, nats, pairs, here[:0], around[:0], nats[:0], None)


def check_shapes(codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor) -> None:
    """ShapeError unless all have one shape [batch, length]."""
    for name, given in (("ages", ages), ("visit_ids", visit_ids), ("mask", mask)):
        if codes.ndim != 2 or given.shape != codes.shape:
            raise ShapeError(name, tuple(given.shape), f"[batch, length] like codes {tuple(codes.shape)}")
