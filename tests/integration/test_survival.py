"""Survival labels from the training to the table of predictions."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from ehrsequencing.benchmarks.compare import compare
from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.benchmarks.validation import ValidationOptions
from ehrsequencing.cli.main import main
from ehrsequencing.config import FinetuneConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import trained_causes, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.store import TokenStore
from ehrsequencing.diagnostics.doctor import diagnose
from ehrsequencing.errors import ConfigError, LabelError, RunError
from ehrsequencing.evaluation.predict import load_trained
from ehrsequencing.evaluation.survival_scores import brier_score, cumulative_auc
from ehrsequencing.io import read_json
from ehrsequencing.models.lora import load_lora_weights
from ehrsequencing.models.survival import BEHRTForSurvival, VisitLSTMForSurvival
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tracking.report import write_report
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.survival import SurvivalPlan
from tests.integration.conftest import ADAPT, TINY
from tests.integration.test_resume import FLAGS, command, run_until_done, same_run, uninterrupted

ONE = {"loop.epochs": 1}


@pytest.fixture(scope="module")
def labels(world, tmp_path_factory):
    """Days to a first code, death competing."""
    file = tmp_path_factory.mktemp("labels") / "first.parquet"
    frame, manifest = build_labels(MedsDataset.open(world.meds), parse_task("time_to:ICD10CM//I10,ICD10CM//E11"))
    write_labels(file, frame, manifest | {"causes": ["hypertension or diabetes", "death"]})
    return file


@pytest.fixture(scope="module")
def adapted(world, labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("survival") / "run"
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": "lora"})
    return out, finetune(world.store, labels, out, config, from_run=world.pretrained)


def predicted(run, *arguments) -> pl.DataFrame:
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, (run, *arguments))])
    assert not ended.value.code
    return pl.read_parquet(run / "predictions" / "predict_held_out.parquet")


@pytest.fixture
def refused(capsys):
    """What the command line says when it refuses."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["predict", *map(str, arguments)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run


def test_the_run_says_what_it_learned_and_what_from(world, labels, adapted):
    run, summary = adapted
    (metrics,) = summary["metrics"].values()
    task = "tuning:time_to:ICD10CM//I10,ICD10CM//E11"
    assert set(metrics) == {f"{task}/c_wolbers", f"{task}/nll"}
    assert metrics[f"{task}/c_wolbers"]["higher_is_better"] and not metrics[f"{task}/nll"]["higher_is_better"]
    metadata = read_json(run / "metadata.json")
    assert metadata["causes"] == ["hypertension or diabetes", "death"] == trained_causes(run / "model")
    assert metadata["edges_days"][0] == 0 and len(metadata["edges_days"]) == 21
    assert sum(metadata["events"]["train"].values()) > 30
    floor = metadata["floors"]["hazards of train"]
    # A model begins where the floor stands, so one epoch of little learning is near it.
    assert metrics[f"{task}/nll"]["value"] == pytest.approx(floor["loss"], abs=0.3)
    assert "horizon_days" in (run / "config.toml").read_text()
    found = diagnose(run)
    assert not any("RunError" in str(finding) for finding in found.findings)
    assert "ehrseq predict" in write_report(run).read_text()


