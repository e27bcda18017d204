"""`ehrseq task list` and `ehrseq task build`, as they print into a pipe."""

import datetime as dt
import json

import pytest
from small_datasets import write_dataset
from typer.testing import CliRunner

from ehrsequencing.cli.task import app
from ehrsequencing.data.labels import read_labels
from ehrsequencing.errors import ConfigError
from ehrsequencing.tasks.parsing import NAMED_TASKS, SHARED_RULES, TASK_FAMILIES

START = dt.datetime(2020, 1, 1)
STAYS = ((1, 0, 3), (1, 10, 12), (2, 0, 3), (3, 0, 9))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def meds(tmp_path):
    rows = [
        (subject, START + dt.timedelta(days=day), code, None)
        for subject, admitted, discharged in STAYS
        for day, code in ((admitted, "VISIT//inpatient"), (discharged, "DISCHARGE//home"), (400, "A"))
    ]
    return write_dataset(tmp_path / "meds", rows).path


def test_the_list_shows_every_task_and_rule():
    shown = run("list").stdout
    assert shown.isascii()
    words = " ".join(shown.split())
    for row in TASK_FAMILIES:
        assert row.pattern.split(" or ")[0] in words
        for name in row.named:
            assert name in words
    for name in NAMED_TASKS.values():
        assert name in words
    for rule in SHARED_RULES:
        assert rule in words


def test_the_flow_is_the_manifests(meds, tmp_path):
    out = tmp_path / "labels.parquet"
    shown = run("build", meds, "--task", "readmission_30d", "--out", out, "--minimum-age-years", 0).stdout
    manifest = json.loads(out.with_suffix(".json").read_text())
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    assert lines[0] == ["Step", "Rows", "Subjects"]
    assert lines[1:] == [[row["step"], str(row["rows"]), str(row["subjects"])] for row in manifest["flow"]]
    assert "…" not in shown
    assert manifest["options"] == {"minimum_age_years": 0}
    assert read_labels(out)[0]["boolean_value"].to_list() == [True, False, False, False]


def test_hours_after_admission_is_an_option(meds, tmp_path):
    out = tmp_path / "labels.parquet"
    build = ("build", meds, "--task", "los_over_3d", "--out", out, "--minimum-age-years", 0)
    run(*build, "--hours-after-admission", 50)
    assert len(read_labels(out)[0]) == 3
    assert json.loads(out.with_suffix(".json").read_text())["options"]["hours_after_admission"] == 50


@pytest.mark.parametrize(
    ("task", "option", "message"),
    [
        (
            "readmission_30d",
            "--history-days",
            "readmission_30d has no such option; got history_days; expected min",
        ),
        (
            "onset:A@3",
            "--hours-after-admission",
            "onset:A@3 has no such option; got hours_after_admission; ",
        ),
        ("los_over_3d", "--spacing-days", "expected hours_after_admission, minimum_age_years"),
    ],
)
def test_options_of_another_task(meds, tmp_path, task, option, message):
    with pytest.raises(ConfigError, match=message):
        run("build", meds, "--task", task, "--out", tmp_path / "labels.parquet", option, 30)
    assert not (tmp_path / "labels.parquet").exists()
