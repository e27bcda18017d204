"""`ehrseq runs`: runs of stores of two sizes on the subjects that both held out, and what must not be compared."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.benchmarks.run_comparison import compare_runs
from ehrsequencing.cli.main import main
from ehrsequencing.config import FinetuneConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import RunError
from ehrsequencing.io import read_json, write_json
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tracking.benchmark import BenchmarkTracker
from ehrsequencing.training.finetune import finetune
from tests.integration.conftest import ADAPT


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """LoRA on 400 subjects; full, in two seeds' manner, on 330 of the same, whose records are the first ones."""
    root = tmp_path_factory.mktemp("runs")
    synthesise(root / "meds", subjects=330, seed=3, workers=1)
    prepare(root / "meds", root / "store", vocabulary_from=world.store)
    frame, manifest = build_labels(MedsDataset.open(root / "meds"), parse_task("onset:ICD10CM//I10,ICD10CM//E11@730"))
    write_labels(root / "labels" / "onset.parquet", frame, manifest)
    for name, method, store, labels in (
        ("lora", "lora", world.store, world.labels),
        ("full", "full", root / "store", root / "labels" / "onset.parquet"),
    ):
        finetune(
            store, labels, root / name, load_config(FinetuneConfig, overrides={**ADAPT, "method": method}),
            from_run=world.pretrained,
        )  # fmt: skip
        evaluate_run(root / name, store, baselines=["logistic_regression"], resamples=100)
    return root


def test_runs_are_judged_on_what_both_held_out(runs):
    found = compare_runs([runs / "lora", runs / "full"], resamples=100)
    frames = [pl.read_parquet(runs / name / "predictions" / "held_out.parquet") for name in ("lora", "full")]
    both = set(frames[0]["subject_id"]) & set(frames[1]["subject_id"])
    assert 0 < found.subjects == len(both) < found.of_each[0]
    for frame, name, column in zip(frames, found.names, ("behrt-small-lora", "behrt-small-full"), strict=True):
        kept = frame.filter(pl.col("subject_id").is_in(list(both)))
        assert len(kept) == found.rows and kept["label"].sum() == found.positives
        own = roc_auc_score(kept["label"], kept[column])
        assert found.metrics[name]["auroc"]["value"] == pytest.approx(own, abs=1e-12)
    gap = next(row for row in found.differences if row["metric"] == "auroc")
    values = [found.metrics[name]["auroc"]["value"] for name in found.names]
    assert gap["value"] == pytest.approx(values[0] - values[1]) and gap["low"] <= gap["value"] <= gap["high"]


@pytest.fixture
def copies(runs, tmp_path):
    for name in ("lora", "full"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def test_a_subject_that_trained_the_other_is_refused(runs, copies, world):
    """One of train is put among the held-out predictions."""
    file = copies / "lora" / "predictions" / "held_out.parquet"
    frame = pl.read_parquet(file)
    trained = int(np.load(runs / "store" / "train" / "subject_id.npy")[0])
    pl.concat([frame, frame.head(1).with_columns(subject_id=pl.lit(trained, pl.Int64))]).write_parquet(file)
    with pytest.raises(
        RunError, match=rf"1 subjects that .*lora held out trained .*full or its base; got subject {trained}"
    ):
        compare_runs([copies / "lora", copies / "full"], resamples=100)


def test_a_base_that_saw_the_subject_is_refused(copies, world, tmp_path):
    """The store of `full` itself is innocent; that of the run it starts from holds a judged subject in train."""
    metadata = read_json(copies / "full" / "metadata.json")
    base = tmp_path / "base"
    shutil.copytree(world.pretrained, base)
    other = tmp_path / "other"
    synthesise(tmp_path / "others", subjects=60, seed=3, workers=1)
    frame = pl.read_parquet(tmp_path / "others" / "metadata" / "subject_splits.parquet")
    assert set(frame["split"]) == {"train", "tuning", "held_out"}
    for place in sorted((tmp_path / "others" / "data" / "held_out").glob("*.parquet")):
        shutil.move(place, tmp_path / "others" / "data" / "train" / f"moved-{place.name}")
    frame.with_columns(split=pl.col("split").replace("held_out", "train")).write_parquet(
        tmp_path / "others" / "metadata" / "subject_splits.parquet"
    )
    prepare(tmp_path / "others", other, vocabulary_from=world.store)
    fingerprint = json.loads((other / "manifest.json").read_text())["fingerprint"]
    write_json(
        base / "metadata.json",
        read_json(base / "metadata.json") | {"store": str(other), "store_fingerprint": fingerprint},
    )
    write_json(copies / "full" / "metadata.json", metadata | {"from_run": str(base)})
    with pytest.raises(RunError, match=r"subjects that .*lora held out trained .*full or its base"):
        compare_runs([copies / "lora", copies / "full"], resamples=100)


def _drop(copies):
    shutil.rmtree(copies / "full" / "predictions")


def _relabel(copies):
    file = copies / "full" / "predictions" / "held_out.parquet"
    pl.read_parquet(file).with_columns(~pl.col("label")).write_parquet(file)


def _other_task(copies):
    write_json(copies / "full" / "metadata.json", read_json(copies / "full" / "metadata.json") | {"task": "death"})


def _other_times(copies):
    file = copies / "full" / "predictions" / "held_out.parquet"
    pl.read_parquet(file).with_columns(pl.col("prediction_time").dt.offset_by("1s")).write_parquet(file)


def _other_store(copies):
    write_json(
        copies / "full" / "metadata.json", read_json(copies / "full" / "metadata.json") | {"store_fingerprint": "0"}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"full has no held-out predictions; .* Remedy: run `ehrseq evaluate .*full STORE` first"),
        (_relabel, r"were judged on different labels; got \d+ of \d+ shared rows differ"),
        (_other_task, "the runs are of different tasks; got onset.*, death"),
        (_other_times, r"no row was held out by all runs; got \d+ rows and \d+ rows"),
        (_other_store, "the store of .*full was made anew since"),
    ],
)
def test_what_cannot_be_compared_is_refused(copies, change, message):
    change(copies)
    with pytest.raises(RunError, match=message):
        compare_runs([copies / "lora", copies / "full"], resamples=100)


