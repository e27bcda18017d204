"""The leakage audit through the command line: before every fine-tuning, and by itself."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from ehrsequencing.cli.main import app, main
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.store import TokenStore
from tests.integration.conftest import TINY

SMALL = [part for name, value in {**TINY, "loop.epochs": 1}.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def leaky(world, tmp_path_factory):
    """Labels with one prevalent case."""
    store = TokenStore.open(world.store)
    labels, manifest = read_labels(world.labels)
    split = store.split("train")
    wanted = np.array([str(token).startswith("ICD10CM//E11") for token in store.vocabulary.tokens])
    row = np.flatnonzero(wanted[split.code])[0]
    subject = int(split.subject_id[np.searchsorted(split.offsets, row, side="right") - 1])
    case = pl.DataFrame({"subject_id": [subject], "prediction_time": [int(split.time[row])], "boolean_value": [True]})
    case = case.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    path = tmp_path_factory.mktemp("leaky") / "labels.parquet"
    write_labels(path, pl.concat([labels, case], how="diagonal"), manifest)
    return path, subject


def run(*arguments) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return found.exit_code, found.stdout, found.stderr


def test_the_audit_by_itself(world):
    code, shown, _ = run("task", "audit", world.store, world.labels)
    assert code == 0
    assert "future-input   passed" in shown
    assert "10 checks in " in shown


def failing(capsys, *arguments):
    """Exit status and the lines on standard error of the whole program."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, capsys.readouterr()


def test_a_fault_fails_the_audit_in_one_line(world, leaky, capsys):
    labels, subject = leaky
    code, shown = failing(capsys, "task", "audit", world.store, labels)
    assert code == 2
    assert "prevalent      error" in shown.out
    (line,) = shown.err.strip().splitlines()
    assert f"such as subject {subject}; expected prevalent cases left out" in line
    assert line.endswith("--accept prevalent")
    assert run("task", "audit", world.store, labels, "--accept", "prevalent")[0] == 0


def test_a_fine_tuning_fails_before_it_writes_anything(world, leaky, tmp_path, capsys):
    out = tmp_path / "run"
    code, shown = failing(capsys, "finetune", world.store, leaky[0], "--out", out, "--method", "scratch", *SMALL)
    assert code == 2
    assert "the audit found 1 error: prevalent" in shown.err
    assert not out.exists()


def test_what_is_accepted_is_written_into_the_run(world, leaky, tmp_path):
    out = tmp_path / "run"
    code, _, problem = run(
        "finetune", world.store, leaky[0], "--out", out, "--method", "scratch", *SMALL, "--accept", "prevalent"
    )
    assert code == 0, problem
    rows = {row["check"]: row for row in json.loads((out / "metadata.json").read_text())["audit"]}
    assert rows["prevalent"]["result"] == "accepted"
    assert rows["token"] == {"check": "token", "result": "passed", "found": []}
    notes = json.loads((out / "summary.json").read_text())["notes"]
    said = [note for note in notes if note.startswith("Accepted in spite of the audit (prevalent): error: subjects")]
    assert len(said) == 1
    assert (
        said[0] in (out / "SUMMARY.txt").read_text().replace("\n", " ")
        or "Accepted" in (out / "SUMMARY.txt").read_text()
    )
    page = (out / "report.html").read_text()
    assert "Leakage audit" in page
    assert "Accepted with --accept in spite of the error: prevalent." in page
    assert 'accept = [\n    "prevalent",\n]' in (out / "config.toml").read_text()


def test_resuming_keeps_what_was_accepted(world, leaky, tmp_path):
    out = tmp_path / "run"
    start = ["finetune", world.store, leaky[0], "--out", out, "--method", "scratch", *SMALL]
    assert run(*start, "--accept", "prevalent")[0] == 0
    metadata = json.loads((out / "metadata.json").read_text())
    (out / "metadata.json").write_text(json.dumps(metadata | {"status": "running"}))
    shutil.rmtree(out / "model")
    assert run("finetune", world.store, leaky[0], "--out", out, "--resume")[0] == 0
    assert (out / "model").is_dir()


def test_unknown_checks_are_refused(world, tmp_path, capsys):
    for verb in (
        ["task", "audit", world.store, world.labels],
        ["finetune", world.store, world.labels, "--out", tmp_path / "r"],
    ):
        code, shown = failing(capsys, *verb, "--accept", "everything")
        assert code == 2
        assert "--accept names no check of the audit; got everything; expected future-input, follow-up" in shown.err
