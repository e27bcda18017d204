"""Rules about the model: what trains, what stayed random, what collapsed."""

from __future__ import annotations

import json

import pytest
from tests.unit.diagnostics.clinic import LOOP, change, found

from ehrsequencing.config import PretrainConfig, load_config
from ehrsequencing.data.sequences import Examples
from ehrsequencing.diagnostics.doctor import diagnose
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM
from ehrsequencing.models.lora import apply_lora_to_behrt
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.training.device import resolve_loop
from ehrsequencing.training.loop import Trainer
from ehrsequencing.training.plans import MLMPlan
from ehrsequencing.training.runs import batch_source


def examined(run, target, **parts):
    """The run with another examination."""
    content = json.loads((run / "logs/examination.json").read_text())
    return change(run, target, "logs/examination.json", **{name: content[name] | new for name, new in parts.items()})


def test_adapters_scaled_to_nothing_are_dead(clinic, healthy):
    run = clinic.finetuned("dead", clinic.learnable, healthy, method="lora", loop__epochs=1, lora__alpha=1e-30)
    (finding,) = diagnose(run).findings
    assert finding.rule == "dead-adapter"
    assert finding.severity == "problem"
    assert finding.evidence.startswith("8 of 8 adapted layers")


def test_adapters_that_add_little_are_alive(adapted, tmp_path):
    effects = json.loads((adapted / "logs/examination.json").read_text())["adapters"]
    assert min(effects.values()) > 1e-2
    small = dict.fromkeys(effects, 2e-4)
    assert "dead-adapter" not in found(examined(adapted, tmp_path / "small", adapters=small))
    one = small | {next(iter(small)): 0.0}
    (finding,) = diagnose(examined(adapted, tmp_path / "one", adapters=one)).findings
    assert (finding.rule, finding.severity) == ("dead-adapter", "warning")


def test_an_encoder_that_nothing_pretrained_is_frozen_at_random(clinic):
    run = clinic.finetuned("frozen", clinic.learnable, method="lora", loop__epochs=1)
    assert "frozen-random" in found(run)
    assert "encoder" in diagnose(run).findings[0].symptom


@pytest.fixture(scope="module")
def third_failure(clinic):
    """The troubleshooting guide's: adapters on a fresh model whose embeddings and head are frozen, too."""
    config = load_config(PretrainConfig, overrides=LOOP | {"loop.epochs": 2, "loop.patience": 9, "optim.lr": 1e-3})
    loop = resolve_loop(config.loop)
    model = BEHRTForMLM(BEHRTConfig.small(vocab_size=len(clinic.store.vocabulary), max_length=16))
    with pytest.warns(UserWarning, match="random initial values"):
        apply_lora_to_behrt(model, rank=4, train_embeddings=False, train_head=False)
    sources = {
        name: batch_source(clinic.store, name, Examples.whole_histories(clinic.store.split(name)), loop, model.config)
        for name in ("train", "tuning")
    }
    plan = MLMPlan(model.config, *sources.values(), clinic.store.vocabulary, rate=0.3, seed=0)
    with ExperimentTracker("third", clinic.root) as tracker:
        tracker.log_metadata({"floors": plan.floors()})
        Trainer(model, plan, config.optim, loop, tracker, identity={}).fit()
    return clinic.root / "third"


def test_frozen_random_embeddings_and_head(third_failure):
    diagnosis = diagnose(third_failure)
    (finding,) = [finding for finding in diagnosis.findings if finding.rule == "frozen-random"]
    assert "embeddings and encoder and head" in finding.symptom
    assert "underfitting" not in found(third_failure)


def test_a_frozen_base_that_was_pretrained_is_meant_so(adapted):
    frozen = json.loads((adapted / "logs/examination.json").read_text())["parameters"]["groups"]["encoder"]["frozen"]
    assert frozen > 0
    assert "frozen-random" in diagnose(adapted).checked


def test_adapters_larger_than_the_model(clinic, healthy):
    run = clinic.finetuned("wide", clinic.learnable, healthy, method="lora", loop__epochs=1, lora__rank=256)
    (finding,) = [finding for finding in diagnose(run).findings if finding.rule == "trainable-share"]
    assert "53.8%" in finding.evidence
    assert finding.remedy == "--lora-rank 64"


@pytest.mark.parametrize(("trainable", "ill"), [(490_000, False), (510_000, True)])
def test_a_large_share_is_too_large_above_half(adapted, tmp_path, trainable, ill):
    counts = {"total": 1_000_000, "trainable": trainable, "lora": 480_000}
    assert ("trainable-share" in found(change(adapted, tmp_path / "run", "metadata.json", parameters=counts))) == ill


def test_all_of_a_model_from_scratch_trains(healthy, tmp_path):
    """A pretraining trains every parameter, which is right; one that does not is told."""
    assert "trainable-share" in diagnose(healthy).checked
    counts = json.loads((healthy / "metadata.json").read_text())["parameters"]
    run = change(healthy, tmp_path / "run", "metadata.json", parameters=counts | {"trainable": counts["total"] - 1})
    assert "trainable-share" in found(run)


@pytest.mark.parametrize("method", ["full", "probe"])
def test_what_trains_must_fit_the_method(adapted, tmp_path, method):
    counts = {"total": 1000, "trainable": 900, "lora": 0}
    groups = {"encoder": {"trainable": 800, "frozen": 100, "scratch": 0, "pretrained": 900, "gradient": 0}}
    run = change(adapted, tmp_path / "run", "metadata.json", parameters=counts, method=method)
    content = json.loads((run / "logs/examination.json").read_text())["parameters"]
    assert "trainable-share" in found(examined(run, run, parameters=content | {"groups": groups}))


def test_parameters_without_a_gradient(healthy, tmp_path):
    content = json.loads((healthy / "logs/examination.json").read_text())["parameters"]
    assert content["no_gradient"] == []
    run = examined(healthy, tmp_path / "run", parameters={"no_gradient": ["pooling.score.weight"]})
    (finding,) = diagnose(run).findings
    assert finding.rule == "no-gradient"
    assert "such as pooling.score.weight" in finding.evidence


@pytest.mark.parametrize(
    ("part", "figures", "ill"),
    [
        ("embeddings", {"mean_cosine": 0.95}, True),
        ("embeddings", {"mean_cosine": 0.8}, False),
        ("embeddings", {"n": 900, "width": 64, "effective_rank": 5.0}, True),
        ("embeddings", {"n": 900, "width": 64, "effective_rank": 8.0}, False),
        ("representations", {"effective_rank": 2.0}, True),
        ("representations", {"effective_rank": 8.0, "mean_cosine": 0.99}, False),
    ],
)
def test_collapse(healthy, tmp_path, part, figures, ill):
    assert ("collapse" in found(examined(healthy, tmp_path / "run", **{part: figures}))) == ill


def test_a_classifier_may_gather_histories_at_two_points(adapted, tmp_path):
    run = examined(adapted, tmp_path / "run", representations={"effective_rank": 1.5})
    assert found(run) == set()


@pytest.mark.parametrize(("output", "ill"), [(0.004, True), (0.05, False)])
def test_dead_heads(healthy, tmp_path, output, ill):
    """Ten times weaker than its neighbours is a division of labour; a thousand times is nothing."""
    layer = "behrt.encoder.layers.0.self_attn"
    run = examined(healthy, tmp_path / "run", heads={layer: [1.0, output, 0.9, 1.2]})
    assert ("dead-heads" in found(run)) == ill
