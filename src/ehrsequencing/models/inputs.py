"""What a model accepts: shapes, types and ranges, checked at the cost of one transfer from the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from ehrsequencing.errors import ConfigError, ShapeError
from ehrsequencing.models.configuration import SequenceConfig


class OptionalInputs(TypedDict, total=False):
    """Inputs that a configuration may ask for, each [batch, length].

    Attributes:
        kinds: Long, 0 to `config.num_kinds`; with `config.num_kinds`.
        times: Float, days before the prediction time; with `config.time_embedding`.
        values: Float in [0, 1], NaN where there is none; with `config.use_values`.
        gaps: Float, days since the visit before, 0 or more; with `config.gap_embedding`.
        age_years: Float, NaN where unknown; with `config.age` "continuous".
        calendar: Float, years since the start of 2000, NaN where there is no date; with `config.calendar_embedding`.
    """

    kinds: Tensor | None
    times: Tensor | None
    values: Tensor | None
    gaps: Tensor | None
    age_years: Tensor | None
    calendar: Tensor | None


@dataclass(frozen=True)
class LabelRange:
    """Labels of a head and what they may be; of any shape and number type.

    Attributes:
        labels: The labels.
        high: Largest label; the smallest is 0.
        ignored: A further value that means no label.
    """

    labels: Tensor
    high: int
    ignored: int | None = None

    def fits(self) -> Tensor:
        """Bool, of the labels' shape; False at NaN."""
        fits = (self.labels >= 0) & (self.labels <= self.high)
        return fits if self.ignored is None else fits | (self.labels == self.ignored)

    def refusal(self) -> ShapeError:
        """The error for labels that do not fit."""
        wrong = self.labels[~self.fits()]
        also = "" if self.ignored is None else f", or {self.ignored}"
        return ShapeError(
            "labels", f"{wrong[0].item()} and {len(wrong) - 1} more out of range", f"0 to {self.high}{also}"
        )


def check_inputs(
    config: SequenceConfig,
    codes: Tensor,
    ages: Tensor,
    visit_ids: Tensor,
    mask: Tensor,
    *,
    optional: OptionalInputs,
    labels: LabelRange | None,
) -> bool:
    """Check what the model's `forward` was given; returns whether there is padding.

    Args:
        optional: Further inputs; what is absent counts as None.

    Raises:
        ShapeError: shapes differ, a sequence is too long, or an id or label is out of range.
        ConfigError: an input is missing that the configuration asks for, or given that it does not.
    """
    given: Mapping[str, Any] = optional
    for name, (wanted, option) in config.optional_inputs().items():
        if (given.get(name) is not None) != wanted:
            got, expected = ("none", "an input") if wanted else ("an input", "none")
            raise ConfigError(
                f"{name} of a {config.family} model whose {option} is {getattr(config, option)}",
                got=got,
                expected=expected,
            )
    if codes.ndim != 2 or codes.numel() == 0 or codes.shape[1] > config.max_length:
        raise ShapeError("codes", tuple(codes.shape), f"[batch, length], length 1 to {config.max_length}")
    if mask.dtype != torch.bool:
        raise ShapeError("mask", mask.dtype, "bool, True at real tokens")
    others: dict[str, Tensor | None] = {"ages": ages, "visit_ids": visit_ids, "mask": mask, **given}
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != codes.shape:
            raise ShapeError(name, tuple(tensor.shape), tuple(codes.shape))
    limits = {"codes": (codes, config.vocab_size), "ages": (ages, config.max_age + 1)}
    limits["visit_ids"] = (visit_ids, config.max_visits)
    if (kinds := optional.get("kinds")) is not None:
        limits["kinds"] = (kinds, config.num_kinds + 1)
    for name, (ids, _) in limits.items():
        if ids.dtype not in (torch.int64, torch.int32):
            raise ShapeError(name, ids.dtype, "int64")
    # One transfer for all checks: on an accelerator each would wait for the device.
    found = [bound for ids, _ in limits.values() for bound in (ids.min(), ids.max())]
    found += [mask.all(), mask.new_ones(()) if labels is None else labels.fits().all()]
    *extremes, real, labels_fit = torch.stack([value.to(torch.int64) for value in found]).tolist()
    for index, (name, (_, size)) in enumerate(limits.items()):
        low, high = extremes[2 * index : 2 * index + 2]
        if low < 0 or high >= size:
            raise ShapeError(name, f"ids {low} to {high}", f"0 to {size - 1}")
    if labels is not None and not labels_fit:
        raise labels.refusal()
    return not real
