"""Models over visits from the command line to the report: trained, killed, judged beside a BEHRT, and refused."""

import json

import pytest

from ehrsequencing.benchmarks.configuration import ObjectivesConfig
from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.benchmarks.seeds import finetune_seeds
from ehrsequencing.cli.common import observed
from ehrsequencing.config import FinetuneConfig, load_config, read_config
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, ConfigError, RunError
from ehrsequencing.evaluation.predict import load_classifier
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.models.lstm import VisitLSTMForSequenceClassification
from ehrsequencing.models.retain import RETAINForSequenceClassification
from ehrsequencing.training.finetune import finetune
from tests.integration.conftest import TINY
from tests.integration.test_multilabel import labels as multilabel  # noqa: F401
from tests.integration.test_resume import command, run_and_kill, same_run
from tests.integration.test_validation import abroad  # noqa: F401

ONCE = {**TINY, "loop.epochs": 1}
CLASSES = {
    "lstm": VisitLSTMForSequenceClassification,
    "bilstm": VisitLSTMForSequenceClassification,
    "retain": RETAINForSequenceClassification,
}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("architectures")
    for name in CLASSES:
        finetune(
            world.store, world.labels, folder / name, load_config(FinetuneConfig, None, [f"architecture={name}"], ONCE)
        )
    return folder


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_run_says_what_it_trained_and_gives_it_back(world, runs, name):
    run = runs / name
    metadata, summary = read_json(run / "metadata.json"), read_json(run / "summary.json")
    assert (metadata["method"], metadata["architecture"]) == ("scratch", name) and metadata["parameters"]["lora"] == 0
    assert metadata["parameters"]["trainable"] == metadata["parameters"]["total"]
    assert list(summary["metrics"]) == [f"{name}-small-scratch"]
    assert not [note for note in summary["notes"] if "no gradient" in note]
    assert read_json(run / "model" / "config.json")["architecture"] == CLASSES[name].__name__
    config = read_config(FinetuneConfig, run / "config.toml")
    assert config.architecture == name and config.model.times is True and config.model.size == "small"
    for text in ((run / "config.toml").read_text(), json.dumps(read_json(run / "hyperparameters.json"))):
        assert "rotary" not in text and "activation" not in text and "lora" not in text
    model = load_classifier(run, TokenStore.open(world.store))
    assert type(model) is CLASSES[name] and not model.training


def test_the_parts_of_the_model_stand_in_the_report(runs):
    parameters = read_json(runs / "lstm" / "report_data.json")["parameters"]["lstm-small-scratch"]
    assert set(parameters["from_scratch"]) == {"embeddings", "encoder", "head"}
    assert parameters["received_gradient"] == parameters["from_scratch"]


def test_all_are_judged_beside_each_other_and_a_baseline(world, runs, tmp_path):
    behrt = tmp_path / "behrt"
    finetune(world.store, world.labels, behrt, load_config(FinetuneConfig, overrides={**ONCE, "method": "scratch"}))
    others = [runs / "bilstm", runs / "retain", behrt]
    summary = evaluate_run(runs / "lstm", world.store, others=others, baselines=("logistic_regression",), resamples=50)
    names = [*(f"{name}-small-scratch" for name in ("lstm", "bilstm", "retain", "behrt")), "logistic_regression"]
    assert sorted(summary["metrics"]) == sorted(names)
    for metrics in summary["metrics"].values():
        entry = next(entry for key, entry in metrics.items() if key.endswith("/auroc"))
        assert entry["low"] <= entry["value"] <= entry["high"]
    report = (runs / "lstm" / "report.html").read_text()
    for name in names:
        assert name in report


def test_several_seeds_are_one_arm(world, tmp_path):
    config = load_config(FinetuneConfig, overrides={**ONCE, "architecture": "retain"})
    finetune_seeds(world.store, world.labels, tmp_path / "run", config, 2, observed=observed)
    summary = evaluate_run(tmp_path / "run", world.store, baselines=(), resamples=50)
    entry = summary["metrics"]["retain-small-scratch"]
    assert next(value for key, value in entry.items() if key.endswith("/auroc"))["seeds"] == 2


def test_several_labels(world, multilabel, tmp_path):  # noqa: F811
    config = load_config(FinetuneConfig, overrides={**ONCE, "architecture": "bilstm"})
    finetune(world.store, multilabel / "phenotypes.parquet", tmp_path / "run", config)
    summary = evaluate_run(tmp_path / "run", world.store, baselines=(), resamples=20)
    assert any(key.endswith("/auroc_macro") for key in summary["metrics"]["bilstm-small-scratch"])