def test_the_model_folder_gives_the_logged_loss_again(world, labels, adapted):
    from ehrsequencing.data.labels import read_labels
    from ehrsequencing.training.examples import labelled_examples
    from ehrsequencing.training.runs import batch_source

    torch.set_num_threads(1)
    run, _ = adapted
    store = TokenStore.open(world.store)
    model = load_trained(run, store)
    assert isinstance(model, BEHRTForSurvival)
    config = load_config(FinetuneConfig, run / "config.toml")
    examples, _ = labelled_examples(store, *read_labels(labels), str(labels), ("tuning",))
    source = batch_source(store, "tuning", examples["tuning"], config.loop, model.config)
    best = json.loads((run / "summary.json").read_text())["best"]["metrics"]
    found = SurvivalPlan(model, source, source).validate(model, torch.device("cpu"))
    # The folder holds the adapters merged, which moves the last digits.
    assert found["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
    base = BEHRTForSurvival.from_pretrained(world.pretrained / "model", **model.head_options()).eval()
    again = load_lora_weights(base, run / "adapter").eval()
    assert SurvivalPlan(again, source, source).validate(again, torch.device("cpu"))["loss"] == best["val_loss"]


def test_predictions_have_curves_and_the_models_version(world, labels, adapted):
    run, _ = adapted
    table = predicted(run, world.store, labels, "--at", "1825,365", "--csv")
    assert table.columns == [
        "subject_id", "prediction_time", "survival@365", "hypertension or diabetes@365", "death@365",
        "survival@1825", "hypertension or diabetes@1825", "death@1825", "model_hash", "package_version",
    ]  # fmt: skip
    for day in (365, 1825):
        total = table.select(pl.sum_horizontal(pl.col(f"^.*@{day}$"))).to_series().to_numpy()
        np.testing.assert_allclose(total, 1, atol=1e-9)
    assert (table["survival@1825"] < table["survival@365"]).all()
    assert pl.read_csv(run / "predictions" / "predict_held_out.csv").shape == table.shape
    manifest = read_json(run / "predictions" / "predict_held_out.json")
    assert manifest["days"] == [365, 1825] and manifest["model_hash"] == table.item(0, "model_hash")
    asked = pl.read_parquet(labels)
    assert table.select("subject_id", "prediction_time").join(asked, on="subject_id").height == len(table)
    whole = predicted(run, world.store, "--at", "365")
    assert len(whole) == len(TokenStore.open(world.store).split("held_out")) > len(table)


def test_what_cannot_be_predicted_is_refused(world, labels, adapted, refused):
    run, _ = adapted
    for arguments, message in (
        (
            (run, world.store, labels, "--at", "99999"),
            f"--at lies beyond the grid of {run}; got 99999 days; expected at",
        ),
        ((run, world.store, labels), "predicts times to an event; got no --at; expected days, up to"),
        ((run, world.store, "--at", "365,soon"), "--at; got '365,soon'; expected days above 0"),
        ((run, world.store, "--at", "0"), "--at; got '0'; expected days above 0"),
        ((run, world.store, "--at", "365", "--split", "test"), "--split; got test; expected train, tuning, held_out"),
        ((run, world.store, "--at", "365", "--out", run / "x.csv"), "--out; got"),
        ((world.pretrained, world.store), "is not a classifier; got BEHRTForMLM"),
    ):
        assert message in refused(*arguments)


@pytest.fixture(scope="module")
def judged(world, labels, adapted):
    run, _ = adapted
    options = {"baselines": ["cox"], "horizons": [365.0, 730.0], "resamples": 100, "threads": 1}
    return run, evaluate_run(run, world.store, None, oracle=world.meds, **options)


def test_evaluate_judges_both_causes_beside_baselines_length_and_oracle(judged):
    run, summary = judged
    task = "time_to:ICD10CM//I10,ICD10CM//E11"
    assert list(summary["metrics"]) == ["behrt-small-lora", "cox", "length_only", "kaplan_meier", "oracle: ceiling"]
    for model, entries in summary["metrics"].items():
        for metric in ("c_wolbers", "c_antolini", "ibs", "auc@365", "brier@730"):
            entry = entries[f"{task}/{metric}"]
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert ("until_days" in entry) == ("@" not in metric)
        assert entries[f"{task}/ibs"]["until_days"] == int(entries[f"{task}/ibs"]["until_days"]) > 730
        assert any(key.startswith(f"{task}:death/") for key in entries) == (not model.startswith("oracle"))
    assert summary["metrics"]["kaplan_meier"][f"{task}/c_wolbers"]["value"] == 0.5
    compared = {(pair["a"], pair["b"]) for pair in summary["differences"]}
    assert ("behrt-small-lora", "length_only") in compared
    assert any(a == "oracle: ceiling" for a, _ in compared)
    table = pl.read_parquet(run / "predictions" / "held_out.parquet")
    assert len(table) == len(pl.read_csv(run / "predictions" / "held_out.csv"))
    total = table["cox/survival@365"] + table["cox/hypertension or diabetes@365"] + table["cox/death@365"]
    assert total.to_numpy() == pytest.approx(1)


def test_the_figures_are_those_of_the_written_predictions(judged):
    run, summary = judged
    table = pl.read_parquet(run / "predictions" / "held_out.parquet")
    days, cause = table["duration_days"].to_numpy(), table["cause"].to_numpy()
    for model in ("behrt-small-lora", "cox"):
        incidence = table[f"{model}/hypertension or diabetes@365"].to_numpy()
        entries = summary["metrics"][model]
        task = "time_to:ICD10CM//I10,ICD10CM//E11"
        assert brier_score(days, cause, incidence, 365.0)[0] == pytest.approx(entries[f"{task}/brier@365"]["value"])
        assert cumulative_auc(days, cause, incidence, 365.0)[1] == pytest.approx(entries[f"{task}/auc@365"]["value"])


def test_the_report_shows_curves_calibration_and_figures_by_horizon(judged):
    run, _ = judged
    page = (run / "report.html").read_text()
    for shown in (
        "Cumulative incidence: hypertension or diabetes", "Cumulative incidence: death", "Calibration at 365 days",
        "D-calibration", "by horizon", "length_only", "later events count for no concordance",
    ):  # fmt: skip
        assert shown in page


def test_evaluate_refuses_what_is_of_other_tasks(world, labels, adapted):
    run, _ = adapted
    with pytest.raises(ConfigError, match="unknown survival baseline xgboost; expected cox, survival_forest"):
        evaluate_run(run, world.store, None, baselines=["xgboost"])
    with pytest.raises(ConfigError, match="recalibration and subgroups are of binary tasks; got a survival task"):
        evaluate_run(run, world.store, None, validation=ValidationOptions("platt"))
    with pytest.raises(ConfigError, match="horizons to judge at; got 365, 1000000; expected days above 0 and at most"):
        evaluate_run(run, world.store, None, baselines=[], horizons=[365.0, 1e6])
    with pytest.raises(RunError, match="trained with another labels"):
        evaluate_run(run, world.store, world.labels, baselines=[])
    with pytest.raises(ConfigError, match="days to judge at are of survival tasks"):
        compare([run], world.store, world.labels, horizons=[30.0])


def test_a_binary_run_is_predicted_with_the_same_verb(world, tmp_path, refused):
    config = load_config(FinetuneConfig, overrides={**ADAPT, **ONE, "method": "probe"})
    finetune(world.store, world.labels, tmp_path / "run", config, from_run=world.pretrained)
    table = predicted(tmp_path / "run", world.store, world.labels)
    assert table.columns == ["subject_id", "prediction_time", "probability", "model_hash", "package_version"]
    assert table["probability"].is_between(0, 1).all()
    assert "predicts no times, so --at has no effect" in refused(tmp_path / "run", world.store, "--at", "365")
    with pytest.raises(ConfigError, match=r"options of survival have no effect on .*; got survival.intervals"):
        finetune(
            world.store, world.labels, tmp_path / "other",
            load_config(FinetuneConfig, overrides={**TINY, "method": "scratch", "survival.intervals": 4}),
        )  # fmt: skip


@pytest.mark.parametrize("after", ["cut", "filled"])
def test_what_follows_the_landmark_changes_nothing(world, labels, adapted, tmp_path, after):
    run, _ = adapted
    before = predicted(run, world.store, labels, "--at", "365,1825")
    shutil.copytree(world.meds, tmp_path / "meds")
    times = pl.read_parquet(labels).select("subject_id", "prediction_time")
    for shard in (tmp_path / "meds" / "data").rglob("*.parquet"):
        events = pl.read_parquet(shard)
        joined = events.join(times, on="subject_id", how="left", maintain_order="left")
        later = (joined["time"] > joined["prediction_time"]).fill_null(False) & ~joined["code"].str.starts_with("MEDS")
        if after == "cut":
            changed = events.filter(~later)
        else:
            changed = events.with_columns(code=pl.when(later).then(pl.lit("ICD10CM//E11.9")).otherwise("code"))
        assert not changed.equals(events)
        changed.write_parquet(shard)
    prepare(tmp_path / "meds", tmp_path / "store", vocabulary_from=world.store)
    pl.read_parquet(labels).write_parquet(tmp_path / "labels.parquet")
    again = predicted(run, tmp_path / "store", tmp_path / "labels.parquet", "--at", "365,1825")
    assert again.equals(before)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "probe", "survival.loss": "piecewise", "survival.grid": "uniform", "survival.intervals": 6},
        {"method": "full", "survival.loss": "cox"},
        {"method": "lora", "survival.nvp": 0.2},
        {"method": "scratch", "survival.nvp": 0.2, "model.attention": "visit_causal"},
        {"method": "scratch", "architecture": "lstm", "survival.ranking": 0.5, "survival.sigma": 0.2},
        {"method": "scratch", "architecture": "bilstm", "survival.loss": "cox", "survival.horizon_days": 1000.0},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_every_loss_and_method_trains_and_predicts(world, labels, tmp_path, options):
    scratch = options["method"] == "scratch"
    config = load_config(FinetuneConfig, overrides={**(TINY if scratch else ADAPT), **ONE, **options})
    summary = finetune(world.store, labels, tmp_path / "run", config, from_run=None if scratch else world.pretrained)
    assert not [note for note in summary["notes"] if "received no gradient" in note]
    table = predicted(tmp_path / "run", world.store, labels, "--at", "30,900")
    assert table.select(pl.col("^.*@.*$").is_finite().all()).row(0) == (True,) * 6
    assert table["survival@900"].n_unique() > 1
    history = read_json(tmp_path / "run" / "logs" / "metrics_history.json")
    assert ("train_nvp_loss" in history) == ("val_nvp_cross_entropy" in history) == ("survival.nvp" in options)
    assert ("train_ranking_loss" in history) == ("survival.ranking" in options)
    if options.get("architecture"):
        assert isinstance(load_trained(tmp_path / "run", TokenStore.open(world.store)), VisitLSTMForSurvival)


