"""Precedence, the table of the documents, the command line, the report, and following a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.unit.diagnostics.clinic import change
from typer.testing import CliRunner

from ehrsequencing.cli.main import app, main
from ehrsequencing.diagnostics.doctor import diagnose, trainings, write_diagnosis
from ehrsequencing.diagnostics.findings import SEVERITIES
from ehrsequencing.diagnostics.registry import RULES
from ehrsequencing.diagnostics.watch import watch
from ehrsequencing.errors import RunError
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.report import write_report

DOC = Path(__file__).parents[3] / "docs" / "doctor.md"


def shown(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout


def test_the_table_of_the_documents_is_that_of_the_rules():
    rows = re.findall(r"^\| `([a-z][\w-]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", DOC.read_text(), re.MULTILINE)
    assert rows == [(rule.id, rule.symptom, rule.evidence, rule.threshold, rule.remedy) for rule in RULES]


def test_the_documents_say_which_finding_stands():
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([\w-]+(?:, [\w-]+)*) \|$", DOC.read_text(), re.MULTILINE))
    assert rows == {rule.id: ", ".join(rule.explained_by) for rule in RULES if rule.explained_by}


def test_every_illness_of_the_plan_has_a_rule():
    assert {rule.id for rule in RULES} == {
        "overfitting", "underfitting", "chance-level", "unlearnable", "non-finite", "lr-high", "lr-low",
        "small-validation", "trainable-share", "dead-adapter", "frozen-random", "no-gradient", "collapse", "dead-heads",
        "unknown-codes", "padding", "small-batch", "loader-bound", "stopped-soon", "leak", "shift", "no-transfer",
    }  # fmt: skip


def test_precedence_names_rules_and_runs_in_no_circle():
    causes = {rule.id: rule.explained_by for rule in RULES}

    def above(rule: str, path: tuple[str, ...] = ()) -> None:
        assert rule not in path, path
        for cause in causes[rule]:
            above(cause, (*path, rule))

    for rule in causes:
        above(rule)


def test_opposite_advice_is_never_given_together():
    causes = {rule.id: set(rule.explained_by) for rule in RULES}
    for one, other in (("overfitting", "underfitting"), ("overfitting", "stopped-soon"), ("lr-high", "overfitting")):
        assert one in causes[other] or other in causes[one]


def test_a_training_ends_with_its_diagnosis(healthy):
    written = json.loads((healthy / "doctor.json").read_text())
    assert written == json.loads(json.dumps(diagnose(healthy).document()))
    assert written["findings"] == []


def test_what_a_run_does_not_record_is_said_and_not_passed_over(healthy, tmp_path):
    """A run of an earlier version has no trace and no examination."""
    run = change(healthy, tmp_path / "run", "metadata.json", tokens=None, shift=None)
    (run / "logs/trace.json").unlink()
    (run / "logs/examination.json").unlink()
    missing = dict(diagnose(run).missing)
    assert {"lr-high", "lr-low", "collapse", "dead-heads", "frozen-random", "loader-bound", "shift"} <= set(missing)
    assert any(line.startswith("not checked: lr-high: the run recorded no sizes") for line in diagnose(run).lines())


def test_a_bare_run_of_a_script_can_be_read(tmp_path):
    with ExperimentTracker("script", tmp_path) as tracker:
        tracker.log_metrics({"train_loss": float("nan")}, 0)
    diagnosis = diagnose(tmp_path / "script")
    assert [finding.rule for finding in diagnosis.findings] == ["non-finite"]


def test_the_command_prints_findings_and_exits_with_0(healthy, slow):
    code, text = shown("doctor", slow)
    assert code == 0
    assert "problem: lr-low: the learning rate is too low. Evidence: " in text
    assert "explained: chance-level by lr-low" in text
    code, text = shown("doctor", healthy)
    assert code == 0
    assert text.splitlines()[:2] == ["healthy: completed", "no findings"]


def test_the_command_speaks_json(slow):
    code, text = shown("doctor", slow, "--json")
    assert code == 0
    content = json.loads(text)
    assert content["findings"][0]["rule"] == "lr-low"
    assert {row["severity"] for row in content["findings"]} <= set(SEVERITIES)


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path} is no run directory; got no metadata.json. Remedy: name a folder" in capsys.readouterr().err
    with pytest.raises(RunError, match="got no such folder"):
        diagnose(tmp_path / "absent")
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(RunError, match="not readable JSON"):
        diagnose(tmp_path)


def test_a_run_of_several_seeds_is_diagnosed_seed_by_seed(healthy, tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    for seed in (0, 1):
        change(healthy, tmp_path / "arms" / f"seed-000{seed}", "metadata.json")
    assert [path.name for path in trainings(tmp_path)] == ["seed-0000", "seed-0001"]
    _, text = shown("doctor", tmp_path)
    assert text.count("no findings") == 2


def test_the_report_has_the_diagnosis(slow, tmp_path):
    run = change(slow, tmp_path / "run", "metadata.json")
    write_diagnosis(run)
    page = write_report(run).read_text()
    assert "the learning rate is too low" in page
    assert "chance-level is explained by lr-low" in page


def test_watching_shows_each_finding_once_and_stops_with_the_run(healthy, tmp_path):
    run = change(healthy, tmp_path / "run", "metadata.json", status="running")
    looks = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            strange = [{"metric": "train_loss", "epoch": 1, "value": "nan"}]
            change(run, run, "metadata.json", non_finite=strange)
        if len(looks) == 4:
            change(run, run, "metadata.json", status="failed")

    seen = [[finding.rule for finding in new] for new, _ in watch(run, poll_seconds=3.0, sleep=wait)]
    assert seen == [["non-finite"], []]
    assert looks == [3.0] * 4


def test_watching_an_ended_run_says_so_at_once(slow):
    code, text = shown("doctor", slow, "--watch")
    assert code == 0
    assert text.splitlines()[0].startswith("problem: lr-low")
    assert text.splitlines()[-1] == "the run ended: completed"
