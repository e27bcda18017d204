"""Rules about learning: each with a training that has the illness, a healthy one, and one that only looks like it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.unit.diagnostics.clinic import change, found, rules_of

from ehrsequencing.diagnostics.doctor import diagnose, judge
from ehrsequencing.diagnostics.evidence import Evidence
from ehrsequencing.errors import RunError
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.training.runs import store_files


def history(path, **curves):
    """A fine-tuning whose history is these curves, on 500 of 1,000 tuning labels."""
    return Evidence(
        path,
        metadata={
            "kind": "finetune",
            "method": "full",
            "status": "completed",
            "examples": {"train": 8000, "tuning": 1000},
            "positives": {"train": 4000, "tuning": 500},
        },
        settings={"loop": {"patience": 3}, "model": {"dropout": 0.1}},
        history={
            name: [{"epoch": epoch, "value": value} for epoch, value in enumerate(values)]
            for name, values in curves.items()
        },
    )


def losses(value, count=16):
    """A trace with large steps."""
    row = {"steps": 10, "update_ratio": 0.03, "tokens": 90, "cells": 100, "examples": 10, "seconds": 1.0}
    return [row | {"epoch": 0, "part": part, "step": 10 * (part + 1), "loss": value(part)} for part in range(count)]


def test_a_healthy_pretraining_has_no_findings_and_says_what_was_looked_at(healthy):
    diagnosis = diagnose(healthy)
    assert diagnosis.findings == ()
    assert diagnosis.lines()[0] == "no findings"
    assert {"lr-high", "lr-low", "unlearnable", "chance-level", "overfitting", "underfitting", "collapse"} <= set(
        diagnosis.checked
    )
    assert diagnosis.missing == ()
    assert "dead-adapter" in dict(diagnosis.inapplicable)


def test_a_healthy_adaptation_has_no_findings(adapted):
    diagnosis = diagnose(adapted)
    assert diagnosis.findings == ()
    assert {"dead-adapter", "trainable-share", "chance-level", "leak", "small-validation"} <= set(diagnosis.checked)
    assert dict(diagnosis.missing)["no-transfer"].startswith("there is no run from scratch")


def test_overfitting(clinic, healthy):
    """A hundred subjects with labels of which one in seven is wrong, learned by heart."""
    run = clinic.finetuned(
        "overfitted", clinic.some, healthy, method="full", loop__epochs=14, loop__patience=20, optim__lr=5e-3
    )
    assert "overfitting" in found(run)
    assert "underfitting" not in found(run)


def test_a_loss_that_wanders_within_patience_is_no_overfitting(tmp_path):
    curves = {"train_loss": [0.6, 0.5, 0.45, 0.43], "val_loss": [0.58, 0.50, 0.505, 0.51]}
    assert "overfitting" not in rules_of(judge(history(tmp_path, **curves)))
    curves["val_loss"] = [0.58, 0.50, 0.53, 0.56]
    assert "overfitting" in rules_of(judge(history(tmp_path, **curves)))
    # A rise alone, with a training loss that rises beside it, is unrest.
    curves["train_loss"] = [0.6, 0.5, 0.52, 0.55]
    assert "overfitting" not in rules_of(judge(history(tmp_path, **curves)))


def test_accuracies_that_part_are_overfitting(healthy, tmp_path):
    best = json.loads((healthy / "metadata.json").read_text())["best_epoch"]
    curves = json.loads((healthy / "logs/metrics_history.json").read_text())
    for gap, ill in ((0.15, False), (0.25, True)):
        accuracy = next(item["value"] for item in curves["val_accuracy"] if item["epoch"] == best)
        train = [{"epoch": best, "value": accuracy + gap}]
        run = change(healthy, tmp_path / str(gap), "logs/metrics_history.json", train_accuracy=train)
        assert ("overfitting" in found(run)) == ill


def test_chance_level_of_labels_from_a_coin(clinic, healthy):
    run = clinic.finetuned("coin", clinic.coin, healthy, method="lora", loop__epochs=1)
    assert found(run) == {"chance-level"}
    (finding,) = diagnose(run).findings
    assert "where chance alone gives 0.5 plus or minus 0.09" in finding.evidence


@pytest.mark.parametrize(("auroc", "ill"), [(0.53, True), (0.55, False)])
def test_chance_ends_where_noise_ends(tmp_path, auroc, ill):
    """With 500 positives and negatives chance reaches 0.536."""
    run = history(tmp_path, val_loss=[0.6], train_loss=[0.6], val_auroc=[auroc])
    assert ("chance-level" in rules_of(judge(run))) == ill


def test_several_labels_that_are_learned_are_checked_and_free(clinic, healthy):
    run = clinic.finetuned("kinds", clinic.several.learnable, healthy, method="full", loop__epochs=1, optim__lr=6e-3)
    diagnosis = diagnose(run)
    assert {"chance-level", "small-validation"} <= set(diagnosis.checked)


def test_several_labels_from_coins_are_at_chance(clinic, healthy):
    run = clinic.finetuned("coins", clinic.several.coin, healthy, method="lora", loop__epochs=1)
    (finding,) = [finding for finding in diagnose(run).findings if finding.rule == "chance-level"]
    assert "mean tuning AUROC 0." in finding.evidence and "of 3 categories, where chance alone" in finding.evidence


def test_a_tuning_set_too_small_for_several_labels(clinic, healthy):
    run = clinic.finetuned("few-kinds", clinic.several.few, healthy, method="full", loop__epochs=1, optim__lr=6e-3)
    (finding,) = [finding for finding in diagnose(run).findings if finding.rule == "small-validation"]
    assert "positives in 10 rows, the mean of 3 categories, an AUROC of" in finding.evidence


def several(path, auroc, error, positives=900):
    """A fine-tuning on 6 categories, of which tuning has 3 with and without positives."""
    run = history(path, val_loss=[0.5], train_loss=[0.5], val_auroc_macro=[auroc], val_auroc_macro_error=[error])
    entry = {"value": auroc, "categories": 3}
    return replace(
        run,
        metadata=run.metadata | {"categories": 6, "positives": {"tuning": positives}},
        summary={"metrics": {"own": {"tuning:t/auroc_macro": entry}}},
    )


@pytest.mark.parametrize(("auroc", "ill"), [(0.538, True), (0.541, False)])
def test_chance_of_several_labels_ends_where_their_noise_ends(tmp_path, auroc, ill):
    assert ("chance-level" in rules_of(judge(several(tmp_path, auroc, 0.02)))) == ill


@pytest.mark.parametrize(
    ("auroc", "error", "positives", "ill"),
    [
        (0.7, 0.0515, 900, True), (0.7, 0.0505, 900, False),
        # Nothing misplaced of one positive each says little, whatever was measured; of many it says enough.
        (1.0, 0.0, 3, True), (1.0, 0.0, 300, False),
    ],
)  # fmt: skip
def test_precision_of_several_labels(tmp_path, auroc, error, positives, ill):
    assert ("small-validation" in rules_of(judge(several(tmp_path, auroc, error, positives)))) == ill


def test_several_labels_of_an_older_run_are_not_checked_and_it_says_why(tmp_path):
    run = several(tmp_path, 0.6, 0.02)
    for metric, why in (
        ("val_auroc_macro_error", "recorded no error of its mean AUROC"),
        ("val_auroc_macro", "no epoch"),
    ):
        older = replace(run, history={name: rows for name, rows in run.history.items() if name != metric})
        missing = dict(judge(older).missing)
        assert why in missing["chance-level"] and why in missing["small-validation"]


def at_level(healthy, target, value, half, unigram=3.9):
    """The healthy run as if its tuning loss had stayed at a level, with another floor of unigram counts."""
    floors = json.loads((healthy / "metadata.json").read_text())["floors"]
    floors["unigram"]["loss"] = unigram
    change(healthy, target, "metadata.json", floors=floors)
    change(target, target, "logs/metrics_history.json", val_loss=[{"epoch": e, "value": value} for e in (0, 1)])
    entry = {"value": value, "low": value - half, "high": value + half, "subjects": 100}
    return change(target, target, "summary.json", metrics={"behrt-small": {"mlm/mlm_loss": entry}})


@pytest.mark.parametrize(("value", "ill"), [(3.45, True), (3.35, False)])
def test_a_loss_within_noise_of_a_floor_is_at_chance(healthy, tmp_path, value, ill):
    run = at_level(healthy, tmp_path / "run", value, half=0.1, unigram=3.5)
    assert ("chance-level" in found(run)) == ill


def test_random_codes_are_unlearnable(clinic):
    run = clinic.pretrained("random", data="random-store", loop__epochs=3, optim__lr=5e-3, mlm__rate=0.8)
    diagnosis = diagnose(run)
    assert "unlearnable" in rules_of(diagnosis)
    assert ("chance-level", "unlearnable") in diagnosis.explained
    assert not {"chance-level", "underfitting", "overfitting", "lr-low", "lr-high"} & rules_of(diagnosis)


def test_flat_floors_that_a_model_beats_or_still_nears_are_learnable(healthy, clinic, slow):
    # In the clinic all floors are the same, and a healthy model is far below them.
    assert "unlearnable" in diagnose(healthy).checked
    # One that has not come near them may yet.
    assert "unlearnable" not in found(slow) | {rule for rule, _ in diagnose(slow).explained}


@pytest.mark.parametrize(("unigram", "ill"), [(3.95, True), (3.85, False)])
def test_a_floor_below_the_uniform_one_is_something_learnable(healthy, tmp_path, unigram, ill):
    run = at_level(healthy, tmp_path / "run", 4.0, half=0.1, unigram=unigram)
    assert ("unlearnable" in found(run)) == ill


def test_a_loss_that_is_not_finite(clinic, healthy):
    base = BEHRTForMLM.from_pretrained(healthy / "model")
    with torch.no_grad():
        base.behrt.embeddings.code.weight.mul_(float("inf"))
    files = store_files(clinic.store)
    base.save_pretrained(
        clinic.root / "broken" / "model", vocabulary_hash=clinic.store.vocabulary.hash, extra_files=files
    )
    with pytest.raises(RunError, match="not finite"):
        clinic.pretrained("nan", from_run=clinic.root / "broken")
    # The doctor was called although the run failed.
    written = json.loads((clinic.root / "nan" / "doctor.json").read_text())
    assert [row["rule"] for row in written["findings"]] == ["non-finite"]
    assert "train_loss was nan at epoch 0" in written["findings"][0]["evidence"]
    assert written["findings"][0]["remedy"].startswith("--lr 0.0001")


def test_gradients_that_are_not_finite_count_too(healthy, tmp_path):
    rows = json.loads((healthy / "logs/trace.json").read_text())["rows"]
    rows[3]["non_finite"] = 2
    assert "non-finite" in found(change(healthy, tmp_path / "run", "logs/trace.json", rows=rows))
    # A norm that is large and clipped is not infinite.
    rows[3] |= {"non_finite": 0, "gradient_norm_max": 1e6, "clipped": 5}
    assert found(change(healthy, tmp_path / "large", "logs/trace.json", rows=rows)) == set()


def test_a_learning_rate_too_high(clinic):
    run = clinic.pretrained("fast", loop__epochs=2, optim__lr=1.0)
    diagnosis = diagnose(run)
    assert {"lr-high"} == rules_of(diagnosis)
    assert diagnosis.findings[0].remedy == "--lr 0.1"
    assert {"chance-level", "underfitting"} <= {rule for rule, _ in diagnosis.explained}


def test_large_steps_that_learn_are_not_too_large(healthy, tmp_path):
    rows = [row | {"update_ratio": 0.03} for row in json.loads((healthy / "logs/trace.json").read_text())["rows"]]
    run = change(healthy, tmp_path / "run", "logs/trace.json", rows=rows)
    assert "lr-high" not in found(run)
    # The same steps with the loss at its floor are.
    assert "lr-high" in found(at_level(run, tmp_path / "stuck", 4.0, half=0.1))


def test_one_unlucky_part_of_an_epoch_is_no_divergence(tmp_path):
    run = history(tmp_path, val_loss=[0.5], train_loss=[0.5])
    noisy = losses(lambda part: 0.5 + 0.2 * (part % 3))
    assert "lr-high" not in rules_of(judge(replace(run, trace=noisy)))
    climbing = losses(lambda part: 0.5 + 0.02 * (part % 2) + (0.1 * part if part > 4 else 0))
    assert "lr-high" in rules_of(judge(replace(run, trace=climbing)))


def test_a_learning_rate_too_low(slow):
    diagnosis = diagnose(slow)
    assert rules_of(diagnosis) == {"lr-low"}
    assert diagnosis.findings[0].remedy == "--lr 1e-05"


def test_small_steps_that_learn_are_not_too_small(healthy, tmp_path):
    """Fine-tuning moves little and may be done: what counts is the loss beside its floor."""
    rows = [row | {"update_ratio": 1e-5} for row in json.loads((healthy / "logs/trace.json").read_text())["rows"]]
    assert "lr-low" not in found(change(healthy, tmp_path / "run", "logs/trace.json", rows=rows))


def test_underfitting(tmp_path):
    """A loss at the entropy of the labels although subjects are ranked, against one that is clearly below it."""
    ill = history(tmp_path, train_loss=[0.70, 0.692], val_loss=[0.69, 0.685], val_auroc=[0.6, 0.62])
    assert "underfitting" in rules_of(judge(ill))
    fitted = history(tmp_path, train_loss=[0.69, 0.68], val_loss=[0.69, 0.68], val_auroc=[0.6, 0.62])
    assert "underfitting" not in rules_of(judge(fitted))


def test_what_overfits_does_not_underfit(tmp_path):
    run = history(tmp_path, train_loss=[0.69, 0.5, 0.3], val_loss=[0.69, 0.72, 0.8], val_auroc=[0.6, 0.6, 0.6])
    diagnosis = judge(run)
    assert "overfitting" in rules_of(diagnosis)
    assert ("underfitting", "overfitting") in diagnosis.explained


def test_a_tuning_set_too_small(clinic, healthy):
    run = clinic.finetuned("few", clinic.few, healthy, method="lora", loop__epochs=1)
    assert "small-validation" in found(run)
    (finding,) = diagnose(run).findings
    assert "12 positives and 12 negatives" in finding.evidence


def test_a_tuning_set_just_large_enough(tmp_path):
    run = history(tmp_path, train_loss=[0.5], val_loss=[0.5], val_auroc=[0.75])
    for positives, ill in ((45, True), (55, False)):
        run.metadata["examples"]["tuning"], run.metadata["positives"]["tuning"] = 2 * positives, positives
        assert ("small-validation" in rules_of(judge(run))) == ill
    # A perfect figure from six subjects is no certainty.
    run.metadata["examples"]["tuning"], run.metadata["positives"]["tuning"] = 6, 3
    run.history["val_auroc"][0]["value"] = 1.0
    assert "small-validation" in rules_of(judge(run))


def test_stopped_while_improving(tmp_path):
    improving = {"train_loss": [0.69, 0.6, 0.5], "val_loss": [0.69, 0.6, 0.52], "val_auroc": [0.6, 0.7, 0.8]}
    assert "stopped-soon" in rules_of(judge(history(tmp_path, **improving)))
    # The last epoch of a healthy run is often the best, by a hair.
    improving["val_loss"] = [0.60, 0.525, 0.52]
    assert "stopped-soon" not in rules_of(judge(history(tmp_path, **improving)))
    # A run that goes on has not stopped.
    running = history(tmp_path, train_loss=[0.69, 0.5], val_loss=[0.69, 0.52])
    running.metadata["status"] = "running"
    assert "stopped-soon" in dict(judge(running).inapplicable)


def test_patience_that_ran_out_on_noise(healthy, tmp_path):
    curve = [{"epoch": epoch, "value": value} for epoch, value in enumerate((0.5, 0.3, 0.301))]
    run = change(healthy, tmp_path / "run", "logs/metrics_history.json", val_loss=curve)
    metadata = json.loads((run / "metadata.json").read_text()) | {"status": "early_stopped"}
    settings = json.loads((run / "hyperparameters.json").read_text())
    (run / "metadata.json").write_text(json.dumps(metadata))
    for patience, ill in ((1, True), (5, False)):
        settings["loop"]["patience"] = patience
        (run / "hyperparameters.json").write_text(json.dumps(settings))
        assert ("stopped-soon" in found(run)) == ill
