"""`ehrseq task list` and `ehrseq task build`, as they print into a pipe."""

import datetime as dt
import json

import polars as pl
import pytest
from small_datasets import write_dataset
from typer.testing import CliRunner

from ehrsequencing.cli.main import main
from ehrsequencing.cli.task import app
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.errors import CohortError, ConfigError, DataError, LabelError
from ehrsequencing.evaluation.sample_size import split_guidance
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


def test_the_flow_of_an_empty_cohort_stands_below_the_error(meds, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["task", "build", str(meds), "--task", "onset:HF@365", "--out", str(tmp_path / "labels.parquet")])
    assert stop.value.code == 2
    said = capsys.readouterr()
    _, _, told = said.err.partition("error: ")
    line, *table = told.splitlines()
    assert line.startswith("no subject has a code of task onset:HF@365; got 0 rows at step 'subjects with a")
    assert ";" not in "".join(table)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table if row.startswith("|")]
    assert ["subjects with a matching code", "0", "0"] in cells and ["subjects", "3", "3"] in cells
    assert said.out == ""


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at-days", "1,x"), "--at-days takes numbers parted by commas; got 1,x; expected 365.25"),
        (("--at-days", "9", "--history-days", 5), "history_days has no effect at landmarks. Remedy: give one of them"),
        (("--at-age-years", "50", "--spacing-days", 5), "spacing_days has no effect at landmarks"),
        (("--at-days", "9", "--at-kind", "drug"), "a cohort has one kind of landmark; got at_days and at_kind"),
    ],
)
def test_landmarks_that_make_no_sense(meds, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run("build", meds, "--task", "time_to:A", "--out", tmp_path / "labels.parquet", *options)
    assert not (tmp_path / "labels.parquet").exists()


def test_a_landmark_is_an_option(meds, tmp_path):
    out = tmp_path / "labels.parquet"
    run("build", meds, "--task", "time_to:A", "--out", out, "--minimum-age-years", 0, "--at-days", "5.5,20")
    labels, manifest = read_labels(out)
    assert labels["float_value"].to_list() == [394.5, 380.0] * 3
    assert (labels["prediction_time"] - START).dt.total_hours().to_list() == [132, 480] * 3
    assert manifest["options"] == {"minimum_age_years": 0, "at_days": [5.5, 20]}
    assert manifest["prediction_time"] == "5.5, 20 days after the first event"


# Data that no task can use -------------------------------------------------------------------------------------------

EVERY_TASK = (
    "readmission_30d", "mortality_inpatient", "mortality_30d", "los_over_3d", "next_visit_codes", "onset:HF@365",
    "phenotype:common", "time_to:death", "time_to:HF",
)  # fmt: skip


@pytest.mark.parametrize("task", EVERY_TASK)
def test_a_dataset_without_events(tmp_path, task):
    (tmp_path / "meds/data").mkdir(parents=True)
    pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}).write_parquet(
        tmp_path / "meds/data/0.parquet"
    )
    with pytest.raises(DataError, match="has no events; got 1 empty shard.*expected at least one subject"):
        run("build", tmp_path / "meds", "--task", task, "--out", tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="is not a MEDS dataset; got no such folder"):
        run("build", tmp_path / "nothing", "--task", task, "--out", tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("task", "bare", "alone"),
    list(
        zip(
            EVERY_TASK,
            (
                *["needs hospital stays, and the dataset has none"] * 2, "needs deaths, and the dataset records none",
                "needs hospital stays, and the dataset has none", "has an empty cohort",
                "no subject has a code of task",
                "no subject has a code of any phenotype of common", "needs deaths, and the dataset records none",
                "no subject has a code of task",
            ),
            (
                *["has one class"] * 2, "needs deaths, and the dataset records none", "has one class",
                "no category with 10 positive training examples", "has one class",
                "no subject has a code of any phenotype of common", "needs deaths, and the dataset records none", None,
            ),
            strict=True,
        )
    ),
)  # fmt: skip
def test_births_alone_and_one_subject(tmp_path, task, bare, alone):
    build = ("--task", task, "--out", tmp_path / "labels.parquet", "--minimum-age-years", 0)
    births = [(subject, START, "MEDS_BIRTH", None) for subject in (1, 2)]
    with pytest.raises(CohortError, match=bare) as raised:
        run("build", write_dataset(tmp_path / "bare", births).path, *build)
    assert raised.value.flow[0] == {"step": "subjects", "rows": 2, "subjects": 2}
    days = ((0, "VISIT//inpatient"), (3, "DISCHARGE//home"), (400, "A"), (800, "HF"))
    one = write_dataset(tmp_path / "one", [(1, START + dt.timedelta(days=day), code, None) for day, code in days]).path
    if alone is None:
        run("build", one, *build)
        assert read_labels(tmp_path / "labels.parquet")[0]["float_value"].to_list() == [400]
        return
    with pytest.raises(CohortError, match=alone):
        run("build", one, *build)
    assert not (tmp_path / "labels.parquet").exists()


# A temporal validation -----------------------------------------------------------------------------------------------


@pytest.fixture
def years(tmp_path):
    """Sixty subjects with stays in 2020 and in 2022; every third is readmitted within 30 days of each."""
    rows = [
        (subject, START + dt.timedelta(days=day), code, None)
        for subject in range(60)
        for year in (0, 730)
        for day, code in (
            (year, "VISIT//inpatient"), (year + 3, "DISCHARGE//home"),
            *(((year + 20, "VISIT//inpatient"), (year + 25, "DISCHARGE//home")) if subject % 3 == 0 else ()),
            (year + 400, "A"),
        )
    ]  # fmt: skip
    return write_dataset(tmp_path / "meds", rows).path


