"""What a training optimises and how it is judged: one plan per kind of training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.vocabulary import MASK, NUM_SPECIAL, Vocabulary
from ehrsequencing.errors import DataError, LabelError
from ehrsequencing.objectives.mlm import (
    IGNORE_INDEX,
    copy_floor,
    mask_tokens,
    mlm_statistics,
    uniform_floor,
    unigram_floor,
)
from ehrsequencing.training.ranking import macro_auroc_error

FIXED_EPOCH = -1
"""Epoch number of masks that are drawn once, from the subject's identity."""


class Plan(Protocol):
    """A training's objective. `step` and `validate` see the Fabric-wrapped model, `config` is the bare model's."""

    name: str
    config: Any
    train: BatchSource
    tuning: BatchSource

    def step(
        self, model: torch.nn.Module, batch: Batch, epoch: int, index: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of batch `index` of an epoch, and sums whose ratios are the epoch's train metrics (see `rates`)."""
        ...

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics on tuning; `loss` is what early stopping watches."""
        ...


class PretrainPlan(Plan, Protocol):
    """A plan that needs no labels, with what its report says.

    Attributes:
        title: What it is, for a heading.
        notes: What a reader should know of the data it found.
    """

    title: str
    notes: list[str]

    def floors(self) -> dict[str, dict[str, float]]:
        """Metrics on tuning, as `validate` names them, of predictors that need no network."""
        ...

    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        """Entries of `summary.json` on tuning subjects, with intervals over subjects."""
        ...

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Entries of `summary.json` of one floor."""
        ...

    def caveats(self) -> list[str]:
        """What the figures are and are not."""
        ...


def fixed_batches(source: BatchSource, device: torch.device) -> Iterator[Batch]:
    """All of a source in its own order, on the device."""
    for batch in source.fixed():
        yield batch.to(device)


def targets_of(batch: Batch) -> torch.Tensor:
    """The batch's labels.

    Raises:
        LabelError: it has none.
    """
    if batch.targets is None:
        raise LabelError("a batch without labels cannot be classified")
    return batch.targets


class MLMPlan:
    """Masked language modelling: 15 % of codes, redrawn each epoch for train and fixed for tuning.

    The loss is that of all chosen codes. Every figure, of model and floors, is of those that show the mask alone: of
    the others one in two is shown unchanged, and to copy it takes no knowledge (on codes drawn at random a model
    reaches an accuracy of 10 % over all chosen codes, and half a nat less than the logarithm of their number).
    """

    name = "mlm"
    title = "masked language modelling"

    def __init__(
        self,
        config: Any,
        train: BatchSource,
        tuning: BatchSource,
        vocabulary: Vocabulary,
        *,
        rate: float,
        seed: int,
        strategy: str = "token",
    ) -> None:
        self.config, self.train, self.tuning = config, train, tuning
        self.vocabulary, self.rate, self.seed, self.strategy = vocabulary, rate, seed, strategy
        self.notes: list[str] = []
        kinds = torch.as_tensor(np.asarray(vocabulary.kinds), dtype=torch.int64) + 1
        self._kinds = kinds.masked_fill(torch.arange(len(kinds)) < NUM_SPECIAL, 0)

    def masked(self, batch: Batch, epoch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs with codes hidden, and the labels.

        Kind and value of a code would give it away, so at a changed position they are those of what is shown: a
        replacement has its own kind, a mask none, and neither has a value.
        """
        maskable = batch.mask & (batch.codes >= NUM_SPECIAL)
        codes, labels = mask_tokens(
            batch.codes,
            maskable,
            batch.subject_ids,
            vocab_size=len(self.vocabulary),
            mask_id=MASK,
            num_special=NUM_SPECIAL,
            seed=self.seed,
            epoch=epoch,
            rate=self.rate,
            groups=self._groups(batch),
        )
        inputs = batch.inputs(self.config.input_names) | {"codes": codes}
        changed = codes != batch.codes
        if "kinds" in inputs:
            inputs["kinds"] = torch.where(changed, self._kinds.to(codes.device)[codes], batch.kinds)
        if "values" in inputs:
            inputs["values"] = batch.values.masked_fill(changed, torch.nan)
        return inputs, labels

    def _groups(self, batch: Batch) -> torch.Tensor | None:
        """What is hidden together, Long [batch, length]."""
        if self.strategy == "token":
            return None
        if self.strategy == "visit":
            return batch.visit_ids
        return batch.visit_ids * (len(KINDS) + 1) + batch.kinds

    def _judged(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs under the fixed masks, and the labels of codes that show the mask."""
        inputs, labels = self.masked(batch, FIXED_EPOCH)
        return inputs, _hidden_only(inputs, labels)

    def step(
        self, model: torch.nn.Module, batch: Batch, epoch: int, index: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        inputs, labels = self.masked(batch, epoch)
        logits, loss = model(**inputs, labels=labels)
        return loss, self.judged_sums(inputs, labels, logits)

    @staticmethod
    def judged_sums(inputs: dict[str, torch.Tensor], labels: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
        """Statistics of the codes that show the mask, from the logits of all that were chosen."""
        judged = _hidden_only(inputs, labels)[labels != IGNORE_INDEX]
        return mlm_statistics(logits.detach()[judged != IGNORE_INDEX], judged)

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        totals = Totals()
        for batch in fixed_batches(self.tuning, device):
            inputs, labels = self._judged(batch)
            totals.add(mlm_statistics(model(**inputs, labels=labels).logits, labels))
        return totals.rates()

    @torch.no_grad()
    def subject_statistics(self, model: torch.nn.Module, device: torch.device) -> dict[str, np.ndarray]:
        """Sums per tuning subject (`loss_sum`, `correct`, `top10`, `count`), for intervals over subjects."""
        rows: dict[str, list[np.ndarray]] = {"loss_sum": [], "correct": [], "top10": [], "count": []}
        for batch in fixed_batches(self.tuning, device):
            inputs, labels = self._judged(batch)
            logits = model(**inputs, labels=labels).logits
            chosen = labels != IGNORE_INDEX
            owner = chosen.nonzero()[:, 0]
            target = labels[chosen]
            score = logits.float()
            own = score.gather(1, target[:, None])
            per_token = {
                "loss_sum": torch.logsumexp(score, 1) - own[:, 0],
                "correct": (score.argmax(1) == target).float(),
                "top10": ((score > own).sum(1) < 10).float(),
                "count": torch.ones_like(own[:, 0]),
            }
            for name, value in per_token.items():
                sums = torch.zeros(len(labels), dtype=torch.float64, device=value.device)
                rows[name].append(sums.index_add_(0, owner, value.double()).cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    @torch.no_grad()
    def floors(self) -> dict[str, dict[str, float]]:
        """Loss, accuracy and top-10 of predictors that need no network, on the tuning masks."""
        counts = torch.as_tensor(np.asarray(self.vocabulary.counts), dtype=torch.float64)
        used = torch.as_tensor(np.asarray(self.vocabulary.used))
        totals = {name: Totals() for name in ("uniform", "unigram", "copy")}
        for batch in self.tuning.fixed():
            inputs, labels = self._judged(batch)
            targets = labels[labels != IGNORE_INDEX]
            totals["uniform"].add(uniform_floor(targets, used))
            totals["unigram"].add(unigram_floor(targets, counts))
            totals["copy"].add(copy_floor(inputs["codes"], labels, batch.mask, counts))
        if not totals["uniform"].sums.get("count"):
            raise DataError("no code of the tuning subjects is hidden", remedy="prepare more subjects in tuning")
        return {name: total.rates() for name, total in totals.items()}

    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        sums = self.subject_statistics(model, device)
        population = {"n": int(sums["count"].sum()), "subjects": int((sums["count"] > 0).sum()), "seeds": 1}
        return {
            f"mlm/{metric}": ratio_interval(sums[column], sums["count"]) | population | {"higher_is_better": better}
            for metric, column, better in _MLM_ENTRIES
        }

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        return {
            "mlm/mlm_loss": {"value": floor["loss"], "higher_is_better": False},
            "mlm/mlm_accuracy": {"value": floor["accuracy"], "higher_is_better": True},
        }

    def caveats(self) -> list[str]:
        what = {"token": "codes", "visit": "visits", "kind": "kinds within visits"}[self.strategy]
        return [
            f"{self.rate:.0%} of {what} are chosen; tuning masks are fixed, train masks redrawn each epoch. "
            "Figures count the codes hidden behind a mask, not those shown unchanged or replaced."
        ]


_MLM_ENTRIES = (
    ("mlm_loss", "loss_sum", False),
    ("mlm_accuracy", "correct", True),
    ("mlm_top10", "top10", True),
)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, z: float = 1.96) -> dict[str, float]:
    """Ratio of sums with a 95 % interval over subjects, by linearisation.

    Args:
        numerator: Float [subjects], for example correct predictions.
        denominator: Float [subjects], for example predictions.

    Source: Cochran, Sampling Techniques, 3rd ed. 1977, section 2.11.
    """
    ratio = numerator.sum() / denominator.sum()
    residual = numerator - ratio * denominator
    error = math.sqrt((residual**2).sum()) / denominator.sum()
    return {"value": float(ratio), "low": float(ratio - z * error), "high": float(ratio + z * error)}


def _hidden_only(inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Labels of positions that show the mask; elsewhere -100."""
    return torch.where(inputs["codes"] == MASK, labels, IGNORE_INDEX)


class ClassificationPlan:
    """Binary classification of a history at its prediction time."""

    name = "classification"
    metrics: tuple[str, ...] = ("auroc", "auprc")

    def __init__(self, config: Any, train: BatchSource, tuning: BatchSource) -> None:
        self.config, self.train, self.tuning = config, train, tuning

    def step(
        self, model: torch.nn.Module, batch: Batch, epoch: int, index: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        logits, loss = model(**batch.inputs(self.config.input_names), labels=batch.targets)
        count = len(logits)
        correct = ((logits.detach() > 0) == (targets_of(batch) > 0.5)).sum().item()
        return loss, {"loss_sum": loss.item() * count, "correct": correct, "count": count}

    @torch.no_grad()
    def tuning_logits(self, model: torch.nn.Module, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and targets of tuning, Float [examples] or [examples, categories] each."""
        logits, targets = [], []
        for batch in fixed_batches(self.tuning, device):
            logits.append(model(**batch.inputs(self.config.input_names)).logits.float().cpu())
            targets.append(targets_of(batch).cpu())
        return torch.cat(logits), torch.cat(targets)

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        score, target = self.tuning_logits(model, device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score.double(), target.double())
        probability, truth = score.sigmoid(), target.long()
        return {
            "loss": loss.item(),
            "accuracy": ((score > 0) == (target > 0.5)).float().mean().item(),
            "auroc": binary_auroc(probability, truth).item(),
            "auprc": binary_average_precision(probability, truth).item(),
        }


class MultiLabelPlan(ClassificationPlan):
    """Several yes-or-no decisions about a history at its prediction time."""

    name = "multi-label classification"
    metrics = ("auroc_micro", "auroc_macro", "auprc_micro", "auprc_macro")

    @property
    def judged(self) -> int:
        """Categories that tuning has with and without positives: those that its metrics count."""
        share = np.asarray(self.tuning.examples.target).mean(0)
        return int(((share > 0) & (share < 1)).sum())

    def step(
        self, model: torch.nn.Module, batch: Batch, epoch: int, index: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        logits, loss = model(**batch.inputs(self.config.input_names), labels=batch.targets)
        return loss, {"loss_sum": loss.item() * len(logits), "count": len(logits)}

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        """Loss over all decisions; metrics over the categories that tuning has with and without positives.

        `auroc_macro_error` is the standard error of `auroc_macro` over subjects.
        """
        score, target = self.tuning_logits(model, device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score.double(), target.double())
        share = target.mean(0)
        both = (share > 0) & (share < 1)
        probability, truth = score[:, both].sigmoid(), target[:, both].long()
        by_category = list(zip(probability.unbind(1), truth.unbind(1), strict=True))
        found = {"loss": loss.item()}
        for name, metric in (("auroc", binary_auroc), ("auprc", binary_average_precision)):
            found[f"{name}_micro"] = metric(probability.flatten(), truth.flatten()).item()
            found[f"{name}_macro"] = float(np.mean([metric(p, y).item() for p, y in by_category]))
        found["auroc_macro_error"] = macro_auroc_error(probability.numpy(), truth.numpy(), self._subjects)
        return found

    @cached_property
    def _subjects(self) -> np.ndarray:
        """Whose the rows of tuning are, in the order of `tuning_logits`."""
        return np.concatenate([batch.subject_ids.numpy() for batch in self.tuning.fixed()])


class Totals:
    """Sums of statistics over batches, and their ratios."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, statistics: dict[str, float]) -> None:
        for name, value in statistics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def rates(self) -> dict[str, float]:
        return rates(self.sums)


RATES = {"loss_sum": "loss", "correct": "accuracy", "top10": "top10", "recall_sum": "recall_at_10"}


def rates(sums: dict[str, float]) -> dict[str, float]:
    """Per-item metrics of summed statistics; a name with a prefix is divided by the count of that prefix.

    >>> rates({"loss_sum": 6.0, "correct": 1, "count": 4, "mlm:loss_sum": 1.0, "mlm:count": 2})
    {'loss': 1.5, 'accuracy': 0.25, 'mlm_loss': 0.5}
    """
    found = {}
    for name, value in sums.items():
        prefix, colon, plain = name.rpartition(":")
        if plain in RATES:
            count = sums.get(f"{prefix}{colon}count", 0) or math.nan
            found[f"{prefix}_{RATES[plain]}" if prefix else RATES[plain]] = value / count
    return found
