"""Rules about data, batches, time and comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.unit.diagnostics.clinic import change, clinic_rows, found, split_store

from ehrsequencing.diagnostics.doctor import diagnose
from ehrsequencing.training.facts import base_overlap, data_facts, stability_index


def traced(run, target, **columns):
    rows = [row | columns for row in json.loads((run / "logs/trace.json").read_text())["rows"]]
    return change(run, target, "logs/trace.json", rows=rows)


@pytest.mark.parametrize(("share", "ill"), [(0.08, True), (0.03, False)])
def test_unknown_codes(healthy, tmp_path, share, ill):
    tokens = {
        "train": {"events": 10_000, "unknown": 0},
        "tuning": {"events": 1000, "unknown": round(1000 * share)},
        "held_out": {"events": 0, "unknown": 0},
    }
    run = change(healthy, tmp_path / "run", "metadata.json", tokens=tokens)
    assert ("unknown-codes" in found(run)) == ill


def test_codes_that_are_rare_in_train_are_counted(tmp_path):
    """One event in ten is of a code that no other subject has."""
    rows, _ = clinic_rows(120, np.random.default_rng(0))
    rows += [(subject, time, f"RARE//{subject}", visit) for subject, time, code, visit in rows if code.endswith("0a")]
    facts = data_facts(split_store(tmp_path, rows, {"train": range(100), "tuning": range(100, 120)}, min_count=3))
    assert facts["tokens"]["train"] == {"events": 1000, "unknown": 100}
    assert facts["tokens"]["tuning"] == {"events": 200, "unknown": 20}
    assert facts["tokens"]["held_out"] == {"events": 0, "unknown": 0}


def test_one_batch_of_all_lengths_is_mostly_padding(healthy, tmp_path):
    for cells, ill in ((200, True), (120, False)):
        run = traced(healthy, tmp_path / str(cells), tokens=100, cells=cells)
        assert ("padding" in found(run)) == ill


def test_small_batches(healthy, tmp_path):
    assert "small-batch" in diagnose(healthy).checked
    tiny = traced(healthy, tmp_path / "tiny", steps=20, cells=20 * 100, tokens=20 * 95, examples=200)
    (finding,) = diagnose(tiny).findings
    assert (finding.rule, finding.severity) == ("small-batch", "note")
    # Where an epoch has few steps, larger batches would leave too few to learn in.
    rows = json.loads((traced(healthy, tmp_path / "few", steps=1, cells=100) / "logs/trace.json").read_text())["rows"]
    few = change(tmp_path / "few", tmp_path / "few", "logs/trace.json", rows=[row for row in rows if row["part"] < 10])
    assert "small-batch" not in found(few)


@pytest.mark.parametrize(("waiting", "ill"), [(0.5, True), (0.2, False)])
def test_steps_that_wait_for_data(healthy, tmp_path, waiting, ill):
    run = traced(healthy, tmp_path / "run", seconds=1.0, waiting_seconds=waiting)
    assert ("loader-bound" in found(run)) == ill


def test_an_audit_that_was_overruled(adapted, tmp_path):
    rows = json.loads((adapted / "metadata.json").read_text())["audit"]
    assert "leak" in diagnose(adapted).checked
    overruled = [row | {"result": "accepted", "found": ["error: one code decides"]} for row in rows[:1]] + rows[1:]
    (finding,) = diagnose(change(adapted, tmp_path / "run", "metadata.json", audit=overruled)).findings
    assert (finding.rule, finding.severity) == ("leak", "problem")
    # A warning is a matter for the reader of the audit, and no leak.
    warned = [row | {"result": "warning", "found": ["warning: odd"]} for row in rows[:1]] + rows[1:]
    assert "leak" not in found(change(adapted, tmp_path / "warned", "metadata.json", audit=warned))


def test_a_base_that_trained_on_tuning_subjects(clinic, healthy, adapted, tmp_path):
    assert json.loads((adapted / "metadata.json").read_text())["base_overlap"] == {"tuning": 0, "held_out": 0}
    rows, _ = clinic_rows(300, np.random.default_rng(1))
    trained = clinic.store.split("train").subject_id
    parts = {"train": range(200, 300), "tuning": range(200)}
    overlap = base_overlap(split_store(tmp_path, rows, parts), healthy)
    assert overlap == {"tuning": int((trained < 200).sum()), "held_out": 0}
    assert "leak" in found(change(adapted, tmp_path / "run", "metadata.json", base_overlap=overlap))


def test_every_run_that_a_base_came_from_is_looked_at(clinic, healthy, tmp_path):
    """The base is innocent, the run before it is not; what was trained on twice counts once."""
    rows, _ = clinic_rows(300, np.random.default_rng(1))
    store = split_store(tmp_path / "judged", rows, {"train": range(200, 300), "tuning": range(200)})
    own = {"store": str(store.path), "store_fingerprint": store.fingerprint}
    seen = int((clinic.store.split("train").subject_id < 200).sum())
    between = change(healthy, tmp_path / "between", "metadata.json", **own, from_run=str(healthy))
    assert base_overlap(store, change(healthy, tmp_path / "base", "metadata.json", **own)) == {
        "tuning": 0,
        "held_out": 0,
    }
    assert base_overlap(store, between) == {"tuning": seen, "held_out": 0}
    twice = change(healthy, tmp_path / "twice", "metadata.json", from_run=str(between))
    assert base_overlap(store, twice) == {"tuning": seen, "held_out": 0}
    # A run that is gone leaves it open, unless another has trained on them; runs that name each other end.
    gone = change(healthy, tmp_path / "gone", "metadata.json", **own, from_run=str(tmp_path / "none"))
    assert base_overlap(store, gone) == {}
    known = change(healthy, tmp_path / "known", "metadata.json", from_run=str(tmp_path / "none"))
    assert base_overlap(store, known) == {"tuning": seen, "held_out": 0}
    circle = change(healthy, tmp_path / "circle", "metadata.json", **own, from_run=str(tmp_path / "circle"))
    assert base_overlap(store, circle) == {"tuning": 0, "held_out": 0}


def test_a_base_whose_store_is_gone_cannot_be_compared(clinic, healthy, adapted, tmp_path):
    base = change(healthy, tmp_path / "base", "metadata.json", store=str(tmp_path / "gone"), store_fingerprint="0")
    assert base_overlap(clinic.store, base) == {}
    missing = change(adapted, tmp_path / "unknown", "metadata.json", base_overlap={})
    assert "leak" in dict(diagnose(missing).missing)


def test_splits_of_one_population_differ_by_chance_alone(clinic, healthy):
    facts = data_facts(clinic.store)
    for figures in facts["shift"].values():
        assert abs(figures["psi"] - figures["null_mean"]) < 5 * figures["null_sd"]
    assert facts["tokens"]["train"]["events"] == len(clinic.store.split("train").code)
    assert "shift" in diagnose(healthy).checked


def test_a_tuning_split_of_other_patients(healthy, tmp_path):
    """Its subjects have two of the six diseases only."""
    rows, disease = clinic_rows(1200, np.random.default_rng(3))
    parts = {
        "train": range(900),
        "tuning": [subject for subject in range(900, 1100) if disease[subject] < 2],
        "held_out": range(1100, 1200),
    }
    facts = data_facts(split_store(tmp_path, rows, parts))
    run = change(healthy, tmp_path / "run", "metadata.json", shift=facts["shift"])
    (finding,) = diagnose(run).findings
    assert finding.rule == "shift"
    assert "codes of tuning" in finding.evidence
    assert "held-out" not in finding.evidence


def test_a_stability_index_as_large_as_chance_makes_it_is_no_shift(healthy, tmp_path):
    """Small splits with many codes have a large index whatever they are of."""
    chance = {"tuning": {"psi": 0.9, "null_mean": 0.85, "null_sd": 0.05}}
    assert found(change(healthy, tmp_path / "run", "metadata.json", shift=chance)) == set()


def test_the_stability_index_is_that_of_its_formula():
    """Two cells of one half against three quarters and a quarter: a quarter of the logarithm of three."""
    many = 10**9
    found = stability_index(np.array([many, many]), np.array([3 * many, many]))
    assert found == pytest.approx(0.25 * np.log(3), abs=1e-6)


@pytest.mark.parametrize(("scratch", "rule"), [(0.95, "problem"), (0.86, "warning"), (0.80, None)])
def test_pretraining_beside_a_run_from_scratch(adapted, tmp_path, scratch, rule):
    curve = json.loads((adapted / "logs/metrics_history.json").read_text())
    epochs = [item["epoch"] for item in curve["val_loss"]]
    own = [{"epoch": epoch, "value": 0.85} for epoch in epochs]
    if rule == "problem":
        own = [{"epoch": epoch, "value": 0.70} for epoch in epochs]
    run = change(adapted, tmp_path / "adapted", "logs/metrics_history.json", val_auroc=own)
    change(adapted, tmp_path / "other", "metadata.json", method="scratch", from_run=None)
    other = [{"epoch": epoch, "value": scratch} for epoch in epochs]
    change(tmp_path / "other", tmp_path / "other", "logs/metrics_history.json", val_auroc=other)
    findings = diagnose(run).findings
    assert [finding.severity for finding in findings if finding.rule == "no-transfer"] == ([rule] if rule else [])


@pytest.mark.parametrize(("low", "severity"), [(-0.02, ["warning"]), (0.01, [])])
def test_pretraining_by_paired_differences(adapted, tmp_path, low, severity):
    models = [{"model": "a", "kind": "lora"}, {"model": "b", "kind": "scratch"}]
    pair = {"a": "b", "b": "a", "metric": "task/auroc", "value": -0.02, "low": -0.05, "high": -low}
    run = change(adapted, tmp_path / "run", "report_data.json", models=models, differences=[pair])
    assert [finding.severity for finding in diagnose(run).findings] == severity


def test_a_base_that_never_left_its_floor_cannot_help(clinic, slow, adapted, tmp_path):
    run = change(adapted, tmp_path / "run", "metadata.json", from_run=str(slow))
    (finding,) = diagnose(run).findings
    assert finding.rule == "no-transfer"
    assert "slow reached 4." in finding.evidence
