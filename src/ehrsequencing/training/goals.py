"""What labels ask of a model: its head, where it starts, how it is trained, and what its run says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ehrsequencing.config import FinetuneConfig
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.labels import CATEGORIES_FILE, trained_categories
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, ConfigError
from ehrsequencing.io import hash_bytes, read_json
from ehrsequencing.models.behrt import BEHRTForSequenceClassification
from ehrsequencing.models.classification import SequenceClassifier
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.training.loop import Trainer
from ehrsequencing.training.plans import ClassificationPlan, MultiLabelPlan, Plan
from ehrsequencing.training.runs import CHANGEABLE, load_base, new_classifier


class Goal(Protocol):
    """What labels ask of a model.

    Attributes:
        config: The run's configuration, with what the labels decided.
        notes: What a reader should know.
        held_out: How to look at held-out subjects, the end of a sentence.
    """

    config: FinetuneConfig
    notes: list[str]
    held_out: str

    def build(self, base: Path | None, store: TokenStore) -> PretrainedModel:
        """The model, fresh or from a base; CheckpointError or ConfigError where the base does not fit."""
        ...

    def files(self) -> dict[str, bytes]:
        """What the model folder holds beside the model."""
        ...

    def identity(self) -> dict[str, str]:
        """What a resumption must have in common, beside data, base and configuration."""
        ...

    def begin(self, model: Any) -> None:
        """Set the last layer to what is known without looking at a history, so that no step is spent on it."""
        ...

    def plan(self, model: Any, sources: Mapping[str, BatchSource], store: TokenStore) -> Plan:
        """How it is trained and judged on tuning."""
        ...

    def facts(self) -> dict[str, Any]:
        """Entries of the run's metadata."""
        ...

    def finish(self, trainer: Trainer, plan: Any, tracker: ExperimentTracker) -> None:
        """What follows the training, with the best epoch's weights in the model."""
        ...

    def entries(self, plan: Any, best: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Entries of the summary by metric: `value` of the best epoch, `higher_is_better` and more."""
        ...


class ClassificationGoal:
    """One yes-or-no decision, or one per category."""

    held_out = "run `ehrseq evaluate` for held-out figures with intervals"

    def __init__(self, config: FinetuneConfig, examples: dict[str, Examples], source: str) -> None:
        if config.survival.model_fields_set:
            raise ConfigError(
                f"options of survival have no effect on {source}",
                got=", ".join(f"survival.{name}" for name in sorted(config.survival.model_fields_set)),
                expected="labels with durations (integer_value and float_value)",
                remedy="leave them out",
            )
        self.config, self.examples = config, examples
        self.categories = examples["train"].categories
        self.notes: list[str] = []
        rows = np.atleast_2d(np.asarray(examples["train"].target).T).T
        # Where there are none or all, as of half a row.
        self.prevalence = np.clip(rows.sum(0, dtype=np.float64), 0.5, len(rows) - 0.5) / len(rows)

    def build(self, base: Path | None, store: TokenStore) -> SequenceClassifier:
        head: dict[str, Any] = {}
        if self.categories:
            head = {"num_labels": len(self.categories), "problem_type": "multi_label"}
        if base is None:
            return new_classifier(self.config, len(store.vocabulary), **head)
        return load_base(
            BEHRTForSequenceClassification, base, store, **base_options(self.config, self._brings_head(base)), **head
        )

    def _brings_head(self, base: Path) -> bool:
        """Whether the base was fine-tuned and so brings its head along, which must decide what these labels ask."""
        architecture = architecture_of(base)
        own = trained_categories(base)
        classifier = architecture == BEHRTForSequenceClassification.__name__
        if architecture.endswith("ForSurvival") or (classifier and own != list(self.categories)):
            survival = "times to an event" if not classifier else "a binary label"
            raise ConfigError(
                f"{base} was fine-tuned on labels of another kind",
                got=f"{len(own)} categories" if own else survival,
                expected=f"the {len(self.categories)} categories of the labels"
                if self.categories
                else "a binary label",
                remedy="name the pretrained run with --from",
            )
        return classifier

    def files(self) -> dict[str, bytes]:
        return {CATEGORIES_FILE: names_file("categories", self.categories)} if self.categories else {}

    def identity(self) -> dict[str, str]:
        return {"categories": hash_bytes(*self.files().values())} if self.categories else {}

    def begin(self, model: SequenceClassifier) -> None:
        with torch.no_grad():
            model.classifier.bias.copy_(torch.as_tensor(np.log(self.prevalence / (1 - self.prevalence))))

    def plan(
        self, model: SequenceClassifier, sources: Mapping[str, BatchSource], store: TokenStore
    ) -> ClassificationPlan:
        kind = MultiLabelPlan if self.categories else ClassificationPlan
        return kind(model.config, sources["train"], sources["tuning"])

    def facts(self) -> dict[str, Any]:
        positives = {split: int(np.asarray(rows.target).sum()) for split, rows in self.examples.items()}
        return {"positives": positives, **({"categories": len(self.categories)} if self.categories else {})}

    def finish(self, trainer: Trainer, plan: ClassificationPlan, tracker: ExperimentTracker) -> None:
        if self.categories:
            return
        logits, truth = plan.tuning_logits(trainer.model, trainer.fabric.device)
        # At a rare outcome nothing passes 0.5; called positive is whoever is above the average risk of train.
        called = (logits.sigmoid() > float(self.prevalence[0])).long().tolist()
        tracker.plot_confusion_matrix(truth.long().tolist(), called, ["no", "yes"])

    def entries(self, plan: ClassificationPlan, best: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        more = {"categories": plan.judged} if isinstance(plan, MultiLabelPlan) else {}
        return {name: {"value": best[f"val_{name}"], "higher_is_better": True, **more} for name in plan.metrics}


def architecture_of(folder: Path) -> str:
    """Class of the model in a folder."""
    return str(read_json(folder / "config.json", CheckpointError).get("architecture"))


def base_options(config: FinetuneConfig, brings_head: bool) -> dict[str, Any]:
    """Options of the architecture that may differ from the base's; how a fresh head pools is the run's own."""
    given = config.model.model_fields_set & (CHANGEABLE | {"pooling"})
    return config.model.model_dump(include=given if brings_head else given | {"pooling"})


def names_file(key: str, names: tuple[str, ...]) -> bytes:
    """The file of a model folder that names its outputs."""
    return (json.dumps({key: list(names)}, ensure_ascii=False) + "\n").encode()
