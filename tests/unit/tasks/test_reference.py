"""Every task against the rules taken one subject at a time, on random records of hours and of whole days."""

import itertools
from dataclasses import replace

import brute_force as brute
import polars as pl
import pytest
from small_datasets import write_dataset

from ehrsequencing.data.labels import NO_CATEGORY, read_labels, write_labels
from ehrsequencing.errors import LabelError
from ehrsequencing.tasks.base import AdmissionRules, CohortRules, DischargeRules
from ehrsequencing.tasks.cohorts import build_labels
from ehrsequencing.tasks.landmarks import MortalityTask, NextVisitTask, OnsetTask, PhenotypeTask, TimeToTask
from ehrsequencing.tasks.phenotypes import Phenotypes
from ehrsequencing.tasks.stay_tasks import InpatientMortalityTask, LengthOfStayTask, ReadmissionTask

SEEDS = range(9)
AGES = tuple(16 + step / 40 for step in range(1_040))
DEFINITIONS = {"b_first": ("B.1",), "bs": ("B",), "heart": ("HF",)}
SET = Phenotypes("test", DEFINITIONS, 10, "")


def landmark_rules(seed):
    return CohortRules(seed % 7, 1 + seed % 11, [0.0, 18.0, 20.0][seed % 3])


def steps(manifest):
    return {row["step"]: row["rows"] for row in manifest["flow"]}


def binary_rows(labels):
    return list(labels.select("subject_id", "prediction_time", "boolean_value").iter_rows())


def check_binary(dataset, task, rules, expected):
    """Labels equal; with one class or none, the error says so."""
    expected = sorted(expected)
    if len({label for *_, label in expected}) < 2:
        with pytest.raises(LabelError, match="one class|empty cohort|no subject|needs"):
            build_labels(dataset, task, rules)
        return 0
    labels, manifest = build_labels(dataset, task, rules)
    assert binary_rows(labels) == expected
    flow, order = steps(manifest), list(steps(manifest))
    assert flow["labelled"] == flow["positive"] + flow["negative"] == len(expected)
    censored = flow.get("excluded: censored within the window", 0)
    end = (
        "excluded: censored within the window"
        if censored or "excluded: censored within the window" in flow
        else "labelled"
    )
    assert flow[order[order.index(end) - 1]] == censored + flow["labelled"]
    assert sum(split["rows"] for split in manifest["splits"].values()) == len(expected)
    assert sum(split["positives"] for split in manifest["splits"].values()) == flow["positive"]
    return 1


