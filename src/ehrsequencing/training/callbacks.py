"""What watches a training: early stopping, and observers that show progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Stops when the monitored loss has not improved for `patience` epochs.

    Args:
        patience: Epochs without improvement that are borne.
        best: Lowest loss so far.
        best_epoch: Its epoch, -1 before the first.
        bad_epochs: Epochs since.
    """

    patience: int
    best: float = math.inf
    best_epoch: int = -1
    bad_epochs: int = 0

    def update(self, epoch: int, loss: float) -> bool:
        """Take in an epoch's loss and say whether it is the best so far."""
        if loss < self.best:
            self.best, self.best_epoch, self.bad_epochs = loss, epoch, 0
            return True
        self.bad_epochs += 1
        return False

    @property
    def stop(self) -> bool:
        return self.bad_epochs >= self.patience


class Observer:
    """Is told of each step; the command line draws a progress bar from it. This one stays silent."""

    def start(self, name: str, epochs: int) -> None:
        """A training begins."""

    def step(self, epoch: int, batch: int, batches: int, loss: float) -> None:
        """A batch is done."""

    def epoch(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
        """An epoch is done and judged on tuning."""

    def say(self, message: str) -> None:
        """Something a user should read."""
