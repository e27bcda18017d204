"""Plan of contrastive pretraining: segments of one history recognise each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.errors import DataError
from ehrsequencing.objectives.contrastive import info_nce, info_nce_statistics, similarities
from ehrsequencing.objectives.mlm import hashed_uniform
from ehrsequencing.options import ContrastiveOptions
from ehrsequencing.training.next_visit import nothing
from ehrsequencing.training.plans import FIXED_EPOCH, Totals, fixed_batches, ratio_interval
from ehrsequencing.training.segments import segment

_BEGIN, _END = 4, 5
"""Streams of random numbers that say where the two segments begin and end."""
TASK = "tuning:contrastive"


class ContrastivePlan:
    """A segment of visits from each half of a history, drawn anew each epoch and fixed for tuning; no event in both.

    What tells a subject without being history is left out of both: rows without a date and, unless asked otherwise,
    ages and calendar, which would match halves as well as a name would. So would lengths: batches hold histories
    that are about as long, so that what one segment lacks to that length would name the other. Therefore the two
    come from either side of the middle and end wherever chance has it, each by itself.

    Raises:
        DataError: no batch of tuning, or too few subjects of train, with a pair to tell from another.
    """

    name = "contrastive"
    title = "contrastive learning of history segments"

    def __init__(
        self, config: Any, train: BatchSource, tuning: BatchSource, options: ContrastiveOptions, *, seed: int
    ) -> None:
        self.config, self.train, self.tuning, self.options, self.seed = config, train, tuning, options, seed
        self.notes: list[str] = []
        if not self._chance().sums or len(train.examples) < 2:
            raise DataError(
                "no batch of tuning has segments of two subjects, so that none could be mistaken for another",
                got=f"{len(tuning.examples)} histories of tuning, {len(train.examples)} of train, with two visits",
                remedy="prepare more subjects, or raise loop.token_budget or loop.max_examples",
            )

    def segments(self, batch: Batch, epoch: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Inputs of the earlier and the later segments, and the rows of the batch that have both, Long [subjects]."""
        dated = batch.mask & (batch.visit_ids > 0)
        last = torch.where(dated, batch.visit_ids, 0).amax(dim=1)
        several = (last > 1).nonzero()[:, 0]
        batch, dated, last = batch.rows(several), dated[several], last[several]
        half = dated.long().cumsum(dim=1) * 2 >= dated.sum(dim=1, keepdim=True)
        # The first visit with which half of the tokens have come; one visit at least is left behind it.
        middle = torch.where(half & dated, batch.visit_ids, last[:, None]).amin(dim=1)
        middle = torch.minimum(middle, last - 1)
        begin, end = (
            hashed_uniform(self.seed, epoch, batch.subject_ids, torch.zeros_like(batch.codes[:, :1]), stream)[:, 0]
            for stream in (_BEGIN, _END)
        )
        shown = {"static": False, "ages": not self.options.hide_ages}
        earlier = segment(batch, (begin * middle).long(), middle, **shown)
        later = segment(batch, middle, last - (end * (last - middle)).long(), **shown)
        names = self.config.input_names
        return {n: earlier[n] for n in names}, {n: later[n] for n in names}, several

    def logits(self, model: torch.nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Similarity of all pairs, Float [subjects, subjects], and the subjects' rows of the batch."""
        earlier, later, rows = self.segments(batch, epoch)
        if len(rows) < 2:
            return torch.zeros(0, 0), rows[:0]
        pair = model(**earlier).logits, model(**later).logits
        return similarities(*pair, self.options.temperature), rows

    def step(self, model: torch.nn.Module, batch: Batch, epoch: int, index: int) -> tuple[Tensor, dict[str, float]]:
        logits, rows = self.logits(model, batch, epoch)
        if not len(rows):
            return nothing(model), {}
        found = info_nce_statistics(logits.detach())
        return info_nce(logits), {name: float(value.sum()) for name, value in found.items()}

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        totals = Totals()
        for batch in fixed_batches(self.tuning, device):
            logits, rows = self.logits(model, batch, FIXED_EPOCH)
            if len(rows):
                totals.add({name: float(value.sum()) for name, value in info_nce_statistics(logits).items()})
        return totals.rates()

    @torch.no_grad()
    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        found: dict[str, list[np.ndarray]] = {"loss_sum": [], "correct": [], "count": []}
        for batch in fixed_batches(self.tuning, device):
            logits, rows = self.logits(model, batch, FIXED_EPOCH)
            if len(rows):
                for name, value in info_nce_statistics(logits).items():
                    found[name].append(value.cpu().numpy())
        sums = {name: np.concatenate(parts) for name, parts in found.items()}
        population = {"n": len(sums["count"]), "subjects": len(sums["count"]), "seeds": 1}
        return {
            f"{TASK}/ce": ratio_interval(sums["loss_sum"], sums["count"]) | population | {"higher_is_better": False},
            f"{TASK}/accuracy": ratio_interval(sums["correct"], sums["count"])
            | population
            | {"higher_is_better": True},
        }

    def floors(self) -> dict[str, dict[str, float]]:
        """Guessing among the subjects of each tuning batch."""
        return {"chance": self._chance().rates()}

    def _chance(self) -> Totals:
        totals = Totals()
        for batch in self.tuning.fixed():
            subjects = int((torch.where(batch.mask, batch.visit_ids, 0).amax(dim=1) > 1).sum())
            if subjects > 1:
                totals.add({"loss_sum": subjects * float(np.log(subjects)), "correct": 1.0, "count": subjects})
        return totals

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        return {
            f"{TASK}/ce": {"value": floor["loss"], "higher_is_better": False},
            f"{TASK}/accuracy": {"value": floor["accuracy"], "higher_is_better": True},
        }

    def caveats(self) -> list[str]:
        hidden = "ages, calendar and rows without a date are" if self.options.hide_ages else "rows without a date are"
        return [f"A segment is to be found among the segments of its batch; {hidden} hidden."]
