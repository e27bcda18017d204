"""Plans that predict the codes of the next visit, alone or beside masked language modelling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.data.vocabulary import NUM_SPECIAL, Vocabulary
from ehrsequencing.errors import DataError
from ehrsequencing.objectives.mlm import hashed_uniform
from ehrsequencing.objectives.next_visit import (
    CopyRates,
    balancing_weights,
    next_codes,
    next_visit_loss,
    next_visit_statistics,
    seen_visits,
    transitions,
)
from ehrsequencing.options import NvpOptions
from ehrsequencing.training.plans import FIXED_EPOCH, MLMPlan, Totals, fixed_batches, ratio_interval
from ehrsequencing.training.segments import segment

_CUT = 3
"""Stream of random numbers that chooses prefixes; masked language modelling uses those below it."""
TASK = "tuning:next_visit"
_TOO_FEW = "prepare more subjects with two visits or more"


class NextVisitPlan:
    """Next-visit prediction; every visit that a visit with a code follows is a question.

    In causal mode all of a history's questions are asked in one pass; in prefix mode one of them, drawn anew each
    epoch and fixed for tuning, from the history up to it.
    """

    name = "nvp"
    title = "next-visit prediction"

    def __init__(
        self,
        config: Any,
        train: BatchSource,
        tuning: BatchSource,
        vocabulary: Vocabulary,
        options: NvpOptions,
        *,
        seed: int,
    ) -> None:
        self.config, self.train, self.tuning = config, train, tuning
        self.vocabulary, self.options, self.seed = vocabulary, options, seed
        self.causal = options.mode == "causal"
        self.size = len(vocabulary)
        self._rates, unanswerable = self._count()
        self.notes = []
        if unanswerable:
            self.notes.append(
                f"{unanswerable} next visits of train and tuning hold no code of the vocabulary and are not asked for"
            )
        self._weight: Tensor | None = None
        if options.balance:
            self._weight = balancing_weights(self._rates.prevalence, options.balance).float()

    def _count(self) -> tuple[CopyRates, int]:
        """Rates of the floors over all train transitions, and how many transitions have an empty answer."""
        rates, empty = CopyRates(self.size), 0
        for source, name in ((self.train, "train"), (self.tuning, "tuning")):
            asked = 0
            for batch in source.fixed():
                visits, unanswerable = transitions(*_visible(batch), num_special=NUM_SPECIAL)
                asked, empty = asked + len(visits), empty + int(unanswerable)
                if source is self.train and len(visits):
                    rates.add(*self._known(batch, visits))
            if not asked:
                raise DataError(f"no visit of the {name} subjects is followed by one with a code", remedy=_TOO_FEW)
        return rates, empty

    def _known(self, batch: Batch, visits: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen until these visits, and what came next; Float [transitions, vocab_size] each."""
        seen = seen_visits(*_visible(batch), visits, vocab_size=self.size, num_special=NUM_SPECIAL)
        return seen, self.target(batch, visits)

    def questions(self, batch: Batch, epoch: int) -> Tensor:
        """Visits to predict from, Long [transitions, 2]; at most one a row in prefix mode."""
        visits, _ = transitions(*_visible(batch), num_special=NUM_SPECIAL)
        if self.causal or not len(visits):
            return visits
        counts = torch.bincount(visits[:, 0], minlength=len(batch))
        draw = hashed_uniform(self.seed, epoch, batch.subject_ids, torch.zeros_like(batch.codes[:, :1]), _CUT)[:, 0]
        place = counts.cumsum(0) - counts + (draw * counts).long()
        return visits[place[counts > 0]]

    def logits(
        self, model: torch.nn.Module, batch: Batch, visits: Tensor, replaced: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Scores of all tokens after each of `visits`, Float [transitions, vocab_size]."""
        if self.causal:
            return model(**batch.inputs(self.config.input_names) | (replaced or {}), visits=visits).logits
        return model(**self.prefixes(batch, visits)).logits

    def prefixes(self, batch: Batch, visits: Tensor) -> dict[str, Tensor]:
        """Inputs of the histories up to `visits`, one row each."""
        rows = batch.rows(visits[:, 0])
        cut = segment(rows, torch.zeros_like(visits[:, 1]), visits[:, 1])
        return {name: cut[name] for name in self.config.input_names}

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        weight = None if self._weight is None else self._weight.to(logits.device)
        gamma = self.options.gamma if self.options.loss == "focal" else 0.0
        return next_visit_loss(logits, target, positive_weight=weight, gamma=gamma)

    def target(self, batch: Batch, visits: Tensor) -> Tensor:
        return next_codes(*_visible(batch), visits, vocab_size=self.size, num_special=NUM_SPECIAL)

    def step(self, model: torch.nn.Module, batch: Batch, epoch: int, index: int) -> tuple[Tensor, dict[str, float]]:
        visits = self.questions(batch, epoch)
        if not len(visits):
            return nothing(model), {}
        target = self.target(batch, visits)
        loss = self.loss(self.logits(model, batch, visits), target)
        return loss, {"loss_sum": loss.item() * float(target.sum()), "count": float(target.sum())}

    def start_table(self) -> Tensor:
        """Log odds of each code after so many visits with it in train, Float [SEEN_BINS, vocab_size]."""
        rate = self._rates.table
        return (rate.log() - (1 - rate).log()).float()

    @torch.no_grad()
    def _tuned(self, model: torch.nn.Module, device: torch.device) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        """Of each tuning batch: itself, its questions, logits and targets."""
        for batch in fixed_batches(self.tuning, device):
            visits = self.questions(batch, FIXED_EPOCH)
            if len(visits):
                yield batch, visits, self.logits(model, batch, visits), self.target(batch, visits)

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        plain, trained = Totals(), Totals()
        for _, _, logits, target in self._tuned(model, device):
            plain.add(_sums(logits.sigmoid(), target))
            count = float(target.sum())
            trained.add({"loss_sum": self.loss(logits, target).item() * count, "count": count})
        # Weighted or focal losses are what training follows; cross-entropy and recall are what it is for.
        found = _rates(plain)
        return {"loss": trained.rates()["loss"], "cross_entropy": found["loss"], "recall_at_10": found["recall_at_10"]}

    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        names = ("loss_sum", "count", "recall_sum", "transitions")
        rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for batch, visits, logits, target in self._tuned(model, device):
            found = next_visit_statistics(logits.sigmoid(), target)
            found["transitions"] = torch.ones_like(found["count"])
            for name in names:
                sums = torch.zeros(len(batch), dtype=torch.float64, device=logits.device)
                rows[name].append(sums.index_add_(0, visits[:, 0], found[name]).cpu().numpy())
        total = {name: np.concatenate(parts) for name, parts in rows.items()}
        population = {"subjects": int((total["transitions"] > 0).sum()), "seeds": 1}
        return {
            f"{TASK}/ce": ratio_interval(total["loss_sum"], total["count"])
            | {"n": int(total["count"].sum()), **population, "higher_is_better": False},
            f"{TASK}/recall_at_10": ratio_interval(total["recall_sum"], total["transitions"])
            | {"n": int(total["transitions"].sum()), **population, "higher_is_better": True},
        }

    @torch.no_grad()
    def floors(self) -> dict[str, dict[str, float]]:
        """Cross-entropy and recall of prevalence and of copy-history, counted in train, on the tuning questions."""
        totals = {"prevalence": Totals(), "copy-history": Totals()}
        for batch in self.tuning.fixed():
            visits = self.questions(batch, FIXED_EPOCH)
            if not len(visits):
                continue
            seen, target = self._known(batch, visits)
            totals["prevalence"].add(_sums(self._rates.prevalence.expand(len(target), -1), target))
            totals["copy-history"].add(_sums(self._rates.after(seen), target))
        return {name: _rates(total) for name, total in totals.items()}

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        return {
            f"{TASK}/ce": {"value": floor["loss"], "higher_is_better": False},
            f"{TASK}/recall_at_10": {"value": floor["recall_at_10"], "higher_is_better": True},
        }

    def caveats(self) -> list[str]:
        which = "every visit that is followed by one" if self.causal else "one visit of each subject"
        return [
            f"Asked is what follows {which}: nats are summed over all codes and divided by the number of codes that "
            "came. Most of what comes has come before; `ehrseq evaluate RUN STORE LABELS` with labels of the task "
            "next_visit_codes tells new codes from repeated ones."
        ]


class JointPlan:
    """Masked language modelling and next-visit prediction over one encoder.

    The loss is `lambda_mlm * mlm + lambda_nvp * nvp`, of every batch ("sum") or of its part alone in alternating
    batches ("alternate"). Under visit-causal attention one pass over the masked history serves both in a sum.
    """

    name = "joint"
    title = "masked language modelling and next-visit prediction"

    def __init__(self, mlm: MLMPlan, nvp: NextVisitPlan, *, mode: str, weights: tuple[float, float]) -> None:
        self.mlm, self.nvp, self.mode = mlm, nvp, mode
        self.config, self.train, self.tuning = mlm.config, mlm.train, mlm.tuning
        self.weights = weights
        self.notes = [*mlm.notes, *nvp.notes]

    def step(self, model: torch.nn.Module, batch: Batch, epoch: int, index: int) -> tuple[Tensor, dict[str, float]]:
        both = self.mode == "sum"
        visits = self.nvp.questions(batch, epoch)
        ask_nvp = len(visits) > 0 and (both or (epoch + index) % 2 == 1)
        found: dict[str, float] = {}
        parts, next_logits = [], None
        if both or not ask_nvp:
            inputs, labels = self.mlm.masked(batch, epoch)
            output = model(**inputs, labels=labels, visits=visits if ask_nvp and self.nvp.causal else None)
            parts.append(self.weights[0] * output.loss)
            found |= {f"mlm:{name}": v for name, v in self.mlm.judged_sums(inputs, labels, output.logits).items()}
            next_logits = output.next_logits
        if ask_nvp:
            target = self.nvp.target(batch, visits)
            if next_logits is None:
                next_logits = self.nvp.logits(NextHead(model), batch, visits)
            loss = self.nvp.loss(next_logits, target)
            parts.append(self.weights[1] * loss)
            found |= {"nvp:loss_sum": loss.item() * float(target.sum()), "nvp:count": float(target.sum())}
        loss = torch.stack(parts).sum()
        return loss, {"loss_sum": loss.item(), "count": 1.0, **found}

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        mlm, nvp = self.mlm.validate(model, device), self.nvp.validate(NextHead(model), device)
        named = {f"mlm_{name}": value for name, value in mlm.items()}
        named |= {f"nvp_{name}": value for name, value in nvp.items()}
        return {"loss": self.weights[0] * mlm["loss"] + self.weights[1] * nvp["loss"], **named}

    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        return self.mlm.judge(model, device) | self.nvp.judge(NextHead(model), device)

    def floors(self) -> dict[str, dict[str, float]]:
        return self.mlm.floors() | {f"next visit, {name}": value for name, value in self.nvp.floors().items()}

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        return (self.nvp if "recall_at_10" in floor else self.mlm).floor_entries(floor)

    def caveats(self) -> list[str]:
        return [*self.mlm.caveats(), *self.nvp.caveats()]


class NextHead(torch.nn.Module):
    """A joint model as one of next-visit prediction."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs, next_visit=True)


def nothing(model: torch.nn.Module) -> Tensor:
    """A loss of 0 for a batch without a question, which every trained parameter takes part in."""
    return torch.stack([p.sum() * 0.0 for p in model.parameters() if p.requires_grad]).sum()


def _visible(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.codes, batch.visit_ids, batch.mask


def _sums(probability: Tensor, target: Tensor) -> dict[str, float]:
    found = next_visit_statistics(probability, target)
    return {
        "loss_sum": float(found["loss_sum"].sum()),
        "count": float(found["count"].sum()),
        "transitions:recall_sum": float(found["recall_sum"].sum()),
        "transitions:count": float(len(target)),
    }


def _rates(totals: Totals) -> dict[str, float]:
    found = totals.rates()
    return {"loss": found["loss"], "recall_at_10": found["transitions_recall_at_10"]}
