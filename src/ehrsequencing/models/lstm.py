"""An LSTM over visits, the recurrent baseline of the BEHRT family: same inputs, same embeddings, another encoder.

Source: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; over visits of coded records as in Choi et al.
2016, Doctor AI, arXiv:1511.05942 (there with gated recurrent units).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ehrsequencing.models.configuration import VisitLSTMConfig
from ehrsequencing.models.encoder import Pooling
from ehrsequencing.models.visits import VisitClassifier, Visits, run_packed


class VisitLSTM(nn.Module):
    """States of an LSTM after each visit, pooled.

    Forward: `Visits` -> Float [batch, hidden_dim]; 0 for a row without any visit.
    """

    def __init__(self, config: VisitLSTMConfig) -> None:
        super().__init__()
        self.ends = config.bidirectional and config.pooling == "last_visit"
        self.lstm = nn.LSTM(
            config.hidden_dim,
            config.hidden_dim // 2 if config.bidirectional else config.hidden_dim,
            config.num_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.pooling = Pooling(config.hidden_dim, config.pooling)

    def forward(self, visits: Visits) -> Tensor:
        states = run_packed(self.lstm, visits.vectors, visits.lengths)
        order = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        pooled: Tensor = self.pooling(states, visits.mask, order)
        if not self.ends:
            return pooled
        half = self.lstm.hidden_size
        return torch.cat((pooled[:, :half], states[:, 0, half:]), dim=1)


class VisitLSTMForSequenceClassification(VisitClassifier):
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
        super().__init__(config, VisitLSTM(config), num_labels, problem_type)