def test_subjects_of_another_dataset_are_judged(world, runs, abroad):  # noqa: F811
    summary = evaluate_run(
        runs / "retain", abroad.store, abroad.labels, training_store=world.store, baselines=(), resamples=50
    )
    assert list(summary["metrics"]) == ["retain-small-scratch"] and "unknown" in summary


def test_killed_and_resumed_is_bit_identical(world, tmp_path):
    """One process is killed; the other two trainings are of this one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {**TINY, "architecture": "bilstm", "loop.checkpoint_seconds": 0, "loop.token_budget": 4096}
    sets = [f"--set={name}={value}" for name, value in options.items() if name != "architecture"]
    arguments = command("finetune", world.store, world.labels, "--model", "bilstm", *sets, "--out", killed)
    assert run_and_kill(arguments, [0.05]) == 1
    before = read_json(killed / "metadata.json")
    assert before["status"] == "running" and not (killed / "model").exists()
    finetune(world.store, world.labels, whole, load_config(FinetuneConfig, overrides=options))
    # Taken up without naming the architecture: the run knows it; and once more, when it is finished.
    for _ in range(2):
        again = finetune(world.store, world.labels, killed, load_config(FinetuneConfig), resume=True)
        assert list(again["metrics"]) == ["bilstm-small-scratch"]
    assert read_json(killed / "metadata.json")["created"] == before["created"]
    same_run(whole, killed)


def test_what_has_no_meaning_for_an_architecture_is_refused():
    for overrides, message in (
        ({"architecture": "gru"}, "architecture: Input should be 'behrt', 'lstm', 'bilstm' or 'retain', got 'gru'"),
        (
            {"architecture": "lstm", "method": "lora"},
            "lora adapts a pretrained behrt; lstm is trained with method scratch",
        ),
        ({"architecture": "lstm", "method": "full"}, "full adapts a pretrained behrt"),
        ({"architecture": "retain", "method": "probe"}, "probe adapts a pretrained behrt"),
        ({"architecture": "lstm", "lora.rank": 4}, "method scratch has no adapters"),
        (
            {"architecture": "lstm", "model.position": "none", "model.norm": "pre"},
            "lstm has no norm, position; leave it out",
        ),
        ({"architecture": "bilstm", "model.pooling": "cls"}, "pooling is attention, mean or last_visit"),
        ({"architecture": "retain", "model.pooling": "mean"}, "retain has no pooling"),
    ):
        with pytest.raises(ConfigError, match="1 problem.*") as found:
            load_config(FinetuneConfig, overrides=overrides)
        assert message in str(found.value)


def test_the_benchmark_of_pretrainings_is_of_behrt_alone():
    with pytest.raises(ConfigError, match="finetune: Value error, lstm is not pretrained; judge it with"):
        load_config(ObjectivesConfig, overrides={"finetune.architecture": "lstm"})


def test_a_base_is_refused_in_both_directions(world, runs, tmp_path):
    config = load_config(FinetuneConfig, overrides={**TINY, "architecture": "lstm"})
    with pytest.raises(ConfigError, match="--model lstm --method scratch starts from nothing.*--model behrt"):
        finetune(world.store, world.labels, tmp_path / "run", config, from_run=world.pretrained)
    config = load_config(FinetuneConfig, overrides={"method": "full"})
    with pytest.raises(
        CheckpointError, match="of another family; got VisitLSTMFor.*; expected one of the BEHRT family"
    ):
        finetune(world.store, world.labels, tmp_path / "run", config, from_run=runs / "lstm")
    with pytest.raises(CheckpointError, match="of another family; got BEHRTForMLM; expected one of the LSTM family"):
        VisitLSTMForSequenceClassification.from_pretrained(world.pretrained / "model")
    with pytest.raises(CheckpointError, match="of another family"):
        BEHRTForMLM.from_pretrained(runs / "retain" / "model")
    assert not (tmp_path / "run").exists()


def test_a_run_of_one_architecture_is_not_resumed_as_another(world, runs):
    config = load_config(FinetuneConfig, overrides={**TINY, "architecture": "retain"})
    with pytest.raises(ConfigError, match=r"architecture \(lstm -> retain\)"):
        finetune(world.store, world.labels, runs / "lstm", config, resume=True)


def test_a_pretraining_is_no_classifier(world):
    with pytest.raises(RunError, match="is not a classifier; got BEHRTForMLM"):
        load_classifier(world.pretrained, TokenStore.open(world.store))
