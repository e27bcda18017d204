"""What a run directory says, in the form that rules ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from ehrsequencing.errors import RunError
from ehrsequencing.io import read_json

Row = dict[str, Any]
ENDED = ("completed", "early_stopped", "failed", "interrupted")


@dataclass(frozen=True)
class Target:
    """One figure of a training that has floors.

    Attributes:
        name: What is predicted, for sentences.
        metric: Its loss in the history, without `val_` or `train_`.
        summary: Its key in the summary, without the task's prefix; None where the summary has no interval of it.
        floors: {name: nats} of predictors that need no network.
        train: Whether the history has the same figure of train.
    """

    name: str
    metric: str
    summary: str | None
    floors: dict[str, float]
    train: bool = True

    @property
    def best_floor(self) -> tuple[str, float]:
        """Name and nats of the strongest floor."""
        return min(self.floors.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Evidence:
    """One training's own files; what is not there is empty.

    Attributes:
        path: The run directory.
        metadata, settings, history, summary, report: The run's JSON files.
        trace: Rows of `logs/trace.json`.
        examination: `logs/examination.json`.
    """

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    trace: list[Row] = field(default_factory=list)
    examination: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, run: str | Path) -> Evidence:
        """Read a run directory.

        Raises:
            RunError: it is none, or a file of it is malformed.
        """
        run = Path(run)
        if not (run / "metadata.json").is_file():
            raise RunError(
                f"{run} is no run directory",
                got="no metadata.json" if run.is_dir() else "no such folder",
                remedy="name a folder that `ehrseq pretrain --out` or `ehrseq finetune --out` wrote",
            )

        def content(name: str) -> dict[str, Any]:
            return read_json(run / name) if (run / name).is_file() else {}

        return cls(
            run,
            content("metadata.json"),
            content("hyperparameters.json"),
            content("logs/metrics_history.json"),
            content("summary.json"),
            content("report_data.json"),
            content("logs/trace.json").get("rows", []),
            content("logs/examination.json"),
        )

    @property
    def status(self) -> str:
        return str(self.metadata.get("status", "running"))

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def kind(self) -> str:
        """`pretrain`, `finetune`, or empty where the run does not say."""
        return str(self.metadata.get("kind", ""))

    @property
    def method(self) -> str:
        return str(self.metadata.get("method", ""))

    def option(self, name: str) -> Any:
        """A setting by its dotted key; None where there is none."""
        value: Any = self.settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def series(self, metric: str) -> dict[int, float]:
        """{epoch: value} of a metric, without the values that were not finite."""
        return {item["epoch"]: item["value"] for item in self.history.get(metric, []) if item["value"] is not None}

    @cached_property
    def best_epoch(self) -> int | None:
        """The epoch with the lowest tuning loss."""
        found = self.series("val_loss")
        return min(found, key=lambda epoch: (found[epoch], epoch)) if found else None

    @cached_property
    def targets(self) -> list[Target]:
        """What the training predicts, with its floors; the first is the one that matters."""
        if self.kind == "finetune":
            return self._classification()
        floors = self.metadata.get("floors") or {row["name"]: row for row in self.report.get("floors", [])}
        masked = {name: row["loss"] for name, row in floors.items() if not name.startswith("next visit, ")}
        following = {
            name.removeprefix("next visit, "): row["loss"]
            for name, row in floors.items()
            if name.startswith("next visit, ")
        }
        if not floors:
            return []
        objective = self.option("objective") or "mlm"
        if objective == "joint":
            return [
                Target("masked codes", "mlm_loss", "mlm_loss", masked),
                Target("next visits", "nvp_cross_entropy", "ce", following, train=False),
            ]
        name, metric, key = {
            "nvp": ("next visits", "cross_entropy", "ce"),
            "contrastive": ("segments of histories", "loss", "ce"),
            "tte": ("times to events", "loss", "nll"),
        }.get(str(objective), ("masked codes", "loss", "mlm_loss"))
        # The trained loss of next visits may be focal or weighted; it is the cross-entropy only where it is neither.
        plain = self.option("nvp.loss") in (None, "bce") and not self.option("nvp.balance")
        return [Target(name, metric, key, masked, train=metric == "loss" or plain)]

    def _classification(self) -> list[Target]:
        if floors := self.metadata.get("floors"):
            known = {name: row["loss"] for name, row in floors.items()}
            return [Target("times to the event", "loss", None, known)]
        nats = self.label_entropy("tuning")
        return [] if nats is None else [Target("the label", "loss", None, {"share of positives": nats})]

    def label_entropy(self, split: str) -> float | None:
        """Nats per label of who predicts everyone the share of positives, of a binary task."""
        share = self.prevalence(split)
        if share is None or not 0 < share < 1:
            return None
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    def label_counts(self, split: str) -> tuple[int, int] | None:
        """Positives, and examples, of a binary task."""
        examples = (self.metadata.get("examples") or {}).get(split)
        positives = (self.metadata.get("positives") or {}).get(split)
        if not examples or positives is None or self.metadata.get("categories"):
            return None
        return positives, examples

    def prevalence(self, split: str) -> float | None:
        """Share of positives of a binary task."""
        counts = self.label_counts(split)
        return None if counts is None else counts[0] / counts[1]

    def at_best(self, metric: str) -> float | None:
        """A metric at the best epoch."""
        return None if self.best_epoch is None else self.series(metric).get(self.best_epoch)

    def train_series(self, target: Target) -> dict[int, float]:
        """{epoch: train loss} of a target; empty where the history has another figure."""
        if not target.train:
            return {}
        return self.series("train_loss" if target.metric == "cross_entropy" else f"train_{target.metric}")

    def interval(self, target: Target) -> tuple[float, float, float] | None:
        """Value, low and high of a target's loss on tuning, from the summary."""
        for entries in self.summary.get("metrics", {}).values():
            for key, entry in entries.items():
                if key.rpartition("/")[2] == target.summary and entry.get("low") is not None:
                    return entry["value"], entry["low"], entry["high"]
        return None

    @cached_property
    def update_ratio(self) -> float | None:
        """Median over the trace of how far a step moves the weights, as a share of their norm."""
        found = [row["update_ratio"] for row in self.trace if row.get("update_ratio") is not None]
        return median(found) if found else None

    @cached_property
    def moved(self) -> float | None:
        """At most how far all steps together moved the weights, as a share of their norm: the sum of their sizes."""
        if self.update_ratio is None:
            return None
        total, last = 0.0, self.update_ratio
        for row in self.trace:
            last = last if row.get("update_ratio") is None else row["update_ratio"]
            total += last * row["steps"]
        return total

    def total(self, name: str) -> float:
        """Sum of a column of the trace."""
        return sum(row.get(name) or 0 for row in self.trace)

    @property
    def from_scratch(self) -> bool:
        return not self.metadata.get("from_run")
