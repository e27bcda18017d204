"""From tokens to visits, recurrent layers over visits of different numbers, and a classifier over them."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ehrsequencing.models.behrt import initialise
from ehrsequencing.models.classification import ModelOutput, SequenceClassifier
from ehrsequencing.models.configuration import VisitConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.embeddings import BEHRTEmbedding
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.inputs import LabelRange, OptionalInputs, check_inputs


class Visits(NamedTuple):
    """The visits of a batch in order; those without a token are left out.

    Attributes:
        vectors: Float [batch, visits, width], mean of each visit's tokens; 0 after a row's last visit.
        lengths: Long [batch], visits of each row; 0 for a row of nothing but padding.
        place: Long [batch, length], the visit in `vectors` of each token; 0 at padding.
        share: Float [batch, length], weight of a token in its visit: one over the visit's tokens, 0 at padding.
    """

    vectors: Tensor
    lengths: Tensor
    place: Tensor
    share: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool [batch, visits], True at real visits."""
        return torch.arange(self.vectors.shape[1], device=self.lengths.device) < self.lengths[:, None]


def gather_visits(embedded: Tensor, visit_ids: Tensor, mask: Tensor) -> Visits:
    """Average the tokens of each visit.

    CLS and rows without a date, whose id is 0, make up what is read first. Nothing at padding counts.

    Args:
        embedded: Float [batch, length, width].
        visit_ids: Long [batch, length].
        mask: Bool [batch, length].
    """
    batch, width = len(embedded), embedded.shape[-1]
    row = torch.arange(batch, device=embedded.device)[:, None]
    # Sums of many tokens lose digits in half precision.
    wide = embedded.to(torch.promote_types(embedded.dtype, torch.float32)).masked_fill(~mask[..., None], 0.0)
    slots = int(visit_ids.max()) + 1
    count = wide.new_zeros(batch * slots).index_add(0, (row * slots + visit_ids).flatten(), mask.flatten().to(wide))
    count = count.view(batch, slots)
    lengths = (count > 0).sum(1)
    place = ((count > 0).cumsum(1) - 1).gather(1, visit_ids.long()).masked_fill(~mask, 0)
    share = (1 / count.gather(1, visit_ids.long()).clamp(min=1)).masked_fill(~mask, 0.0)
    visits = max(1, int(lengths.max()))
    vectors = wide.new_zeros(batch * visits, width)
    vectors = vectors.index_add(0, (row * visits + place).flatten(), (wide * share[..., None]).flatten(0, 1))
    return Visits(vectors.view(batch, visits, width), lengths, place, share)


def run_packed(layer: nn.LSTM | nn.GRU, vectors: Tensor, lengths: Tensor) -> Tensor:
    """States of a recurrent layer over sequences of different lengths.

    Packing is what keeps the backward direction from reading padding first. A sequence of length 0 is read as one of
    zeros.

    Args:
        layer: With `batch_first`.
        vectors: Float [batch, visits, width].
        lengths: Long [batch].

    Returns:
        Float [batch, visits, hidden], 0 after each sequence's end.
    """
    # The recurrence adds up over visits, so it stays in full precision under autocast.
    with torch.autocast(vectors.device.type, enabled=False):
        packed = pack_padded_sequence(vectors, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=vectors.shape[1])
    past_end = torch.arange(vectors.shape[1], device=vectors.device) >= lengths[:, None]
    return states.masked_fill(past_end[..., None], 0.0)


def initialise_recurrent(layer: nn.LSTM | nn.GRU) -> None:
    """Orthogonal recurrent weights, biases of 0, and an LSTM that starts by remembering.

    Source: Saxe et al. 2014, arXiv:1312.6120 (orthogonal); Jozefowicz et al. 2015, "An Empirical Exploration of
    Recurrent Network Architectures", section 3 (bias of 1 at the forget gate).
    """
    width = layer.hidden_size
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.data.split(width):
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
            if isinstance(layer, nn.LSTM) and name.startswith("bias_ih"):
                # PyTorch's order of gates: input, forget, cell, output.
                nn.init.ones_(parameter.data[width : 2 * width])


class VisitModel(PretrainedModel):
    """A model that reads a history visit by visit.

    Args:
        config: Architecture.
        encoder: Forward: `Visits` -> Float [batch, hidden_dim].
    """

    def __init__(self, config: VisitConfig, encoder: nn.Module) -> None:
        super().__init__(config)
        self.embeddings = BEHRTEmbedding(config)
        self.encoder = encoder
        self.dropout = Dropout(config.dropout)

    def initialise_all(self) -> None:
        """Draw all weights; the last thing that a constructor does."""
        initialise(self)
        for layer in self.modules():
            if isinstance(layer, nn.LSTM | nn.GRU):
                initialise_recurrent(layer)

    def read(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        label_range: LabelRange | None,
        optional: OptionalInputs,
    ) -> Tensor:
        """What a head reads, Float [batch, hidden_dim]; inputs and errors as in `BEHRT.forward`."""
        check_inputs(self.config, codes, ages, visit_ids, mask, optional=optional, labels=label_range)
        visits = gather_visits(self.embeddings(codes, ages, visit_ids, **optional), visit_ids, mask)
        states: Tensor = self.dropout(self.encoder(visits))
        return states


class VisitClassifier(VisitModel, SequenceClassifier):
    """One decision per sequence, from its visits.

    Args:
        config: Architecture.
        encoder: Forward: `Visits` -> Float [batch, hidden_dim].
        num_labels, problem_type: As in `BEHRTForSequenceClassification`.
    """

    def __init__(self, config: VisitConfig, encoder: nn.Module, num_labels: int, problem_type: str | None) -> None:
        super().__init__(config, encoder)
        self.decide(num_labels, problem_type)
        self.classifier = nn.Linear(config.hidden_dim, num_labels)
        self.initialise_all()

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        labels: Tensor | None = None,
        **optional: Unpack[OptionalInputs],
    ) -> ModelOutput:
        """Classify; inputs, labels and errors as in `BEHRTForSequenceClassification`.

        Returns:
            logits Float [batch] for "binary", else [batch, num_labels], and the mean loss in nats.
        """
        states = self.read(codes, ages, visit_ids, mask, self.label_range(labels), optional)
        return self.decided(self.classifier(states), labels)
