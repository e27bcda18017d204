"""The models of a comparison: trained runs and what they predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.baselines.copying import columns_of_codes
from ehrsequencing.data.labels import labels_hash
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import RunError
from ehrsequencing.evaluation.next_visit import load_next_visit
from ehrsequencing.evaluation.predict import (
    check_categories,
    load_classifier,
    load_survival,
    predict,
    predict_survival,
)
from ehrsequencing.io import read_json
from ehrsequencing.tracking.report_data import read_report_data
from ehrsequencing.tracking.words import best_model


@dataclass
class Arm:
    """One model of the comparison: what it is and what it predicts.

    Attributes:
        tuning, held_out: Per seed probabilities, float [examples] or [examples, categories], or a `SurvivalPrediction`.
        max_length: Tokens that it sees of a history at most, CLS included; None of baselines.
    """

    name: str
    kind: str
    tuning: list[Any]
    held_out: list[Any]
    seconds: float
    trainable_parameters: int | None = None
    notes: str = ""
    max_length: int | None = None
    features: int | None = None
    grid: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass
class Judged:
    """All arms of a task that is not binary.

    Attributes:
        arms: The runs, then the baselines.
        metrics, differences: As `summary.json` holds them; `TASK:new` and `TASK:seen` are populations of codes,
            `TASK:CAUSE` is a further cause of a survival task.
        report: Sections that binary tasks fill otherwise.
        notes: What a reader should know.
        oracles: Of a survival task: what could be known, judged and not among the arms.
        days: Of a survival task: the horizons, and the last day of all figures.
    """

    arms: list[Arm]
    metrics: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]
    report: dict[str, Any]
    notes: list[str]
    oracles: list[Arm] = field(default_factory=list)
    days: list[float] = field(default_factory=list)


def members(run: Path) -> list[Path]:
    """The trainings of a run: itself, or one per seed under `arms/`."""
    return sorted((run / "arms").glob("seed-*")) or [run]


def run_arm(
    run: Path,
    store: TokenStore,
    labels: Path,
    examples: dict[str, Examples],
    progress: Callable[[str, int, int], None],
    definitions: Mapping[str, Sequence[str]] | None = None,
) -> Arm:
    """Predictions of a run on tuning and held-out: of its classifier, its survival model or its next-visit head.

    Args:
        definitions: Patterns of codes per category of the labels, as their manifest has them.

    Raises:
        RunError: it was trained on another store or other labels, or decides something else than they ask.
    """
    predictions: dict[str, list[np.ndarray]] = {"tuning": [], "held_out": []}
    seconds = inference = 0.0
    for member in members(run):
        metadata = read_json(member / "metadata.json", remedy="name a folder that `ehrseq finetune` wrote")
        without_labels = metadata.get("kind") == "pretrain"
        asked = {"store_fingerprint": store.fingerprint, "labels_hash": labels_hash(labels)}
        for key, mine in asked.items():
            if metadata.get(key) != mine and not (without_labels and key == "labels_hash"):
                raise RunError(
                    f"{member} was trained with another {key.split('_')[0]}",
                    got=mine[:16],
                    expected=str(metadata.get(key))[:16],
                    remedy="evaluate on the store and labels that the run was trained with",
                )
        model: Any
        ask: Callable[..., Any] = predict
        if without_labels:
            categories = examples["held_out"].categories
            pairs = columns_of_codes(store.vocabulary, categories, definitions)
            model = load_next_visit(member, store, categories, pairs)
        elif causes := examples["held_out"].causes:
            model, ask = load_survival(member, store, len(causes)), predict_survival
        else:
            model = load_classifier(member, store)
            check_categories(member, examples["held_out"].categories)
        row = read_report_data(member).models[0]
        started = time.monotonic()
        for split, found in predictions.items():
            found.append(ask(model, store, split, examples[split], progress=partial(progress, f"{row.model} {split}")))
        inference += time.monotonic() - started
        seconds += row.seconds or 0.0
    histories = sum(len(found) for split in predictions.values() for found in split)
    return Arm(
        name=row.model,
        kind=str(metadata.get("method", "pretrained")),
        seconds=seconds,
        trainable_parameters=metadata["parameters"]["trainable"],
        notes=f"{1000 * inference / histories:.1f} ms per history at inference",
        tuning=predictions["tuning"],
        held_out=predictions["held_out"],
        max_length=model.config.max_length,
    )


def best_of_each(
    arms: Sequence[Arm], metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], key: str
) -> tuple[Arm, Arm] | None:
    """The best trained model and the best baseline by one metric: the pair that says whether it was worth it."""
    chosen = []
    for baseline in (False, True):
        entries = {arm.name: metrics[arm.name][key] for arm in arms if (arm.kind == "baseline") == baseline}
        if not entries:
            return None
        chosen.append(best_model(entries, key))
    by_name = {arm.name: arm for arm in arms}
    return by_name[chosen[0]], by_name[chosen[1]]
