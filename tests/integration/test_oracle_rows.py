"""The oracle's rows beside trained models on synthetic records."""

import json

import polars as pl
import pytest

from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.benchmarks.oracle import ATTAINABLE, CEILING, oracle_arms
from ehrsequencing.benchmarks.validation import ValidationOptions
from ehrsequencing.config import FinetuneConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import ConfigError, StoreError
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tracking.words import best_model
from ehrsequencing.training.finetune import finetune
from tests.integration.conftest import ADAPT


@pytest.fixture(scope="module")
def judged(world, tmp_path_factory):
    """A run on labels whose attainable optimum is known, judged with the oracle."""
    root = tmp_path_factory.mktemp("oracle_rows")
    labels = root / "attack.parquet"
    write_labels(labels, *build_labels(MedsDataset.open(world.meds), parse_task("onset:ICD10CM//T78.3@365")))
    config = load_config(FinetuneConfig, overrides={**ADAPT, "loop.epochs": 1, "accept": ["one-class"]})
    finetune(world.store, labels, root / "run", config, from_run=world.pretrained)
    summary = evaluate_run(
        root / "run", world.store, baselines=["logistic_regression"], oracle=world.meds,
        validation=ValidationOptions("isotonic"),
    )  # fmt: skip
    return root / "run", labels, summary


def test_both_figures_stand_beside_the_models(judged):
    run, _, summary = judged
    task = "onset:ICD10CM//T78.3@365"
    for name in (CEILING, ATTAINABLE):
        entries = {key: entry for key, entry in summary["metrics"][name].items() if "[" not in key}
        assert set(entries) == {f"{task}/{metric}" for metric in ("auroc", "auprc", "brier", "ece")}
    predictions = pl.read_parquet(run / "predictions" / "held_out.parquet")
    flat = pl.read_csv(run / "predictions" / "held_out.csv")
    for name in (CEILING, ATTAINABLE):
        assert flat[name].to_list() == predictions[name].to_list()
    assert CEILING not in pl.read_parquet(run / "predictions" / "tuning.parquet").columns
    page = (run / "report.html").read_text()
    assert "The records are synthetic, so what could be reached is known" in page
    assert "Monte-Carlo standard error is" in page


def test_an_oracle_is_no_model_that_wins(judged):
    _, _, summary = judged
    key = "onset:ICD10CM//T78.3@365/auroc"
    column = {model: entries[key] for model, entries in summary["metrics"].items() if key in entries}
    assert max(column, key=lambda model: column[model]["value"]).startswith("oracle: ")
    assert not best_model(column, key).startswith("oracle: ")
    pairs = {(row["a"], row["b"]) for row in summary["differences"] if row["metric"] == key}
    assert not any("isotonic" in name for pair in pairs for name in pair)
    assert "logistic_regression + isotonic" in summary["metrics"]
    assert (ATTAINABLE, "logistic_regression") in pairs and (CEILING, "behrt-small-lora") in pairs


def test_the_report_says_what_the_figures_condition_on(judged):
    run, _, _ = judged
    rows = {row["model"]: row for row in json.loads((run / "report_data.json").read_text())["models"]}
    assert rows[CEILING]["kind"] == rows[ATTAINABLE]["kind"] == "oracle"
    assert "hidden conditions included" in rows[CEILING]["notes"]


def test_refusals(judged, world, tmp_path):
    run, labels, _ = judged
    synthesise(tmp_path / "other", subjects=50, seed=9, workers=1)
    with pytest.raises(StoreError, match=r"was not prepared from .*other; got .*; expected .*Remedy: name the dataset"):
        evaluate_run(run, world.store, baselines=[], oracle=tmp_path / "other")
    store = TokenStore.open(world.store)
    frame = read_labels(labels)[0]
    held = Examples.from_labels(store.split("held_out"), frame)
    with pytest.raises(ConfigError, match="the oracle does not know this task; got los_over_3d"):
        oracle_arms(world.meds, store, held, {"task": "los_over_3d", "horizon_days": None})
    several = Examples(held.index, held.until, None, held.subject_id, ("a", "b"))
    with pytest.raises(ConfigError, match="the oracle is of binary tasks; got the multi-label task phenotype"):
        oracle_arms(world.meds, store, several, {"task": "phenotype:common"})
