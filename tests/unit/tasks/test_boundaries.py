"""Instants that decide: the prediction time, the window's end, one day, death on the day, transfers."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
from small_datasets import write_dataset

from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.tasks.base import AdmissionRules, CohortRules, DischargeRules
from ehrsequencing.tasks.cohorts import build_labels
from ehrsequencing.tasks.landmarks import NextVisitTask, PhenotypeTask
from ehrsequencing.tasks.parsing import parse_task
from ehrsequencing.tasks.phenotypes import Phenotypes
from ehrsequencing.tasks.stays import STAY_CODES, find_stays

START = dt.datetime(2010, 1, 1)
LANDMARKS = CohortRules(history_days=0, spacing_days=10_000, minimum_age_years=0)
DISCHARGED, ADMITTED = DischargeRules(0), AdmissionRules(24, 0)


def at(day):
    return START + dt.timedelta(days=day)


def events(rows):
    """(subject, day, code[, visit])."""
    return [(s, None if d is None else at(d), code, visit[0] if visit else None) for s, d, code, *visit in rows]


def stay(subject, admitted, discharged, visit=None, how="home"):
    return [(subject, admitted, "VISIT//inpatient", visit), (subject, discharged, f"DISCHARGE//{how}", visit)]


READMITTED = [*stay(900, 0, 3), *stay(900, 10, 12), *stay(901, 0, 3), (901, 400, "A")]
LONG_AND_SHORT = [*stay(900, 0, 9.5), (900, 9.5, "MEDS_DEATH"), *stay(901, 0, 2)]


def asked(tmp_path, rows, task, rules, ballast, ends=None):
    """Answers (day, label) about subject 1, and the manifest."""
    task = parse_task(task) if isinstance(task, str) else task
    labels, manifest = build_labels(write_dataset(tmp_path / "d", events([*rows, *ballast]), ends), task, rules)
    column = {"binary": "boolean_value", "multilabel": "categorical_value", "survival": "integer_value"}[task.kind]
    mine = labels.filter(pl.col("subject_id") == 1)
    days = [(time - START) / dt.timedelta(days=1) for time in mine["prediction_time"]]
    return list(zip(days, mine[column], strict=True)), manifest


def readmission(tmp_path, rows, ends=None, days=30):
    return asked(tmp_path, rows, f"readmission_{days}d", DISCHARGED, READMITTED, ends)


# Hospital stays ------------------------------------------------------------------------------------------------------


def stays(*rows):
    frame = pl.DataFrame(
        events(rows),
        schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "visit_id": pl.Int64},
        orient="row",
    )
    death = frame.filter(pl.col("code") == "MEDS_DEATH").group_by("subject_id").agg(death=pl.col("time").min())
    deaths = frame.select("subject_id").unique().join(death, on="subject_id", how="left")
    found = find_stays(frame, deaths)
    day = [((pl.col(name) - START).dt.total_seconds() / 86_400).round(6) for name in ("admission", "discharge")]
    return list(found.select(*day, "died").iter_rows())


def test_codes_of_one_visit_are_one_stay():
    rows = [
        (1, 5, "VISIT//inpatient", 7),
        (1, 6, "VISIT//outpatient", 8),
        (1, 9, "DISCHARGE//home", 7),
        (1, 7, "DISCHARGE//home", 8),
    ]
    assert stays(*rows) == [(5, 9, False)]


def test_codes_without_a_visit_are_paired_in_order():
    rows = [*stay(1, 0, 2), *stay(1, 10, 12), (1, 30, "VISIT//inpatient"), (1, 31, "DISCHARGE//home", 4)]
    assert stays(*rows) == [(0, 2, False), (10, 12, False), (30, None, False)]


@pytest.mark.parametrize(
    ("admission", "discharge"),
    [
        ("HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM", "HOSPITAL_DISCHARGE//HOME"),
        ("HOSPITAL_ADMISSION//VISIT//ERIP", "HOSPITAL_DISCHARGE//UNKNOWN"),
        ("VISIT//IP", "DISCHARGE//UNK"),
        ("VISIT//9201", "DISCHARGE"),
        ("ADMISSION//URGENT", "DISCHARGE//home"),
        ("UCI_AGE", "UCI_TIME_IN_HOSPITAL"),
    ],
)
def test_the_codes_of_the_table(admission, discharge):
    assert stays((1, 3, admission), (1, 5, discharge)) == [(3, 5, False)]
    assert stays((1, 3, admission.replace("ADMISSION", "ADMISSIONS") + "s"), (1, 5, discharge)) == []


def test_codes_of_two_sources_do_not_close_each_other():
    assert stays((1, 3, "HOSPITAL_ADMISSION//X"), (1, 5, "DISCHARGE//home")) == [(3, None, False)]


@pytest.mark.parametrize(
    ("second", "joined"),
    [
        (2.5, True),  # the instant of discharge
        (2.75, True),  # six hours later
        (2.99, True),  # the same day
        (3.2, False),  # the next day
    ],
)
def test_transfers(second, joined):
    rows = [*stay(1, 0, 2.5), *stay(1, second, 8)]
    assert stays(*rows) == ([(0, 8, False)] if joined else [(0, 2.5, False), (second, 8, False)])


def test_a_transfer_over_midnight_within_six_hours():
    assert stays(*stay(1, 0, 2.9), *stay(1, 3.14, 8)) == [(0, 8, False)]
    assert stays(*stay(1, 0, 2.9), *stay(1, 3.16, 8)) == [(0, 2.9, False), (3.16, 8, False)]


def test_a_chain_of_transfers_and_a_stay_within_a_stay():
    rows = [*stay(1, 0, 10, 1), *stay(1, 2, 3, 2), *stay(1, 10, 11, 3), *stay(1, 30, 31, 4)]
    assert stays(*rows) == [(0, 11, False), (30, 31, False)]


def test_death_in_a_stay():
    assert stays(*stay(1, 0, 2, how="died")) == [(0, 2, True)]
    assert stays(*stay(1, 0, 2.25), (1, 2.75, "MEDS_DEATH")) == [(0, 2.25, True)], "the day of discharge"
    assert stays(*stay(1, 0, 2.25), (1, 3, "MEDS_DEATH")) == [(0, 2.25, False)], "the day after"
    assert stays(*stay(1, 0.5, 2), (1, 0, "MEDS_DEATH")) == [(0.5, 2, True)], "a date of death without time of day"


@pytest.mark.parametrize("code", [code for row in STAY_CODES for code in row.died])
def test_every_code_of_a_death_in_hospital(code):
    admission = next(row.admission[0] for row in STAY_CODES if code in row.died)
    way_out = () if code.startswith(("DISCHARGE", "HOSPITAL")) else ((1, 5, "UCI_TIME_IN_HOSPITAL", 7),)
    assert stays((1, 3, admission, 7), (1, 5, code, 7), *way_out) == [(3, 5, True)]


def test_a_stay_without_discharge_ends_with_death_before_any_other():
    assert stays((1, 0, "VISIT//inpatient"), (1, 4, "MEDS_DEATH")) == [(0, 4, True)]
    rows = [(1, 0, "VISIT//inpatient"), *stay(1, 3, 5), (1, 7, "MEDS_DEATH")]
    assert stays(*rows) == [(0, None, False), (3, 5, False)]


# Readmission ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("day", "label"), [(33, True), (33.01, False), (4, True)])
def test_readmission_at_the_windows_end(tmp_path, day, label):
    got, _ = readmission(tmp_path, [*stay(1, 0, 3), *stay(1, day, day + 1)])
    assert got == [(3, label)], "the second stay is censored"


def test_a_transfer_is_no_readmission_but_prolongs_the_stay(tmp_path):
    got, manifest = readmission(tmp_path, [*stay(1, 0, 3), *stay(1, 3.2, 8), (1, 50, "A")])
    assert got == [(8, False)]
    assert [row["rows"] for row in manifest["flow"] if "joined from several" in row["step"]] == [1]


def test_readmission_with_dates_alone(tmp_path):
    """Discharge and admission on one day are a transfer; the window begins the next day."""
    got, manifest = readmission(tmp_path, [*stay(1, 0, 3), *stay(1, 3, 5), *stay(1, 6, 7), (1, 60, "A")])
    assert got == [(5, True), (7, False)]
    assert manifest["date_only"]


def test_death_and_readmission(tmp_path):
    assert readmission(tmp_path, [*stay(1, 0, 3, how="died"), (1, 3.5, "MEDS_DEATH")])[0] == []
    assert readmission(tmp_path, [*stay(1, 0, 3), (1, 3.9, "MEDS_DEATH")])[0] == [], "on the day of discharge"
    got, manifest = readmission(tmp_path, [*stay(1, 0, 3), (1, 20, "MEDS_DEATH")])
    assert got == [(3, False)]
    assert {row["step"]: row["rows"] for row in manifest["flow"]}["negative that died within the window"] == 1
    donor = [*stay(1, 0, 3), (1, 20, "MEDS_DEATH"), *stay(1, 21, 22)]
    assert readmission(tmp_path, donor)[0] == [(3, False)], "the dead are not readmitted"
    assert readmission(tmp_path, [*stay(1, 0, 3), (1, 20.5, "MEDS_DEATH"), *stay(1, 20, 22)])[0] == [(3, True)]


def test_follow_up_of_readmission(tmp_path):
    rows = stay(1, 0, 3)
    assert readmission(tmp_path, rows)[0] == [], "nothing is known after discharge"
    assert readmission(tmp_path, rows, ends={1: at(32.9)})[0] == []
    assert readmission(tmp_path, rows, ends={1: at(33)})[0] == [(3, False)]
    assert readmission(tmp_path, [*rows, (1, 33, "A")])[0] == [(3, False)]


def test_a_readmission_past_a_stated_end_is_left_out(tmp_path):
    rows = [*stay(1, 0, 3), *stay(1, 10, 12)]
    assert readmission(tmp_path, rows, ends={1: at(32.9)})[0] == []
    assert readmission(tmp_path, rows, ends={1: at(33)})[0] == [(3, True)]
    assert readmission(tmp_path, rows, ends={1: at(11)})[0] == [(3, True)], "the last event ends follow-up"


def test_a_source_whose_gaps_are_made_up_has_no_readmission(tmp_path):
    rows = [(s, d, code) for s in (1, 2) for d, code in ((0, "UCI_AGE"), (3, "UCI_TIME_IN_HOSPITAL"), (90, "UCI_AGE"))]
    dataset = write_dataset(tmp_path / "d", events(rows))
    with pytest.raises(
        LabelError, match=r"readmission_30d needs the time between stays.*labels/readmission_30d\.parquet"
    ):
        build_labels(dataset, "readmission_30d")


@pytest.mark.parametrize("task", ["readmission_30d", "mortality_inpatient", "los_over_3d"])
def test_no_stays(tmp_path, task):
    dataset = write_dataset(tmp_path / "d", events([(1, 0, "A"), (1, 3, "VISIT//outpatient")]))
    with pytest.raises(
        LabelError, match=f"task {task} needs hospital stays.*expected admission codes VISIT//inpatient, "
    ):
        build_labels(dataset, task)


# Within a stay -------------------------------------------------------------------------------------------------------


def in_hospital(tmp_path, rows, task="los_over_3d", rules=ADMITTED):
    return asked(tmp_path, rows, task, rules, LONG_AND_SHORT)


@pytest.mark.parametrize(
    ("discharged", "expected"), [(1, []), (1.01, [(1, False)]), (3, [(1, False)]), (3.01, [(1, True)])]
)
def test_length_of_stay(tmp_path, discharged, expected):
    assert in_hospital(tmp_path, stay(1, 0, discharged))[0] == expected


def test_length_of_stay_counts_transfers_and_ends_with_death(tmp_path):
    assert in_hospital(tmp_path, [*stay(1, 0, 2), *stay(1, 2, 4)])[0] == [(1, True)]
    got, manifest = in_hospital(tmp_path, [*stay(1, 0, 5), (1, 2.5, "MEDS_DEATH")])
    assert got == [(1, False)]
    assert {row["step"]: row["rows"] for row in manifest["flow"]}["negative that died in the stay"] == 1


def test_hours_after_admission(tmp_path):
    rows = stay(1, 0, 2.5)
    assert in_hospital(tmp_path, rows, rules=AdmissionRules(48, 0))[0] == [(2, False)]
    assert in_hospital(tmp_path, rows, rules=AdmissionRules(0, 0))[0] == [(0, False)]
    with pytest.raises(
        ConfigError, match=r"los_over_3d is asked when its answer is known; got .* 72; expected fewer than 72"
    ):
        in_hospital(tmp_path, rows, rules=AdmissionRules(72, 0))


def test_death_in_hospital(tmp_path):
    def death(rows):
        return in_hospital(tmp_path, rows, "mortality_inpatient")[0]

    assert death([*stay(1, 0, 5), (1, 5, "MEDS_DEATH")]) == [(1, True)]
    assert death([*stay(1, 0, 5), (1, 1, "MEDS_DEATH")]) == [], "death at the prediction time"
    assert death([*stay(1, 0, 5), (1, 1.01, "MEDS_DEATH")]) == [(1, True)]
    assert death([*stay(1, 0, 5), (1, 6, "MEDS_DEATH")]) == [(1, False)]
    assert death(stay(1, 0, 5, how="died")) == [(1, True)], "a discharge code is enough"
    assert death([(1, 0, "VISIT//inpatient")]) == [], "the end of the stay is unknown"


def test_a_day_of_dates_in_hospital(tmp_path):
    """Admitted on day 0, asked at the end of day 1: a stay until day 1 is over, death on day 1 is known."""
    assert in_hospital(tmp_path, stay(1, 0, 1))[0] == []
    assert in_hospital(tmp_path, [*stay(1, 0, 2), (1, 1, "MEDS_DEATH")], "mortality_inpatient")[0] == []
    assert in_hospital(tmp_path, [*stay(1, 0, 2), (1, 2, "MEDS_DEATH")], "mortality_inpatient")[0] == [(1, True)]


# Ends of visits ------------------------------------------------------------------------------------------------------

DYING = [(900, 0, "A"), (900, 4, "MEDS_DEATH"), (901, 0, "A"), (901, 400, "A")]


@pytest.mark.parametrize(("death", "expected"), [(0, []), (0.1, [(0, True)]), (30, [(0, True)]), (30.1, [(0, False)])])
def test_death_within_days(tmp_path, death, expected):
    assert asked(tmp_path, [(1, 0, "A"), (1, death, "MEDS_DEATH")], "mortality_30d", LANDMARKS, DYING)[0] == expected


ONSETS = [(900, 0, "A"), (900, 5, "HF"), (900, 99, "A"), (901, 0, "A"), (901, 99, "A")]


@pytest.mark.parametrize(
    ("after", "end", "expected"),
    [
        ([(5, "HF")], 29.9, None),  # observation ends a moment early: out, with the event as without it
        ([(5, "B")], 29.9, None),
        ([(5, "HF")], 30, True),
        ([(5, "B")], 30, False),
        ([(5, "HF")], 5, None),  # the event is the last thing seen, and the end is stated
        ([(5, "HF")], 4.9, True),  # an event after the stated end ends follow-up
        ([(5, "HF")], None, True),
        ([(5, "B")], None, None),
        ([(5, "HF"), (9, "MEDS_DEATH")], 12, None),  # a stated end after death cuts the dead as the living
        ([(5, "B"), (9, "MEDS_DEATH")], 12, None),
        ([(5, "B"), (9, "MEDS_DEATH")], 30, False),
        ([(5, "HF"), (9, "MEDS_DEATH")], 9, True),  # observation ends with the death: nothing more can come
        ([(5, "B"), (9, "MEDS_DEATH")], 9, False),
        ([(5, "B"), (40, "MEDS_DEATH")], 12, False),  # death after the window, later than the stated end
    ],
)
def test_windows_past_the_end_of_observation(tmp_path, after, end, expected):
    rows = [(1, 0, "A"), *((1, day, code) for day, code in after)]
    ends = None if end is None else {1: at(end)}
    got, manifest = asked(tmp_path, rows, "onset:HF@30", CohortRules(0, 10_000, 0), ONSETS, ends)
    assert got == ([] if expected is None else [(0, expected)])
    flow = {row["step"]: row["rows"] for row in manifest["flow"]}
    codes = [code for _, code in after]
    assert flow["excluded: censored within the window"] == (expected is None)
    out = flow["of them with the event before the stated end of observation"]
    assert out == (expected is None and "HF" in codes)


@pytest.mark.parametrize("seed", range(8))
def test_who_is_asked_does_not_depend_on_the_outcome(tmp_path, seed):
    """With every end stated, the rows before an onset are those of the same record without it."""
    rng = np.random.default_rng(seed)
    rows, onset, ends = [], {}, {}
    for subject in range(1, 200):
        days = np.sort(rng.integers(0, 90, rng.integers(2, 9))).tolist()
        rows += [(subject, day, "B") for day in days]
        if rng.random() < 0.6:
            onset[subject] = days[rng.integers(1, len(days))]
        if rng.random() < 0.2:
            rows.append((subject, days[-1] + int(rng.integers(1, 20)), "MEDS_DEATH"))
        ends[subject] = at(max(day for one, day, _ in rows if one == subject) + int(rng.integers(0, 60)))
    ill = [(s, day, "HF" if day == onset.get(s) else code) for s, day, code in rows]
    every = CohortRules(0, 7, 0)

    def keys(records):
        labels, _ = build_labels(write_dataset(tmp_path / "d", events([*records, *ONSETS]), ends), "onset:HF@30", every)
        mine = labels.filter(pl.col("subject_id") < 900)
        return set(mine.select("subject_id", "prediction_time").rows()), int(mine["boolean_value"].sum())

    (with_onset, positive), (without, none) = keys(ill), keys(rows)
    assert with_onset == {(s, t) for s, t in without if s not in onset or t < at(onset[s])}
    assert positive > 10 and none == 0


def test_a_visit_that_ends_in_death_is_not_asked(tmp_path):
    rows = [*stay(1, 0, 2, 5, how="died"), (1, 2.5, "MEDS_DEATH")]
    assert asked(tmp_path, rows, "mortality_30d", LANDMARKS, DYING)[0] == []
    assert asked(tmp_path, [*rows, (1, -1, "A")], "mortality_30d", LANDMARKS, DYING)[0] == [(-1, True)]


def survival(tmp_path, rows, task, ends=None):
    ballast = [(900, 0, "A"), (900, 5, "HF"), (901, 0, "A"), (901, 8, "MEDS_DEATH")]
    dataset = write_dataset(tmp_path / "d", events([*rows, *ballast]), ends)
    labels, manifest = build_labels(dataset, task, LANDMARKS)
    mine = labels.filter(pl.col("subject_id") == 1).select("integer_value", "float_value").rows()
    return mine, {row["step"]: row["rows"] for row in manifest["flow"]}


@pytest.mark.parametrize(
    ("rows", "code", "death"),
    [
        ([(1, 7, "B")], (0, 7), (0, 7)),
        ([(1, 2, "HF"), (1, 7, "MEDS_DEATH")], (1, 2), (1, 7)),
        ([(1, 7, "MEDS_DEATH")], (2, 7), (1, 7)),
        ([(1, 7, "MEDS_DEATH"), (1, 9, "HF")], (1, 7), (1, 7)),  # a diagnosis billed after death
        ([(1, 7, "MEDS_DEATH"), (1, 7, "HF")], (1, 7), (1, 7)),
        ([(1, 10, "HF")], (1, 10), (0, 10)),
        ([(1, 0, "HF"), (1, 7, "B")], None, (0, 7)),
        ([(1, None, "HF"), (1, 7, "B")], None, (0, 7)),
        ([], None, None),  # no follow-up
    ],
)
def test_time_to(tmp_path, rows, code, death):
    rows = [(1, 0, "A"), *rows]
    assert survival(tmp_path, rows, "time_to:HF")[0] == ([code] if code else [])
    assert survival(tmp_path, rows, "time_to:death")[0] == ([death] if death else [])


def test_time_to_ends_with_observation_and_horizon(tmp_path):
    rows = [(1, 0, "A"), (1, 30, "HF")]
    assert survival(tmp_path, rows[:1], "time_to:HF", {1: at(12)})[0] == [(0, 12)]
    assert survival(tmp_path, rows, "time_to:HF@30")[0] == [(1, 30)]
    assert survival(tmp_path, rows, "time_to:HF@29")[0] == [(0, 29)]
    mine, flow = survival(tmp_path, rows[:1], "time_to:HF")
    assert mine == []
    assert flow["excluded: no follow-up after the prediction time"] == 1


SET = Phenotypes("set", {"b": ("B",), "hf": ("HF",)}, 30, "")
TWO = [(s, d, code) for s in range(800, 830) for d, code in ((0, "A"), (3, "B"), (3, "HF"), (50, "A"))]


def test_phenotypes_in_the_window(tmp_path):
    def found(rows):
        return asked(tmp_path, [(1, 0, "A"), *rows], PhenotypeTask("t", SET, 30), LANDMARKS, TWO)[0]

    assert found([(1, 30, "B.1"), (1, 40, "HF")]) == [(0, "b")], "the window's last instant, and after it"
    assert found([(1, 0, "B"), (1, 50, "A")]) == [(0, NO_CATEGORY)], "at the prediction time it is known"
    assert found([(1, -5, "B"), (1, 5, "B"), (1, 6, "HF"), (1, 50, "A")]) == [(-5, "b"), (-5, "hf")], "again counts"
    assert found([(1, 5, "B")]) == [], "censored, although one phenotype is known"
    assert found([(1, 5, "B"), (1, 9, "MEDS_DEATH")]) == [(0, "b")]
    assert found([(1, None, "B"), (1, 50, "A")]) == [(0, NO_CATEGORY)], "no date, no window"


def test_the_next_visit(tmp_path):
    def found(rows, kinds=lambda code: "lab" if code == "LAB" else "diagnosis"):
        dataset = write_dataset(tmp_path / "d", events([*rows, *TWO]), kinds=kinds)
        labels, _ = build_labels(dataset, NextVisitTask("t", min_examples=1), LANDMARKS)
        return labels.filter(pl.col("subject_id") == 1)["categorical_value"].to_list()

    assert found([(1, 0, "A"), (1, 9.1, "B"), (1, 9.5, "LAB"), (1, 20, "HF")]) == ["B"]
    assert found([(1, 0, "A"), (1, 9, "LAB"), (1, 20, "HF")]) == [NO_CATEGORY], "a visit of labs alone"
    assert found([(1, 0, "A"), (1, 9, "MEDS_DEATH")]) == [], "no later visit"
    inside = [(1, 0, "A", 1), (1, 1, "B", 2), (1, 5, "A", 1), (1, 9, "HF", 2), (1, 30, "B", 3)]
    assert found(inside) == ["B"], "asked at 5: visit 2 began before, visit 3 is next"
    assert found([(1, 0, "A", 1), (1, 0, "B", 2), (1, 4, "HF", 3), (1, 4, "B", 4)]) == ["B", "HF"], "two begin at once"


def test_categories_are_fitted_on_train(tmp_path):
    rows = [row for row in TWO if row[0] != 800]
    dataset = write_dataset(tmp_path / "d", events([*rows, (1, 0, "A"), (1, 3, "RARE"), (1, 4, "A")]))
    splits = dict(dataset.subject_splits().iter_rows())
    assert set(splits.values()) == set(SPLITS)
    definitions = Phenotypes("set", {"b": ("B",), "rare": ("RARE",)}, 2, "")
    other = next(subject for subject, split in splits.items() if split == "held_out" and subject > 1)
    seldom = write_dataset(tmp_path / "e", events([*rows, (other, 2, "RARE")]))
    labels, manifest = build_labels(seldom, PhenotypeTask("t", definitions, 3), LANDMARKS)
    assert manifest["categories"] == ["b"]
    assert manifest["absent_categories"] == ["rare"]
    assert set(labels["categorical_value"]) <= {"b", NO_CATEGORY}


def test_errors_of_empty_tasks(tmp_path):
    alive = write_dataset(tmp_path / "a", events([(1, 0, "A"), (1, 400, "A")]))
    for task in ("mortality_30d", "time_to:death"):
        with pytest.raises(
            LabelError, match=f"task {task} needs deaths, and the dataset records none; got 0 rows at step"
        ):
            build_labels(alive, task, LANDMARKS)
    with pytest.raises(LabelError, match="no subject has a code of task time_to:HF"):
        build_labels(alive, "time_to:HF", LANDMARKS)
    with pytest.raises(LabelError, match="no subject has a code of any phenotype of common"):
        build_labels(alive, "phenotype:common", LANDMARKS)
    with pytest.raises(LabelError, match="no category with 10 positive training examples"):
        build_labels(alive, "next_visit_codes", LANDMARKS)
    once = write_dataset(tmp_path / "o", events([(1, 0, "A")]))
    with pytest.raises(LabelError, match="task next_visit_codes needs subjects with two visits"):
        build_labels(once, "next_visit_codes", LANDMARKS)
    late = write_dataset(tmp_path / "l", events([(1, 0, "A"), (1, 400, "HF")]))
    with pytest.raises(LabelError, match="time_to:HF@5 has no event in follow-up; got 0 rows at step 'event'"):
        build_labels(late, "time_to:HF@5", LANDMARKS)


@pytest.mark.parametrize(
    ("task", "rules", "message"),
    [
        ("readmission_30d", LANDMARKS, "takes other rules; got history_days, .*expected minimum_age_years"),
        ("los_over_3d", DISCHARGED, "expected hours_after_admission, minimum_age_years"),
        ("time_to:death", ADMITTED, "got hours_after_admission, .*expected history_days"),
    ],
)
def test_rules_of_another_task(tmp_path, task, rules, message):
    dataset = write_dataset(tmp_path / "d", events(READMITTED))
    with pytest.raises(ConfigError, match=message):
        build_labels(dataset, task, rules)


@pytest.mark.parametrize(
    "wrong", [{"hours_after_admission": -1}, {"hours_after_admission": 9_000}, {"minimum_age_years": 151}]
)
def test_admission_rules_out_of_range(wrong):
    with pytest.raises(ConfigError, match="cohort rules are out of range"):
        AdmissionRules(**wrong)
    if "minimum_age_years" in wrong:
        with pytest.raises(ConfigError, match="cohort rules are out of range"):
            DischargeRules(**wrong)


def test_every_source_of_stays_is_told_apart():
    codes = [code for row in STAY_CODES for code in (*row.admission, *row.discharge)]
    assert len(codes) == len(set(codes))
