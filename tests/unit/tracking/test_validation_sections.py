"""What a report says of calibration, decisions, subgroups, trainings and unknown codes."""

import json
import re

import pytest

from ehrsequencing.errors import MetricError, RunError
from ehrsequencing.io import write_json
from ehrsequencing.tracking.report import write_report
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.tracking.summary import check_metrics, subgroup_key, subgroup_of

TASK = "onset:ICD10CM//I50@365"


def entry(value, **more):
    return {
        "value": value, "low": value - 0.1, "high": value + 0.1, "n": 90, "positives": 30, "subjects": 60,
        "higher_is_better": True, **more,
    }  # fmt: skip


def bounded(value, low=None, high=None):
    return {"value": value, "low": value - 0.01 if low is None else low, "high": value + 0.01 if high is None else high}


def page(tmp_path, metrics, **sections):
    write_json(tmp_path / "summary.json", {"metrics": metrics})
    write_report_data(tmp_path, sections)
    return write_report(tmp_path).read_text()


def section(text, key):
    """The text of a section without its markup."""
    found = re.search(rf'<section[^>]*id="{key}".*?</section>', text, re.DOTALL)
    return None if found is None else re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found[0]))


def test_keys_of_subgroups_and_tasks_part_cleanly():
    for by, group in (("sex", "F"), ("RACE//", "Asian = other [x]/y"), ("ICD10CM//E11", "with"), ("age", "80+")):
        key = subgroup_key(TASK, by, group, "auroc")
        task = key.rpartition("/")[0]
        assert subgroup_of(task) == (TASK, by, group)
    assert subgroup_of(TASK) is None
    assert subgroup_of("task [odd]") is None


def test_subgroups_stand_in_their_section_alone(tmp_path):
    metrics = {
        "forest": {
            f"{TASK}/auroc": entry(0.7),
            **{subgroup_key(TASK, "RACE//", "<b>x</b>", name): entry(0.91) for name in ("auroc", "brier")
               if name == "auroc"},
        }
    }  # fmt: skip
    rows = [
        {"by": "RACE//", "group": "<b>x</b>", "n": 90, "positives": 30, "subjects": 60},
        {"by": "RACE//", "group": "few", "n": 9, "positives": 1, "subjects": 9, "too_small": "1 subjects of the rarer"},
    ]
    text = page(tmp_path, metrics, subgroups=rows)
    assert "<b>x</b>" not in text
    shown = section(text, "subgroups")
    assert "By RACE" in shown
    assert "0.910 [0.810, 1.010]" in shown
    assert "not scored: 1 subjects of the rarer" in shown
    assert "90 rows, 30 positive" in shown
    assert "0.910" not in section(text, "results") + section(text, "words")


def test_groups_that_are_all_too_small_are_still_listed(tmp_path):
    rows = [{"by": "sex", "group": "F", "n": 9, "positives": 1, "subjects": 9, "too_small": "1 subject"}]
    shown = section(page(tmp_path, {"m": {f"{TASK}/auroc": entry(0.7)}}, subgroups=rows), "subgroups")
    assert "0 groups are scored" in shown
    assert "9 rows, 1 positive" in shown


def test_decisions_are_bold_only_where_the_gain_is_sure(tmp_path):
    thresholds = [0.1, 0.2, 0.3]
    curve = {
        "net_benefit": [bounded(0.05), bounded(0.02), bounded(-0.01)],
        "gain": [bounded(0.0), bounded(0.02), bounded(-0.01)],
    }
    decision = {"thresholds": thresholds, "treat_all": [0.05, -0.08, -0.3], "models": {"m": curve}}
    text = page(tmp_path, {"m": {f"{TASK}/auroc": entry(0.7)}}, decision=decision)
    shown = text[text.index('id="decisions-title"') :]
    bold = re.findall(r'<span class="best"><span>(.*?)<span', shown)
    assert bold == ["0.020"]
    assert "Treat all" in shown


def test_curves_of_unequal_length_are_refused(tmp_path):
    curve = {"net_benefit": [bounded(0.05)], "gain": []}
    with pytest.raises(RunError, match=r"every curve needs a point per threshold \(1\)"):
        write_report_data(tmp_path, {"decision": {"thresholds": [0.1], "treat_all": [0.1], "models": {"m": curve}}})


def test_a_worthless_decision_curve_still_draws(tmp_path):
    curve = {"net_benefit": [bounded(-0.05), bounded(-0.2)], "gain": [bounded(-0.05), bounded(-0.2)]}
    decision = {"thresholds": [0.5, 0.9], "treat_all": [-0.1, -0.9], "models": {"m": curve}}
    assert "Decisions" in page(tmp_path, {"m": {f"{TASK}/auroc": entry(0.7)}}, decision=decision)


def test_trainings_and_subjects_are_told_apart(tmp_path):
    metrics = {
        "net": {f"{TASK}/auroc": entry(0.7, seeds=4, seed_sd=0.02, subject_sd=0.031)},
        "forest": {f"{TASK}/auroc": entry(0.6, seeds=1, subject_sd=0.05)},
    }
    assert check_metrics(metrics) == metrics
    shown = section(page(tmp_path, metrics), "variance")
    assert "4 0.700 [0.600, 0.800] 0.0200 0.0100 0.0310" in shown
    assert "forest" not in shown
    del metrics["net"]
    assert section(page(tmp_path, metrics), "variance") is None
    with pytest.raises(MetricError, match="the seed_sd of metric m, t/auroc is not a finite number"):
        check_metrics({"m": {"t/auroc": entry(0.5, seed_sd=float("nan"))}})


def test_calibration_lines_and_unknown_codes(tmp_path):
    unknown = {
        "events": 200, "unknown_events": 30, "codes": None, "unknown_codes": None,
        "kinds": [{"kind": "drug", "events": 50, "unknown_events": 30, "codes": 9, "unknown_codes": 0}],
        "most_frequent": [{"code": "RXNORM//<7>", "kind": "drug", "events": 30}],
    }  # fmt: skip
    text = page(
        tmp_path, {"m": {f"{TASK}/auroc": entry(0.7)}}, unknown=unknown,
        calibration_fit={"m": {"slope": bounded(0.8), "intercept": bounded(-0.3)}},
    )  # fmt: skip
    assert "0.800 [0.790, 0.810] -0.300 [-0.310, -0.290]" in section(text, "calibration-lines")
    shown = section(text, "unknown")
    assert "All 200 30 (15.0%) – –" in shown
    assert "Drug 50 30 (60.0%) 9 0 (0.0%)" in shown
    assert "RXNORM//&lt;7&gt;" in shown
    assert json.loads((tmp_path / "report_data.json").read_text())["unknown"] == unknown
