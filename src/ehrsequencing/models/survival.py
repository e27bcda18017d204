"""Survival: hazards of one or several causes over a grid of intervals, from a history until its prediction time.

Two readings of a BEHRT. "landmark": the pooled history gives hazards after the prediction time; figures at horizons
come from it alone. "visits": every visit gives hazards after itself, under visit-causal attention, so that nothing at
a visit depends on a later one; for trajectories and interpretation.

Source of a prediction from landmarks: van Houwelingen 2007, Scandinavian Journal of Statistics 34(1):70-85.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.models.behrt import (
    BEHRTHead,
    SeenBias,
    VocabularyHead,
    asked_states,
    initialise,
    sequence_pooling,
)
from ehrsequencing.models.classification import ModelOutput
from ehrsequencing.models.configuration import BEHRTConfig, VisitLSTMConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.encoder import Pooling, visit_means
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.inputs import OptionalInputs
from ehrsequencing.models.lstm import VisitLSTM
from ehrsequencing.models.visits import VisitModel
from ehrsequencing.objectives.cox import baseline_log_increments, cox_nll, proportional_logits
from ehrsequencing.objectives.survival import (
    Curves,
    check_edges,
    competing_risks_nll,
    cumulative_incidence,
    curves,
    piecewise_nats,
    piecewise_nll,
    place,
    ranking_loss,
)

DEFAULT_EDGES = (0.0, 30.0, 90.0, 180.0, 365.0, 730.0, 1095.0, 1460.0, 1825.0)
"""A grid over five years, where none is fitted."""
LOSSES = ("discrete", "piecewise", "cox")
READINGS = ("landmark", "visits")
VISIT_POOLINGS = ("mean", "attention", "last")
_UNKNOWN_BASELINE = -69.0
_START_STD = 0.02


class SurvivalModel(PretrainedModel):
    """What all survival models share: a head of hazards over a grid, its likelihood and its curves.

    Attributes:
        causes: Number of causes; cause k of the labels is k of 1 to `causes`, 0 is censored.
        edges: Float [intervals + 1], days.
        loss_name: "discrete", "piecewise" or "cox".
        ranking, sigma: Weight of DeepHit's ranking term in the loss, and its scale.
        hazards: The last layer.
        baseline: Float [causes, intervals], logarithm of what each interval adds to the baseline hazard of "cox".
    """

    causes: int
    edges: Tensor
    loss_name: str
    ranking: float
    sigma: float
    hazards: nn.Linear
    baseline: Tensor

    def ask(
        self, width: int, edges_days: Sequence[float], causes: int, loss: str, ranking: float, sigma: float
    ) -> None:
        """Make the head.

        Raises:
            ConfigError: an option is unknown, out of range or without effect.
            ShapeError: the edges are no grid.
        """
        if loss not in LOSSES:
            raise ConfigError("loss of a survival model", got=loss, expected=f"one of {', '.join(LOSSES)}")
        if causes < 1:
            raise ConfigError("causes of a survival model", got=causes, expected="at least 1")
        if not (math.isfinite(ranking) and ranking >= 0 and math.isfinite(sigma) and sigma > 0):
            raise ConfigError("ranking and sigma", got=(ranking, sigma), expected="0 or more, and above 0")
        if ranking and loss == "cox":
            raise ConfigError("the ranking term is of a grid", got="loss cox", expected="discrete or piecewise")
        check_edges(torch.tensor(tuple(edges_days), dtype=torch.float64))
        self.causes, self.loss_name, self.ranking, self.sigma = causes, loss, float(ranking), float(sigma)
        self.register_buffer("edges", torch.tensor(tuple(edges_days), dtype=torch.float32), persistent=False)
        check_edges(self.edges)
        intervals = len(self.edges) - 1
        of_grid = loss != "cox"
        self.hazards = nn.Linear(width, causes * (intervals if of_grid else 1), bias=of_grid)
        if not of_grid:
            self.register_buffer("baseline", torch.full((causes, intervals), _UNKNOWN_BASELINE))

    def head_options(self) -> dict[str, Any]:
        options = {"causes": self.causes, "loss": self.loss_name, "ranking": self.ranking, "sigma": self.sigma}
        return {"edges_days": self.edges.tolist(), **options}

    def start_small(self) -> None:
        """Predictions begin undecided, whatever the width."""
        nn.init.trunc_normal_(self.hazards.weight, std=_START_STD, a=-2 * _START_STD, b=2 * _START_STD)

    @torch.no_grad()
    def begin(self, marginal: Tensor) -> None:
        """Start at the hazards of everyone together, Float [causes, intervals] logits; of "cox" there are none."""
        if self.loss_name != "cox":
            self.hazards.bias.copy_(marginal.flatten())

    @torch.no_grad()
    def fit_baseline(self, log_hazard: Tensor, labels: Tensor) -> None:
        """Breslow's baseline of "cox", from train.

        Args:
            log_hazard: Float [n, causes], the model's own of these subjects.
            labels: Float [n, 2], as in `likelihood`.
        """
        durations, cause = self.split_labels(labels)
        self.baseline.copy_(
            torch.stack(
                [
                    baseline_log_increments(log_hazard[:, k].double(), durations, cause == k + 1, self.edges.double())
                    for k in range(self.causes)
                ]
            )
        )

    def answer(self, states: Tensor) -> Tensor:
        """States Float [..., width] -> what the loss is of: Float [..., causes, intervals], of "cox" [..., causes]."""
        scores: Tensor = self.hazards(states)
        return scores if self.loss_name == "cox" else scores.unflatten(-1, (self.causes, -1))

    def split_labels(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Days Float [batch] and causes Long [batch] of labels Float [batch, 2].

        Raises:
            ShapeError: another shape, or a cause that is none of the model's.
        """
        if labels.ndim != 2 or labels.shape[1] != 2:
            raise ShapeError("labels", tuple(labels.shape), "[batch, 2]: days and cause")
        durations, cause = labels.unbind(1)
        wrong = ~((cause >= 0) & (cause <= self.causes) & (cause == cause.floor()))
        if bool(wrong.any()):
            raise ShapeError("causes in the labels", f"{cause[wrong][0].item():g}", f"0 to {self.causes}")
        return durations, cause.to(torch.int64)

    def likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood.

        Args:
            logits: As `answer` gives them for [batch, width].
            labels: Float [batch, 2]: days since the prediction time, above 0, and cause: 0 censored, 1 to `causes`.
                What lies beyond the grid is censored at its last edge.

        Returns:
            Scalar, nats per subject; of "cox" nats per event, summed over causes.

        Raises:
            ShapeError: see `split_labels` and the objectives.
        """
        durations, cause = self.split_labels(labels)
        if self.loss_name == "cox":
            each = [cox_nll(logits[:, k], durations, cause == k + 1) for k in range(self.causes)]
            return torch.stack(each).sum()
        if self.loss_name == "piecewise":
            return piecewise_nll(logits, durations, cause, self.edges)
        placed = place(durations, cause, self.edges)
        return competing_risks_nll(logits, placed.interval, placed.cause, share=placed.share)

    def ranking_term(self, logits: Tensor, labels: Tensor) -> Tensor:
        """DeepHit's ranking term of a batch; see `objectives.survival.ranking_loss`."""
        durations, cause = self.split_labels(labels)
        placed = place(durations, cause, self.edges)
        return ranking_loss(cumulative_incidence(logits.float()), placed, durations, sigma=self.sigma)

    def judged(self, logits: Tensor, labels: Tensor | None) -> ModelOutput:
        """Logits with the loss: likelihood and weighted ranking term."""
        if labels is None:
            return ModelOutput(logits, None)
        loss = self.likelihood(logits, labels)
        return ModelOutput(logits, loss + self.ranking * self.ranking_term(logits, labels) if self.ranking else loss)

    def hazard_logits(self, logits: Tensor) -> Tensor:
        """What `answer` gives for [batch, width] as logits over the grid, Float [batch, causes, intervals].

        Raises:
            ConfigError: a Cox model without a baseline.
        """
        if self.loss_name != "cox":
            return logits
        if bool((self.baseline == _UNKNOWN_BASELINE).all()):
            raise ConfigError(
                "a Cox model has no curves without a baseline", got="none fitted", remedy="fit_baseline on train first"
            )
        return proportional_logits(logits, self.baseline.to(logits))

    def curves(self, logits: Tensor) -> Curves:
        """Survival and cumulative incidences at the edges."""
        return curves(self.hazard_logits(logits))


