import datetime as dt
from collections import defaultdict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrsequencing.data.dataset import MedsDataset, MedsWriter
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.schema import LABEL_SCHEMA, SPLITS
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import CohortError, ConfigError, LabelError
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.cohorts import build_labels, check_labels
from ehrsequencing.tasks.landmarks import OnsetTask
from ehrsequencing.tasks.parsing import parse_task

START = dt.datetime(2010, 1, 1)
TASK = parse_task("onset:HF@100")
RULES = CohortRules(history_days=50, spacing_days=80, minimum_age_years=0)


def day(number):
    return START + dt.timedelta(days=number)


def dataset(path, rows, ends=None):
    """Rows of (subject, day or None, code[, visit])."""
    frame = pl.DataFrame(
        [(s, None if d is None else day(d), code, *visit) if visit else (s, None if d is None else day(d), code, None)
         for s, d, code, *visit in rows],
        schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "visit_id": pl.Int64},
        orient="row",
    )  # fmt: skip
    split = split_of(frame["subject_id"].to_numpy())
    with MedsWriter(path, overwrite=True) as writer:
        for name in SPLITS:
            writer.write_events(name, 0, frame.filter(pl.Series(split == name)))
        if ends is not None:
            observation = pl.DataFrame({"subject_id": list(ends), "observation_end": [day(d) for d in ends.values()]})
            (path.parent / "end.parquet").unlink(missing_ok=True)
            observation.write_parquet(path.parent / "end.parquet")
            writer.write_file("metadata/observation.parquet", (path.parent / "end.parquet").read_bytes())
        writer.finish(frame.select("code").unique(), source="test", options={}, notes=[])
    return MedsDataset.open(path)


BALLAST = [(900, 0, "A"), (900, 60, "A"), (900, 100, "HF"), (901, 0, "A"), (901, 60, "A"), (901, 200, "A")]
"""One positive and one negative, so that the subject under test may be either."""


def labelled(tmp_path, rows, *, rules=RULES, task=TASK, ends=None):
    """Labels of all but the ballast as (subject, day, positive), and the rows of each flow step less the ballast's."""
    without, base = build_labels(dataset(tmp_path / "b", BALLAST), task, rules)
    labels, manifest = build_labels(dataset(tmp_path / "d", [*rows, *BALLAST], ends), task, rules)
    assert len(without) == 2
    flow = {a["step"]: a["rows"] - b["rows"] for a, b in zip(manifest["flow"], base["flow"], strict=True)}
    kept = labels.filter(pl.col("subject_id") < 900)
    days = ((kept["prediction_time"] - START).dt.total_seconds() / 86_400).to_list()
    return list(zip(kept["subject_id"], days, kept["boolean_value"], strict=True)), flow


def visits(subject, *days):
    return [(subject, d, "A") for d in days]


def test_positive_negative_censored(tmp_path):
    rows = [
        *visits(1, 0, 60), (1, 160, "HF.9"),  # the last instant of the window
        *visits(2, 0, 60), (2, 161, "HF.9"),  # just after it: negative here, then no second chance before onset
        *visits(3, 0, 60, 160),  # observed to the window's last instant
        *visits(4, 0, 60, 159),  # a day short: censored
        *visits(5, 0, 60), (5, 100, "HF"), (5, 110, "HF"),  # positive, whatever follows
    ]  # fmt: skip
    got, flow = labelled(tmp_path, rows)
    assert got == [(1, 60, True), (2, 60, False), (3, 60, False), (5, 60, True)]
    assert flow["subjects with a matching code"] == 3
    assert flow["excluded: censored within the window"] == 3, "subject 4 twice, and the last visit of subject 3"


def test_prefixes(tmp_path):
    rows = [*visits(1, 0, 60), (1, 70, "XHF"), *visits(2, 0, 60), (2, 70, "AF.1"), *visits(1, 200)]
    got, _ = labelled(tmp_path, rows, task=OnsetTask("t", ("HF", "AF"), 100))
    assert got == [(1, 60, False), (2, 60, True)]


def test_prevalent_subjects_are_out(tmp_path):
    rows = [
        (1, 0, "A"), (1, 60, "HF"), (1, 61, "A"), (1, 400, "HF"),
        (2, None, "HF"), *visits(2, 0, 60, 400),
        (3, 0, "HF"), *visits(3, 60, 400), (3, 100, "HF"),
    ]  # fmt: skip
    got, flow = labelled(tmp_path, rows)
    assert got == []
    assert flow["no matching code so far"] == 0
    assert flow["subjects with a matching code"] == 3


