"""RETAIN: two attentions in reverse time, and a decision that is a sum over codes.

Source: Choi et al. 2016, RETAIN: An Interpretable Predictive Model for Healthcare using Reverse Time Attention
Mechanism, arXiv:1608.05745, sections 2.2 (model) and 2.3 (contributions), with gated recurrent units.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ehrsequencing.models.configuration import RETAINConfig
from ehrsequencing.models.inputs import OptionalInputs, check_inputs
from ehrsequencing.models.visits import VisitClassifier, Visits, gather_visits, run_packed


class Contributions(NamedTuple):
    """What each token adds to the logits, which are the sum over tokens plus the bias.

    Attributes:
        tokens: Float [batch, length] for a binary label, else [batch, length, num_labels]; 0 at padding.
        bias: Float [num_labels].
        visit_attention: Float [batch, length], weight of the token's visit (alpha in the paper); 0 at padding.
    """

    tokens: Tensor
    bias: Tensor
    visit_attention: Tensor


class ReverseTimeAttention(nn.Module):
    """Weights of visits and of their dimensions, from two recurrent layers that read the last visit first.

    Forward: `Visits` -> Float [batch, width], the visits' sum under both weights; 0 for a row without any visit.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visit_rnn = nn.GRU(width, width, batch_first=True)
        self.visit_score = nn.Linear(width, 1)
        self.variable_rnn = nn.GRU(width, width, batch_first=True)
        self.variable_gate = nn.Linear(width, width)

    def forward(self, visits: Visits) -> Tensor:
        alpha, beta = self.weights(visits)
        return (alpha[..., None] * beta * visits.vectors).sum(1)

    def weights(self, visits: Visits) -> tuple[Tensor, Tensor]:
        """Alpha, Float [batch, visits], summing to 1 over real visits; beta, Float [batch, visits, width]."""
        place = torch.arange(visits.vectors.shape[1], device=visits.lengths.device)
        backwards = (visits.lengths[:, None] - 1 - place).clamp(min=0)[..., None].expand_as(visits.vectors)
        reverse = visits.vectors.gather(1, backwards)
        # The same exchange puts the states back in order of time.
        g, h = (
            run_packed(layer, reverse, visits.lengths).gather(1, backwards)
            for layer in (self.visit_rnn, self.variable_rnn)
        )
        scores = self.visit_score(g).squeeze(-1).float()
        # The smallest finite number instead of minus infinity: a row of nothing but padding has no visit.
        alpha = torch.softmax(scores.masked_fill(~visits.mask, torch.finfo(scores.dtype).min), dim=1)
        return alpha.masked_fill(~visits.mask, 0.0), torch.tanh(self.variable_gate(h))


class RETAINForSequenceClassification(VisitClassifier):
    """One decision per sequence, as a sum of what each code contributes.

    Beside its code a token carries what `BEHRTEmbedding` adds to it; where the paper sums the codes of a visit, their
    mean is taken, so that visits of any size are of one scale.

    Args:
        config: Architecture.
        num_labels, problem_type: As in `BEHRTForSequenceClassification`.

    >>> model = RETAINForSequenceClassification(RETAINConfig(vocab_size=100)).eval()
    >>> codes, ages = torch.randint(5, 100, (2, 7)), torch.randint(0, 100, (2, 7))
    >>> visit_ids, mask = torch.arange(7).expand(2, -1), torch.ones(2, 7, dtype=torch.bool)
    >>> logits = model(codes, ages, visit_ids, mask).logits
    >>> parts = model.contributions(codes, ages, visit_ids, mask)
    >>> bool(torch.allclose(parts.tokens.sum(1) + parts.bias, logits, atol=1e-6))
    True
    """

    config: RETAINConfig
    encoder: ReverseTimeAttention
    config_class = RETAINConfig

    def __init__(self, config: RETAINConfig, num_labels: int = 1, problem_type: str | None = None) -> None:
        super().__init__(config, ReverseTimeAttention(config.hidden_dim), num_labels, problem_type)

    @torch.no_grad()
    def contributions(
        self, codes: Tensor, ages: Tensor, visit_ids: Tensor, mask: Tensor, **optional: Unpack[OptionalInputs]
    ) -> Contributions:
        """What each token adds to the logits; of a model in eval mode, since dropout draws anew at each call.

        Source: equation 5 of the paper, alpha W (beta * embedding), with the token's share of its visit as x.
        """
        check_inputs(self.config, codes, ages, visit_ids, mask, optional=optional, labels=None)
        embedded = self.embeddings(codes, ages, visit_ids, **optional)
        visits = gather_visits(embedded, visit_ids, mask)
        alpha, beta = self.encoder.weights(visits)
        weight = alpha.gather(1, visits.place).masked_fill(~mask, 0.0)
        gate = beta.gather(1, visits.place[..., None].expand(-1, -1, beta.shape[-1]))
        each = (weight * visits.share)[..., None] * gate * embedded.masked_fill(~mask[..., None], 0.0)
        tokens = each @ self.classifier.weight.T
        return Contributions(
            tokens.squeeze(-1) if self.problem_type == "binary" else tokens, self.classifier.bias, weight
        )