def build(meds, out, *options, task="readmission_30d"):
    run("build", meds, "--task", task, "--out", out, "--minimum-age-years", 0, *options)
    return read_labels(out)


def test_labels_are_cut_at_a_date(years, tmp_path):
    out = tmp_path / "labels.parquet"
    whole, before = build(years, tmp_path / "whole.parquet")
    shown = run(
        "build", years, "--task", "readmission_30d", "--out", out, "--minimum-age-years", 0,
        "--train-before", "2021-01-01", "--test-after", "2021-06-01",
    ).stdout  # fmt: skip
    labels, manifest = read_labels(out)
    assert manifest["temporal"]["train_before"] == "2021-01-01T00:00:00"
    assert manifest["temporal"]["test_after"] == "2021-06-01T00:00:00"
    assert manifest["temporal"]["horizon_days"] == 30
    assert len(labels) == sum(split["rows"] for split in manifest["splits"].values()) == len(whole) / 2
    assert manifest["flow"][:-2] == before["flow"]
    assert "train and tuning with outcomes known before 2021-01-01" in shown
    assert "held out and predicted on or after 2021-06-01" in shown
    lines = split_guidance(manifest["splits"])
    assert len(lines) == 2 and lines[0].startswith("held-out: ")
    assert shown.splitlines()[-3:] == [*lines, f"labels written to {out}"]


def test_how_precisely_an_auroc_will_be_known(years, tmp_path):
    binary = ("build", years, "--task", "readmission_30d", "--out", tmp_path / "b.parquet", "--minimum-age-years", 0)
    assert run(*binary).stdout.splitlines()[-3].startswith("held-out: ")
    survival = ("build", years, "--task", "time_to:A", "--out", tmp_path / "s.parquet", "--minimum-age-years", 0)
    shown = run(*survival, "--history-days", 0).stdout
    assert "AUROC" not in shown and "labels written" in shown


def test_a_task_without_a_horizon_needs_one(tmp_path):
    rows = [
        (subject, START + dt.timedelta(days=730 * (subject % 2) + day), code, None)
        for subject in range(60)
        for day, code in ((0, "VISIT//inpatient"), (3, "DISCHARGE//home" if subject % 3 else "DISCHARGE//died"))
    ]
    meds = write_dataset(tmp_path / "meds", rows).path
    out, cut = tmp_path / "labels.parquet", ("--train-before", "2021-01-01")
    with pytest.raises(ConfigError, match=r"length of the label window is unknown; expected days.*pass --horizon-days"):
        build(meds, out, *cut, task="mortality_inpatient")
    assert not out.exists()
    labels, manifest = build(meds, out, *cut, "--horizon-days", 60, task="mortality_inpatient")
    assert manifest["temporal"]["horizon_days"] == 60
    assert 20 < len(labels) < 40


def test_durations_end_within_the_window(years, tmp_path):
    cut = ("--history-days", 0, "--train-before", "2021-01-01", "--horizon-days", 30)
    with pytest.raises(LabelError, match=r"durations run past the label window; got 400 days; expected 30 days or fe"):
        build(years, tmp_path / "labels.parquet", *cut, task="time_to:A")


@pytest.mark.parametrize(
    ("options", "problem", "message"),
    [
        (("--test-after", "2021-01-01"), ConfigError,
         "--test-after is part of a temporal validation; expected --train-before beside it"),
        (("--horizon-days", 30), ConfigError, "--horizon-days is part of a temporal validation"),
        (("--train-before", "2021-13-01"), ConfigError, "--train-before is no date; got 2021-13-01; expected YYYY-MM"),
        (("--train-before", "2021-01-01", "--test-after", "soon"), ConfigError, "--test-after is no date; got soon"),
        (("--train-before", "2021-01-01", "--test-after", "2020-12-31"), ConfigError,
         "testing would begin before training ends; got 2020-12-31 before 2021-01-01"),
        (("--train-before", "2021-01-01", "--horizon-days", 7), ConfigError,
         "--horizon-days is shorter than the label window; got 7; expected 30 days or more"),
        (("--train-before", "2021-01-01", "--horizon-days", 10**12), ConfigError,
         "--horizon-days is out of range; got 1000000000000; expected 0 to 36500 days"),
        (("--train-before", "1999-01-01"), LabelError, "no label of split train is left"),
        (("--train-before", "2021-01-01", "--test-after", "2099-01-01"), LabelError, "no label of split held_out is"),
    ],
)  # fmt: skip
def test_dates_that_make_no_sense(years, tmp_path, options, problem, message):
    with pytest.raises(problem, match=message):
        build(years, tmp_path / "labels.parquet", *options)
    assert not (tmp_path / "labels.parquet").exists()


def test_dates_that_are_shifted_cannot_split(years, tmp_path):
    events = pl.concat([MedsDataset.open(years).scan(split) for split in SPLITS]).collect()
    rows = events.select("subject_id", "time", "code", "visit_id").rows()
    shifted = write_dataset(tmp_path / "shifted", rows, notes=["Dates are shifted per subject by the publisher."]).path
    with pytest.raises(LabelError, match="no calendar dates, so time cannot split it"):
        build(shifted, tmp_path / "labels.parquet", "--train-before", "2021-01-01")