class BEHRTForSurvival(BEHRTHead, SurvivalModel):
    """Hazards after the prediction time, or after every visit, from a BEHRT.

    Args:
        config: Architecture; `config.pooling` says what the landmark reading pools.
        edges_days: Edges of the grid in days, the first 0.
        causes: Number of causes.
        reading: "landmark" or "visits".
        loss: "discrete" (interval of the event), "piecewise" (its day) or "cox" (order alone); by default "discrete"
            of the landmark. Visits are judged from when they were known to be free of the event, which "piecewise"
            alone can express.
        visit_pooling: "mean", "attention" or "last" token of each visit; of the reading of visits.
        ranking, sigma: Weight and scale of DeepHit's ranking term; of the landmark.
        next_visit: Also carry a head of next visits, for an auxiliary loss.

    Raises:
        ConfigError: an option is unknown or has no effect, or visits are read under bidirectional attention.
        ShapeError: the edges are no grid.

    >>> model = BEHRTForSurvival(BEHRTConfig.small(vocab_size=100), edges_days=(0, 90, 365), causes=2).eval()
    >>> codes, ages = torch.randint(5, 100, (2, 7)), torch.randint(0, 100, (2, 7))
    >>> visit_ids, mask = torch.arange(7).expand(2, -1), torch.ones(2, 7, dtype=torch.bool)
    >>> logits, loss = model(codes, ages, visit_ids, mask, labels=torch.tensor([[30.0, 1.0], [365.0, 0.0]]))
    >>> tuple(logits.shape), tuple(model.curves(logits).survival.shape)
    ((2, 2, 2), (2, 3))
    """

    def __init__(
        self,
        config: BEHRTConfig,
        edges_days: Sequence[float] = DEFAULT_EDGES,
        causes: int = 1,
        reading: str = "landmark",
        loss: str | None = None,
        visit_pooling: str = "mean",
        ranking: float = 0.0,
        sigma: float = 0.1,
        next_visit: bool = False,
    ) -> None:
        super().__init__(config)
        if reading not in READINGS or visit_pooling not in VISIT_POOLINGS:
            known = f"{' or '.join(READINGS)}, and {', '.join(VISIT_POOLINGS)}"
            raise ConfigError("reading and visit_pooling", got=f"{reading} and {visit_pooling}", expected=known)
        of_visits = reading == "visits"
        if of_visits and config.attention != "visit_causal":
            raise ConfigError(
                "attention of a model that predicts from its visits", got=config.attention, expected="visit_causal"
            )
        loss = ("piecewise" if of_visits else "discrete") if loss is None else loss
        if of_visits and (loss != "piecewise" or ranking):
            raise ConfigError(
                "the reading of visits", got=f"loss {loss}, ranking {ranking:g}", expected="loss piecewise, no ranking"
            )
        self.reading, self.visit_pooling, self.next_visit = reading, visit_pooling, next_visit
        self.pooling = None if of_visits else Pooling(config.hidden_dim, config.pooling)
        self.score = nn.Linear(config.hidden_dim, 1) if of_visits and visit_pooling == "attention" else None
        self.dropout = Dropout(config.dropout)
        self.ask(config.hidden_dim, edges_days, causes, loss, ranking, sigma)
        self.next_pooling = sequence_pooling(config) if next_visit else None
        self.next_head = VocabularyHead(config) if next_visit else None
        self.seen = SeenBias(config.vocab_size) if next_visit else None
        for part in (self.pooling, self.score, self.hazards, self.next_pooling, self.next_head):
            if part is not None:
                initialise(part)
        self.start_small()

    def head_options(self) -> dict[str, Any]:
        own = {"reading": self.reading, "visit_pooling": self.visit_pooling, "next_visit": self.next_visit}
        return super().head_options() | own

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        labels: Tensor | None = None,
        elapsed: Tensor | None = None,
        visits: Tensor | None = None,
        next_visit: bool = False,
        **optional: Unpack[OptionalInputs],
    ) -> ModelOutput:
        """Hazards; inputs as in `BEHRT.forward`.

        Args:
            labels: Float [batch, 2], see `SurvivalModel.likelihood`.
            elapsed: Float [batch, length], days before the prediction time; the loss of visits needs it, and nothing
                else sees it.
            visits: As for `BEHRTForNextVisitPrediction`; with `next_visit`.
            next_visit: Answer as `BEHRTForNextVisitPrediction` does, from the head of next visits.

        Returns:
            logits Float [batch, causes, intervals] ("cox": [batch, causes]) and the loss; of visits Float [batch,
            visits, causes, intervals], entry v of the visit with id v + 1 and 0 where a row has none, and nats per
            subject, averaged over its visits.

        Raises:
            ConfigError: `next_visit` of a model without that head, or labels of visits without `elapsed`.
        """
        hidden = self.behrt(codes, ages, visit_ids, mask, **optional)
        if next_visit:
            return ModelOutput(self._next(hidden, codes, visit_ids, mask, visits), None)
        if self.pooling is not None:
            return self.judged(self.answer(self.dropout(self.pooling(hidden, mask, visit_ids))), labels)
        own = mask & (codes != self.config.cls_id) & (visit_ids > 0)
        number = int(torch.where(own, visit_ids, 0).amax())
        present = torch.zeros(len(codes), number + 1, dtype=torch.bool, device=codes.device)
        row = torch.arange(len(codes), device=codes.device)[:, None].expand_as(codes)
        present[row[own], visit_ids[own]] = True
        asked = present.nonzero()
        states = visit_means(hidden, visit_ids, self._weights(hidden, visit_ids, own), asked)
        found = self.answer(self.dropout(states))
        logits = found.new_zeros(len(codes), number, *found.shape[1:])
        logits = logits.index_put((asked[:, 0], asked[:, 1] - 1), found)
        if labels is None:
            return ModelOutput(logits, None)
        return ModelOutput(logits, self._visit_loss(found, asked, own, visit_ids, labels, elapsed))

    def _weights(self, hidden: Tensor, visit_ids: Tensor, own: Tensor) -> Tensor:
        """Weight of each token in its visit, Float [batch, length]; the mean's are Bool."""
        if self.visit_pooling == "mean":
            return own
        slots = int(visit_ids.max()) + 1
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        cell = (row * slots + visit_ids).flatten()
        place_in_row = torch.arange(hidden.shape[1], device=hidden.device).expand_as(visit_ids)
        if self.score is None:
            last = torch.full((len(hidden) * slots,), -1, dtype=torch.int64, device=hidden.device)
            last.scatter_reduce_(0, cell, torch.where(own, place_in_row, -1).flatten(), "amax")
            return own & (last[cell].view_as(visit_ids) == place_in_row)
        scores = self.score(hidden)[..., 0].float().masked_fill(~own, -math.inf).flatten()
        top = scores.new_full((len(hidden) * slots,), -math.inf).scatter_reduce(0, cell, scores.detach(), "amax")
        weight = (scores - top[cell]).masked_fill(~own.flatten(), -math.inf).exp()
        total = torch.zeros_like(top).index_add(0, cell, weight)
        return (weight / total[cell].clamp(min=1e-30)).view_as(own)

    def _visit_loss(
        self, found: Tensor, asked: Tensor, own: Tensor, visit_ids: Tensor, labels: Tensor, elapsed: Tensor | None
    ) -> Tensor:
        """Each visit's hazards against what came, from the prediction time on: until then nothing could have come."""
        durations, cause = self.split_labels(labels)
        if elapsed is None or elapsed.shape != own.shape:
            raise ConfigError("labels of a model that reads visits need elapsed", expected="Float [batch, length] days")
        if not len(asked):
            return self.hazards.weight.sum() * 0.0
        slots = int(visit_ids.max()) + 1
        row = torch.arange(len(own), device=own.device)[:, None].expand_as(own)
        since = elapsed.new_full((len(own) * slots,), math.inf)
        since.scatter_reduce_(0, (row * slots + visit_ids)[own], elapsed[own], "amin")
        entry = since[asked[:, 0] * slots + asked[:, 1]]
        subject = asked[:, 0]
        # A short time after a long one may be lost in rounding; it was above 0.
        end = torch.maximum(entry + durations[subject], torch.nextafter(entry, torch.full_like(entry, math.inf)))
        nats = piecewise_nats(found, end, cause[subject], self.edges, entry=entry)
        per_subject = nats.new_zeros(len(own)).index_add(0, subject, nats)
        number = torch.bincount(subject, minlength=len(own))
        return (per_subject / number.clamp(min=1)).sum() / (number > 0).sum()

    def _next(self, hidden: Tensor, codes: Tensor, visit_ids: Tensor, mask: Tensor, visits: Tensor | None) -> Tensor:
        if self.next_head is None or self.seen is None:
            raise ConfigError("a survival model without a head of next visits", remedy="build it with next_visit=True")
        pooled, visits = asked_states(self.config, self.next_pooling, hidden, codes, visit_ids, mask, visits)
        scores: Tensor = self.next_head(pooled, self.behrt.embeddings.code)
        return scores + self.seen(codes, visit_ids, mask, visits, self.config.num_special)


