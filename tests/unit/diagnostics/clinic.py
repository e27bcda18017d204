"""Real trainings, a second or two each: one healthy, the others each with one illness."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.unit.tasks.small_datasets import write_dataset

from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.labels import NO_CATEGORY, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.diagnostics.doctor import diagnose
from ehrsequencing.diagnostics.findings import Diagnosis
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain

LOOP = {"loop.token_budget": 640, "loop.threads": 1, "loop.device": "cpu"}
MODEL = {"model.max_length": 16, "model.dropout": 0.0}


def clinic_rows(subjects: int, generator: np.random.Generator) -> tuple[list[tuple], np.ndarray]:
    """Three visits of three codes each, all of one of six diseases; no code of a subject comes twice."""
    disease = generator.integers(0, 6, subjects)
    rows = []
    for subject in range(subjects):
        for visit in range(3):
            time = datetime(2020, 1, 1) + timedelta(days=int(generator.integers(0, 300)) + 365 * visit)
            rows += [(subject, time, f"D{disease[subject]}//{visit}{letter}", visit) for letter in "abc"]
    return rows, disease


def split_store(folder: Path, rows: list[tuple], parts: dict[str, Any], **options: Any) -> TokenStore:
    """A store of these rows whose splits are these subjects."""
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code", "visit_id"], orient="row")
    frame = frame.with_columns(pl.col("time").cast(pl.Datetime("us")))
    with MedsWriter(folder / "meds", overwrite=True) as writer:
        for name, subjects in parts.items():
            writer.write_events(name, 0, frame.filter(pl.col("subject_id").is_in(list(subjects))))
        writer.finish(frame.select("code").unique().sort("code"), source="test", options={}, notes=[])
    prepare(folder / "meds", folder / "store", **options)
    return TokenStore.open(folder / "store")


def labels_file(store: TokenStore, truth: np.ndarray, path: Path, **kept: int) -> Path:
    """A label per subject after its last visit; of a split the first so many."""
    found = []
    for name in ("train", "tuning", "held_out"):
        split = store.split(name)
        for index, subject in enumerate(split.subject_id[: kept.get(name)]):
            found.append((int(subject), int(split.time[split.offsets[index + 1] - 1]), bool(truth[subject])))
    frame = pl.DataFrame(found, schema=["subject_id", "prediction_time", "boolean_value"], orient="row")
    frame = frame.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    frame.sort("subject_id", "prediction_time").write_parquet(path)
    return path


def several_labels(store: TokenStore, truth: np.ndarray, path: Path, **kept: int) -> Path:
    """As `labels_file`, of several categories: truth is bool [subjects, categories]."""
    binary = pl.read_parquet(labels_file(store, np.zeros(len(truth), dtype=bool), path, **kept))
    names = [f"kind_{index}" for index in range(truth.shape[1])]
    rows = [
        (subject, time, name)
        for subject, time in binary.select("subject_id", "prediction_time").iter_rows()
        for name in [n for n, yes in zip(names, truth[subject], strict=True) if yes] or [NO_CATEGORY]
    ]
    columns = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "categorical_value": pl.String}
    frame = pl.DataFrame(rows, columns, orient="row")
    write_labels(path, frame, {"task": "kinds", "kind": "multilabel", "categories": names})
    return path


@pytest.fixture(scope="session")
def clinic(tmp_path_factory) -> SimpleNamespace:
    """Stores, labels, and functions that train on them."""
    root: Path = tmp_path_factory.mktemp("clinic")
    generator = np.random.default_rng(0)
    rows, disease = clinic_rows(1600, generator)
    write_dataset(root / "meds", rows)
    prepare(root / "meds", root / "store")
    synthesise(root / "random-meds", subjects=500, seed=3, workers=1, mode="random")
    prepare(root / "random-meds", root / "random-store")
    store = TokenStore.open(root / "store")
    flipped = (disease < 3) ^ (generator.random(len(disease)) < 0.15)
    coin = generator.random(len(disease)) < 0.5
    learnable = labels_file(store, flipped, root / "learnable.parquet")
    few = labels_file(store, flipped, root / "few.parquet", tuning=24)
    some = labels_file(store, flipped, root / "some.parquet", train=120)
    unlearnable = labels_file(store, coin, root / "coin.parquet")
    kinds = np.stack([disease < 3, disease % 2 == 0, disease == 5], axis=1) ^ (generator.random((1600, 3)) < 0.15)
    coins = generator.random((1600, 3)) < 0.5
    several = SimpleNamespace(
        learnable=several_labels(store, kinds, root / "kinds.parquet"),
        few=several_labels(store, kinds, root / "few-kinds.parquet", tuning=10),
        coin=several_labels(store, coins, root / "coins.parquet"),
    )

    def pretrained(name: str, *, data: str = "store", from_run: Path | None = None, **options: Any) -> Path:
        given = LOOP | ({} if from_run else MODEL) | {key.replace("__", "."): value for key, value in options.items()}
        pretrain(root / data, root / name, load_config(PretrainConfig, overrides=given), from_run=from_run)
        return root / name

    def finetuned(name: str, labels: Path, from_run: Path | None = None, **options: Any) -> Path:
        given = LOOP | ({} if from_run else MODEL) | {key.replace("__", "."): value for key, value in options.items()}
        config = load_config(FinetuneConfig, overrides=given)
        finetune(root / "store", labels, root / name, config, from_run=from_run)
        return root / name

    return SimpleNamespace(
        root=root,
        store=store,
        learnable=learnable,
        few=few,
        some=some,
        coin=unlearnable,
        several=several,
        pretrained=pretrained,
        finetuned=finetuned,
    )


@pytest.fixture(scope="session")
def healthy(clinic) -> Path:
    return clinic.pretrained("healthy", loop__epochs=4, optim__lr=6e-3, mlm__rate=0.3)


@pytest.fixture(scope="session")
def adapted(clinic, healthy) -> Path:
    return clinic.finetuned("adapted", clinic.learnable, healthy, method="lora", loop__epochs=3, optim__lr=6e-3)


@pytest.fixture(scope="session")
def slow(clinic) -> Path:
    return clinic.pretrained("slow", loop__epochs=1, optim__lr=1e-6)


def rules_of(diagnosis: Diagnosis) -> set[str]:
    return {finding.rule for finding in diagnosis.findings}


def found(run: Path) -> set[str]:
    return rules_of(diagnose(run))


def change(run: Path, target: Path, name: str, **values: Any) -> Path:
    """A run's files beside it, with some values of one JSON file replaced."""
    for file in ("metadata.json", "hyperparameters.json", "summary.json", "report_data.json"):
        copy(run, target, file)
    for file in ("metrics_history.json", "trace.json", "examination.json"):
        copy(run, target, f"logs/{file}")
    path = target / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return target


def copy(run: Path, target: Path, name: str) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    if (run / name).is_file():
        (target / name).write_bytes((run / name).read_bytes())
