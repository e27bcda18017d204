"""`ehrseq benchmark models`: every arm by the number of labels, equal settings, kept over kills."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from ehrsequencing.benchmarks.compare import compare
from ehrsequencing.benchmarks.configuration import ModelsConfig
from ehrsequencing.benchmarks.few_labels import FEWEST_TUNING, keep_share
from ehrsequencing.benchmarks.models import SETTINGS, Cell, benchmark_models, best_setting, cell_config, cells, in_words
from ehrsequencing.config import load_config
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, LabelError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.training.callbacks import Observer
from tests.integration.conftest import TINY

SMALL = {
    "arms": ["lstm", "scratch", "lora4"],
    "baselines": ["logistic_regression", "xgboost", "med2vec_lr"],
    "fractions": [0.3, 1.0],
    "seeds": 1,
    "settings": 1,
    **{f"finetune.{name}": value for name, value in TINY.items() if name.startswith("loop.")},
    "finetune.loop.epochs": 1,
    "pretrain.loop.epochs": 1,
    "pretrain.loop.threads": 1,
    "pretrain.med2vec.code_dim": 16,
    "pretrain.med2vec.visit_dim": 16,
}

HOLD = """import sys
from pathlib import Path
from ehrsequencing.benchmarks.cells import Claim
with Claim(Path(sys.argv[1])) as mine:
    print("held" if mine else "not held", flush=True)
    sys.stdin.read()
