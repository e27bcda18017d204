"""The training loop: Lightning Fabric beneath, durable checkpoints, resumable bit for bit on CPU.

Batches and masks are functions of (seed, epoch, index), so the state of a run is: weights, optimiser moments, the
random state that dropout draws from, the position, and the running sums. All of it is in `checkpoints/latest.pt`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ehrsequencing.errors import CheckpointError, RunError
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.lora import note_gradients
from ehrsequencing.options import LoopOptions, OptimOptions
from ehrsequencing.tracking.experiment import ExperimentTracker, load_checkpoint
from ehrsequencing.training.callbacks import EarlyStopping, Observer
from ehrsequencing.training.device import make_fabric
from ehrsequencing.training.examination import examine
from ehrsequencing.training.optim import build_optimizer, lr_factor
from ehrsequencing.training.plans import Plan, rates
from ehrsequencing.training.vitals import Vitals, now

CHECKPOINT_FORMAT = 1


@dataclass
class Position:
    """Where a training stands: the next batch to run is `batch` of `epoch`."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0


@dataclass
class FitResult:
    """How a training ended.

    Args:
        best_epoch: Epoch of the lowest tuning loss; the model holds its weights.
        best: All tuning metrics of that epoch.
        epochs: Epochs run in all.
        early_stopped: Whether patience ran out before the planned epochs.
        seconds: Time spent training and validating, over all resumptions.
    """

    best_epoch: int
    best: dict[str, float]
    epochs: int
    early_stopped: bool
    seconds: float


