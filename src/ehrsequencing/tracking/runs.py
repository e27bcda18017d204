"""What run directories hold, read from their files alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrsequencing.errors import RunError
from ehrsequencing.io import read_json

METADATA = "metadata.json"


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        kind: pretrain, finetune, or what else its command wrote.
        what: Objective of a pretraining, method of a fine-tuning.
        model: Name of the run's own model, the first of its summary; None before it has one.
        metrics: Of that model.
        task, best_epoch, epochs, trainable, total, trained_bytes: Of the arm that trained the model, where the run
            itself trained none, as a demonstration.
        trainable, total: Numbers of parameters.
        trained_bytes: Size of the adapter folder where there is one, else of the model's weights.
        seeds: Trainings behind the metrics.
    """

    path: Path
    kind: str
    what: str | None
    task: str | None
    status: str
    created: str | None
    seconds: float | None
    best_epoch: int | None
    epochs: int
    seeds: int
    trainable: int | None
    total: int | None
    trained_bytes: int | None
    model: str | None
    metrics: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Any]

    @property
    def method(self) -> str | None:
        """How the weights were trained: the method of a fine-tuning."""
        return self.what if self.kind == "finetune" else None


def read_run(path: str | Path) -> RunRecord:
    """Read a run directory; a run under way or killed has no metrics yet.

    Raises:
        RunError: it is no run directory.
    """
    path = Path(path)
    if not (path / METADATA).is_file():
        raise RunError(f"{path} is no run directory", expected=METADATA, remedy="see `ehrseq runs list DIR`")
    metadata = read_json(path / METADATA)
    if not isinstance(metadata, dict) or "status" not in metadata:
        raise RunError(f"{path / METADATA} is not the metadata of a run")
    summary = _json(path / "summary.json")
    history = _json(path / "logs" / "metrics_history.json")
    settings = _json(path / "hyperparameters.json")
    metrics = summary.get("metrics") or {}
    model = next(iter(metrics), None)
    arms = sorted((path / "arms").glob("seed-*"))
    holder, training = arms[0] if arms else path, metadata
    if not arms and "parameters" not in metadata and (own := _arm_of(path, model)) is not None:
        # A demonstration's first model is one of its arms, whose training says what this run cannot.
        holder = own
        history = _json(own / "logs" / "metrics_history.json")
        training = _json(own / METADATA) | metadata
    parameters = training.get("parameters") or {}
    seconds = metadata.get("seconds")
    if arms:
        # The folder of several seeds counts their sum; one training is what its size is weighed against.
        each = [_json(arm / METADATA).get("seconds") for arm in arms]
        seconds = sum(filter(None, each)) / len(each) if all(each) else seconds
    return RunRecord(
        path=path,
        kind=str(metadata.get("kind", "run")),
        what=metadata.get("method") or settings.get("objective"),
        task=training.get("task"),
        status=str(metadata["status"]),
        created=metadata.get("created"),
        seconds=seconds,
        best_epoch=training.get("best_epoch"),
        epochs=1 + max((rows[-1]["epoch"] for rows in history.values() if rows), default=-1),
        seeds=len(arms) or 1,
        trainable=parameters.get("trainable"),
        total=parameters.get("total"),
        trained_bytes=_size(holder / "adapter") or _size(holder / "model" / "model.safetensors"),
        model=model,
        metrics=metrics[model] if model else {},
        metadata=metadata,
    )


def _arm_of(path: Path, model: str | None) -> Path | None:
    """The arm of a run that trained a model; None where there is none, or no telling which."""
    named = [
        arm.parent
        for arm in sorted(path.glob(f"arms/*/{METADATA}"))
        if model is not None and next(iter(_json(arm.parent / "summary.json").get("metrics") or {}), None) == model
    ]
    return named[0] if len(named) == 1 else None


def find_runs(folder: str | Path, *, arms: bool = False) -> list[RunRecord]:
    """Runs at or under a folder, oldest first; what is no readable run is passed over.

    Args:
        arms: Also the runs inside a run: its seeds, the cells of a benchmark.

    Raises:
        RunError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder", remedy="name the folder that holds the runs")
    found = []
    for place, names, files in os.walk(folder):
        names.sort()
        if METADATA not in files:
            continue
        try:
            found.append(read_run(place))
        except RunError:
            # A MEDS dataset has a metadata folder, other programs have files of this name.
            continue
        names[:] = ["arms"] if arms and "arms" in names else []
    return sorted(found, key=lambda run: (run.created or "", str(run.path)))


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _size(path: Path) -> int | None:
    """Bytes of a file or of the files of a folder; None where it is missing."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) or None