"""


def run(world, out, trained=None, said=None, from_run=True, **overrides):
    @contextmanager
    def observed(name):
        (trained if trained is not None else []).append(name)
        yield Observer()

    return benchmark_models(
        world.store, [world.labels], out, load_config(ModelsConfig, overrides={**SMALL, **overrides}),
        from_run=world.pretrained if from_run else None, say=(said if said is not None else []).append,
        bars=lambda: nullcontext(lambda *_: None), observed=observed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    out, trained = tmp_path_factory.mktemp("models") / "out", []
    return out, run(world, out, trained), trained


def test_every_model_stands_at_every_share(done):
    out, summary, trained = done
    names = {"lstm", "scratch", "lora4", "logistic_regression", "xgboost", "med2vec_lr"}
    assert set(summary["metrics"]) == names
    for entries in summary["metrics"].values():
        assert {key.rpartition("/")[0] for key in entries} == {"onset, 30% of labels", "onset, 100% of labels"}
    # The best setting's run with the first seed is the one that was tried.
    assert len(trained) == len(set(trained)) == 7 and "med2vec seed 0" in trained
    for row in summary["differences"]:
        task = row["metric"].rpartition("/")[0]
        one, other = (summary["metrics"][row[side]][f"{task}/auroc"]["value"] for side in ("a", "b"))
        assert row["value"] == pytest.approx(one - other) and row["low"] <= row["value"] <= row["high"]
    assert {(row["a"], row["b"]) for row in summary["differences"]} >= {("lora4", "scratch"), ("lora4", "xgboost")}
    assert len(summary["notes"]) == 2 and "onset with 100% of labels" in summary["notes"][1]
    folder = out / "comparison"
    table = [line for line in (folder / "models.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(names) and table[0].count("% of labels") == 2
    assert (folder / "plots" / "labels_onset.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.html").is_file() and (folder / "onset.tex").is_file()


def test_labels_are_fewer_and_those_who_are_judged_the_same(world, done):
    out, summary, _ = done
    rows = {entry["n"] for entries in summary["metrics"].values() for key, entry in entries.items() if "auroc" in key}
    assert len(rows) == 1
    store, (frame, _) = TokenStore.open(world.store), read_labels(world.labels)
    ids = {share: set(read_labels(out / "labels" / share / "onset.parquet")[0]["subject_id"]) for share in ("0.3", "1")}
    assert ids["0.3"] < ids["1"] == set(frame["subject_id"])
    inside = np.array(sorted(ids["0.3"]))
    everyone = frame["subject_id"].unique().to_numpy()
    train = [int((store.split("train").index_of(who) >= 0).sum()) for who in (inside, everyone)]
    assert train[0] == round(0.3 * train[1])
    tuning = int((store.split("tuning").index_of(inside) >= 0).sum())
    assert tuning == min(FEWEST_TUNING, int((store.split("tuning").index_of(everyone) >= 0).sum()))


def test_a_second_call_trains_and_judges_nothing(world, done):
    out, summary, _ = done
    trained, said = [], []
    assert run(world, out, trained, said)["metrics"] == summary["metrics"]
    assert trained == [] and not any("judging" in line for line in said)


def test_a_med2vec_per_seed_is_trained_without_labels_and_judged_with_an_equal_budget(world, done, tmp_path):
    """A second seed is one more training of Med2Vec, kept with the first; what was done stays as it is."""
    out, summary, _ = done
    assert summary["metrics"]["med2vec_lr"]["onset, 100% of labels/auroc"]["seeds"] == 1
    shutil.copytree(out, tmp_path / "out")
    out, first = tmp_path / "out", Path("med2vec/arms/seed-0000/model/model.safetensors")
    before, trained = (out / first).read_bytes(), []
    few = {"arms": ["lstm"], "fractions": [1.0], "baselines": ["med2vec_lr"]}
    grown = run(world, out, trained, seeds=2, **few)
    assert trained == ["onset 100% lstm setting 0 seed 1", "med2vec seed 1"]
    assert grown["metrics"]["med2vec_lr"]["onset, 100% of labels/auroc"]["seeds"] == 2
    assert (out / first).read_bytes() == before
    seeds = [read_json(out / "med2vec" / "arms" / f"seed-000{seed}" / "metadata.json") for seed in range(2)]
    store = TokenStore.open(world.store)
    for metadata in seeds:
        assert metadata["kind"] == "pretrain" and metadata["store_fingerprint"] == store.fingerprint
        assert "labels" not in metadata
    with pytest.raises(ConfigError, match="another configuration: pretrain differ"):
        run(world, out, seeds=2, **few, **{"pretrain.med2vec.visit_dim": 24})
    vectors = compare(
        [out / "tasks/onset/1/lstm"], world.store, world.labels, baselines=["xgboost"], budget=4,
        med2vec=out / "med2vec", resamples=100,
    )  # fmt: skip
    tried = {arm.name: len(arm.grid) for arm in vectors.arms if arm.kind == "baseline"}
    assert tried == {"xgboost": 4, "med2vec_lr": 4}


def test_a_med2vec_in_other_hands_is_waited_for_and_a_killed_one_taken_up(world, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    run_of = tmp_path / "out" / "med2vec" / "arms" / "seed-0000"
    shutil.rmtree(run_of)
    said, trained = [], []
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_of.with_name(".seed-0000.lock"))], stdin=PIPE, stdout=PIPE, text=True
    )
    try:
        assert held.stdout.readline() == "held\n"
        assert run(world, tmp_path / "out", trained, said) is None and trained == []
        assert said == ["1 of 13 trainings are with another process, which will judge; or run this again"]
    finally:
        held.communicate("")
    # A process that died left a run without an end.
    shutil.copytree(done[0] / "med2vec" / "arms" / "seed-0000", run_of)
    metadata = read_json(run_of / "metadata.json")
    (run_of / "metadata.json").write_text(json.dumps(metadata | {"status": "running"}))
    assert run(world, tmp_path / "out", trained) is not None and trained == ["med2vec seed 0"]
    assert read_json(run_of / "metadata.json")["status"] in ("completed", "early_stopped")


def test_a_benchmark_begun_before_there_was_a_med2vec_goes_on(world, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    file = tmp_path / "out" / "benchmark.json"
    begun = read_json(file)
    file.write_text(json.dumps({key: value for key, value in begun.items() if key != "pretrain"}))
    assert run(world, tmp_path / "out", trained := []) is not None and trained == []
    assert read_json(file) == begun


def test_it_grows_and_is_judged_anew(world, done, tmp_path):
    out, _, _ = done
    shutil.copytree(out, tmp_path / "out")
    trained = []
    summary = run(world, tmp_path / "out", trained, arms=["scratch", "full"], fractions=[1.0], baselines=["xgboost"])
    assert trained == ["onset 100% full setting 0 seed 0"]
    assert set(summary["metrics"]) == {"scratch", "full", "xgboost"}


def test_another_start_is_refused(world, done, tmp_path):
    out, _, _ = done
    for change, message in (
        ({"settings": 4}, "settings differ"),
        ({"finetune.loop.epochs": 3}, "finetune differ"),
        ({"from_run": False, "arms": ["scratch"]}, "from_run differ"),
    ):
        with pytest.raises(ConfigError, match=f"was begun with another configuration: {message}"):
            run(world, out, **change)
    frame, manifest = read_labels(world.labels)
    write_labels(tmp_path / "onset.parquet", frame.with_columns(~pl.col("boolean_value")), manifest)
    with pytest.raises(ConfigError, match="labels of onset differ"):
        run(SimpleNamespace(**{**vars(world), "labels": tmp_path / "onset.parquet"}), out)
    shutil.copytree(out, tmp_path / "out")
    stored = read_json(tmp_path / "out" / "benchmark.json")
    (tmp_path / "out" / "benchmark.json").write_text(json.dumps(stored | {"seeds": 2}))
    with pytest.raises(ConfigError, match="was begun with more seeds; got 1; expected 2 or more"):
        run(world, tmp_path / "out")


def test_wrong_requests_leave_nothing_behind(world, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="lora4 start from a pretrained run; got no --from"):
        run(world, out, from_run=False)
    for change, message in (
        ({"arms": ["lora5"]}, "arms are one or more of"),
        ({"arms": ["scratch", "scratch"]}, "each once"),
        ({"fractions": [0.0]}, "above 0 and up to 1"),
        ({"settings": 3}, "settings"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(world, out, **change)
    frame, manifest = read_labels(world.labels)
    several = frame.with_columns(boolean_value=pl.lit(None, pl.Boolean), categorical_value=pl.lit("A"))
    write_labels(tmp_path / "several.parquet", several, manifest)
    with pytest.raises(RunError, match=r"several.parquet is not of a binary task"):
        run(SimpleNamespace(**{**vars(world), "labels": tmp_path / "several.parquet"}), out)
    with pytest.raises(ConfigError, match="share of the labelled subjects of train; got 0.0001 of"):
        run(world, out, fractions=[0.0001])
    assert not out.exists()


def test_a_share_without_both_classes_is_left_out_and_said(world, tmp_path):
    """A label that few of train have, so that a small share holds none of it."""
    frame, manifest = read_labels(world.labels)
    store = TokenStore.open(world.store)
    train = frame.filter(pl.Series(store.split("train").index_of(frame["subject_id"].to_numpy()) >= 0))
    few = set(keep_share(store, frame, 0.1, seed=0)["subject_id"]) & set(train["subject_id"])
    rare = frame.with_columns(boolean_value=pl.col("boolean_value") & ~pl.col("subject_id").is_in(list(few)))
    write_labels(tmp_path / "onset.parquet", rare, manifest)
    said = []
    world = SimpleNamespace(**{**vars(world), "labels": tmp_path / "onset.parquet"})
    summary = run(world, tmp_path / "out", said=said, arms=["lstm"], fractions=[0.1, 1.0], baselines=[])
    assert not (tmp_path / "out" / "med2vec").exists()
    assert any("onset at 10% of labels is left out" in line for line in said)
    assert {key.partition("/")[0] for key in summary["metrics"]["lstm"]} == {"onset, 100% of labels"}
    with pytest.raises(LabelError, match="no share of the labels can be trained on"):
        run(world, tmp_path / "none", arms=["lstm"], fractions=[0.1], baselines=[])


def test_settings_come_before_the_seeds_that_use_the_best(tmp_path):
    config = load_config(ModelsConfig, overrides={"arms": ["scratch"], "fractions": [1.0], "settings": 4, "seeds": 2})
    order = list(cells(config, ["t"]))
    assert [(cell.setting, cell.seed) for cell in order] == [(0, 0), (1, 0), (2, 0), (3, 0), (None, 0), (None, 1)]
    for setting, value in enumerate((0.6, 0.7, 0.7, 0.5)):
        folder = Cell("t", 1.0, "scratch", setting, 0).folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text('{"status": "completed"}')
        (folder / "summary.json").write_text(json.dumps({"metrics": {"m": {"tuning:t/auroc": {"value": value}}}}))
    assert best_setting(order[-1], tmp_path, 4) == 1


def test_a_setting_changes_what_it_says():
    config = load_config(ModelsConfig, overrides={"finetune.lora.alpha": 8.0})
    seen = set()
    for arm in ("scratch", "probe", "full", "lora16", "lstm", "retain"):
        for setting, change in enumerate(SETTINGS):
            made = cell_config(config, arm, setting, 3)
            base = 5e-4 if arm == "full" else 1e-3
            assert made.optim.lr == pytest.approx(base * change["lr"]) and made.loop.seed == 3
            assert made.model.dropout == change.get("dropout", 0.1)
            assert made.optim.weight_decay == change.get("weight_decay", 0.01)
            seen.add((made.architecture, made.method, made.lora.rank if made.method == "lora" else None))
    assert seen == {
        ("behrt", "scratch", None), ("behrt", "probe", None), ("behrt", "full", None), ("behrt", "lora", 16),
        ("lstm", "scratch", None), ("retain", "scratch", None),
    }  # fmt: skip


def test_sentences_say_what_intervals_allow():
    def judged(low, high):
        metrics = {
            name: {"auroc": {"value": value}} for name, value in (("lora4", 0.7), ("probe", 0.6), ("scratch", 0.5))
        }
        row = {"a": "lora4", "b": "scratch", "value": 0.2, "low": low, "high": high}
        return {("onset", 0.1): {"metrics": metrics, "differences": [row]}}

    assert "0.700: above scratch (+0.200, +0.100 to +0.300)" in in_words(judged(0.1, 0.3))[0]
    assert "not told apart from scratch" in in_words(judged(-0.1, 0.3))[0]
