"""What all classifiers of a sequence share: kinds of labels, their checks and the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.inputs import LabelRange


class ModelOutput(NamedTuple):
    """What a head returns; `loss` is None without labels."""

    logits: Tensor
    loss: Tensor | None


class SequenceClassifier(PretrainedModel):
    """A model with one decision per sequence.

    Attributes:
        num_labels: 1: a binary label with one logit. More: one logit per class or label.
        problem_type: "binary", "single_label" (one class of several) or "multi_label".
        classifier: The last layer; its bias is the log odds where nothing else is known.
    """

    num_labels: int
    problem_type: str
    classifier: nn.Linear

    def decide(self, num_labels: int, problem_type: str | None) -> None:
        """State what is decided; by default binary for one label and one class of several for more.

        Raises:
            ConfigError: `num_labels` and `problem_type` disagree.
        """
        if problem_type is None:
            problem_type = "binary" if num_labels == 1 else "single_label"
        fits = {"binary": num_labels == 1, "single_label": num_labels > 1, "multi_label": num_labels > 0}
        if not fits.get(problem_type, False):
            raise ConfigError(
                "problem_type and num_labels",
                got=f"{problem_type} with {num_labels}",
                expected="binary with 1, single_label with 2 or more, or multi_label with 1 or more",
            )
        self.num_labels, self.problem_type = num_labels, problem_type

    def head_options(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels, "problem_type": self.problem_type}

    def label_range(self, labels: Tensor | None) -> LabelRange | None:
        """The labels with what they may be."""
        high = self.num_labels - 1 if self.problem_type == "single_label" else 1
        return None if labels is None else LabelRange(labels, high)

    def decided(self, logits: Tensor, labels: Tensor | None) -> ModelOutput:
        """Logits as the head returns them, and their loss.

        Args:
            logits: Float [batch, num_labels].
            labels: Float or Bool [batch] for "binary", Long [batch] for "single_label", Float or Bool
                [batch, num_labels] for "multi_label".

        Raises:
            ShapeError: labels of another shape or type.
        """
        if self.problem_type == "binary":
            logits = logits.squeeze(-1)
        if labels is None:
            return ModelOutput(logits, None)
        if self.problem_type != "single_label":
            return ModelOutput(logits, binary_loss(logits, labels))
        if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
            raise ShapeError("labels", f"{labels.dtype} {tuple(labels.shape)}", f"int64 ({len(logits)},)")
        return ModelOutput(logits, F.cross_entropy(logits.float(), labels))


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy in nats, computed in float32 whatever the logits' type."""
    if labels.shape != logits.shape:
        raise ShapeError("labels", tuple(labels.shape), tuple(logits.shape))
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