class VisitLSTMForSurvival(VisitModel, SurvivalModel):
    """Hazards after the prediction time, from an LSTM over visits; arguments as in `BEHRTForSurvival`.

    >>> model = VisitLSTMForSurvival(VisitLSTMConfig(vocab_size=100), edges_days=(0, 90, 365)).eval()
    >>> codes, ages = torch.randint(5, 100, (2, 7)), torch.randint(0, 100, (2, 7))
    >>> visit_ids, mask = torch.arange(7).expand(2, -1), torch.ones(2, 7, dtype=torch.bool)
    >>> tuple(model(codes, ages, visit_ids, mask).logits.shape)
    (2, 1, 2)
    """

    config: VisitLSTMConfig
    config_class = VisitLSTMConfig

    def __init__(
        self,
        config: VisitLSTMConfig,
        edges_days: Sequence[float] = DEFAULT_EDGES,
        causes: int = 1,
        loss: str = "discrete",
        ranking: float = 0.0,
        sigma: float = 0.1,
    ) -> None:
        super().__init__(config, VisitLSTM(config))
        self.ask(config.hidden_dim, edges_days, causes, loss, ranking, sigma)
        self.initialise_all()
        self.start_small()

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
        """Hazards; inputs as in `BEHRTForSequenceClassification`, labels as in `SurvivalModel.likelihood`.

        Returns:
            logits Float [batch, causes, intervals] ("cox": [batch, causes]) and the loss.
        """
        return self.judged(self.answer(self.read(codes, ages, visit_ids, mask, None, optional)), labels)
