"""Classifiers and survival models by the name that a run gives them, in three sizes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from ehrsequencing.models.behrt import BEHRTForSequenceClassification
from ehrsequencing.models.classification import SequenceClassifier
from ehrsequencing.models.configuration import BEHRTConfig, RETAINConfig, SequenceConfig, VisitLSTMConfig
from ehrsequencing.models.lstm import VisitLSTMForSequenceClassification
from ehrsequencing.models.retain import RETAINForSequenceClassification
from ehrsequencing.models.survival import BEHRTForSurvival, SurvivalModel, VisitLSTMForSurvival


@dataclass(frozen=True)
class Architecture:
    """One kind of model of a history.

    Attributes:
        model: Its classifier.
        sizes: Name of a size -> what makes its configuration from `vocab_size` and options.
        survival: Its survival model, where it has one.
    """

    model: type[SequenceClassifier]
    sizes: Mapping[str, Callable[..., SequenceConfig]]
    survival: type[SurvivalModel] | None = None

    def configuration(self, size: str, vocab_size: int, **options: Any) -> SequenceConfig:
        """Configuration of a size; options that this architecture does not have are left out."""
        known = {field.name for field in fields(self.model.config_class)}
        given = {name: value for name, value in options.items() if name in known}
        return self.sizes[size](vocab_size=vocab_size, **given)

    def size_name(self, config: SequenceConfig) -> str:
        """Name of the size that a configuration has, or its layers and width."""
        for name in self.sizes:
            same = self.configuration(name, config.vocab_size)
            if (same.hidden_dim, same.num_layers, same.embedding_dim) == (
                config.hidden_dim,
                config.num_layers,
                config.embedding_dim,
            ):
                return name
        return f"{config.num_layers}x{config.hidden_dim}"


def _widths(
    kind: type[SequenceConfig], widths: Mapping[str, tuple[int, int]], **options: Any
) -> dict[str, Callable[..., SequenceConfig]]:
    """Sizes that differ by the widths of embeddings and encoder."""
    return {
        name: partial(kind, embedding_dim=embedding, hidden_dim=hidden, **options)
        for name, (embedding, hidden) in widths.items()
    }


# Widths at which the parameters are about those of a BEHRT of the same size with rotary positions.
ARCHITECTURES: Mapping[str, Architecture] = {
    "behrt": Architecture(
        BEHRTForSequenceClassification,
        {"small": BEHRTConfig.small, "medium": BEHRTConfig.medium, "large": BEHRTConfig.large},
        BEHRTForSurvival,
    ),
    "lstm": Architecture(
        VisitLSTMForSequenceClassification,
        _widths(VisitLSTMConfig, {"small": (64, 160), "medium": (128, 400), "large": (256, 1024)}),
        VisitLSTMForSurvival,
    ),
    "bilstm": Architecture(
        VisitLSTMForSequenceClassification,
        _widths(VisitLSTMConfig, {"small": (64, 192), "medium": (128, 464), "large": (256, 1216)}, bidirectional=True),
        VisitLSTMForSurvival,
    ),
    "retain": Architecture(
        RETAINForSequenceClassification,
        _widths(RETAINConfig, {"small": (64, 176), "medium": (128, 448), "large": (256, 1152)}),
    ),
}
"""Name -> architecture."""


def classifier_class(architecture: str) -> type[SequenceClassifier] | None:
    """The classifier whose class has this name, as `config.json` states it; None where it is no classifier."""
    return next((kind.model for kind in ARCHITECTURES.values() if kind.model.__name__ == architecture), None)


def survival_class(architecture: str) -> type[SurvivalModel] | None:
    """The survival model whose class has this name, as `config.json` states it; None where it is none."""
    kinds = (kind.survival for kind in ARCHITECTURES.values())
    return next((kind for kind in kinds if kind is not None and kind.__name__ == architecture), None)
