"""What a training notes of itself on the way: losses, gradients, updates, tokens and time, in parts of epochs.

All but the seconds is a function of the run alone; the rows lie in `logs/trace.json`, apart from the history of
metrics, which two runs of the same options share byte for byte.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 200
"""Rows of a whole run, about: enough for a curve, and cheap to write again with each checkpoint."""
MOST_PARTS = 20
EVERY = 25
"""An update is measured once in so many steps, and twice early on: its cost is that of an optimiser step. The very
first steps of Adam are of one size whatever the gradient."""
_EARLY = (8, 16)
_PENDING = 64
"""Norms of gradients that wait on the device, where reading each would stop it."""


@dataclass
class Row:
    """One part of an epoch.

    Args:
        epoch, part: Which part of which epoch, from 0.
        step: Steps of the run at its end.
        steps: Steps of the part.
        loss: Mean training loss of its batches.
        gradient_norm, gradient_norm_max: Norm before clipping, mean and largest over steps with a finite one.
        clipped, non_finite: Steps whose norm was above the limit; whose norm was not finite.
        update_ratio: Median over weight matrices of the norm of a step's change to that of the matrix, mean over the
            steps where it was measured; None where it was not.
        learning_rate: Of its last step.
        examples, tokens, cells: Histories, their tokens, and tokens with padding.
        seconds, waiting_seconds: Time of its steps, and of building their batches.
    """

    epoch: int
    part: int
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    gradient_norm_max: float = 0.0
    clipped: int = 0
    non_finite: int = 0
    update_ratio: float | None = None
    learning_rate: float = 0.0
    examples: int = 0
    tokens: int = 0
    cells: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0


@dataclass
class Vitals:
    """Rows of a run that are done, and sums over the part that is going on."""

    rows: list[Row] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    pending: list[Tensor] = field(default_factory=list)

    @staticmethod
    def parts(epochs: int) -> int:
        """Parts of each epoch."""
        return max(1, min(MOST_PARTS, ROWS // epochs))

    def add(self, **amounts: float) -> None:
        """Add to the sums of the part."""
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0.0) + amount

    def note_norm(self, norm: Tensor, limit: float) -> None:
        """Take in a gradient's norm before clipping."""
        self.pending.append(norm.detach())
        if len(self.pending) >= _PENDING:
            self._drain(limit)

    def _drain(self, limit: float) -> None:
        if not self.pending:
            return
        for norm in torch.stack(self.pending).double().cpu().tolist():
            if math.isfinite(norm):
                self.add(norm=norm, norms=1, clipped=norm > limit)
                self.sums["norm_max"] = max(self.sums.get("norm_max", 0.0), norm)
            else:
                self.add(non_finite=1)
        self.pending = []

    @contextmanager
    def measured(self, model: nn.Module, step: int) -> Iterator[None]:
        """Around an optimiser's step: note how far it moves the weights, where this step is one to measure.

        The half of an adapter that starts at zero has no size of its own to compare with and is left out.
        """
        if step % EVERY and step not in _EARLY:
            yield
            return
        weights = [
            parameter.detach()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.ndim >= 2 and ".lora_B." not in name
        ]
        before = [weight.clone() for weight in weights]
        yield
        if not weights:
            return
        sizes = torch.stack(torch._foreach_norm(before))
        moves = torch.stack(torch._foreach_norm(torch._foreach_sub(weights, before)))
        ratio = float((moves / sizes)[sizes > 0].median())
        if math.isfinite(ratio):
            self.add(update=ratio, updates=1)

    def close(self, epoch: int, part: int, step: int, learning_rate: float, limit: float) -> None:
        """End a part: its sums become a row."""
        self._drain(limit)
        sums = self.sums
        steps = int(sums["steps"])
        norms, updates = sums.get("norms", 0), sums.get("updates", 0)
        self.rows.append(
            Row(
                epoch=epoch,
                part=part,
                step=step,
                steps=steps,
                loss=sums["loss"] / steps,
                gradient_norm=sums["norm"] / norms if norms else 0.0,
                gradient_norm_max=sums.get("norm_max", 0.0),
                clipped=int(sums.get("clipped", 0)),
                non_finite=int(sums.get("non_finite", 0)),
                update_ratio=sums["update"] / updates if updates else None,
                learning_rate=learning_rate,
                examples=int(sums["examples"]),
                tokens=int(sums["tokens"]),
                cells=int(sums["cells"]),
                seconds=round(sums["seconds"], 4),
                waiting_seconds=round(sums["waiting"], 4),
            )
        )
        self.sums = {}

    def document(self) -> dict[str, Any]:
        """Content of `logs/trace.json`."""
        return {"rows": [asdict(row) for row in self.rows]}

    def state(self, limit: float) -> dict[str, float]:
        """Sums of the part that is going on, for a checkpoint."""
        self._drain(limit)
        return dict(self.sums)

    @classmethod
    def restored(cls, document: dict[str, Any], sums: dict[str, float], step: int) -> Vitals:
        """As they stood at a checkpoint: what was written later is dropped."""
        return cls([Row(**row) for row in document.get("rows", []) if row["step"] <= step], dict(sums))


now = time.perf_counter