def test_a_run_is_not_compared_with_itself_nor_a_pretraining_judged(runs, world):
    with pytest.raises(RunError, match="expected two or more different runs"):
        compare_runs([runs / "lora", runs / "." / "lora"])
    with pytest.raises(RunError, match=r"has no held-out predictions; got a run of kind pretrain"):
        compare_runs([runs / "lora", world.pretrained])


def test_the_commands(runs, world, capsys, tmp_path):
    for arguments, said in (
        (["list", str(runs)], ["lora", "finetune full", "behrt-small-lora", "AUROC"]),
        (["list", str(world.root)], ["pretrained", "pretrain mlm"]),
        (["list", str(runs / "labels")], ["no run under"]),
        (["show", str(runs / "lora")], ["Best epoch", "adapter/", "predictions/"]),
        (
            ["compare", str(runs / "lora"), str(runs / "full"), "--resamples", "100"],
            ["subjects that all held out", "AUROC of", "behrt-small-full"],
        ),
        (["compare", str(runs / "lora"), str(runs / "full"), "--resamples", "100", "--form", "latex"], [r"\toprule"]),
        (["list", str(runs), "--out", str(tmp_path / "runs.csv")], ["table:"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["runs", *arguments])
        shown = capsys.readouterr().out
        assert stop.value.code == 0 and all(text in shown for text in said), shown
    assert [row.split(",")[0] for row in (tmp_path / "runs.csv").read_text().splitlines()] == ["Run", "lora", "full"]
    for arguments, message in (
        (["list", str(tmp_path / "none")], "is no folder"),
        (["show", str(tmp_path)], "is no run directory"),
        (["list", str(runs), "--form", "word"], "unknown form of a table; got word"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["runs", *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_benchmark_takes_runs_and_weighs_lora_against_full(runs, tmp_path):
    tracker = BenchmarkTracker("ways", tmp_path)
    for name in ("lora", "full"):
        tracker.add_run(runs / name)
    report = tracker.save_report().read_text()
    adapted, full = (tracker.results[f"behrt-small-{name}"] for name in ("lora", "full"))
    assert adapted["bytes"] < 0.3 * full["bytes"] and adapted["parameters"] < full["parameters"]
    assert "## LoRA against full fine-tuning" in report
    assert f"{100 * adapted['bytes'] / full['bytes']:.1f} %" in report
    assert "performance_vs_time.png" in report and (tracker.directory / "plots" / "performance_vs_time.png").is_file()
    page = (tracker.directory / "REPORT.html").read_text()
    assert "behrt-small-lora" in page and "data:image/png;base64," in page and "http" not in page
    flat = pl.read_csv(tracker.directory / "results.csv")
    entry = adapted["metrics"][flat["metric"][0]]
    assert flat["value"][0] == entry["value"] and flat["epoch"][0] == adapted["epoch"]
    assert r"\begin{tabular}{l" in (tracker.directory / "results.tex").read_text()
