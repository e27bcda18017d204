"""A multi-label task from labels to the report: next-visit codes of the synthetic records."""

import json

import polars as pl
import pytest

from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.config import FinetuneConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import NO_CATEGORY, trained_categories, write_labels
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.training.finetune import finetune
from tests.integration.conftest import ADAPT, TINY
from tests.integration.test_resume import FLAGS, command, run_until_done, same_run, uninterrupted


def next_visits(meds, every: int = 10) -> tuple[pl.DataFrame, list[str]]:
    """Diagnoses and drugs of the next visit, at the end of every few visits; categories by their frequency in train."""
    events = pl.concat([frame.collect() for split in ("train", "tuning", "held_out")
                        for frame in MedsDataset.open(meds).frames(split)])  # fmt: skip
    visits = (
        events.drop_nulls(["time", "visit_id"])
        .group_by("subject_id", "visit_id")
        .agg(
            pl.col("time").min().alias("start"), pl.col("time").max().alias("prediction_time"), pl.col("code").unique()
        )
        .sort("subject_id", "start")
        .with_columns(categorical_value=pl.col("code").shift(-1).over("subject_id"))
        .filter(pl.col("categorical_value").is_not_null(), pl.int_range(pl.len()).over("subject_id") % every == 1)
        .unique(["subject_id", "prediction_time"])
    )
    key = ["subject_id", "prediction_time"]
    found = visits.select(*key, "categorical_value").explode("categorical_value")
    found = found.filter(pl.col("categorical_value").str.contains("^(ICD10CM|RXNORM)//"))
    counts = found.group_by("categorical_value").len().sort("len", "categorical_value", descending=True)
    categories = sorted(counts["categorical_value"].head(45).to_list())
    found = found.filter(pl.col("categorical_value").is_in(categories))
    none = visits.select(key).join(found, on=key, how="anti").with_columns(categorical_value=pl.lit(NO_CATEGORY))
    return pl.concat([found, none]), categories


@pytest.fixture(scope="module")
def labels(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    frame, categories = next_visits(world.meds)
    manifest = {"task": "next_visit_codes", "kind": "multilabel", "categories": categories}
    write_labels(folder / "next.parquet", frame, manifest)
    few = [code for code in categories if code.startswith("ICD10CM//")][:3]
    named = frame.with_columns(
        pl.when(pl.col("categorical_value").is_in(few))
        .then(pl.lit("phenotype_") + pl.col("categorical_value").str.tail(3)).otherwise(pl.lit(NO_CATEGORY))
        .alias("categorical_value")
    ).unique()  # fmt: skip
    key = ["subject_id", "prediction_time"]
    named = named.filter((pl.col("categorical_value") != NO_CATEGORY) | (pl.len().over(key) == 1))
    definitions = {"phenotype_" + code[-3:]: [code] for code in few}
    stated = {"categories": sorted(definitions), "definitions": definitions}
    write_labels(folder / "phenotypes.parquet", named, {"task": "phenotype:test@30", "kind": "multilabel", **stated})
    return folder


@pytest.fixture(scope="module")
def run(world, labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("multilabel") / "run"
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": "lora"})
    finetune(world.store, labels / "next.parquet", out, config, from_run=world.pretrained)
    return out


def test_the_run_says_what_it_decides(labels, run):
    categories = read_json(labels / "next.json")["categories"]
    assert trained_categories(run / "model") == categories
    assert read_json(run / "metadata.json")["categories"] == len(categories)
    entry = read_json(run / "summary.json")["metrics"]["behrt-small-lora"]["tuning:next_visit_codes/auroc_macro"]
    assert 0 < entry["categories"] <= len(categories)
    assert 0.4 < entry["value"] < 1


def test_evaluation_stands_beside_copy_history_on_new_and_seen_codes(world, run):
    summary = evaluate_run(run, world.store, resamples=100, threads=1)
    assert set(summary["metrics"]) == {"behrt-small-lora", "prevalence", "copy_history", "linear"}
    for found in summary["metrics"].values():
        for population in ("", ":new", ":seen"):
            for metric in ("auroc_micro", "auroc_macro", "auprc_micro", "auprc_macro", "recall_at_10", "recall_at_30"):
                entry = found[f"next_visit_codes{population}/{metric}"]
                assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
                assert entry["categories"] > 0
        assert {"next_visit_codes/f1_micro", "next_visit_codes/f1_macro"} <= set(found)
    value = {name: found["next_visit_codes/auprc_micro"]["value"] for name, found in summary["metrics"].items()}
    assert value["copy_history"] > value["prevalence"]
    assert {row["metric"].rpartition("/")[2] for row in summary["differences"]} >= {"auroc_macro", "recall_at_10"}
    caveats = " ".join(read_json(run / "report_data.json")["caveats"])
    assert "Baselines see what the models see: the static and the latest events, 63 at most." in caveats
    assert "xgboost" in caveats
    assert "Recall at 10" in (run / "report.html").read_text()
    table = pl.read_parquet(run / "predictions" / "held_out.parquet")
    assert table.columns[:4] == ["subject_id", "prediction_time", "category", "label"]
    totals = table.group_by("category").agg(pl.col("label").sum()).sort("category")
    areas = pl.read_csv(run / "predictions" / "categories.csv").sort("category")
    assert areas["positives"].to_list() == totals.cast({"category": pl.String}).sort("category")["label"].to_list()


def test_phenotypes_get_a_model_per_category_and_their_codes_copied(world, labels, tmp_path):
    config = load_config(FinetuneConfig, overrides={**TINY, "method": "scratch", "loop.epochs": 1})
    finetune(world.store, labels / "phenotypes.parquet", tmp_path / "run", config)
    asked = ("logistic_regression", "xgboost")
    summary = evaluate_run(tmp_path / "run", world.store, baselines=asked, history="whole", resamples=100, threads=1)
    assert set(summary["metrics"]) == {"behrt-small-scratch", "prevalence", "copy_history", *asked}
    assert not any(":new" in key for key in summary["metrics"]["copy_history"])
    assert "Baselines see whole histories." in read_json(tmp_path / "run" / "report_data.json")["caveats"]


def test_a_run_decides_only_what_it_was_trained_for(world, labels, run, tmp_path):
    with pytest.raises(RunError, match="trained with another labels"):
        evaluate_run(run, world.store, world.labels, resamples=100)
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": "full", "loop.epochs": 1})
    with pytest.raises(ConfigError, match="fine-tuned on labels of another kind; got 45 categories"):
        finetune(world.store, world.labels, tmp_path / "run", config, from_run=run)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="what the baselines see; got all; expected model or whole"):
        evaluate_run(run, world.store, history="all", resamples=100)


def test_a_multi_label_run_killed_and_resumed_is_bit_identical(world, labels, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = (world.store, labels / "next.parquet", "--from", world.pretrained, "--method", "lora")
    uninterrupted("finetune", *arguments, "--out", whole, *FLAGS)
    assert run_until_done(command("finetune", *arguments, "--out", killed, *FLAGS), [0.05, 0.3]) >= 1
    same_run(whole, killed)
    assert json.loads((killed / "metadata.json").read_text())["status"] in ("completed", "early_stopped")
