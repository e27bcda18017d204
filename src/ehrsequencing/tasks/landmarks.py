"""Tasks asked at ends of visits: onset, death, phenotypes, the next visit, time to an event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ehrsequencing.data.labels import NO_CATEGORY
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, MICROSECONDS_PER_DAY
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
CENSORED, EVENT, COMPETING = 0, 1, 2


class LandmarkTask(Task):
    """A task asked at ends of visits, under `CohortRules`."""

    @property
    def rules(self) -> CohortRules:
        return CohortRules()

    def examples(self, shard: Shard, rules: CohortRules, flow: Flow) -> pl.DataFrame:
        flow.add("subjects", shard.subjects)
        subjects = self.describe(shard, flow)
        ends = visits(shard.events).select("subject_id", prediction_time="end").unique()
        rows = ends.sort("subject_id", "prediction_time").join(
            subjects, on="subject_id", how="left", maintain_order="left"
        )
        flow.add("ends of visits", rows)
        history = pl.col("first") + pl.duration(days=rules.history_days)
        step = f"at least {rules.history_days} days after the first event"
        rows = flow.keep(step, rows, pl.col("prediction_time") >= history)
        rows = of_age(rows, rules.minimum_age_years, flow)
        # A visit that ends with "died in hospital" knows the outcome, although death may be stamped hours later.
        rows = rows.join(discharged_dead(shard.events), on="subject_id", how="left", maintain_order="left")
        living = alive() & (pl.col("discharged_dead") > pl.col("prediction_time")).fill_null(True)
        rows = self.at_risk(flow.keep("alive", rows, living), shard, flow)
        rows = spaced(rows, rules.spacing_days)
        flow.add(f"at least {rules.spacing_days} days apart", rows)
        return rows

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        """The subjects with what the task knows of each."""
        return shard.subjects

    def at_risk(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        """The rows that the task may ask, looking back only."""
        return rows


class _FirstCode(LandmarkTask):
    """Adds `onset`, the first matching code; prevalent cases are not asked."""

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        time = pl.col("time")
        # A code without a date may lie anywhere in the past: the year 1 is before every prediction.
        onset = pl.when(time.is_null().any()).then(pl.datetime(1, 1, 1, time_unit="us")).otherwise(time.min())
        first = shard.matching(self.codes).group_by("subject_id").agg(onset=onset)
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

    Attributes:
        name: The task as written.
        codes: Patterns; () asks for death.
        horizon_days: Administrative end of follow-up; None follows every subject to the end of its observation.

    Raises:
        ConfigError: the horizon is out of range.
    """

    family: ClassVar[str] = "time_to"
    kind: ClassVar[str] = "survival"
    name: str
    codes: tuple[str, ...]
    horizon_days: int | None = None

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)

    @property
    def rules(self) -> CohortRules:
        return CohortRules(spacing_days=MAX_SPACING_DAYS)

    def describe(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        if self.codes:
            return super().describe(shard, flow)
        return count_deaths(shard, flow).with_columns(onset=pl.lit(None, dtype=pl.Datetime("us")))

    def at_risk(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        return super().at_risk(rows, shard, flow) if self.codes else rows

    def refuse_missing(self, flow: Flow) -> None:
        if self.codes:
            super().refuse_missing(flow)
        elif not flow.rows("subjects who die"):
            raise no_death(self.name, flow)

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        start, death = pl.col("prediction_time"), pl.col("death")
        if self.codes:
            # A code after death was stamped late (billing): what it names lay before, so death does not compete.
            event_at, competing_at = (
                pl.min_horizontal("onset", pl.when(pl.col("onset").is_not_null()).then(death)),
                death,
            )
        else:
            event_at, competing_at = death, pl.lit(None, dtype=pl.Datetime("us"))
        limit = pl.lit(None, dtype=pl.Datetime("us"))
        if self.horizon_days is not None:
            limit = start + pl.duration(days=self.horizon_days)
        rows = rows.with_columns(event_at=event_at, competing_at=competing_at, limit=limit)
        within = {name: pl.col(name).is_not_null() & ~(pl.col(name) > pl.col("limit")).fill_null(False)
                  for name in ("event_at", "competing_at")}  # fmt: skip
        rows = rows.with_columns(
            status=pl.when(within["event_at"]).then(EVENT).when(within["competing_at"]).then(COMPETING)
            .otherwise(CENSORED).cast(pl.Int64)
        )  # fmt: skip
        until = pl.when(status_is(EVENT)).then("event_at").when(status_is(COMPETING)).then("competing_at")
        rows = rows.with_columns(until=until.otherwise(pl.min_horizontal("observed_until", "limit")))
        followed = pl.col("until") > start
        flow.add("excluded: no follow-up after the prediction time", rows.filter(~followed))
        rows = rows.filter(followed)
        flow.add("labelled", rows)
        for status, step in ((EVENT, "event"), (COMPETING, "competing death"), (CENSORED, "censored")):
            flow.add(step, rows.filter(status_is(status)))
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
