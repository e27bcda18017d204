"""Calibration, decisions, subgroups, seeds, external and temporal validation on trained runs, through the library."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from ehrsequencing.baselines.features import CountFeatures
from ehrsequencing.baselines.models import fit_baseline
from ehrsequencing.benchmarks.compare import Comparison
from ehrsequencing.benchmarks.evaluate import evaluate_run, result_folder
from ehrsequencing.benchmarks.seeds import finetune_seeds
from ehrsequencing.benchmarks.validation import ValidationOptions, add_validation, labels_guidance
from ehrsequencing.config import FinetuneConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import (
    AuditError,
    ConfigError,
    LabelError,
    RunError,
    SplitError,
    StoreError,
    VocabularyMismatchError,
)
from ehrsequencing.evaluation.metrics import auroc, brier
from ehrsequencing.evaluation.recalibration import fit_recalibration
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tasks.temporal import split_by_time
from ehrsequencing.training.finetune import finetune
from tests.integration.conftest import ADAPT

TASK = "onset:ICD10CM//I10,ICD10CM//E11@730"
MODEL = "behrt-small-lora"


def tuned(epochs: int = 1) -> FinetuneConfig:
    return load_config(FinetuneConfig, overrides={**ADAPT, "loop.epochs": epochs})


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("validated") / "lora"
    finetune(world.store, world.labels, out, tuned(2), from_run=world.pretrained)
    return out


@pytest.fixture(scope="module")
def abroad(world, tmp_path_factory):
    """Other synthetic subjects, prepared with the home vocabulary."""
    root = tmp_path_factory.mktemp("abroad")
    synthesise(root / "meds", subjects=300, seed=4, workers=1)
    prepare(root / "meds", root / "store", vocabulary_from=world.store)
    frame, manifest = build_labels(MedsDataset.open(root / "meds"), parse_task(TASK))
    write_labels(root / "labels.parquet", frame, manifest)
    return SimpleNamespace(root=root, meds=root / "meds", store=root / "store", labels=root / "labels.parquet")


@pytest.fixture(scope="module")
def judged(run, abroad):
    """The run on all subjects of the other dataset, which are enough to score groups."""
    summary = evaluate_run(
        run, abroad.store, abroad.labels, baselines=["logistic_regression"], resamples=100,
        validation=ValidationOptions("isotonic", ("sex", "age", "ICD10CM//E78", "year")),
    )  # fmt: skip
    out = result_folder(run, abroad.store)
    return SimpleNamespace(out=out, summary=summary, report=json.loads((out / "report_data.json").read_text()))


def test_recalibrated_figures_stand_beside_the_raw_ones(judged):
    raw, mended = (judged.summary["metrics"][name] for name in (MODEL, f"{MODEL} + isotonic"))
    assert set(mended) == {f"{TASK}/brier", f"{TASK}/ece"}
    tuning, held = (pl.read_parquet(judged.out / "predictions" / f"{name}.parquet") for name in ("tuning", "held_out"))
    fitted = fit_recalibration("isotonic", tuning["label"], tuning[MODEL])
    assert mended[f"{TASK}/brier"]["value"] == pytest.approx(brier(held["label"], fitted.apply(held[MODEL])), abs=1e-12)
    assert raw[f"{TASK}/brier"]["value"] == pytest.approx(brier(held["label"], held[MODEL]), abs=1e-12)
    assert set(judged.summary["calibration"]) == set(judged.summary["metrics"]) == set(judged.report["calibration_fit"])
    assert set(judged.report["decision"]["models"]) == set(judged.summary["metrics"])


def test_subgroups_have_names_of_their_own_and_the_page_shows_them(judged):
    sizes = {(row["by"], row["group"]): row for row in judged.report["subgroups"]}
    held = pl.read_csv(judged.out / "predictions" / "held_out.csv", infer_schema_length=None)
    for (by, group), row in sizes.items():
        rows = held.filter(pl.col(by).cast(pl.String) == group)
        assert (len(rows), rows["label"].sum()) == (row["n"], row["positives"])
        for model in (MODEL, "logistic_regression"):
            assert (f"{TASK}[{by}={group}]/auroc" in judged.summary["metrics"][model]) == (row["too_small"] is None)
    assert sizes["sex", "Female" if ("sex", "Female") in sizes else "F"]["too_small"] is None
    assert any(row["too_small"] is not None for row in sizes.values())
    page = (judged.out / "report.html").read_text()
    for heading in ("Subgroups", "Decisions", "Calibration slope and intercept"):
        assert f">{heading}</h2>" in page
    assert "[sex=" not in page


def test_flat_files_hold_cohort_and_predictions(run, world):
    evaluate_run(
        run, world.store, baselines=["logistic_regression"], resamples=100,
        validation=ValidationOptions("isotonic", ("sex", "year")),
    )  # fmt: skip
    held = pl.read_csv(run / "predictions" / "held_out.csv", try_parse_dates=True)
    exact = pl.read_parquet(run / "predictions" / "held_out.parquet")
    assert held.columns == [
        "subject_id", "prediction_time", "split", "label", MODEL, "logistic_regression", f"{MODEL} + isotonic",
        "logistic_regression + isotonic", "sex", "year",
    ]  # fmt: skip
    assert held["prediction_time"].cast(pl.Datetime("us")).equals(exact["prediction_time"])
    np.testing.assert_array_equal(held[MODEL], exact[MODEL])
    assert set(held["split"]) == {"held_out"}
    cohort = pl.read_csv(run / "predictions" / "cohort.csv")
    labels, _ = read_labels(world.labels)
    assert len(cohort) == len(labels)
    assert set(cohort["split"]) == set(SPLITS)
    assert MODEL not in cohort.columns


def test_a_model_that_cannot_be_recalibrated_is_named_and_judged_as_it_is(world, run, monkeypatch):
    """Turned round, the model ranks worse than chance on tuning."""
    from ehrsequencing.benchmarks import arms

    def turned(*arguments, **options):
        return 1 - predict(*arguments, **options)

    predict, refused = arms.predict, []
    for attempt in (predict, turned):
        monkeypatch.setattr(arms, "predict", attempt)
        summary = evaluate_run(run, world.store, baselines=[], resamples=100, validation=ValidationOptions("platt", ()))
        caveats = json.loads((run / "report_data.json").read_text())["caveats"]
        refused.append(any(f"{MODEL} was not recalibrated: Platt's slope" in line for line in caveats))
        assert refused[-1] == (f"{MODEL} + platt" not in summary["metrics"])
        assert f"{TASK}/auroc" in summary["metrics"][MODEL]
    assert sum(refused) == 1


def test_options_are_checked_before_anything_is_done(world, run):
    for options, message in (
        (ValidationOptions("beta"), "--recalibrate; got beta; expected platt, isotonic, none"),
        (ValidationOptions(by=("sex", "sex")), "--by names sex twice"),
        (ValidationOptions(by=("ethnicity",)), "--by ethnicity: no code"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_run(run, world.store, baselines=[], resamples=100, validation=options)


def test_years_are_refused_where_the_store_says_that_dates_are_none(world, run, tmp_path):
    shutil.copytree(world.store, tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    manifest["dates_note"] = "Dates are shifted per subject."
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="--by year: the dates of this dataset are no calendar dates"):
        evaluate_run(run, tmp_path / "store", baselines=[], validation=ValidationOptions(by=("year",)))


def test_both_sources_of_variance_are_told_apart(world, tmp_path):
    out = tmp_path / "seeds"
    finetune_seeds(
        world.store, world.labels, out, tuned(), 2, from_run=world.pretrained, observed=lambda name: nullcontext(None)
    )
    summary = evaluate_run(out, world.store, baselines=["logistic_regression"], resamples=100)
    entry, single = (summary["metrics"][name][f"{TASK}/auroc"] for name in (MODEL, "logistic_regression"))
    held = pl.read_parquet(out / "predictions" / "held_out.parquet")
    values = [auroc(held["label"], held[f"{MODEL}/seed-{index}"]) for index in range(2)]
    assert entry["seed_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert entry["subject_sd"] > 0
    assert "seed_sd" not in single
    page = (out / "report.html").read_text()
    section = page[page.index('id="variance-title"') :]
    assert f"{entry['seed_sd']:.4f}" in section[:6000]
    assert f"{entry['subject_sd']:.4f}" in section[:6000]


def test_external_validation_judges_every_labelled_subject_of_the_other_dataset(judged, run, abroad):
    labels, _ = read_labels(abroad.labels)
    held = pl.read_csv(judged.out / "predictions" / "held_out.csv")
    assert sorted(held["subject_id"]) == sorted(labels["subject_id"])
    assert set(held["split"]) == set(SPLITS)
    assert judged.summary["metrics"][MODEL][f"{TASK}/auroc"]["n"] == len(labels)
    assert judged.summary["unknown"]["unknown_events"] == 0
    # The run's own figures are others.
    own = json.loads((run / "summary.json").read_text())["metrics"]
    assert own.get(MODEL, {}).get(f"{TASK}/auroc", {}).get("n") != len(labels)
    page = (judged.out / "report.html").read_text()
    assert "External validation: trained on synthetic" in page
    assert ">Unknown codes</h2>" in page


def test_baselines_are_fitted_at_home_and_applied_abroad(world, run, abroad):
    evaluate_run(run, abroad.store, abroad.labels, baselines=["logistic_regression"], history="whole", resamples=100)
    found = pl.read_parquet(result_folder(run, abroad.store) / "predictions" / "held_out.parquet")
    home, away = TokenStore.open(world.store), TokenStore.open(abroad.store)
    labels, _ = read_labels(world.labels)
    examples = {split: Examples.from_labels(home.split(split), labels) for split in ("train", "tuning")}
    features = CountFeatures.fit(home.split("train"), examples["train"], home.vocabulary, home.values)
    X = {split: features.transform(home.split(split), rows) for split, rows in examples.items()}
    y = {split: rows.target > 0.5 for split, rows in examples.items()}
    model = fit_baseline("logistic_regression", X["train"], y["train"], X["tuning"], y["tuning"])
    foreign, _ = read_labels(abroad.labels)
    for split in SPLITS:
        rows = Examples.from_labels(away.split(split), foreign)
        expected = model.predict(features.transform(away.split(split), rows))
        mine = found.filter(pl.col("subject_id").is_in(rows.subject_id))["logistic_regression"]
        np.testing.assert_allclose(np.sort(mine), np.sort(expected), rtol=1e-6)


def test_labels_of_the_other_dataset_are_audited(run, abroad, tmp_path):
    labels, manifest = read_labels(abroad.labels)
    events = pl.concat([pl.read_parquet(shard) for shard in (abroad.meds / "data").rglob("*.parquet")])
    onset = (
        events.filter(pl.col("code").is_in(manifest["matched_codes"])).group_by("subject_id").agg(pl.col("time").min())
    )
    cases = onset.select("subject_id", prediction_time="time", boolean_value=pl.lit(True)).sort("subject_id").head(20)
    bad = tmp_path / "bad.parquet"
    write_labels(bad, pl.concat([labels, cases], how="diagonal"), manifest | {"task": "onset:ICD10CM//I10@365"})
    out, told = result_folder(run, abroad.store), []
    shutil.rmtree(out, ignore_errors=True)
    options = {"baselines": [], "resamples": 100, "validation": ValidationOptions(by=()), "say": told.append}
    with pytest.raises(
        AuditError, match="1 error: prevalent.*20 labels of 20 subjects, 20 of them.*--accept prevalent"
    ):
        evaluate_run(run, abroad.store, bad, **options)
    assert not told and not out.exists()
    evaluate_run(run, abroad.store, bad, accept=["prevalent"], **options)
    report = json.loads((out / "report_data.json").read_text())
    found = {row["check"]: row["result"] for row in report["audit"]}
    assert found["prevalent"] == "accepted" and found["shift"] == found["one-class"] == "not checked"
    assert json.loads((out / "metadata.json").read_text())["audit"] == report["audit"]
    trained = json.loads((run / "report_data.json").read_text())["audit"]
    assert {row["check"]: row["result"] for row in trained}["prevalent"] == "passed"
    for beginning in (
        "0.0 % of ", f"The models were trained for the task {TASK} and are judged on onset:ICD10CM//I10@365.",
        "Accepted in spite of the audit (prevalent): error: subjects have a code of the task",
    ):  # fmt: skip
        (line,) = [line for line in told if line.startswith(beginning)]
        assert "\n" not in line and line in report["caveats"]


def test_what_is_accepted_without_an_audit_is_refused(run, world):
    with pytest.raises(ConfigError, match="--accept is of the labels of another dataset; got prevalent"):
        evaluate_run(run, world.store, baselines=[], accept=["prevalent"])
    with pytest.raises(ConfigError, match="--accept names no check of the audit; got everything"):
        evaluate_run(run, world.store, baselines=[], accept=["everything"])


def test_stores_never_share_a_folder(run, abroad, tmp_path, monkeypatch):
    stores = [tmp_path / name for name in ("a/e1/store", "a/e2/store", "b/e1/store")]
    for index, store in enumerate(stores):
        shutil.copytree(abroad.store, store)
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": f"{index // 2}" * 64}))
    folders = [result_folder(run, store).name for store in stores]
    assert folders == ["on-e1-store-00000000", "on-e2-store-00000000", "on-e1-store-11111111"]
    monkeypatch.chdir(stores[0])
    assert result_folder(run, Path()).name == folders[0]


def test_a_subject_that_trained_the_model_is_refused(world, run, tmp_path):
    """Another extract of the same hospital: the same subjects, one code renamed, hence another fingerprint."""
    shutil.copytree(world.meds, tmp_path / "meds")
    for shard in (tmp_path / "meds" / "data").rglob("*.parquet"):
        pl.read_parquet(shard).head(-1).write_parquet(shard)
    prepare(tmp_path / "meds", tmp_path / "store", vocabulary_from=world.store)
    frame, manifest = build_labels(MedsDataset.open(tmp_path / "meds"), parse_task(TASK))
    write_labels(tmp_path / "labels.parquet", frame, manifest)
    with pytest.raises(SplitError, match=r"subjects of .* were in the train split of the run; got subject \d+"):
        evaluate_run(run, tmp_path / "store", tmp_path / "labels.parquet", baselines=[], resamples=100)
    held = TokenStore.open(world.store).split("held_out").subject_id
    kept = frame.filter(pl.col("subject_id").is_in(held))
    write_labels(tmp_path / "held.parquet", kept, manifest)
    summary = evaluate_run(run, tmp_path / "store", tmp_path / "held.parquet", baselines=[], resamples=100)
    assert summary["metrics"][MODEL][f"{TASK}/auroc"]["n"] == len(kept)


def test_identifiers_of_another_source_are_other_people_unless_their_times_agree(world, run, tmp_path):
    dataset = json.loads((world.meds / "metadata" / "dataset.json").read_text())

    def elsewhere(name, change):
        shutil.copytree(world.meds, tmp_path / name)
        other = json.loads(json.dumps(dataset))
        other["ehrsequencing"]["source"] = "elsewhere"
        (tmp_path / name / "metadata" / "dataset.json").write_text(json.dumps(other))
        for shard in (tmp_path / name / "data").rglob("*.parquet"):
            change(pl.read_parquet(shard)).write_parquet(shard)
        prepare(tmp_path / name, tmp_path / f"{name}-store", vocabulary_from=world.store)
        frame, manifest = build_labels(MedsDataset.open(tmp_path / name), parse_task(TASK))
        write_labels(tmp_path / f"{name}.parquet", frame, manifest)
        return evaluate_run(run, tmp_path / f"{name}-store", tmp_path / f"{name}.parquet", baselines=[], resamples=100)

    with pytest.raises(SplitError, match="were in the train split of the run"):
        elsewhere("copy", lambda events: events.with_columns(pl.col("numeric_value") + 1))
    elsewhere("moved", lambda events: events.with_columns(pl.col("time") + pl.duration(days=1)))
    caveats = json.loads((result_folder(run, tmp_path / "moved-store") / "report_data.json").read_text())["caveats"]
    assert any("identifiers occur in both datasets, whose sources differ" in line for line in caveats)


def test_what_external_validation_refuses(world, run, abroad, tmp_path):
    with pytest.raises(RunError, match="another dataset than the run.*OTHER_LABELS"):
        evaluate_run(run, abroad.store, baselines=[])
    with pytest.raises(LabelError, match="was built from another dataset"):
        evaluate_run(run, abroad.store, world.labels, baselines=[])
    prepare(abroad.meds, tmp_path / "own", value_bins=3)
    with pytest.raises(VocabularyMismatchError, match="another vocabulary.*--vocabulary"):
        evaluate_run(run, tmp_path / "own", abroad.labels, baselines=[])
    prepare(abroad.meds, tmp_path / "fitted")
    with pytest.raises(VocabularyMismatchError, match="other value statistics"):
        evaluate_run(run, tmp_path / "fitted", abroad.labels, baselines=[])
    shutil.copytree(run, tmp_path / "moved")
    metadata = json.loads((tmp_path / "moved" / "metadata.json").read_text())
    (tmp_path / "moved" / "metadata.json").write_text(json.dumps(metadata | {"store": str(tmp_path / "gone")}))
    with pytest.raises(StoreError, match="trained on is not there; got .*gone.*--training-store"):
        evaluate_run(tmp_path / "moved", abroad.store, abroad.labels, baselines=[])
    with pytest.raises(StoreError, match="is not the store that the run was trained on"):
        evaluate_run(tmp_path / "moved", abroad.store, abroad.labels, baselines=[], training_store=abroad.store)
    found = evaluate_run(
        tmp_path / "moved", abroad.store, abroad.labels, baselines=[], resamples=100, training_store=world.store
    )
    assert found["metrics"][MODEL]


def test_another_preparation_of_the_same_dataset_is_no_external_validation(world, run, tmp_path):
    prepare(world.meds, tmp_path / "again", vocabulary_from=world.store)
    with pytest.raises(RunError, match="trained with another store"):
        evaluate_run(run, tmp_path / "again", world.labels, baselines=[])


def test_temporal_validation_reaches_training_and_baselines_alike(world, tmp_path):
    labels, manifest = read_labels(world.labels)
    cut = labels["prediction_time"].quantile(0.7)
    assert isinstance(cut, datetime)
    kept, stated = split_by_time(MedsDataset.open(world.meds), labels, manifest, train_before=cut)
    write_labels(tmp_path / "temporal.parquet", kept, stated)
    out = tmp_path / "run"
    finetune(world.store, tmp_path / "temporal.parquet", out, tuned(), from_run=world.pretrained)
    counts = json.loads((out / "metadata.json").read_text())["examples"]
    assert counts["train"] == stated["splits"]["train"]["rows"] < len(labels)
    summary = evaluate_run(out, world.store, baselines=["logistic_regression"], resamples=100)
    cohort = pl.read_csv(out / "predictions" / "cohort.csv", try_parse_dates=True)
    learned = cohort.filter(pl.col("split") != "held_out")["prediction_time"].max()
    judged = cohort.filter(split="held_out")["prediction_time"].min()
    assert (cut - learned).total_seconds() > 730 * 86_400
    assert judged >= cut
    assert summary["metrics"]["logistic_regression"][f"{TASK}/auroc"]["n"] == stated["splits"]["held_out"]["rows"]
    assert "predicted on or after" in (out / "report.html").read_text()


def test_guidance_before_training_counts_the_judged_labels(world):
    store = TokenStore.open(world.store)
    _, manifest = read_labels(world.labels)
    counts = manifest["splits"]["held_out"]
    held_out, tuning = labels_guidance(store, world.labels)
    assert held_out.startswith(f"held-out: {counts['positives']} positives of {counts['rows']} rows, so an AUROC")
    assert tuning.startswith("tuning: ")


def test_what_is_asked_of_a_multi_label_task_is_refused_and_else_left_alone(world):
    store = TokenStore.open(world.store)
    labels, _ = read_labels(world.labels)
    rows = Examples.from_labels(store.split("held_out"), labels)
    wide = replace(rows, target=np.stack([rows.target > 0.5, rows.target < 0.5], axis=1))
    comparison = Comparison("codes", {"held_out": wide}, [], {}, [], {}, [])
    for options in (ValidationOptions("platt"), ValidationOptions(by=("sex",))):
        with pytest.raises(ConfigError, match="of binary tasks; got the multi-label task codes.*leave out --rec"):
            add_validation(comparison, store, options, resamples=10, seed=0)
    assert add_validation(comparison, store, ValidationOptions(), resamples=10, seed=0).summary == {}
    assert comparison.metrics == {}