def test_death_competes(tmp_path):
    rows = [
        *visits(1, 0, 60), (1, 100, "MEDS_DEATH"),
        *visits(2, 0, 60), (2, 90, "HF"), (2, 100, "MEDS_DEATH"),
        *visits(3, 0), (3, 60, "A"), (3, 60, "MEDS_DEATH"),  # dies at the prediction
        *visits(4, 0, 60), (4, 161, "MEDS_DEATH"),  # dies after the window
    ]  # fmt: skip
    got, flow = labelled(tmp_path, rows)
    assert got == [(1, 60, False), (2, 60, True), (4, 60, False)]
    assert flow["negative that died within the window"] == 1
    assert flow["no matching code so far"] == flow["alive"] - 1, "the visit at which subject 2's onset was coded"


def test_a_day_of_dates_is_known_at_its_end(tmp_path):
    """All of day 60 is at midnight: a diagnosis of that day is before the prediction, not in its window."""
    got, _ = labelled(tmp_path, [(1, 0, "A"), (1, 60, "A", 7), (1, 60, "HF", 8), (1, 400, "A")])
    assert got == []
    built = build_labels(dataset(tmp_path / "d", BALLAST), TASK, RULES)[1]
    assert built["date_only"]
    with_hours = build_labels(dataset(tmp_path / "d", [(1, 0.5, "A"), *BALLAST]), TASK, RULES)[1]
    assert not with_hours["date_only"]


def test_visits_end_with_their_last_event(tmp_path):
    rows = [
        (1, 0, "A"), (1, 60.25, "A", 5), (1, 63.5, "B", 5), (1, 61, "A", 6),  # visit 6 ends inside visit 5
        (1, 200.25, "A"), (1, 200.75, "B"), (1, 400, "A"),  # no visit: the calendar day
    ]  # fmt: skip
    got, flow = labelled(tmp_path, rows, rules=CohortRules(history_days=50, spacing_days=1, minimum_age_years=0))
    assert got == [(1, 61, False), (1, 63.5, False), (1, 200.75, False)]
    assert flow["ends of visits"] == 5


def test_history_spacing_and_age(tmp_path):
    rows = [(1, -20 * 365.25, "MEDS_BIRTH"), *visits(1, 0, 49, 50, 129, 130, 131, 1_000)]
    assert labelled(tmp_path, rows)[0] == [(1, 50, False), (1, 130, False)]
    of_age = CohortRules(history_days=50, spacing_days=80, minimum_age_years=20.3)
    ballast_born = [(900, -30 * 365.25, "MEDS_BIRTH"), (901, -30 * 365.25, "MEDS_BIRTH")]
    _, manifest = build_labels(dataset(tmp_path / "d", [*rows, *BALLAST, *ballast_born]), TASK, of_age)
    labels, _ = build_labels(dataset(tmp_path / "d", [*rows, *BALLAST, *ballast_born]), TASK, of_age)
    young = day(round(20.3 * 365.25 - 20 * 365.25))
    assert labels.filter(pl.col("subject_id") == 1)["prediction_time"].min() >= young
    assert labels.filter(pl.col("subject_id") == 1).height == 1
    assert "aged 20.3 or older" in [step["step"] for step in manifest["flow"]]


def test_unknown_age_is_out_when_an_age_is_asked_for(tmp_path):
    with pytest.raises(LabelError, match="empty cohort; got 0 rows at step 'aged 18 or older'"):
        build_labels(dataset(tmp_path / "d", BALLAST), TASK, CohortRules(history_days=50))


def test_end_of_observation(tmp_path):
    rows = [*visits(1, 0, 60), *visits(2, 0, 60), *visits(3, 0, 60, 160)]
    ends = {1: 160, 2: 159, 3: 61, 900: 300, 901: 300}
    got, _ = labelled(tmp_path, rows, ends=ends)
    assert got == [(1, 60, False), (3, 60, False)], "an event after the stated end counts as observed, too"


def test_labels_and_manifest_are_written_as_built(tmp_path):
    labels, manifest = build_labels(dataset(tmp_path / "d", BALLAST), TASK, RULES)
    assert dict(labels.schema) == LABEL_SCHEMA
    write_labels(tmp_path / "l.parquet", labels, manifest)
    read, told = read_labels(tmp_path / "l.parquet")
    assert read.equals(labels)
    assert told == manifest
    assert told["horizon_days"] == 100
    assert told["options"] == {"history_days": 50, "spacing_days": 80, "minimum_age_years": 0}
    assert sum(split["rows"] for split in told["splits"].values()) == 2


