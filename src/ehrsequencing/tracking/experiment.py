"""One run, one directory: settings, history, checkpoints, plots and summaries that survive a vanishing machine."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ehrsequencing.errors import CheckpointError, ConfigError, MetricError, RunError
from ehrsequencing.io import atomic_path, read_json, versions, write_json, write_text
from ehrsequencing.tracking import rundir
from ehrsequencing.tracking.checkpoints import checkpoint_epoch, load_checkpoint, save_together
from ehrsequencing.tracking.mirrors import Mirrors, check_mirrors
from ehrsequencing.tracking.summary import check_metrics
from ehrsequencing.tracking.text import summary_text
from ehrsequencing.tracking.values import number, plain

logger = logging.getLogger(__name__)

STATUSES = ("running", "completed", "failed", "interrupted", "early_stopped")
_RESERVED = (
    "experiment_name",
    "status",
    "created",
    "ended",
    "seconds",
    "error",
    "best_epoch",
    "resumed",
    "non_finite",
    "mirrors",
)

History = dict[str, list[dict[str, Any]]]


class ExperimentTracker:
    """Writes the run directory `output_dir/experiment_name`; `docs/run-directory.md` describes every file.

    Every write is atomic, so a reader, or the next process after a kill, finds the old file or the new one. While
    the tracker lives it holds a lock on the directory, which the operating system lifts when the process dies.

    Args:
        experiment_name: Name of the run's folder.
        output_dir: Folder of the runs.
        exist_ok: Discard an earlier run of this name and start anew (`--overwrite`); files that no run writes stay.
        resume: Continue an earlier run. `previous_status` then says how it ended: "running" means that its process
            was killed before it could say anything.
        mirrors: Copies for other tools, as `Mirrors` names them; a run that goes on keeps those it had.

    Raises:
        ConfigError: the name is no plain folder name, both `exist_ok` and `resume` are given, or as `check_mirrors`.
        RunError: the directory is not empty and neither option is given, `resume` finds no run, `exist_ok` finds
            something that is no run, or another process is writing there.
    """

    def __init__(
        self,
        experiment_name: str,
        output_dir: str | Path = "experiments",
        *,
        exist_ok: bool = False,
        resume: bool = False,
        mirrors: Sequence[str] = (),
    ) -> None:
        rundir.refuse_name(experiment_name)
        check_mirrors(mirrors)
        if exist_ok and resume:
            raise ConfigError("a run cannot be both resumed and overwritten", remedy="give one of the two")
        self.experiment_name = experiment_name
        self.run_dir = Path(output_dir) / experiment_name
        self.checkpoint_dir = self.run_dir / "checkpoints"
        self.plot_dir = self.run_dir / "plots"
        self.log_dir = self.run_dir / "logs"
        self.previous_status: str | None = None
        self._started = time.monotonic()
        if resume and not (self.run_dir / "metadata.json").is_file():
            raise RunError(f"{self.run_dir} holds no run to resume", remedy="start it without --resume")
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise RunError(f"{self.run_dir} is no folder", remedy="choose another name")
        if not (resume or exist_ok):
            rundir.refuse_existing(self.run_dir)
        if exist_ok:
            rundir.refuse_foreign(self.run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._release = weakref.finalize(self, os.close, rundir.lock(self.run_dir))
        if resume:
            self._resume()
        else:
            if exist_ok:
                rundir.discard(self.run_dir)
            self._metadata: dict[str, Any] = {
                "experiment_name": experiment_name,
                "status": "running",
                "created": _now(),
                "versions": versions(),
            }
            self._history: History = {}
            self._hyperparameters: dict[str, Any] = {}
        # First of all files: until it exists the folder counts as empty, and a retry needs no clean-up.
        self._write_metadata()
        for folder in (self.checkpoint_dir, self.plot_dir, self.log_dir):
            folder.mkdir(exist_ok=True)
        earlier = self._metadata.get("mirrors", {})
        self._mirrors = Mirrors(mirrors, self.run_dir, earlier, self._last_epoch() if earlier else -1)
        if self._mirrors.state:
            self._metadata["mirrors"] = self._mirrors.state
            self._write_metadata()

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        return self._metadata["status"]

    @property
    def history(self) -> History:
        """Logged metrics as on disk: {"train_loss": [{"epoch": 0, "value": 7.0}]}; do not change it."""
        return self._history

    @property
    def metadata(self) -> dict[str, Any]:
        """Content of `metadata.json`; do not change it."""
        return self._metadata

    def log_hyperparameters(self, hyperparameters: Mapping[str, Any]) -> None:
        """Add settings to `hyperparameters.json`; a later value replaces an earlier one of the same name.

        Raises:
            ConfigError: a value is NaN or infinite, or no JSON value.
        """
        self._hyperparameters |= plain(hyperparameters, "hyperparameters")
        self._mirrors.hyperparameters(self._hyperparameters)
        write_json(self.run_dir / "hyperparameters.json", self._hyperparameters)

    def log_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Add facts about the run (device, fingerprints, versions) to `metadata.json`.

        Raises:
            ConfigError: a name that the tracker itself writes, or a value as in `log_hyperparameters`.
        """
        reserved = sorted(set(metadata) & set(_RESERVED))
        if reserved:
            raise ConfigError("metadata uses names that the tracker writes itself", got=", ".join(reserved))
        self._metadata |= plain(metadata, "metadata")
        self._write_metadata()

    def log_metrics(self, metrics: Mapping[str, Any], epoch: int) -> None:
        """Append one value per metric to `logs/metrics_history.json`.

        A loss of NaN is what a doctor of the run looks for, and JSON has no word for it: the history keeps null, and
        `metadata.json` lists metric, epoch and what it was under "non_finite".

        Args:
            metrics: Name -> number (Python, numpy or one-element tensor). `val_` means the tuning split.
            epoch: 0-based, larger than the last one logged under the same name.

        Raises:
            MetricError: a value is no number, or the epoch does not advance.
        """
        if type(epoch) is not int or epoch < 0:
            raise MetricError("the epoch is malformed", got=repr(epoch), expected="an int from 0")
        values = {name: number(name, value) for name, value in metrics.items()}
        for name in values:
            if (earlier := self._history.get(name)) and earlier[-1]["epoch"] >= epoch:
                raise MetricError(
                    f"metric {name!r} was logged already",
                    got=f"epoch {epoch} after epoch {earlier[-1]['epoch']}",
                    remedy="call truncate_history before redoing an epoch",
                )
        strange = [
            {"metric": name, "epoch": epoch, "value": str(value)}
            for name, value in values.items()
            if not math.isfinite(value)
        ]
        for name, value in values.items():
            entry = {"epoch": epoch, "value": value if math.isfinite(value) else None}
            self._history.setdefault(name, []).append(entry)
        if strange:
            logger.warning("epoch %d: %s", epoch, ", ".join(f"{item['metric']} is {item['value']}" for item in strange))
            self._metadata["non_finite"] = [*self._metadata.get("non_finite", []), *strange]
            self._write_metadata()
        self._write_history()
        self._mirrors.metrics(values, epoch)

    def truncate_history(self, epoch: int) -> None:
        """Drop what was logged after `epoch`, which stays itself; -1 drops everything.

        A resumed run calls it with the epoch of its checkpoint, since what was written later is done again.
        """
        kept = {name: [item for item in items if item["epoch"] <= epoch] for name, items in self._history.items()}
        self._history = {name: items for name, items in kept.items() if items}
        strange = [item for item in self._metadata.get("non_finite", []) if item["epoch"] <= epoch]
        self._metadata.pop("non_finite", None)
        if self._metadata.get("best_epoch", -1) > epoch:
            del self._metadata["best_epoch"]
        if strange:
            self._metadata["non_finite"] = strange
        self._write_history()
        self._write_metadata()

    def log_trace(self, trace: Mapping[str, Any]) -> None:
        """Write `logs/trace.json`: what the training notes of itself within epochs."""
        write_json(self.log_dir / "trace.json", trace)

    def trace(self) -> dict[str, Any]:
        """Content of `logs/trace.json`; {} while there is none."""
        return self._read("logs/trace.json")

    def log_examination(self, examination: Mapping[str, Any]) -> None:
        """Write `logs/examination.json`: what the trained model looks like inside."""
        write_json(self.log_dir / "examination.json", examination)

    def save_state(
        self, state: Mapping[str, Any], *, is_best: bool, lora_state: Mapping[str, Any] | None = None
    ) -> None:
        """Write `checkpoints/latest.pt`, and `best_model.pt` and `best_lora.pt` when this epoch is the best so far.

        The same three files are replaced for ever. They advance together (see `save_together`); `latest.pt` is
        renamed last, so it never speaks of a best epoch that `best_model.pt` does not hold, and a resumed run
        finishes renames that a kill cut short.

        Args:
            state: Tensors and plain values; `state["epoch"]` is the last finished epoch as logged.
            is_best: Whether this epoch is the best so far.
            lora_state: What an adapter-only checkpoint holds; written when `is_best`.

        Raises:
            CheckpointError: no epoch in the state, or something `torch.load(weights_only=True)` would refuse.
            RunError: the disk is full; the earlier files are whole.
        """
        if type(state.get("epoch")) is not int:
            raise CheckpointError("the state names no epoch", got=repr(state.get("epoch")), expected='int at "epoch"')
        files: dict[Path, Mapping[str, Any]] = {}
        if is_best:
            if lora_state is not None:
                files[self.checkpoint_dir / "best_lora.pt"] = lora_state
            files[self.checkpoint_dir / "best_model.pt"] = state
        files[self.checkpoint_dir / "latest.pt"] = state
        save_together(files)
        if is_best:
            self._metadata["best_epoch"] = state["epoch"]
            self._write_metadata()

    def save_checkpoint(
        self, model: Any, optimizer: Any, epoch: int, metrics: Mapping[str, Any], is_best: bool = False
    ) -> None:
        """`save_state` for a plain training script: model, optimiser (or None), epoch and metrics in one state.

        A model with LoRA modules also gets `best_lora.pt`: every parameter that trains, adapters, embeddings or head.
        """
        state = {
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "metrics": {name: number(name, value) for name, value in metrics.items()},
        }
        adapted = any("lora" in name for name, _ in model.named_modules())
        trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.save_state(state, is_best=is_best, lora_state=trained if adapted else None)

    load_checkpoint = staticmethod(load_checkpoint)

    def best(self) -> dict[str, Any]:
        """{"epoch": e, "metrics": {...}}: every metric as it was at the one best epoch; {} while there is none."""
        epoch = self._metadata.get("best_epoch")
        if epoch is None:
            return {}
        metrics = {
            name: item["value"] for name, items in self._history.items() for item in items if item["epoch"] == epoch
        }
        return {"epoch": epoch, "metrics": metrics}

    def plot_training_curves(self) -> list[Path]:
        """Draw `plots/loss_curve.png` and `plots/accuracy_curve.png` of what was logged.

        Raises:
            MetricError: neither a loss nor an accuracy was logged.
        """
        from ehrsequencing.tracking.plots import curve_plot

        drawn = []
        for kind, label in (("loss", "Loss (nats)"), ("accuracy", "Accuracy")):
            curves = {name: items for name, items in self._history.items() if name.endswith(kind)}
            if curves:
                path = self.plot_dir / f"{kind}_curve.png"
                curve_plot(path, curves, label, self.experiment_name, self._metadata.get("best_epoch"))
                drawn.append(path)
        if not drawn:
            raise MetricError("there is no curve to draw", expected="a metric whose name ends in loss or accuracy")
        return drawn

    def plot_confusion_matrix(self, y_true: Sequence[int], y_pred: Sequence[int], class_names: Sequence[str]) -> Path:
        """Draw `plots/confusion_matrix.png`: counts, and the share of each true class.

        Args:
            y_true: [n] index of the true class.
            y_pred: [n] index of the predicted class.
            class_names: One name per class.

        Raises:
            MetricError: no rows, lengths that differ, or an index without a name.
        """
        from ehrsequencing.tracking.plots import confusion_counts, confusion_plot

        path = self.plot_dir / "confusion_matrix.png"
        confusion_plot(path, confusion_counts(y_true, y_pred, len(class_names)), list(class_names))
        return path

    def set_status(self, status: str) -> None:
        """Record how the run ended, or that it goes on, in `metadata.json`; a final status renews `SUMMARY.txt`.

        Raises:
            ConfigError: a status that is none of `STATUSES`.
        """
        if status not in STATUSES:
            raise ConfigError("unknown status", got=repr(status), expected=", ".join(STATUSES))
        self._metadata["status"] = status
        if status == "running":
            self._metadata.pop("ended", None)
        else:
            self._metadata["ended"] = _now()
            self._metadata["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 1)
        self._write_metadata()
        if status != "running":
            self._write_summary_text()
            self._mirrors.close(status)

    def save_summary(
        self,
        metrics: Mapping[str, Mapping[str, Any]] | None = None,
        best: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Write `summary.json` for programs and `SUMMARY.txt` for people.

        Args:
            metrics: {model: {"task/metric[@horizon]": {value, low, high, n, positives, subjects, seeds,
                higher_is_better}}}; only `value` is required, and the direction where the name is not a known one.
            best: Replaces what `best()` says.
            notes: Sentences a reader must know.

        Raises:
            MetricError: a figure is NaN or malformed, or its direction unknown; nothing is written.
        """
        summary = {
            "experiment_name": self.experiment_name,
            "metrics": check_metrics(metrics or {}),
            "best": plain(self.best() if best is None else best, "best"),
            "notes": list(notes),
        }
        write_json(self.run_dir / "summary.json", summary)
        self._write_summary_text()

    def close(self) -> None:
        """Give up the lock on the directory."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if problem is None or (isinstance(problem, SystemExit) and problem.code in (None, 0)):
                if self.status == "running":
                    self.set_status("completed")
                return
            self._metadata["error"] = " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
            try:
                self.set_status("interrupted" if isinstance(problem, KeyboardInterrupt) else "failed")
            except OSError as second:
                problem.add_note(f"the status of {self.run_dir} could not be written: {second}")
        finally:
            self.close()

    def _resume(self) -> None:
        metadata = read_json(self.run_dir / "metadata.json", remedy="start the run anew with --overwrite")
        if not isinstance(metadata, dict) or metadata.get("status") not in STATUSES:
            raise RunError(f"{self.run_dir / 'metadata.json'} is not the metadata of a run")
        self._metadata = metadata
        self._history = self._read("logs/metrics_history.json")
        self._hyperparameters = self._read("hyperparameters.json")
        self.previous_status = metadata["status"]
        if self.previous_status == "running":
            logger.warning("%s: the earlier process was killed before it could write how it ended", self.run_dir)
        for folder in (self.run_dir, self.checkpoint_dir, self.plot_dir, self.log_dir):
            rundir.remove_partial(folder)
        self._finish_renames()
        note = {"at": _now(), "previous_status": self.previous_status}
        metadata["resumed"] = [*metadata.get("resumed", []), note]
        metadata["status"] = "running"
        metadata.pop("ended", None)
        metadata.pop("error", None)

    def _finish_renames(self) -> None:
        # A best checkpoint is a whole state, so one that is ahead of latest.pt is where the killed run really was.
        best, latest = self.checkpoint_dir / "best_model.pt", self.checkpoint_dir / "latest.pt"
        best_epoch = checkpoint_epoch(best)
        if best_epoch is None:
            self._metadata.pop("best_epoch", None)
            return
        latest_epoch = checkpoint_epoch(latest)
        if latest_epoch is None or latest_epoch < best_epoch:
            with atomic_path(latest) as temporary:
                shutil.copyfile(best, temporary)
        self._metadata["best_epoch"] = best_epoch

    def _last_epoch(self) -> int:
        """Of the checkpoint that a resumption starts from; -1 without one."""
        epoch = checkpoint_epoch(self.checkpoint_dir / "latest.pt")
        return -1 if epoch is None else epoch

    @property
    def _seconds_before(self) -> float:
        return float(self._metadata.get("seconds", 0.0)) if self.previous_status else 0.0

    def _read(self, name: str) -> dict[str, Any]:
        path = self.run_dir / name
        return read_json(path, remedy="start the run anew with --overwrite") if path.exists() else {}

    def _write_metadata(self) -> None:
        write_json(self.run_dir / "metadata.json", self._metadata)

    def _write_history(self) -> None:
        write_json(self.log_dir / "metrics_history.json", self._history)

    def _write_summary_text(self) -> None:
        text = summary_text(self._metadata, self._hyperparameters, self._read("summary.json"), self.best())
        write_text(self.run_dir / "SUMMARY.txt", text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
