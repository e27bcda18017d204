"""A small synthetic dataset, its store, labels and a pretrained run, made once through the real code."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ehrsequencing.config import PretrainConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.training.pretrain import pretrain

TINY = {
    "model.max_length": 64,
    "loop.token_budget": 2048,
    "loop.epochs": 2,
    "loop.threads": 1,
    "loop.device": "cpu",
    "optim.lr": 3e-3,
}
# Beside a base its architecture holds, and options of it are refused.
ADAPT = {name: value for name, value in TINY.items() if not name.startswith("model.")}


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    root: Path = tmp_path_factory.mktemp("world")
    synthesise(root / "meds", subjects=400, seed=3, workers=1)
    prepare(root / "meds", root / "store")
    frame, manifest = build_labels(MedsDataset.open(root / "meds"), parse_task("onset:ICD10CM//I10,ICD10CM//E11@730"))
    labels = root / "labels" / "onset.parquet"
    write_labels(labels, frame, manifest)
    pretrain(root / "store", root / "pretrained", load_config(PretrainConfig, overrides=TINY))
    return SimpleNamespace(
        root=root, meds=root / "meds", store=root / "store", labels=labels, pretrained=root / "pretrained"
    )
