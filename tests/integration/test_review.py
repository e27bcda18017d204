"""What a sceptical reader tried: overwriting, resuming something else, options without effect, names that collide."""

import json
import shutil

import polars as pl
import pytest

from ehrsequencing.benchmarks.compare import compare
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config, read_config
from ehrsequencing.errors import CheckpointError, ConfigError, LabelError, RunError
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain
from tests.integration.conftest import ADAPT, TINY


def tuned(**overrides) -> FinetuneConfig:
    return load_config(FinetuneConfig, overrides={**ADAPT, "loop.epochs": 1, **overrides})


@pytest.fixture(scope="module")
def lora(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lora"
    finetune(world.store, world.labels, out, tuned(), from_run=world.pretrained)
    return out


def test_the_base_is_never_overwritten_by_what_starts_from_it(world, tmp_path):
    shutil.copytree(world.pretrained, tmp_path / "base")
    for out in (tmp_path / "base", tmp_path):
        with pytest.raises(ConfigError, match="holds the run of --from"):
            finetune(world.store, world.labels, out, tuned(), from_run=tmp_path / "base", overwrite=True)
    assert (tmp_path / "base" / "model" / "model.safetensors").is_file()


def test_a_failing_start_leaves_the_earlier_run(world, lora, tmp_path):
    shutil.copytree(lora, tmp_path / "run")
    with pytest.raises(ConfigError, match="device mps is not available"):
        finetune(
            world.store, world.labels, tmp_path / "run", tuned(**{"loop.device": "mps"}),
            from_run=world.pretrained, overwrite=True,
        )  # fmt: skip
    assert (tmp_path / "run" / "summary.json").read_bytes() == (lora / "summary.json").read_bytes()


def test_a_refused_resumption_changes_nothing(world, lora, tmp_path):
    labels = pl.read_parquet(world.labels)
    labels.head(len(labels) - 1).write_parquet(tmp_path / "labels.parquet")
    before = (lora / "metadata.json").read_bytes()
    with pytest.raises(CheckpointError, match="another labels"):
        finetune(world.store, tmp_path / "labels.parquet", lora, tuned(), from_run=world.pretrained, resume=True)
    with pytest.raises(CheckpointError, match="another base"):
        finetune(world.store, world.labels, lora, tuned(), resume=True)
    with pytest.raises(ConfigError, match=r"loop\.epochs \(1 -> 10\)"):
        finetune(
            world.store, world.labels, lora, tuned(**{"loop.epochs": 10}), from_run=world.pretrained, resume=True
        )  # fmt: skip
    assert (lora / "metadata.json").read_bytes() == before


def test_resuming_a_finished_run_returns_it_unchanged(world, lora):
    before = {path: path.read_bytes() for path in lora.rglob("*") if path.is_file()}
    summary = finetune(world.store, world.labels, lora, tuned(), from_run=world.pretrained, resume=True)
    assert summary == json.loads((lora / "summary.json").read_text())
    assert before == {path: path.read_bytes() for path in lora.rglob("*") if path.is_file()}


def test_architecture_options_beside_a_base_are_refused(world, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.size would have no effect"):
        finetune(
            world.store, world.labels, tmp_path / "run", tuned(**{"model.size": "large"}), from_run=world.pretrained
        )
    with pytest.raises(ConfigError, match=r"model\.max_length would have no effect"):
        pretrain(world.store, tmp_path / "run", load_config(PretrainConfig, overrides=TINY), from_run=world.pretrained)
    assert not (tmp_path / "run").exists()


def test_a_run_states_the_architecture_of_its_base(world, lora):
    stated = read_config(FinetuneConfig, lora / "config.toml").model
    built = json.loads((lora / "model" / "config.json").read_text())["config"]
    assert (stated.max_length, stated.position) == (built["max_length"], built["position"])
    assert stated.max_length == TINY["model.max_length"]
    assert json.loads((lora / "hyperparameters.json").read_text())["model"]["max_length"] == stated.max_length


def test_the_best_of_either_side_are_always_compared(world, lora, tmp_path):
    scratch = load_config(FinetuneConfig, overrides={**TINY, "method": "scratch", "loop.epochs": 1})
    finetune(world.store, world.labels, tmp_path / "scratch", scratch)
    for runs in ([lora, tmp_path / "scratch"], [tmp_path / "scratch", lora]):
        found = compare(runs, world.store, world.labels, baselines=("logistic_regression",), resamples=100)
        paired = {(frozenset((pair["a"], pair["b"])), pair["metric"]) for pair in found.differences}
        for key in {pair["metric"] for pair in found.differences}:
            sign = 1 if found.metrics["behrt-small-lora"][key]["higher_is_better"] else -1
            best = max(
                ("behrt-small-lora", "behrt-small-scratch"), key=lambda name: sign * found.metrics[name][key]["value"]
            )
            assert (frozenset((best, "logistic_regression")), key) in paired


def test_labels_of_another_dataset_are_refused(world, tmp_path):
    labels = tmp_path / "labels.parquet"
    shutil.copy(world.labels, labels)
    manifest = json.loads(world.labels.with_suffix(".json").read_text())
    manifest["dataset"]["fingerprint"] = "0" * 64
    labels.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(LabelError, match="another dataset"):
        finetune(world.store, labels, tmp_path / "run", tuned(), from_run=world.pretrained)


def test_runs_of_one_name_stay_apart(world, lora, tmp_path):
    other = tmp_path / "rank2"
    finetune(world.store, world.labels, other, tuned(**{"lora.rank": 2}), from_run=world.pretrained)
    found = compare([lora, other], world.store, world.labels, baselines=(), resamples=100)
    assert set(found.metrics) == {"behrt-small-lora (lora)", "behrt-small-lora (rank2)"}
    with pytest.raises(ConfigError, match="named twice"):
        compare([lora, lora], world.store, world.labels, baselines=(), resamples=100)


def test_several_seeds_are_one_model_with_intervals_over_both(world, tmp_path):
    from contextlib import nullcontext

    from ehrsequencing.benchmarks.evaluate import evaluate_run
    from ehrsequencing.benchmarks.seeds import finetune_seeds

    out = tmp_path / "seeds"

    def run(resume: bool) -> dict:
        return finetune_seeds(
            world.store, world.labels, out, tuned(), 2,
            from_run=world.pretrained, resume=resume, observed=lambda name: nullcontext(None),
        )  # fmt: skip

    first = run(False)
    assert run(True)["metrics"] == first["metrics"]
    summary = evaluate_run(out, world.store, baselines=["logistic_regression"], resamples=100)
    entries = summary["metrics"]["behrt-small-lora"]
    assert {entry["seeds"] for entry in entries.values()} == {2}
    assert (out / "report.html").is_file()
    with pytest.raises(RunError, match="several trainings"):
        finetune(world.store, world.labels, out, tuned(), from_run=world.pretrained, resume=True)


def test_a_single_run_does_not_become_one_of_several(world, lora):
    from contextlib import nullcontext

    from ehrsequencing.benchmarks.seeds import finetune_seeds

    with pytest.raises(RunError, match="single training"):
        finetune_seeds(
            world.store, world.labels, lora, tuned(), 2,
            from_run=world.pretrained, resume=True, observed=lambda name: nullcontext(None),
        )  # fmt: skip


@pytest.mark.parametrize(
    "item",
    ["loop.seed=99999999999999999999", "loop.token_budget=99999999999999", "loop.threads=100000", "loop.seed=true",
     "optim.weight_decay=inf", "loop.checkpoint_seconds=inf", "optim.lr=nan"],
)  # fmt: skip
def test_values_out_of_all_bounds(item):
    with pytest.raises(ConfigError, match=item.split("=")[0]):
        load_config(PretrainConfig, None, [item])


def test_a_run_of_another_kind_is_not_resumed(world, lora, tmp_path):
    with pytest.raises(RunError, match="holds a run of another kind; got finetune; expected pretrain"):
        pretrain(world.store, lora, load_config(PretrainConfig), resume=True)
    with pytest.raises(RunError, match="holds a run of another kind; got pretrain; expected finetune"):
        finetune(world.store, world.labels, world.pretrained, load_config(FinetuneConfig), resume=True)


def test_a_run_is_not_written_into_its_data(world, lora, tmp_path):
    from contextlib import nullcontext

    from ehrsequencing.benchmarks.evaluate import evaluate_run
    from ehrsequencing.benchmarks.seeds import finetune_seeds

    before = sorted(world.root.rglob("*"))
    for inside in (world.store / "run", world.store / "train" / "run"):
        with pytest.raises(ConfigError, match=f"the output {inside} overlaps the input {world.store}"):
            pretrain(world.store, inside, load_config(PretrainConfig, overrides=TINY))
        with pytest.raises(ConfigError, match="overlaps the input"):
            finetune(world.store, world.labels, inside, tuned(), from_run=world.pretrained)
        with pytest.raises(ConfigError, match="overlaps the input"):
            finetune_seeds(world.store, world.labels, inside, tuned(), 2, observed=lambda name: nullcontext(None))
    with pytest.raises(ConfigError, match="which is a MEDS dataset"):
        pretrain(world.store, world.meds / "run", load_config(PretrainConfig, overrides=TINY))
    with pytest.raises(ConfigError, match="which is a MEDS dataset"):
        evaluate_run(world.meds / "run", world.store)
    assert sorted(world.root.rglob("*")) == before