def test_visits_are_read_and_have_no_horizon(world, labels, tmp_path, refused):
    options = {"method": "scratch", "survival.reading": "visits", "survival.visit_pooling": "last"}
    summary = finetune(
        world.store, labels, tmp_path / "run", load_config(FinetuneConfig, overrides={**TINY, **ONE, **options})
    )
    (metrics,) = summary["metrics"].values()
    assert [name.rpartition("/")[2] for name in metrics] == ["nll"], "no horizon metric of this reading"
    assert "a model that reads visits has no curves from the prediction time on" in refused(
        tmp_path / "run", world.store, "--at", "30"
    )
    with pytest.raises(ConfigError, match="attention of a model that predicts from its visits; got bidirectional"):
        finetune(
            world.store, labels, tmp_path / "other",
            load_config(FinetuneConfig, overrides={**ADAPT, "survival.reading": "visits"}), from_run=world.pretrained,
        )  # fmt: skip


def test_bases_and_architectures_that_do_not_fit_are_refused(world, labels, adapted, tmp_path):
    run, _ = adapted
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": "full"})
    with pytest.raises(ConfigError, match="was fine-tuned on labels already; got BEHRTForSurvival"):
        finetune(world.store, labels, tmp_path / "a", config, from_run=run)
    with pytest.raises(
        ConfigError, match="fine-tuned on labels of another kind; got times to an event; expected a bin"
    ):
        finetune(world.store, world.labels, tmp_path / "b", config, from_run=run)
    with pytest.raises(ConfigError, match="architecture for survival labels; got retain; expected one of behrt, lstm"):
        finetune(
            world.store,
            labels,
            tmp_path / "c",
            load_config(FinetuneConfig, overrides={**TINY, "architecture": "retain"}),
        )
    late = load_config(FinetuneConfig, overrides={**TINY, "method": "scratch", "survival.horizon_days": 50_000.0})
    with pytest.raises(ConfigError, match="survival.horizon_days lies beyond the follow-up of train; got 50000 days"):
        finetune(world.store, labels, tmp_path / "d", late)
    with pytest.raises(RunError, match="is not a classifier; got BEHRTForSurvival.*ehrseq predict"):
        from ehrsequencing.evaluation.predict import load_classifier

        load_classifier(run, TokenStore.open(world.store))


def test_entry_after_the_prediction_time_is_refused_by_name(world, labels, tmp_path):
    late = pl.read_parquet(labels).with_columns(entry_days=pl.lit(3.0))
    late.write_parquet(tmp_path / "late.parquet")
    config = load_config(FinetuneConfig, overrides={**TINY, "method": "scratch"})
    with pytest.raises(LabelError, match=r"say when a subject entered, .*; got column entry_days.*no left truncation"):
        finetune(world.store, tmp_path / "late.parquet", tmp_path / "run", config)


def test_killed_and_resumed_is_bit_identical(world, labels, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--set", "survival.loss=cox")
    arguments = (world.store, labels, "--from", world.pretrained, "--method", "lora", *more)
    uninterrupted("finetune", *arguments, "--out", whole, *FLAGS)
    struck = run_until_done(command("finetune", *arguments, "--out", killed, *FLAGS), [0.2])
    assert struck >= 1, "no kill struck a running process, so nothing was tested"
    same_run(whole, killed)
