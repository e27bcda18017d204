"""An LSTM over visits, the recurrent baseline of the BEHRT family: same inputs, same embeddings, another encoder.

Source: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; over visits of coded records as in Choi et al.
2016, Doctor AI, arXiv:1511.05942 (there with gated recurrent units).
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from ehrsequencing.models.behrt import initialise
from ehrsequencing.models.classification import ModelOutput, SequenceClassifier
from ehrsequencing.models.configuration import VisitLSTMConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.embeddings import BEHRTEmbedding
from ehrsequencing.models.encoder import Pooling
from ehrsequencing.models.inputs import OptionalInputs, check_inputs
from ehrsequencing.models.visits import gather_visits, initialise_recurrent, run_packed


class VisitLSTMForSequenceClassification(SequenceClassifier):
    """One decision per sequence, from an LSTM over the means of its visits' tokens.

    Args:
        config: Architecture; `config.pooling` says what the head reads of the visits' states: their mean, an average
            with learned weights, or the last one ("last_visit"; of two directions the state in which each ends).
        num_labels, problem_type: As in `BEHRTForSequenceClassification`.

    >>> model = VisitLSTMForSequenceClassification(VisitLSTMConfig(vocab_size=100)).eval()
    >>> codes, ages = torch.randint(5, 100, (2, 7)), torch.randint(0, 100, (2, 7))
    >>> visit_ids, mask = torch.arange(7).expand(2, -1), torch.ones(2, 7, dtype=torch.bool)
    >>> tuple(model(codes, ages, visit_ids, mask).logits.shape)
    (2,)
    """

    config: VisitLSTMConfig
    config_class = VisitLSTMConfig

    def __init__(self, config: VisitLSTMConfig, num_labels: int = 1, problem_type: str | None = None) -> None:
        super().__init__(config)
        self.decide(num_labels, problem_type)
        self.embeddings = BEHRTEmbedding(config)
        self.encoder = nn.LSTM(
            config.hidden_dim,
            config.hidden_dim // 2 if config.bidirectional else config.hidden_dim,
            config.num_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.pooling = Pooling(config.hidden_dim, config.pooling)
        self.dropout = Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_dim, num_labels)
        initialise(self)
        initialise_recurrent(self.encoder)

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
        checked = self.label_range(labels)
        check_inputs(self.config, codes, ages, visit_ids, mask, optional=optional, labels=checked)
        visits = gather_visits(self.embeddings(codes, ages, visit_ids, **optional), visit_ids, mask)
        states = run_packed(self.encoder, visits.vectors, visits.lengths)
        order = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        pooled = self.pooling(states, visits.mask, order)
        if self.config.bidirectional and self.config.pooling == "last_visit":
            half = self.encoder.hidden_size
            pooled = torch.cat((pooled[:, :half], states[:, 0, half:]), dim=1)
        return self.decided(self.classifier(self.dropout(pooled)), labels)