def test_shards_do_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.choice(["A", "B", "HF"], 900, p=[0.5, 0.49, 0.01]).tolist()
    rows = list(zip(rng.integers(0, 40, 900).tolist(), rng.integers(0, 1_500, 900).tolist(), codes, strict=True))
    whole = dataset(tmp_path / "d", rows)
    expected, manifest = build_labels(whole, TASK, RULES)
    many = tmp_path / "many"
    everyone = pl.concat([whole.scan(split) for split in SPLITS]).collect()
    (many / "data").mkdir(parents=True)
    for shard in range(7):
        everyone.filter(pl.col("subject_id") % 7 == shard).write_parquet(many / f"data/{shard}.parquet")
    seen = []
    again, other = build_labels(MedsDataset.open(many), TASK, RULES, progress=lambda *x: seen.append(x))
    assert again.equals(expected)
    assert other["flow"] == manifest["flow"]
    assert seen[-1][0] == seen[-1][1] == len(seen)


def slow_labels(rows, horizon, rules):
    """The rules once more, one subject and one visit at a time."""
    by_subject = defaultdict(list)
    for subject, time, code, visit in rows:
        by_subject[subject].append((time, code, visit))
    found = []
    for subject, events in sorted(by_subject.items()):
        onset = min((-1 if t is None else t for t, code, _ in events if code == "HF"), default=None)
        death = min((t for t, code, _ in events if code == "MEDS_DEATH" and t is not None), default=None)
        times = [t for t, code, _ in events if t is not None]
        ends = {}
        for t, code, visit in events:
            if t is not None and code != "MEDS_DEATH":
                key = ("day", int(t)) if visit is None else ("visit", visit)
                ends[key] = max(t, ends.get(key, t))
        last = None
        for t in sorted(set(ends.values())):
            if t < min(times) + rules.history_days or (last is not None and t < last + rules.spacing_days):
                continue
            if (death is not None and death <= t) or (onset is not None and onset <= t):
                continue
            last = t
            if onset is not None and onset <= t + horizon:
                found.append((subject, t, True))
            elif max(times) >= t + horizon or (death is not None and death <= t + horizon):
                found.append((subject, t, False))
    return found


event = st.tuples(
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 20).map(lambda half: half / 2)),
    st.sampled_from(["A", "A", "A", "HF", "MEDS_DEATH"]),
    st.one_of(st.none(), st.integers(1, 3)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(event, max_size=25), st.integers(0, 3), st.integers(1, 4), st.integers(1, 4))
def test_agrees_with_the_rules_taken_one_visit_at_a_time(tmp_path, rows, history, spacing, horizon):
    ballast = [
        (8, 0.0, "A", None),
        (8, 4.0, "A", None),
        (8, 5.0, "HF", None),
        (9, 0.0, "A", None),
        (9, 30.0, "A", None),
    ]
    ballast += [(9, 4.0, "A", None)]
    rows = [(s, None if code == "MEDS_DEATH" and t is None else t, code, v) for s, t, code, v in rows] + ballast
    rules = CohortRules(history_days=history, spacing_days=spacing, minimum_age_years=0)
    labels, _ = build_labels(dataset(tmp_path / "d", rows), OnsetTask("t", ("HF",), horizon), rules)
    days = ((labels["prediction_time"] - START).dt.total_seconds() / 86_400).to_list()
    got = list(zip(labels["subject_id"], days, labels["boolean_value"], strict=True))
    assert got == slow_labels(rows, horizon, rules)


