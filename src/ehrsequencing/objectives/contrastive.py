"""Contrastive learning: of a batch's other halves, which one is of the same subject?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ehrsequencing.errors import ConfigError, ShapeError


def similarities(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cosine of every pair over the temperature.

    Args:
        first, second: Float [subjects, width].
        temperature: Above 0; the lower, the more the nearest wrong answers count.

    Returns:
        Float [subjects, subjects].

    Raises:
        ConfigError: the temperature is not positive.
        ShapeError: shapes differ.
    """
    if temperature <= 0:
        raise ConfigError("temperature", got=temperature, expected="above 0")
    if first.shape != second.shape or first.ndim != 2:
        raise ShapeError("second", tuple(second.shape), tuple(first.shape))
    return F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T / temperature


def info_nce(logits: Tensor) -> Tensor:
    """Mean cross-entropy of finding the partner, in both directions.

    Args:
        logits: Float [subjects, subjects]; the diagonal holds the true pairs.

    Returns:
        Scalar, nats; log(subjects) where nothing is known.

    Source: van den Oord et al. 2018, arXiv:1807.03748; in both directions as in Radford et al. 2021, arXiv:2103.00020.
    """
    truth = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def info_nce_statistics(logits: Tensor) -> dict[str, Tensor]:
    """Per subject, Float [subjects] each: `loss_sum` and `correct`, the mean of both directions, and `count`.

    Args:
        logits: As for `info_nce`.
    """
    truth = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, truth, reduction="none") + F.cross_entropy(logits.T, truth, reduction="none")) / 2
    hits = ((logits.argmax(1) == truth).double() + (logits.argmax(0) == truth).double()) / 2
    return {"loss_sum": loss.double(), "correct": hits, "count": torch.ones_like(hits)}
