"""`ehrseq benchmark objectives`: every cell once, kept over kills, shared between processes, judged together."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import polars as pl
import pytest

from ehrsequencing.benchmarks.cells import Claim
from ehrsequencing.benchmarks.configuration import ObjectivesConfig
from ehrsequencing.benchmarks.few_labels import keep_labelled
from ehrsequencing.benchmarks.objectives import Cell, benchmark_objectives, cells, in_words, tokens_of
from ehrsequencing.config import PretrainConfig, load_config, read_config
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.training.callbacks import Observer
from tests.integration.conftest import TINY

SMALL = {
    "objectives": ["mlm", "tte"],
    "methods": ["probe", "lora"],
    "seeds": 1,
    "tokens": 40_000,
    "labelled": 80,
    **{f"pretrain.{name}": value for name, value in TINY.items() if name != "loop.epochs"},
    **{f"finetune.{name}": value for name, value in TINY.items() if name.startswith("loop.")},
    "finetune.loop.epochs": 1,
}


def run(world, out, said=None, trained=None, **overrides):
    """Run it; `said` and `trained` take what it said and which trainings it began."""

    @contextmanager
    def observed(name):
        (trained if trained is not None else []).append(name)
        yield Observer()

    config = load_config(ObjectivesConfig, overrides={**SMALL, **overrides})
    return benchmark_objectives(
        world.store, [world.labels], out, config,
        say=(said if said is not None else []).append, bars=lambda: nullcontext(lambda *_: None), observed=observed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    out, trained = tmp_path_factory.mktemp("benchmark") / "out", []
    return out, run(world, out, trained=trained), trained


def test_every_arm_stands_in_one_table_with_paired_differences(done):
    out, summary, trained = done
    models = {"scratch", "mlm probe", "mlm lora", "tte probe", "tte lora", "logistic_regression", "xgboost"}
    assert set(summary["metrics"]) == models
    assert len(trained) == len(set(trained)) == 7
    rows = {entry["onset/auroc"]["n"] for entry in summary["metrics"].values()}
    assert len(rows) == 1, "all are judged on the same rows"
    for row in summary["differences"]:
        one, other = (summary["metrics"][row[side]]["onset/auroc"]["value"] for side in ("a", "b"))
        assert row["value"] == pytest.approx(one - other)
        assert row["low"] <= row["value"] <= row["high"]
    against = {(row["a"], row["b"]) for row in summary["differences"]}
    assert {("tte lora", "scratch"), ("tte lora", "mlm lora"), ("mlm probe", "xgboost")} <= against
    assert [text.partition(":")[0] for text in summary["notes"]] == ["Masked language modelling", "Time to event"]
    folder = out / "comparison"
    assert (folder / "report.html").is_file()
    assert (folder / "objectives.md").read_text().count("\n") == 2 + len(models)
    assert set(pl.read_csv(folder / "objectives.csv")["model"]) == models


def test_the_same_tokens_are_read_whatever_the_objective(done):
    out, _, _ = done
    epochs = {}
    for objective in ("mlm", "tte"):
        history = json.loads((out / "pretrained" / objective / "seed-0000/logs/metrics_history.json").read_text())
        epochs[objective] = len(history["train_loss"])
    assert epochs["mlm"] == epochs["tte"] > 1


def test_few_labels_are_those_of_the_same_subjects_for_all(world, done):
    out, _, _ = done
    store = TokenStore.open(world.store)
    frame, manifest = read_labels(out / "labels" / "onset.parquet")
    assert manifest["labelled_subjects"] == 80
    ids = frame["subject_id"].unique().to_numpy()
    counts = {split: int((store.split(split).index_of(ids) >= 0).sum()) for split in ("train", "tuning", "held_out")}
    whole, _ = read_labels(world.labels)
    everyone = whole["subject_id"].unique().to_numpy()
    assert (counts["train"], counts["tuning"]) == (64, 16)
    assert counts["held_out"] == (store.split("held_out").index_of(everyone) >= 0).sum()


def test_a_second_call_trains_nothing_and_gives_the_same(world, done):
    out, summary, _ = done
    trained = []
    assert run(world, out, trained=trained)["metrics"] == summary["metrics"]
    assert trained == []


def relabelled(world, folder):
    """A file of the same name whose labels are the others."""
    frame, manifest = read_labels(world.labels)
    write_labels(folder / world.labels.name, frame.with_columns(~pl.col("boolean_value")), manifest)
    return folder / world.labels.name


def test_other_options_are_refused_and_more_methods_are_not(world, done, tmp_path):
    out, _, _ = done
    with pytest.raises(ConfigError, match="begun with another configuration: tokens differ"):
        run(world, out, tokens=41_000)
    with pytest.raises(ConfigError, match="begun with another configuration: labels of onset differ"):
        run(SimpleNamespace(store=world.store, labels=relabelled(world, tmp_path)), out)
    prepare(world.meds, tmp_path / "store", values="none")
    with pytest.raises(ConfigError, match="begun with another configuration: store differ"):
        run(SimpleNamespace(store=tmp_path / "store", labels=world.labels), out)
    trained = []
    assert run(world, out, trained=trained, objectives=["mlm"], methods=["full"]) is not None
    assert trained == ["onset mlm full seed 0"]


def test_what_another_process_trains_is_left_to_it(world, tmp_path):
    """The lock is another process's, since a process's own locks do not bar it."""
    out = tmp_path / "out"
    cell = Cell("mlm", 0).folder(out)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom ehrsequencing.benchmarks.cells import Claim\n"
        f"with Claim(Path({str(cell.with_name('.seed-0000.lock'))!r})) as mine:\n"
        "    assert mine\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == "held"
        said, trained = [], []
        assert run(world, out, said, trained, objectives=["mlm"], methods=["probe"]) is None
        assert trained == ["onset scratch seed 0"]
        assert "2 of 3 trainings are with another process" in said[-1]
        with Claim(out / "free.lock") as mine:
            assert mine
    finally:
        other.kill()
        other.communicate()
    assert run(world, out, objectives=["mlm"], methods=["probe"]) is not None


def test_wrong_requests_are_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="labelled subjects of train; got 72000 of the 90000 asked for"):
        run(world, tmp_path / "out", labelled=90_000)
    with pytest.raises(
        ConfigError, match=r"tokens of each pretraining, .* got 1,000; expected .* mlm \d\d,\d+, tte \d\d,\d+"
    ):
        run(world, tmp_path / "out", tokens=1_000)
    frame, manifest = read_labels(world.labels)
    several = frame.with_columns(boolean_value=pl.lit(None, pl.Boolean), categorical_value=pl.lit("A"))
    write_labels(tmp_path / "several.parquet", several, manifest)
    with pytest.raises(RunError, match=r"several.parquet is not of a binary task"):
        run(SimpleNamespace(store=world.store, labels=tmp_path / "several.parquet"), tmp_path / "out")
    # Nothing of it stands in the way of the right request.
    assert not (tmp_path / "out").exists()
    config = load_config(ObjectivesConfig, overrides=SMALL)
    with pytest.raises(ConfigError, match="label files; got onset, onset"):
        benchmark_objectives(
            world.store, [world.labels, world.labels], tmp_path / "other", config,
            say=print, bars=nullcontext, observed=nullcontext,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="methods"):
        load_config(ObjectivesConfig, overrides={"methods": ["prompt"]})


def test_fewer_seeds_than_were_begun_are_refused(world, done, tmp_path):
    """A model that has a second seed would be judged with both beside models that have one."""
    out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    file = tmp_path / "out" / "benchmark.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seeds": 2}))
    with pytest.raises(ConfigError, match="was begun with more seeds; got 1; expected 2 or more"):
        run(world, tmp_path / "out")


def test_what_was_read_is_stated(done):
    out, _, _ = done
    caveats = json.loads((out / "comparison" / "report_data.json").read_text())["caveats"]
    metadata = json.loads((out / "pretrained/mlm/seed-0000/metadata.json").read_text())
    store, config = (
        TokenStore.open(metadata["store"]),
        read_config(PretrainConfig, out / "pretrained/mlm/seed-0000/config.toml"),
    )
    read = tokens_of(config, store) * config.loop.epochs
    assert any(f"mlm {read:,}" in text and "40,000 were asked for" in text for text in caveats)


def test_fewer_labels_are_part_of_more(world):
    store = TokenStore.open(world.store)
    frame, _ = read_labels(world.labels)
    some, more = (set(keep_labelled(store, frame, number, 0)["subject_id"]) for number in (40, 80))
    assert some < more


def test_cells_come_seed_by_seed_and_bases_first():
    config = load_config(ObjectivesConfig, overrides={**SMALL, "seeds": 2})
    order = list(cells(config, ["a", "b"]))
    assert len(order) == len(set(order)) == 2 * (2 + 2 * (1 + 4))
    assert [cell.seed for cell in order] == sorted(cell.seed for cell in order)
    for place, cell in enumerate(order):
        if cell.task and cell.objective != "scratch":
            assert Cell(cell.objective, cell.seed) in order[:place]


def test_sentences_count_intervals():
    config = load_config(ObjectivesConfig, overrides={**SMALL, "objectives": ["mlm", "nvp"], "methods": ["lora"]})
    differences = [
        {"a": "mlm lora", "b": "scratch", "value": 0.1, "low": 0.05, "high": 0.2},
        {"a": "nvp lora", "b": "scratch", "value": -0.02, "low": -0.05, "high": 0.01},
        {"a": "nvp lora", "b": "mlm lora", "value": -0.12, "low": -0.2, "high": -0.05},
        {"a": "nvp lora", "b": "xgboost", "value": 0.5, "low": 0.4, "high": 0.6},
    ]
    first, second = in_words(differences, config, ["task"])
    assert first.startswith("Masked language modelling: against training from scratch the AUROC is 0.100 higher")
    assert first.endswith("interval above zero in 1 and below in 0.")
    assert "0.020 lower" in second
    assert "against masked language modelling the AUROC is 0.120 lower" in second
    assert second.endswith("above zero in 0 and below in 1.")