class Trainer:
    """Trains one model with one plan into one run directory.

    Args:
        model: Its parameters with `requires_grad` are trained.
        plan: Objective and data.
        optim: Optimiser options.
        loop: Resolved loop options (see `resolve_loop`).
        tracker: The run directory.
        identity: What the run was started with (hashes of data and base); a checkpoint of another is refused.
        lora_state: Makes the adapter checkpoint of the current model, or None for a plain model.
        observer: Shown each step.
    """

    def __init__(
        self,
        model: PretrainedModel,
        plan: Plan,
        optim: OptimOptions,
        loop: LoopOptions,
        tracker: ExperimentTracker,
        *,
        identity: dict[str, str],
        lora_state: Callable[[], dict[str, Any]] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.bare, self.plan, self.optim, self.loop, self.tracker = model, plan, optim, loop, tracker
        self.identity, self.lora_state = identity, lora_state
        self.observer = observer or Observer()
        self.fabric = make_fabric(loop)
        self.model, self.optimizer = self.fabric.setup(model, build_optimizer(model, optim))
        self.position = Position()
        self.stopping = EarlyStopping(loop.patience)
        self.best: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self.vitals = Vitals()
        self._finished = False

    def fit(self, *, resume: bool = False) -> FitResult:
        """Train to the end and leave the best epoch's weights in the model.

        Raises:
            RunError: the loss is not finite.
            CheckpointError: `resume` and the checkpoint is damaged or of another run.
        """
        if resume:
            self._restore()
        self.observer.start(self.plan.name, self.loop.epochs)
        started = time.monotonic() - self.position.seconds
        saved = time.monotonic()
        while self.position.epoch < self.loop.epochs and not self._finished:
            epoch = self.position.epoch
            batches = self.plan.train.num_batches(epoch)
            self.model.train()
            while self.position.batch < batches:
                self._train_batch(epoch, batches)
                if time.monotonic() - saved > self.loop.checkpoint_seconds:
                    self.position.seconds = time.monotonic() - started
                    self._save(is_best=False)
                    saved = time.monotonic()
            self.position.seconds = time.monotonic() - started
            self._end_epoch(epoch)
            saved = time.monotonic()
        self._load_best()
        self.tracker.log_examination(examine(self.bare, self.plan, self.fabric.device))
        return FitResult(
            best_epoch=self.stopping.best_epoch,
            best=self.best,
            epochs=self.position.epoch,
            early_stopped=self.stopping.stop,
            seconds=self.position.seconds,
        )

    def _train_batch(self, epoch: int, batches: int) -> None:
        index, began = self.position.batch, now()
        batch = self.plan.train.batch(epoch, index)
        self.vitals.add(examples=len(batch), tokens=int(batch.mask.sum()), cells=batch.mask.numel())
        batch = batch.to(self.fabric.device)
        waited = now() - began
        factor = lr_factor((epoch + (index + 1) / batches) / self.loop.epochs, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.lr * factor
        loss, statistics = self.plan.step(self.model, batch, epoch, index)
        value = loss.item()
        if not math.isfinite(value):
            self.tracker.log_metrics({"train_loss": value}, epoch)
            self.tracker.log_trace(self.vitals.document())
            raise RunError(
                f"the training loss is not finite at epoch {epoch}, batch {index}",
                got=value,
                expected="a finite number",
                remedy="lower optim.lr tenfold, or use loop.precision=32-true",
            )
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.optim.clip, error_if_nonfinite=False
        )
        if norm is not None:
            self.vitals.note_norm(norm, self.optim.clip)
        note_gradients(self.bare)
        with self.vitals.measured(self.bare, self.position.step + 1):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, amount in statistics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(amount)
        self.position.batch += 1
        self.position.step += 1
        self.vitals.add(steps=1, loss=value, seconds=now() - began, waiting=waited)
        parts = Vitals.parts(self.loop.epochs)
        part = index * parts // batches
        if (index + 1) * parts // batches != part:
            self.vitals.close(epoch, part, self.position.step, self.optim.lr * factor, self.optim.clip)
        self.observer.step(epoch, index, batches, value)

    def _end_epoch(self, epoch: int) -> None:
        self.model.eval()
        judged = self.plan.validate(self.model, self.fabric.device)
        metrics = {f"train_{name}": value for name, value in rates(self.sums).items()}
        metrics |= {f"val_{name}": value for name, value in judged.items()}
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        is_best = self.stopping.update(epoch, judged["loss"])
        if is_best:
            self.best = metrics
        self.tracker.log_metrics(metrics, epoch)
        self.sums = {}
        self.position.epoch, self.position.batch = epoch + 1, 0
        self._finished = self.stopping.stop
        self._save(is_best=is_best)
        self.observer.epoch(epoch, metrics, is_best)

    def _state(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "epoch": self.position.epoch - 1,
            "identity": self.identity,
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": asdict(self.position),
            "stopping": asdict(self.stopping),
            "best": self.best,
            "sums": self.sums,
            "vitals": self.vitals.state(self.optim.clip),
            "finished": self._finished,
            "gradient_parameters": sorted(self.bare.gradient_parameters),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def _save(self, *, is_best: bool) -> None:
        # Before the checkpoint: what the trace has beyond it is dropped on resumption, what it lacked would be lost.
        self.tracker.log_trace(self.vitals.document())
        lora = self.lora_state() if self.lora_state is not None and is_best else None
        self.tracker.save_state(self._state(), is_best=is_best, lora_state=lora)

    def _restore(self) -> None:
        path = self.tracker.checkpoint_dir / "latest.pt"
        if not path.exists():
            # Killed before the first checkpoint: the beginning is the state, and nothing logged since counts.
            self.tracker.truncate_history(-1)
            return
        state = load_checkpoint(path)
        if state.get("format") != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path} has another format", got=state.get("format"), expected=CHECKPOINT_FORMAT)
        differing = [name for name, value in self.identity.items() if state["identity"].get(name) != value]
        if differing:
            raise CheckpointError(
                f"{path} belongs to another run: {', '.join(differing)} differ",
                got=", ".join(str(self.identity[name])[:16] for name in differing),
                expected=", ".join(str(state["identity"].get(name))[:16] for name in differing),
                remedy="resume with the store, labels and base that the run was started with",
            )
        if odd := sorted(set(state["model"]) ^ set(self.bare.state_dict())):
            raise CheckpointError(
                f"{path} holds another model than this version makes",
                got=f"differing {odd[:2]}",
                remedy="start the run anew with --overwrite",
            )
        self.bare.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])
        self.stopping = EarlyStopping(**state["stopping"])
        self.best, self.sums, self._finished = state["best"], state["sums"], state["finished"]
        self.vitals = Vitals.restored(self.tracker.trace(), state.get("vitals", {}), self.position.step)
        self.bare.gradient_parameters |= set(state["gradient_parameters"])
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([item.cpu() for item in state["rng"]["cuda"]])
        self.tracker.truncate_history(self.position.epoch - 1)

    def _load_best(self) -> None:
        state = load_checkpoint(self.tracker.checkpoint_dir / "best_model.pt")
        self.bare.load_state_dict(state["model"])
        self.bare.eval()
