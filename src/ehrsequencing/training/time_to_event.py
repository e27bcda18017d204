"""Plan of time-to-event pretraining: when does each of many codes come next?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.vocabulary import NUM_SPECIAL, Vocabulary
from ehrsequencing.errors import DataError
from ehrsequencing.models.pretraining import BEHRTForTimeToEvent
from ehrsequencing.objectives.next_visit import transitions
from ehrsequencing.objectives.time_to_event import exposures, next_times, piecewise_exponential_nll
from ehrsequencing.training.next_visit import nothing
from ehrsequencing.training.plans import Totals, fixed_batches, ratio_interval

TASK = "tuning:time_to_event"
_SAMPLE = 200_000
"""Event times at most that the pieces are fitted to."""


def timed_codes(vocabulary: Vocabulary, most: int) -> np.ndarray:
    """Token ids of the codes to time: the most frequent in train that can come again, int64, in order of id."""
    counts = np.asarray(vocabulary.counts, dtype=np.int64).copy()
    counts[:NUM_SPECIAL] = 0
    counts[np.asarray(vocabulary.kinds) == KINDS.index("demographic")] = 0
    ranked = np.argsort(-counts, kind="stable")[:most]
    return np.sort(ranked[counts[ranked] > 0]).astype(np.int64)


class TimeToEventPlan:
    """After every visit that another one follows: the time to the next occurrence of each code, or to the end.

    The pieces start at quantiles of the times seen in train, and the model's biases at the rates of train, so that it
    begins where the floor stands.
    """

    name = "tte"
    title = "time to event of many codes"

    def __init__(self, model: BEHRTForTimeToEvent, train: BatchSource, tuning: BatchSource, asked: np.ndarray) -> None:
        self.config, self.train, self.tuning = model.config, train, tuning
        self.notes: list[str] = []
        self.columns = torch.full((model.config.vocab_size,), -1, dtype=torch.int64)
        self.columns[torch.from_numpy(asked)] = torch.arange(len(asked))
        self.asked = len(asked)
        if "bias" in model.pretrained_parameters:
            self.boundaries = model.boundaries.detach().clone()
            self.log_rate = self._rates()
        else:
            self.boundaries = self._pieces(model.sizes["pieces"])
            self.log_rate = self._rates()
            model.begin(torch.from_numpy(asked), self.boundaries, self.log_rate)

    def questions(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Visits that another one follows, Long [visits, 2], and of each code days and whether it came."""
        visits, _ = transitions(batch.codes, batch.visit_ids, batch.mask, num_special=0)
        columns = self.columns.to(batch.codes.device)[batch.codes]
        return visits, *next_times(columns, batch.times, batch.visit_ids, batch.mask, visits, self.asked)

    def _asked(self, source: BatchSource) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in source.fixed():
            visits, days, observed = self.questions(batch)
            if len(visits):
                yield days, observed

    def _pieces(self, number: int) -> Tensor:
        """Starts of the pieces: 0 and quantiles of the times in train, so that events spread evenly over them."""
        found, kept = [], 0
        for days, observed in self._asked(self.train):
            found.append(days[observed])
            kept += len(found[-1])
            if kept > 20 * _SAMPLE:
                break
        times = torch.cat(found).double() if found else torch.zeros(0)
        if not len(times):
            raise DataError(
                "no code of the train subjects comes after another visit",
                remedy="prepare more subjects with two visits or more",
            )
        times = times[:: max(1, len(times) // _SAMPLE)]
        starts = torch.quantile(times, torch.linspace(0, 1, number + 1, dtype=torch.float64)[:-1])
        starts[0] = 0.0
        # Ties (visits a fixed time apart) would make empty pieces.
        for piece in range(1, number):
            starts[piece] = max(float(starts[piece]), float(starts[piece - 1]) * 1.01, 1 / 24)
        return starts.float()

    def _rates(self) -> Tensor:
        """Logarithm of events per day in train, by piece and code, Float [pieces, codes]; smoothed by half an event."""
        lived = torch.zeros(len(self.boundaries), self.asked, dtype=torch.float64)
        events = torch.zeros_like(lived)
        for days, observed in self._asked(self.train):
            for code in torch.arange(self.asked).split(64):
                some, fell = exposures(days[:, code], observed[:, code], self.boundaries)
                lived[:, code] += some.sum(0).T
                events[:, code] += fell.sum(0).T
        pooled = events.sum(1) / lived.sum(1).clamp(min=1.0)
        own = (events + 0.5) / (lived + 0.5 / pooled.clamp(min=1e-9)[:, None])
        return own.log().float()

    def step(self, model: torch.nn.Module, batch: Batch, epoch: int, index: int) -> tuple[Tensor, dict[str, float]]:
        visits, days, observed = self.questions(batch)
        if not len(visits):
            return nothing(model), {}
        logits = model(**batch.inputs(self.config.input_names), visits=visits).logits
        loss = self._nll(logits, days, observed).mean()
        return loss, {"loss_sum": loss.item() * days.numel(), "count": float(days.numel())}

    def _nll(self, log_hazard: Tensor, days: Tensor, observed: Tensor) -> Tensor:
        return piecewise_exponential_nll(log_hazard, days, observed, self.boundaries.to(days.device))

    @torch.no_grad()
    def _judged(self, model: torch.nn.Module | None, device: torch.device) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Of each tuning batch: itself, its visits, and nats Float [visits, codes]; of the floor without a model."""
        for batch in fixed_batches(self.tuning, device):
            visits, days, observed = self.questions(batch)
            if len(visits):
                if model is None:
                    logits = self.log_rate.T.to(device).expand(len(visits), -1, -1)
                else:
                    logits = model(**batch.inputs(self.config.input_names), visits=visits).logits
                yield batch, visits, self._nll(logits, days, observed)

    def _rate(self, model: torch.nn.Module | None, device: torch.device) -> dict[str, float]:
        totals = Totals()
        for _, _, nats in self._judged(model, device):
            totals.add({"loss_sum": float(nats.double().sum()), "count": float(nats.numel())})
        return totals.rates()

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        return self._rate(model, device)

    def floors(self) -> dict[str, dict[str, float]]:
        """The same hazard for everyone: events per day of each code in train, by piece."""
        return {"rates of train": self._rate(None, torch.device("cpu"))}

    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        loss, count = [], []
        for batch, visits, nats in self._judged(model, device):
            sums = torch.zeros(2, len(batch), dtype=torch.float64, device=nats.device)
            sums[0].index_add_(0, visits[:, 0], nats.double().sum(1))
            sums[1].index_add_(0, visits[:, 0], torch.full_like(nats[:, 0], nats.shape[1], dtype=torch.float64))
            loss.append(sums[0].cpu().numpy())
            count.append(sums[1].cpu().numpy())
        total, number = np.concatenate(loss), np.concatenate(count)
        return {
            f"{TASK}/nll": ratio_interval(total, number)
            | {"n": int(number.sum()), "subjects": int((number > 0).sum()), "seeds": 1, "higher_is_better": False}
        }

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        return {f"{TASK}/nll": {"value": floor["loss"], "higher_is_better": False}}

    def caveats(self) -> list[str]:
        return [
            f"Timed are the {self.asked} most frequent codes of train after every visit that another one follows, "
            "until the end of the history; nats are of densities per day, averaged over codes and visits."
        ]
