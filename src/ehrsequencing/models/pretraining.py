"""Heads that only pretraining needs."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ehrsequencing.models.behrt import (
    BEHRTHead,
    ModelOutput,
    SeenBias,
    VocabularyHead,
    asked_states,
    initialise,
    sequence_pooling,
    visit_representations,
)
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.encoder import Pooling
from ehrsequencing.models.inputs import LabelRange, OptionalInputs
from ehrsequencing.objectives.mlm import IGNORE_INDEX, mlm_loss


class JointOutput(NamedTuple):
    """Masked codes' logits and loss, and the next visits' logits; None where they were not asked for."""

    logits: Tensor
    loss: Tensor | None
    next_logits: Tensor | None


class BEHRTForJointPretraining(BEHRTHead):
    """Masked language modelling and next-visit prediction over one encoder, with a head each."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.head = VocabularyHead(config)
        self.pooling = sequence_pooling(config)
        self.next_head = VocabularyHead(config)
        self.seen = SeenBias(config.vocab_size)
        for part in (self.head, self.pooling, self.next_head):
            if part is not None:
                initialise(part)

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        labels: Tensor | None = None,
        visits: Tensor | None = None,
        next_visit: bool = False,
        **optional: Unpack[OptionalInputs],
    ) -> JointOutput | ModelOutput:
        """Score masked codes, next visits or both; inputs as in `BEHRT.forward`.

        Args:
            labels: As for `BEHRTForMLM`.
            visits: As for `BEHRTForNextVisitPrediction`.
            next_visit: Answer as `BEHRTForNextVisitPrediction` does, without the head of masked codes.

        Returns:
            `JointOutput`, with `next_logits` where `visits` are given; with `next_visit` a `ModelOutput`.
        """
        checked = None if labels is None else LabelRange(labels, self.config.vocab_size - 1, IGNORE_INDEX)
        hidden = self.behrt(codes, ages, visit_ids, mask, label_range=checked, **optional)
        embedding, following = self.behrt.embeddings.code, None
        if visits is not None or next_visit:
            pooled, visits = asked_states(self.config, self.pooling, hidden, codes, visit_ids, mask, visits)
            following = self.next_head(pooled, embedding)
            following = following + self.seen(codes, visit_ids, mask, visits, self.config.num_special)
        if next_visit and following is not None:
            return ModelOutput(following, None)
        if labels is None:
            return JointOutput(self.head(hidden, embedding), None, following)
        masked = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        logits = self.head(hidden.flatten(0, 1).index_select(0, masked), embedding)
        return JointOutput(logits, mlm_loss(logits, labels), following)


class BEHRTForContrastive(BEHRTHead):
    """A vector per sequence in which segments of one subject lie close.

    Args:
        config: Architecture.
        projection_dim: Width of the vector. What is compared is a two-layer projection of the pooled sequence, which
            later tasks leave behind (Chen et al. 2020, arXiv:2002.05709, section 4.2).
    """

    def __init__(self, config: BEHRTConfig, projection_dim: int = 64) -> None:
        super().__init__(config)
        self.projection_dim = projection_dim
        self.pooling = Pooling(config.hidden_dim, config.pooling)
        self.project = nn.Sequential(
            nn.Linear(config.hidden_dim, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, projection_dim)
        )
        initialise(self.pooling)
        initialise(self.project)

    def head_options(self) -> dict[str, Any]:
        return {"projection_dim": self.projection_dim}

    def forward(
        self, codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor, **optional: Unpack[OptionalInputs]
    ) -> ModelOutput:
        """Project; inputs as in `BEHRT.forward`.

        Returns:
            logits Float [batch, projection_dim], not normalised, and no loss, which is one of pairs.
        """
        hidden = self.behrt(codes, ages, visit_ids, mask, **optional)
        return ModelOutput(self.project(self.pooling(hidden, mask, visit_ids)), None)


class BEHRTForTimeToEvent(BEHRTHead):
    """Hazards of many codes after every visit, constant within pieces of time.

    Args:
        config: Architecture, with visit-causal attention.
        codes: Number of codes whose next occurrence is timed.
        pieces: Number of pieces.
        rank: Width of the vectors whose product is a log hazard: one per visit and piece, one per code.

    Attributes:
        asked: Long [codes], token ids.
        boundaries: Float [pieces], days at which the pieces start.

    Source: Steinberg et al. 2023 (MOTOR), arXiv:2301.03150, section 3.
    """

    asked: Tensor
    boundaries: Tensor

    def __init__(self, config: BEHRTConfig, codes: int, pieces: int = 8, rank: int = 32) -> None:
        super().__init__(config)
        self.sizes = {"codes": codes, "pieces": pieces, "rank": rank}
        self.register_buffer("asked", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("boundaries", torch.arange(pieces, dtype=torch.float32))
        self.pieces = nn.Linear(config.hidden_dim, pieces * rank)
        self.tasks = nn.Linear(rank, codes, bias=False)
        self.bias = nn.Parameter(torch.zeros(pieces, codes))
        for part in (self.pieces, self.tasks):
            initialise(part)

    def head_options(self) -> dict[str, Any]:
        return dict(self.sizes)

    @torch.no_grad()
    def begin(self, asked: Tensor, boundaries: Tensor, log_rate: Tensor) -> None:
        """Set what is asked and start at the rates of train, with little of the model's own on top.

        Args:
            asked: Long [codes].
            boundaries: Float [pieces].
            log_rate: Float [pieces, codes], logarithm of events per day.
        """
        self.asked.copy_(asked)
        self.tasks.weight.mul_(0.1)
        self.boundaries.copy_(boundaries)
        self.bias.copy_(log_rate)

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        visits: Tensor,
        **optional: Unpack[OptionalInputs],
    ) -> ModelOutput:
        """Log hazards; inputs as in `BEHRT.forward`.

        Args:
            visits: Long [visits, 2], row of the batch and visit id.

        Returns:
            logits Float [visits, codes, pieces], log hazards per day, and no loss.

        Raises:
            ConfigError: the attention is bidirectional.
        """
        hidden = self.behrt(codes, ages, visit_ids, mask, **optional)
        seen = visit_representations(self.config, hidden, codes, visit_ids, mask, visits)
        by_piece = self.pieces(seen).unflatten(1, (self.sizes["pieces"], self.sizes["rank"]))
        return ModelOutput((self.tasks(by_piece) + self.bias).transpose(1, 2), None)
