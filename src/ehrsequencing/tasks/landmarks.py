"""Tasks asked at ends of visits: onset, death, phenotypes, the next visit, time to an event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, MICROSECONDS_PER_DAY
from ehrsequencing.errors import CohortError
from ehrsequencing.tasks.base import (
    CENSORED_WITHIN,
    MAX_SPACING_DAYS,
    CohortRules,
    Flow,
    Shard,
    Task,
    alive,
    binary_within,
    check_horizon,
    ends_with_death,
    first_after,
    no_death,
    no_matching_code,
    of_age,
)
from ehrsequencing.tasks.phenotypes import Phenotypes
from ehrsequencing.tasks.stays import discharged_dead

NEXT_VISIT_KINDS = ("diagnosis", "drug", "procedure")
CENSORED, EVENT = 0, 1


_NEVER = pl.lit(None, dtype=pl.Datetime("us"))


class LandmarkTask(Task):
    """A task asked at ends of visits or at stated landmarks, under `CohortRules`."""

    @property
    def rules(self) -> CohortRules:
        return CohortRules()

    def examples(self, shard: Shard, rules: CohortRules, flow: Flow) -> pl.DataFrame:
        flow.add("subjects", shard.subjects)
        subjects = self.describe(shard, flow)
        rows = (_landmarks(subjects, rules, flow) if rules.at_days or rules.at_age_years
                else _ends_of_visits(shard, subjects, rules, flow))  # fmt: skip
        if not rules.at_days:
            history = pl.col("first") + pl.duration(days=rules.history_days)
            step = f"at least {rules.history_days} days after the first event"
            rows = flow.keep(step, rows, pl.col("prediction_time") >= history)
        rows = of_age(rows, rules.minimum_age_years, flow)
        # A visit that ends with "died in hospital" knows the outcome, although death may be stamped hours later.
        rows = rows.join(discharged_dead(shard.events), on="subject_id", how="left", maintain_order="left")
        living = alive() & (pl.col("discharged_dead") > pl.col("prediction_time")).fill_null(True)
        rows = self.at_risk(flow.keep("alive", rows, living), shard, flow)
        if rules.at_days or rules.at_age_years:
            return rows
        rows = spaced(rows, rules.spacing_days)
        flow.add(f"at least {rules.spacing_days} days apart", rows)
        return rows

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        """The subjects with what the task knows of each."""
        return shard.subjects

    def at_risk(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        """The rows that the task may ask, looking back only."""
        return rows


def _first_codes(shard: Shard, patterns: tuple[str, ...], name: str) -> pl.DataFrame:
    """Columns `subject_id` and `name`: the first code that matches, of subjects that have one."""
    time = pl.col("time")
    # A code without a date may lie anywhere in the past: the year 1 is before every prediction.
    first = pl.when(time.is_null().any()).then(pl.datetime(1, 1, 1, time_unit="us")).otherwise(time.min())
    return shard.matching(patterns).group_by("subject_id").agg(first.alias(name))


class _FirstCode(LandmarkTask):
    """Adds `onset`, the first matching code; prevalent cases are not asked."""

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        first = _first_codes(shard, self.codes, "onset")
        subjects = shard.subjects.join(first, on="subject_id", how="left", maintain_order="left")
        flow.add("subjects with a matching code", subjects.filter(pl.col("onset").is_not_null()))
        return subjects

    def at_risk(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        free = pl.col("onset").is_null() | (pl.col("onset") > pl.col("prediction_time"))
        return flow.keep("no matching code so far", rows, free)

    def refuse_missing(self, flow: Flow) -> None:
        if not flow.rows("subjects with a matching code"):
            raise no_matching_code(self.name, self.codes, flow)


@dataclass(frozen=True)
class OnsetTask(_FirstCode):
    """Binary: does the first code of a set appear within a horizon after the prediction time?

    Attributes:
        name: The task as written, for example "onset:ICD10CM//I50@365".
        codes: Patterns; "ICD10CM//I50" matches "ICD10CM//I50.9".
        horizon_days: The window is (prediction time, prediction time + horizon_days]; 1 to `MAX_DAYS`.

    Raises:
        ConfigError: the horizon is out of range.
    """

    family: ClassVar[str] = "onset"
    name: str
    codes: tuple[str, ...]
    horizon_days: int

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        return binary_within(rows.with_columns(event_at="onset"), self.horizon_days, flow)


@dataclass(frozen=True)
class MortalityTask(LandmarkTask):
    """Binary: does the subject die within a horizon after the prediction time?

    Raises:
        ConfigError: the horizon is out of range.
    """

    family: ClassVar[str] = "mortality"
    name: str
    horizon_days: int
    codes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        return count_deaths(shard, flow)

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        return binary_within(rows.with_columns(event_at="death"), self.horizon_days, flow)

    def refuse_missing(self, flow: Flow) -> None:
        if not flow.rows("subjects who die"):
            raise no_death(self.name, flow)


@dataclass(frozen=True)
class TimeToTask(_FirstCode):
    """Survival: days from the prediction time to the first code of a set, or to death.

    Whichever of the causes comes first ends a row: `integer_value` 1 is what is asked for, the others follow in the
    order of `causes`. At one instant the lower number counts.

    Attributes:
        name: The task as written.
        codes: Patterns; () asks for death.
        horizon_days: Administrative end of follow-up; None follows every subject to the end of its observation.
        competing: Patterns of codes that compete, all one cause; death competes with codes by itself.
        causes: Their names.

    Raises:
        ConfigError: the horizon is out of range.
    """

    family: ClassVar[str] = "time_to"
    kind: ClassVar[str] = "survival"
    name: str
    codes: tuple[str, ...]
    horizon_days: int | None = None
    competing: tuple[str, ...] = ()
    causes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)
        first = ("event", "death") if self.codes else ("death",)
        object.__setattr__(self, "causes", (*first, *[",".join(self.competing)][: len(self.competing)]))

    @property
    def rules(self) -> CohortRules:
        return CohortRules(spacing_days=MAX_SPACING_DAYS)

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        of_codes = super().describe
        subjects = of_codes(shard, flow) if self.codes else count_deaths(shard, flow).with_columns(onset=_NEVER)
        if not self.competing:
            return subjects.with_columns(other=_NEVER)
        subjects = subjects.join(_first_codes(shard, self.competing, "other"), on="subject_id", how="left")
        flow.add("subjects with a competing code", subjects.filter(pl.col("other").is_not_null()))
        return subjects

    def at_risk(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        rows = super().at_risk(rows, shard, flow) if self.codes else rows
        if not self.competing:
            return rows
        free = pl.col("other").is_null() | (pl.col("other") > pl.col("prediction_time"))
        return flow.keep("no competing code so far", rows, free)

    def details(self) -> dict[str, Any]:
        return {"competing_codes": list(self.competing)} if self.competing else {}

    def refuse_missing(self, flow: Flow) -> None:
        if self.codes:
            super().refuse_missing(flow)
        elif not flow.rows("subjects who die"):
            raise no_death(self.name, flow)
        if self.competing and not flow.rows("subjects with a competing code"):
            raise no_matching_code(f"{self.name} that competes", self.competing, flow)

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        start, death, onset = pl.col("prediction_time"), pl.col("death"), pl.col("onset")
        # A code after death was stamped late (billing): what it names lay before, so death does not compete.
        coded = [pl.min_horizontal(onset, pl.when(onset.is_not_null()).then(death))] if self.codes else []
        times = [*coded, death, *[pl.col("other")] * bool(self.competing)]
        limit = _NEVER if self.horizon_days is None else start + pl.duration(days=self.horizon_days)
        rows = rows.with_columns(limit=limit, **{f"cause{number}": time for number, time in enumerate(times, EVENT)})
        within = {number: pl.when((pl.col(f"cause{number}") <= pl.col("limit")).fill_null(True))
                  .then(pl.col(f"cause{number}")) for number in range(EVENT, EVENT + len(times))}  # fmt: skip
        rows = rows.with_columns(until=pl.min_horizontal(*within.values()))
        first = (pl.when(time == pl.col("until")).then(number) for number, time in within.items())
        rows = rows.with_columns(
            status=pl.coalesce(*first, pl.lit(CENSORED)).cast(pl.Int64),
            until=pl.coalesce("until", pl.min_horizontal("observed_until", "limit")),
        )
        followed = pl.col("until") > start
        flow.add("excluded: no follow-up after the prediction time", rows.filter(~followed))
        rows = rows.filter(followed)
        flow.add("labelled", rows)
        flow.add("event", rows.filter(status_is(EVENT)))
        for status, cause in enumerate(self.causes[1:], EVENT + 1):
            flow.add(f"competing {cause}", rows.filter(status_is(status)))
        flow.add("censored", rows.filter(status_is(CENSORED)))
        days = (pl.col("until") - start).dt.total_microseconds() / MICROSECONDS_PER_DAY
        return rows.select("subject_id", "prediction_time", integer_value="status", float_value=days)


class _MultiLabelTask(LandmarkTask):
    """One row per positive category, `NO_CATEGORY` alone where an example has none."""

    kind: ClassVar[str] = "multilabel"

    def with_empty(self, rows: pl.DataFrame, found: pl.DataFrame, flow: Flow) -> pl.DataFrame:
        """Labels of `rows` from `found` (`subject_id`, `prediction_time`, `category`)."""
        flow.add("labelled", rows)
        key = ["subject_id", "prediction_time"]
        none = rows.select(key).join(found, on=key, how="anti").with_columns(category=pl.lit(NO_CATEGORY))
        return pl.concat([found.select(*key, "category"), none]).rename({"category": "categorical_value"})


@dataclass(frozen=True)
class PhenotypeTask(_MultiLabelTask):
    """Multi-label: which phenotypes are recorded within a horizon after the prediction time, first or again?

    Attributes:
        name: The task as written.
        phenotypes: Names and patterns.
        horizon_days: The window is (prediction time, prediction time + horizon_days]; 1 to `MAX_DAYS`.

    Raises:
        ConfigError: the horizon is out of range.
    """

    family: ClassVar[str] = "phenotype"
    name: str
    phenotypes: Phenotypes
    horizon_days: int
    codes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)
        object.__setattr__(
            self, "codes", tuple(sorted({code for codes in self.phenotypes.codes.values() for code in codes}))
        )

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        flow.add("subjects with a matching code", shard.matching(self.codes).unique("subject_id"))
        return shard.subjects

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        end = pl.col("prediction_time") + pl.duration(days=self.horizon_days)
        died = (pl.col("death") <= end).fill_null(False) & ends_with_death()
        observed = pl.col("observed_until") >= end
        flow.add(CENSORED_WITHIN, rows.filter(~(observed | died)))
        rows = rows.filter(observed | died)
        key = ["subject_id", "prediction_time"]
        dated = shard.matching(self.codes).filter(pl.col("time").is_not_null())
        found = []
        for name, patterns in self.phenotypes.codes.items():
            codes = shard.codes.matching(dated["code"].unique(), patterns).to_frame("code")
            times = dated.join(codes, on="code", how="semi").select("subject_id", "time").unique()
            first = first_after(rows.select(key), times, "at").filter(pl.col("at") <= end)
            found.append(first.select(*key, category=pl.lit(name)))
        flow.add("that died within the window", rows.filter(died))
        return self.with_empty(rows, pl.concat(found), flow)

    def refuse_missing(self, flow: Flow) -> None:
        if not flow.rows("subjects with a matching code"):
            raise CohortError(
                f"no subject has a code of any phenotype of {self.phenotypes.source}", flow=flow.as_list(),
                expected="codes of the systems that the file names",
                remedy="metadata/codes.parquet of the dataset lists its codes",
            )  # fmt: skip

    def details(self) -> dict[str, Any]:
        return {
            "definitions": {name: list(codes) for name, codes in self.phenotypes.codes.items()},
            "phenotypes_file": {"name": self.phenotypes.source, "hash": self.phenotypes.hash},
        }


@dataclass(frozen=True)
class NextVisitTask(_MultiLabelTask):
    """Multi-label: which diagnoses, drugs and procedures does the next visit bring?

    Attributes:
        name: The task as written.
        min_examples: Training examples a code needs to be a category.
    """

    family: ClassVar[str] = "next_visit_codes"
    name: str
    min_examples: int = 10  # type: ignore[misc]
    codes: tuple[str, ...] = ()
    horizon_days: None = None

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        asked = visits(shard.events)
        rows = first_after(rows, asked.select("subject_id", time="start").unique(), "next_start")
        flow.add("excluded: no later visit", rows.filter(pl.col("next_start").is_null()))
        rows = rows.filter(pl.col("next_start").is_not_null())
        visit = ["subject_id", "visit_id", "day"]
        wanted = shard.events.join(shard.codes.of_kinds(NEXT_VISIT_KINDS), on="code", how="semi")
        content = (
            with_day(wanted).join(asked, on=visit, nulls_equal=True).select("subject_id", "start", category="code")
        )
        found = rows.select("subject_id", "prediction_time", start="next_start").join(
            content.unique(), on=["subject_id", "start"]
        )
        return self.with_empty(rows, found, flow)

    def refuse_missing(self, flow: Flow) -> None:
        if not flow.rows("labelled") and flow.rows("excluded: no later visit"):
            raise CohortError(
                f"task {self.name} needs subjects with two visits",
                flow=flow.as_list(),
                remedy="loosen the cohort rules",
            )


def _landmarks(subjects: pl.DataFrame, rules: CohortRules, flow: Flow) -> pl.DataFrame:
    """The subjects at each landmark that lies at or after their first event."""
    landmarks = rules.at_days or rules.at_age_years
    rows = subjects.join(pl.DataFrame({"landmark": landmarks}), how="cross", maintain_order="left_right")
    if rules.at_days:
        at = pl.col("first") + pl.duration(microseconds=(pl.col("landmark") * MICROSECONDS_PER_DAY).cast(pl.Int64))
    else:
        at = pl.col("birth") + pl.duration(days=(pl.col("landmark") * DAYS_PER_YEAR).round().cast(pl.Int64))
    rows = rows.with_columns(prediction_time=at).drop("landmark")
    return flow.keep(rules.asked(""), rows, pl.col("prediction_time") >= pl.col("first")).sort(
        "subject_id", "prediction_time"
    )


def _ends_of_visits(shard: Shard, subjects: pl.DataFrame, rules: CohortRules, flow: Flow) -> pl.DataFrame:
    """The subjects at every end of a visit."""
    found = visits(shard.events)
    if rules.at_kind is not None:
        events = with_day(shard.events).join(shard.codes.of_kinds((rules.at_kind,)), on="code", how="semi")
        found = found.join(events, on=["subject_id", "visit_id", "day"], how="semi", nulls_equal=True)
    ends = found.select("subject_id", prediction_time="end").unique().sort("subject_id", "prediction_time")
    rows = ends.join(subjects, on="subject_id", how="left", maintain_order="left")
    flow.add("ends of visits" + (f" with a {rules.at_kind}" if rules.at_kind else ""), rows)
    return rows


def status_is(status: int) -> pl.Expr:
    """Whether a row has this status."""
    return pl.col("status") == status


def count_deaths(shard: Shard, flow: Flow) -> pl.DataFrame:
    """The subjects; those with a dated death are counted."""
    flow.add("subjects who die", shard.subjects.filter(pl.col("death").is_not_null()))
    return shard.subjects


def with_day(events: pl.DataFrame) -> pl.DataFrame:
    """Dated events other than birth and death with `day`, which tells visits without a `visit_id` apart."""
    day = pl.when(pl.col("visit_id").is_null()).then(pl.col("time").dt.truncate("1d"))
    dated = pl.col("time").is_not_null() & ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE])
    return events.filter(dated).with_columns(day=day)


def visits(events: pl.DataFrame) -> pl.DataFrame:
    """Columns subject_id, visit_id, day, start, end: visits by `visit_id`, events without one by calendar day."""
    time = pl.col("time")
    return with_day(events).group_by("subject_id", "visit_id", "day").agg(start=time.min(), end=time.max())


def spaced(rows: pl.DataFrame, spacing_days: int) -> pl.DataFrame:
    """Earliest row of each subject, then each next one at least `spacing_days` after the last taken.

    `rows` ascend by subject and time. One sort finds, for every row, the row that would follow it if it were taken;
    then all subjects walk their chains together, one step per prediction of the busiest subject.
    """
    subject = rows["subject_id"].to_numpy()
    time = rows["prediction_time"].dt.timestamp("us").to_numpy()
    n = len(rows)
    due = np.concatenate([time, time + spacing_days * MICROSECONDS_PER_DAY])
    is_due = np.repeat([False, True], n)
    # A due time sorts before a row at the same instant, so the rows before it are those too early to follow.
    order = np.lexsort((~is_due, due, np.tile(subject, 2)))
    rows_before = np.cumsum(~is_due[order])
    following = np.empty(n, dtype=np.int64)
    following[order[is_due[order]] - n] = rows_before[is_due[order]]
    taken = np.zeros(n, dtype=bool)
    current = np.flatnonzero(np.r_[True, subject[1:] != subject[:-1]][:n])
    while len(current):
        taken[current] = True
        ahead = following[current]
        same = ahead < n
        same[same] = subject[ahead[same]] == subject[current[same]]
        current = ahead[same]
    return rows.filter(pl.Series(taken, dtype=pl.Boolean))