def answers(people, of):
    return [(subject, *answer) for subject, person in people.items() for answer in of(person)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    root = tmp_path_factory.mktemp("random")
    made = {}
    for seed in SEEDS:
        rows, ends = brute.random_records(seed)
        ends = ends if seed % 2 else None
        dataset = write_dataset(root / str(seed), rows, ends, kinds=brute.kind_of)
        made[seed] = (dataset, brute.people(rows, ends))
    return made


def test_onset(worlds):
    built = 0
    for seed, (dataset, people) in worlds.items():
        for days in (1, 9):
            rules = landmark_rules(seed)
            expected = answers(people, lambda p: brute.onset(p, rules, ("HF", "C"), days))  # noqa: B023
            built += check_binary(dataset, OnsetTask("t", ("HF", "C"), days), rules, expected)
    assert built > len(worlds)


def test_mortality(worlds):
    built = 0
    for seed, (dataset, people) in worlds.items():
        rules = landmark_rules(seed)
        expected = answers(people, lambda p: brute.mortality(p, rules, 12))  # noqa: B023
        built += check_binary(dataset, MortalityTask("t", 12), rules, expected)
    assert built > len(worlds) / 2


def test_readmission(worlds):
    built = 0
    for seed, (dataset, people) in worlds.items():
        for days in (2, 10):
            rules = DischargeRules([0.0, 18.0][seed % 2])
            expected = answers(people, lambda p: brute.readmission(p, rules, days))  # noqa: B023
            built += check_binary(dataset, ReadmissionTask("t", days), rules, expected)
    assert built > len(worlds)


def test_death_and_length_of_stay(worlds):
    built = 0
    for (seed, (dataset, people)), hours in itertools.product(worlds.items(), (0, 24)):
        rules = AdmissionRules(hours, [0.0, 18.0][seed % 2])
        expected = answers(people, lambda p: brute.in_hospital(p, rules))  # noqa: B023
        built += check_binary(dataset, InpatientMortalityTask("t"), rules, expected)
        expected = answers(people, lambda p: brute.in_hospital(p, rules, 3))  # noqa: B023
        built += check_binary(dataset, LengthOfStayTask("t", 3), rules, expected)
    assert built > 2 * len(worlds)


def as_sets(labels):
    """{(subject, time): categories}, and that [none] stands alone."""
    found = {}
    for subject, time, category in labels.select("subject_id", "prediction_time", "categorical_value").iter_rows():
        found.setdefault((subject, time), set()).add(category)
    assert all(NO_CATEGORY not in categories or categories == {NO_CATEGORY} for categories in found.values())
    return {key: categories - {NO_CATEGORY} for key, categories in found.items()}


def check_multilabel(dataset, task, rules, people, of, tmp_path):
    expected = {(subject, t): names for subject, t, names in answers(people, of)}
    train = set(dataset.subject_splits().filter(split="train")["subject_id"])
    names = set().union(*expected.values())
    counts = {name: sum(name in got for (s, _), got in expected.items() if s in train) for name in names}
    kept = {name for name in names if counts[name] >= task.min_examples}
    labels, manifest = build_labels(dataset, task, rules)
    assert as_sets(labels) == {key: got & kept for key, got in expected.items()}
    assert manifest["categories"] == sorted(kept)
    assert manifest["absent_categories"] == sorted(names - kept)
    flow = steps(manifest)
    assert flow["labelled"] == len(expected) == flow["with a category"] + flow["with no category"]
    write_labels(tmp_path / "labels.parquet", labels, manifest)
    assert read_labels(tmp_path / "labels.parquet")[0].equals(labels)


def test_next_visit(worlds, tmp_path):
    for seed, (dataset, people) in worlds.items():
        rules = landmark_rules(seed)
        check_multilabel(
            dataset, NextVisitTask("t", min_examples=3), rules, people,
            lambda p: brute.next_visit(p, rules, ("A", "B", "C")), tmp_path,  # noqa: B023
        )  # fmt: skip


def test_phenotypes(worlds, tmp_path):
    for seed, (dataset, people) in worlds.items():
        rules = landmark_rules(seed)
        check_multilabel(
            dataset, PhenotypeTask("t", SET, 10), rules, people,
            lambda p: brute.phenotypes(p, rules, DEFINITIONS, 10), tmp_path,  # noqa: B023
        )  # fmt: skip


@pytest.mark.parametrize(
    ("prefixes", "days", "competing"),
    [
        (("HF", "B.2"), None, ()), (("HF",), 15, ()), ((), None, ()), ((), 20, ()),
        (("HF",), None, ("C", "B.1")), ((), 20, ("HF",)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("landmarks", [{}, {"at_days": (2.0, 6.5, 9.0)}, {"at_age_years": AGES}, {"at_kind": "other"}])
def test_time_to(worlds, prefixes, days, competing, landmarks):
    seen = set()
    for seed, (dataset, people) in worlds.items():
        rules = replace(landmark_rules(seed), **landmarks)
        task = TimeToTask("t", prefixes, days, competing)
        expected = sorted(answers(people, lambda p: brute.time_to(p, rules, prefixes, days, competing)))  # noqa: B023
        if not any(status == 1 for _, _, status, _ in expected):
            with pytest.raises(LabelError, match="no event|empty cohort|needs|no subject"):
                build_labels(dataset, task, rules)
            continue
        labels, manifest = build_labels(dataset, task, rules)
        got = list(labels.select("subject_id", "prediction_time", "integer_value", "float_value").iter_rows())
        assert [row[:3] for row in got] == [row[:3] for row in expected]
        assert [row[3] for row in got] == pytest.approx([row[3] for row in expected], rel=1e-6)
        assert labels.select((pl.col("float_value") > 0).all()).item()
        flow = steps(manifest)
        counted = sum(rows for step, rows in flow.items() if step in ("event", "censored") or step[:9] == "competing")
        assert flow["labelled"] == counted == len(expected)
        assert manifest["causes"] == list(task.causes[: max(status for _, _, status, _ in expected)])
        seen |= {status for _, _, status, _ in expected}
    assert seen == set(range(len(task.causes) + 1))