@pytest.mark.parametrize(
    "wrong",
    [
        {"history_days": -1},
        {"history_days": 36_501},
        {"spacing_days": 0},
        {"spacing_days": 73_001},
        {"minimum_age_years": -1},
        {"minimum_age_years": 151},
        {"minimum_age_years": float("nan")},
    ],
)
def test_rules_out_of_range(wrong):
    with pytest.raises(ConfigError, match="cohort rules are out of range"):
        CohortRules(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"at_days": (0,)}, r"at_days is out of range; got 0; expected rising, above 0 and up to 36500"),
        ({"at_days": (9, 9)}, r"at_days is out of range; got 9, 9; expected rising"),
        ({"at_days": (5, 40_000)}, r"at_days is out of range; got 5, 40000; expected rising"),
        ({"at_days": (float("nan"),)}, "at_days is out of range; got nan"),
        ({"at_days": (5, float("inf"))}, "at_days is out of range; got 5, inf"),
        (
            {"at_age_years": (50, 40)},
            r"at_age_years is out of range; got 50, 40; expected rising, above 0 and up to 150",
        ),
        (
            {"at_age_years": (50,), "at_kind": "drug"},
            "one kind of landmark; got at_age_years and at_kind; expected one",
        ),
        ({"at_kind": "disease"}, "at_kind is no kind of event; got disease; expected diagnosis, drug"),
    ],
)
def test_landmarks_that_cannot_be(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CohortRules(**wrong)


def test_a_manifest_states_the_rules_that_have_an_effect():
    assert CohortRules(at_days=(5.5,)).stated() == {"minimum_age_years": 18.0, "at_days": [5.5]}
    assert CohortRules(1, 2, 3, at_age_years=(50,)).stated() == {
        "history_days": 1, "minimum_age_years": 3, "at_age_years": [50],
    }  # fmt: skip
    assert CohortRules(1, 2, 3, at_kind="lab").stated() == {
        "history_days": 1, "spacing_days": 2, "minimum_age_years": 3, "at_kind": "lab",
    }  # fmt: skip
    assert CohortRules(at_days=(5.5, 9)).asked("") == "5.5, 9 days after the first event"


def test_competing_codes_that_nobody_has(tmp_path):
    with pytest.raises(CohortError, match="no subject has a code of task time_to:HF.TX that competes; got 0 rows at"):
        build_labels(dataset(tmp_path / "d", BALLAST), "time_to:HF|TX", replace(RULES, spacing_days=73_000))


def test_events_of_one_instant_take_the_lower_cause(tmp_path):
    rows = [*visits(1, 0, 60), (1, 90, "HF"), (1, 90, "TX"), *visits(2, 0, 60), (2, 80, "TX"), (2, 90, "HF"),
            *visits(3, 0, 60), (3, 85, "MEDS_DEATH"), (3, 85, "TX"),
            *visits(4, 0, 60), (4, 60, "TX"), (4, 99, "HF")]  # fmt: skip
    labels, manifest = build_labels(dataset(tmp_path / "d", rows), "time_to:HF|TX", replace(RULES, spacing_days=73_000))
    assert labels.select("subject_id", "integer_value", "float_value").rows() == [
        (1, 1, 30.0),
        (2, 3, 20.0),
        (3, 2, 25.0),
    ]
    assert manifest["causes"] == ["event", "death", "TX"] and manifest["competing_codes"] == ["TX"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            BALLAST[3:],
            "no subject has a code of task onset:HF@100; got 0 rows at step 'subjects with a matching code'; expected",
        ),
        ([(1, 0, "HF"), (1, 60, "A")], "empty cohort; got 0 rows at step 'no matching code so far'. Remedy: loosen"),
        (BALLAST[:3], "task onset:HF@100 has one class; got 0 rows at step 'negative'; expected positives"),
    ],
)
def test_useless_tasks_say_where_the_cohort_went(tmp_path, rows, message):
    with pytest.raises(CohortError, match=message) as raised:
        build_labels(dataset(tmp_path / "d", rows), TASK, RULES)
    assert raised.value.flow[0] == {"step": "subjects", "rows": 1, "subjects": 1}


SUBJECTS = pl.DataFrame({"subject_id": range(6), "split": [*SPLITS, *SPLITS], "first_time": [START] * 6})


def some_labels(subjects=range(6), values=(True, True, True, False, False, False), time=START):
    frame = pl.DataFrame({"subject_id": list(subjects), "prediction_time": time, "boolean_value": list(values)})
    return frame.with_columns(categorical_value=pl.lit(None, dtype=pl.String))


def test_checked_labels_are_counted():
    assert check_labels(some_labels(), SUBJECTS) == {
        split: {"rows": 2, "subjects": 2, "positives": 1} for split in SPLITS
    }
    assert check_labels(some_labels(), SUBJECTS.drop("first_time"))["train"]["rows"] == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (some_labels([0, 1, 2, 3, 4, 77]), "1 labelled subjects are not in the dataset; got subject 77"),
        (pl.concat([some_labels(), some_labels()]), "repeat a subject and prediction time; got 6 repeated rows"),
        (some_labels(time=START - dt.timedelta(days=1)), "6 prediction times lie before .* got subject 0"),
        (some_labels(values=[True] * 6), "split train has one class; got 2 positives of 2 rows"),
        (some_labels([0, 3], [True, False]), "split tuning has no labels"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used(labels, message):
    with pytest.raises(LabelError, match=message):
        check_labels(labels, SUBJECTS)
