"""The table of tasks, and what a task's name means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from ehrsequencing.errors import ConfigError
from ehrsequencing.tasks.base import Task
from ehrsequencing.tasks.landmarks import MortalityTask, NextVisitTask, OnsetTask, PhenotypeTask, TimeToTask
from ehrsequencing.tasks.phenotypes import read_phenotypes
from ehrsequencing.tasks.stay_tasks import InpatientMortalityTask, LengthOfStayTask, ReadmissionTask


@dataclass(frozen=True)
class TaskFamily:
    """One row of the task table, as `ehrseq task list`, docs/tasks.md and the manifests show it.

    Attributes:
        family: Of the tasks' classes.
        pattern: How a task is written.
        named: Tasks with a name of their own, or written out.
        kind: "binary", "multilabel" or "survival".
        asked: Cohort and prediction time.
        label: Label and window.
        excluded: Who is not asked.
        follow_up: Censoring.
        death: What death does.
    """

    family: str
    pattern: str
    named: tuple[str, ...]
    kind: str
    asked: str
    label: str
    excluded: str
    follow_up: str
    death: str


_LANDMARK = "ends of visits, history_days (365) after the first event, spacing_days (365) apart"
_STAY = "minimum_age_years; stays whose end is unknown"
_WINDOW = "observed to the end of the window, else left out"
_OR_DEAD = "observed to the end of the window or to a death in it, else left out"
_UNLESS_SEEN = f"{_OR_DEAD}; without a stated end of observation positives stay"
TASK_FAMILIES = (
    TaskFamily(
        "onset", "onset:CODE[,CODE]@DAYS",
        ("heart_failure_1y", "type_2_diabetes_1y", "chronic_kidney_disease_1y",
         "vertigo_1y", "angioedema_1y", "lupus_flare_1y"),
        "binary", _LANDMARK,
        "the first matching code lies in (t, t + DAYS], whatever follows",
        "minimum_age_years; dead; prevalent cases: a matching code at or before t, or without a date",
        _UNLESS_SEEN,
        "death within the window without onset is negative (counted)",
    ),
    TaskFamily(
        "mortality", "mortality_{D}d", ("mortality_30d", "mortality_365d"),
        "binary", _LANDMARK,
        "death lies in (t, t + D days]",
        "minimum_age_years; dead",
        f"survivors are {_WINDOW}",
        "is the event",
    ),
    TaskFamily(
        "mortality_inpatient", "mortality_inpatient", ("mortality_inpatient",),
        "binary", "every hospital stay, hours_after_admission (24) after admission",
        "death in the stay after t: a discharge code says died, or death lies on a day up to the discharge's",
        f"{_STAY}; stays that end, and subjects who die, by t",
        "none: the stay's end is known",
        "is the event",
    ),
    TaskFamily(
        "los_over", "los_over_{D}d", ("los_over_3d", "los_over_7d"),
        "binary", "every hospital stay, hours_after_admission (24) after admission",
        "the stay lasts longer than D days from admission",
        f"{_STAY}; stays that end, and subjects who die, by t",
        "none: the stay's end is known",
        "ends the stay; negative where that is within D days (counted)",
    ),
    TaskFamily(
        "readmission", "readmission_{D}d", ("readmission_7d", "readmission_30d", "readmission_90d"),
        "binary", "every hospital stay, at discharge",
        "a new stay begins in (t, t + D days], planned or not; transfers are no new stay",
        f"{_STAY}; stays ended by death",
        _UNLESS_SEEN,
        "death within the window without readmission is negative (counted)",
    ),
    TaskFamily(
        "next_visit_codes", "next_visit_codes", ("next_visit_codes",),
        "multilabel", _LANDMARK,
        "diagnoses, drugs and procedures of the next visit that begins after t, however late; categories are codes "
        "positive in 10 training examples or more",
        "minimum_age_years; dead",
        "examples without a later visit are left out",
        "death before a later visit leaves the example out",
    ),
    TaskFamily(
        "phenotype", "phenotype:FILE[@DAYS]", ("phenotype:common",),
        "multilabel", _LANDMARK,
        "phenotypes with a matching code in (t, t + DAYS], recorded for the first time or again; DAYS is the file's "
        "(365) unless written",
        "minimum_age_years; dead",
        _OR_DEAD,
        "an example that dies within the window keeps what was recorded until then (counted)",
    ),
    TaskFamily(
        "time_to", "time_to:CODE[,CODE][@DAYS] or time_to:death[@DAYS]", ("time_to:death",),
        "survival", "ends of visits, history_days (365) after the first event, one per subject (spacing_days 73000)",
        "days from t to the first matching code or death; integer_value 1 event, 0 censored, 2 competing death (of a "
        "code); codes written after a bar compete as well, as the last number",
        "minimum_age_years; dead; prevalent cases of either; no follow-up after t",
        "censored at the end of observation, or DAYS after t where written",
        "competes with a code (2); a code stamped after death counts as an event at death",
    ),
)  # fmt: skip
SHARED_RULES = (
    "Input: every event with time <= t, the prediction time.",
    "Visits follow visit_id; events without one form a visit per calendar day.",
    "Events of one day that carry its midnight (dates without time of day) are known at a prediction on that day, "
    "at its end; a window begins the next day.",
    "A subject is observed until the last event, death included, or metadata/observation.parquet's observation_end, "
    "whichever is later. A window that reaches beyond that is censored; the absence of an event says nothing. "
    "Where follow-up ends at a stated observation_end, censored rows are left out whatever their label; where it ends "
    "with an event, positives stay. A subject whose observation ends with a death in the window is known to its end.",
    "Alive at t: neither death nor a discharge code of a death in hospital at or before t. Of age; "
    "subjects of unknown age are left out unless minimum_age_years (18) is 0.",
)
_TYPE_2 = ("ICD10CM//E11", *(f"ICD9CM//250.{complication}{kind}" for kind in "02" for complication in range(10)))
NAMED_TASKS = {
    "heart_failure_1y": "onset:ICD10CM//I50,ICD9CM//428@365",
    "type_2_diabetes_1y": "onset:ICD10CM//E11,"
    + ",".join(f"ICD9CM//250.{n}{of}" for of in "02" for n in range(10))
    + "@365",
    "chronic_kidney_disease_1y": "onset:ICD10CM//N18,ICD9CM//585@365",
    "vertigo_1y": "onset:ICD10CM//H81,ICD9CM//386@365",
    "angioedema_1y": "onset:ICD10CM//T78.3,ICD9CM//995.1@365",
    "lupus_flare_1y": "onset:ICD10CM//M32,ICD9CM//710.0@365",
}
"""Names for common onset tasks, in both versions of ICD: a code of the older one is a prevalent case."""


def family_of(task: Task) -> TaskFamily:
    """The row of the table that a task belongs to."""
    return next(row for row in TASK_FAMILIES if row.family == task.family)


def _days(text: str) -> int:
    # Python refuses to read numbers of thousands of digits; the first ten show that it is too large.
    return int(text[:10])


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(code.strip() for code in text.split(","))


def _onset(name: str, found: re.Match[str]) -> Task:
    return OnsetTask(name, _patterns(found["codes"]), _days(found["days"]))


def _time_to(name: str, found: re.Match[str]) -> Task:
    codes = _patterns(found["codes"])
    competing = _patterns(found["competing"]) if found["competing"] else ()
    if both := sorted({"death", *codes}.intersection(competing)):
        raise ConfigError(
            "a time_to task has a cause twice", got=", ".join(both), expected="codes of another event after the bar",
            remedy="death competes with codes by itself",
        )  # fmt: skip
    if codes == ("death",):
        codes = ()
    elif "death" in codes:
        raise ConfigError(
            "death stands alone in a time_to task", got=name[:200], expected="time_to:death, or codes",
            remedy="death competes with codes by itself",
        )  # fmt: skip
    return TimeToTask(name, codes, _days(found["days"]) if found["days"] else None, competing)


def _phenotype(name: str, found: re.Match[str]) -> Task:
    phenotypes = read_phenotypes(found["file"])
    return PhenotypeTask(name, phenotypes, _days(found["days"]) if found["days"] else phenotypes.horizon_days)


_DAYS = r"(?P<days>0|-?[1-9][0-9]*)"
_CODES = r"(?P<codes>(?:[^@,|]*[^@,|\s][^@,|]*)(?:,[^@,|]*[^@,|\s][^@,|]*)*)"
_READERS: tuple[tuple[str, Callable[[str, re.Match[str]], Task]], ...] = (
    (f"onset:{_CODES}@{_DAYS}", _onset),
    (f"time_to:{_CODES}(?:\\|{_CODES.replace('codes', 'competing')})?(?:@{_DAYS})?", _time_to),
    (f"phenotype:(?P<file>.+?)(?:@{_DAYS})?", _phenotype),
    (f"mortality_{_DAYS}d", lambda name, found: MortalityTask(name, _days(found["days"]))),
    (f"readmission_{_DAYS}d", lambda name, found: ReadmissionTask(name, _days(found["days"]))),
    (f"los_over_{_DAYS}d", lambda name, found: LengthOfStayTask(name, _days(found["days"]))),
    ("mortality_inpatient", lambda name, found: InpatientMortalityTask(name)),
    ("next_visit_codes", lambda name, found: NextVisitTask(name)),
)


def parse_task(name: str) -> Task:
    """Read a task's name as `TASK_FAMILIES` lists them, or one of `NAMED_TASKS`.

    Raises:
        ConfigError: none of them, a number of days outside 1 to `MAX_DAYS`, death among codes, or a set of phenotypes
            that cannot be read.

    >>> parse_task("onset:ICD10CM//I50,ICD10CM//I11.0@365")
    OnsetTask(name='onset:ICD10CM//I50,ICD10CM//I11.0@365', codes=('ICD10CM//I50', 'ICD10CM//I11.0'), horizon_days=365)
    >>> parse_task("readmission_30d").horizon_days
    30
    """
    written = NAMED_TASKS.get(name, name)
    for pattern, read in _READERS:
        if found := re.fullmatch(pattern, written):
            return read(name, found)
    names = [*NAMED_TASKS, *(one for row in TASK_FAMILIES for one in (*row.named, row.pattern))]
    near = list(dict.fromkeys(difflib.get_close_matches(name[:200], names, n=3)))
    raise ConfigError(
        "unknown task", got=name[:200],
        expected=", ".join(near) if near else "a name or pattern of `ehrseq task list`",
        remedy="see `ehrseq task list`; for example onset:ICD10CM//I50@365",
    )  # fmt: skip
