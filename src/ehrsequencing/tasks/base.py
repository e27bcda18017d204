"""What every task shares: the rules of a cohort, the counts of its flow, and what is known of each subject."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, KINDS, MICROSECONDS_PER_DAY
from ehrsequencing.errors import CohortError, ConfigError
from ehrsequencing.tasks.codes import CodeTable

MAX_DAYS = 36_500
"""Horizon and history are at most a century; longer ones would leave the range of dates."""
MAX_SPACING_DAYS = 73_000
"""Two centuries, so that it means one prediction per subject: simulated people live longer than one."""
MAX_MINIMUM_AGE = 150.0
MAX_HOURS = 24 * 365
CENSORED_WITHIN = "excluded: censored within the window"
"""Step of the flow."""


def _refuse(rules: object, fits: bool, expected: str) -> None:
    if not fits:
        raise ConfigError("cohort rules are out of range", got=asdict(rules), expected=expected)  # type: ignore[call-overload]


def _is_age(years: float) -> bool:
    return 0 <= years <= MAX_MINIMUM_AGE


@dataclass(frozen=True)
class CohortRules:
    """Who is asked, and how often: at ends of visits, or at stated landmarks.

    Attributes:
        history_days: The first prediction lies at least this long after the subject's first dated event.
        spacing_days: At least this long between two predictions of a subject; landmarks space themselves.
        minimum_age_years: Age at prediction; above 0 it leaves out subjects of unknown age.
        at_days: Landmarks this long after the subject's first dated event; `history_days` has then no effect.
        at_age_years: Landmarks at which the subject reaches these ages (to the day).
        at_kind: Of ends of visits those of a visit that holds an event of this kind.

    Raises:
        ConfigError: history outside 0 to `MAX_DAYS`, spacing outside 1 to `MAX_SPACING_DAYS`, or age
            outside 0 to `MAX_MINIMUM_AGE`; landmarks that do not rise or lie outside the same bounds; an unknown kind;
            more than one of `at_days`, `at_age_years` and `at_kind`.
    """

    history_days: int = 365
    spacing_days: int = 365
    minimum_age_years: float = 18.0
    at_days: tuple[float, ...] = ()
    at_age_years: tuple[float, ...] = ()
    at_kind: str | None = None

    def __post_init__(self) -> None:
        _refuse(
            self,
            0 <= self.history_days <= MAX_DAYS
            and 1 <= self.spacing_days <= MAX_SPACING_DAYS
            and _is_age(self.minimum_age_years),
            f"history_days 0 to {MAX_DAYS}, spacing_days 1 to {MAX_SPACING_DAYS}, "
            f"minimum_age_years 0 to {MAX_MINIMUM_AGE:g}",
        )
        given = [name for name in ("at_days", "at_age_years", "at_kind") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError("a cohort has one kind of landmark", got=" and ".join(given), expected="one of them")
        for name, most in (("at_days", MAX_DAYS), ("at_age_years", MAX_MINIMUM_AGE)):
            at = getattr(self, name)
            if (
                not all(low < high for low, high in zip((0.0, *at), (*at, math.inf), strict=True))
                or max(at, default=0) > most
            ):
                raise ConfigError(
                    f"{name} is out of range", got=", ".join(f"{value:g}" for value in at),
                    expected=f"rising, above 0 and up to {most:g}",
                )  # fmt: skip
        if self.at_kind is not None and self.at_kind not in KINDS:
            raise ConfigError("at_kind is no kind of event", got=self.at_kind, expected=", ".join(KINDS))

    def idle(self) -> set[str]:
        """Rules that have no effect at landmarks."""
        return {"spacing_days", "history_days"} if self.at_days else {"spacing_days"} if self.at_age_years else set()

    def stated(self) -> dict[str, Any]:
        """The rules that have an effect, for a manifest."""
        empty = {name for name in ("at_days", "at_age_years", "at_kind") if not getattr(self, name)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in empty | self.idle()
        }

    def asked(self, otherwise: str) -> str:
        """When a subject is asked, in words; `otherwise` without landmarks."""
        if self.at_days:
            return f"{', '.join(f'{days:g}' for days in self.at_days)} days after the first event"
        if self.at_age_years:
            return f"on reaching the age of {', '.join(f'{age:g}' for age in self.at_age_years)} years"
        return otherwise if self.at_kind is None else f"{otherwise}; only visits with an event of kind {self.at_kind}"


@dataclass(frozen=True)
class DischargeRules:
    """Who is asked at the end of a hospital stay; every stay counts.

    Attributes:
        minimum_age_years: Age at prediction; above 0 it leaves out subjects of unknown age.

    Raises:
        ConfigError: age outside 0 to `MAX_MINIMUM_AGE`.
    """

    minimum_age_years: float = 18.0

    def __post_init__(self) -> None:
        _refuse(self, _is_age(self.minimum_age_years), f"minimum_age_years 0 to {MAX_MINIMUM_AGE:g}")


@dataclass(frozen=True)
class AdmissionRules:
    """Who is asked within a hospital stay; every stay counts.

    Attributes:
        hours_after_admission: The prediction time; stays that end by then are left out.
        minimum_age_years: Age at prediction; above 0 it leaves out subjects of unknown age.

    Raises:
        ConfigError: hours outside 0 to `MAX_HOURS`, or age outside 0 to `MAX_MINIMUM_AGE`.
    """

    hours_after_admission: int = 24
    minimum_age_years: float = 18.0

    def __post_init__(self) -> None:
        _refuse(
            self,
            0 <= self.hours_after_admission <= MAX_HOURS and _is_age(self.minimum_age_years),
            f"hours_after_admission 0 to {MAX_HOURS}, minimum_age_years 0 to {MAX_MINIMUM_AGE:g}",
        )


Rules = CohortRules | DischargeRules | AdmissionRules


class Flow:
    """Rows and subjects after each step, summed over shards in the order the steps first came."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, int]] = {}

    def add(self, step: str, rows: pl.DataFrame) -> None:
        counts = self.steps.setdefault(step, {"rows": 0, "subjects": 0})
        counts["rows"] += len(rows)
        counts["subjects"] += rows["subject_id"].n_unique()

    def keep(self, step: str, rows: pl.DataFrame, condition: pl.Expr) -> pl.DataFrame:
        """The rows where `condition` holds, counted; null means no."""
        rows = rows.filter(condition)
        self.add(step, rows)
        return rows

    def rows(self, step: str) -> int:
        """Rows of a step, 0 where it never came."""
        return self.steps.get(step, {}).get("rows", 0)

    def as_list(self) -> list[dict[str, Any]]:
        return [{"step": step, **counts} for step, counts in self.steps.items()]


@dataclass(frozen=True)
class Shard:
    """The events of some subjects, and what follows from them.

    Attributes:
        events: Columns subject_id, time, code, visit_id.
        subjects: One row per subject: `birth`, `first` (dated event other than birth), `death`, `observed_until` (the
            last event, death included, or the dataset's `observation_end` where that is later), `end_stated` (whether
            it is the dataset's).
        codes: The dataset's codes and their ancestors.
        matched: Filled with the codes that the task's patterns matched.
    """

    events: pl.DataFrame
    subjects: pl.DataFrame
    codes: CodeTable
    matched: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, events: pl.DataFrame, ends: pl.DataFrame | None, codes: CodeTable, matched: set[str]) -> Shard:
        """From events and the frame of `MedsDataset.observation_end`."""
        code, time = pl.col("code"), pl.col("time")
        dated = time.filter(code != BIRTH_CODE)
        subjects = events.group_by("subject_id", maintain_order=True).agg(
            birth=time.filter(code == BIRTH_CODE).min(),
            first=dated.min(),
            death=time.filter(code == DEATH_CODE).min(),
            observed_until=dated.max(),
        )
        if ends is None:
            return cls(events, subjects.with_columns(end_stated=pl.lit(False)), codes, matched)
        stated, last = pl.col("observation_end"), pl.col("observed_until")
        subjects = subjects.join(ends, on="subject_id", how="left", maintain_order="left").with_columns(
            observed_until=pl.max_horizontal(stated, last), end_stated=(stated >= last).fill_null(False)
        )
        return cls(events, subjects, codes, matched)

    def matching(self, patterns: tuple[str, ...]) -> pl.DataFrame:
        """Events whose code, or an ancestor of it, matches a pattern."""
        codes = self.codes.matching(self.events["code"].unique(), patterns)
        self.matched.update(codes)
        return self.events.join(pl.DataFrame({"code": codes}), on="code", how="semi")


class Task(ABC):
    """A question with an answer for every example: who is asked when, and what happens next.

    Attributes:
        name: As written, for example "onset:ICD10CM//I50@365".
        codes: Patterns of the codes asked for; () where the task names none.
        horizon_days: Length of the label window; None where something else ends it.
        family: Row of the task table.
        kind: "binary", "multilabel" or "survival".
    """

    name: str
    codes: tuple[str, ...]
    horizon_days: int | None
    family: ClassVar[str]
    kind: ClassVar[str] = "binary"
    min_examples: ClassVar[int] = 1
    """Training examples that a category needs to be asked for at all (multilabel)."""
    causes: tuple[str, ...] = ()
    """What `integer_value` 1, 2 and so on stand for (survival)."""

    @property
    @abstractmethod
    def rules(self) -> Rules:
        """The cohort rules where none are given; their class is the one this task takes."""

    @abstractmethod
    def examples(self, shard: Shard, rules: Any, flow: Flow) -> pl.DataFrame:
        """Rows to label: `subject_id`, `prediction_time`, the subject's columns and what `outcomes` needs."""

    @abstractmethod
    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        """Labels: `subject_id`, `prediction_time` and the value columns of the kind, several rows where multilabel."""

    @abstractmethod
    def refuse_missing(self, flow: Flow) -> None:
        """Raise LabelError where the dataset lacks what the task is about."""

    def details(self) -> dict[str, Any]:
        """Further entries of the manifest."""
        return {}


def check_horizon(name: str, days: int | None) -> None:
    """Raise ConfigError where a horizon is out of range."""
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"the horizon of task {name[:80]} is out of range", expected=f"1 to {MAX_DAYS} days")


def of_age(rows: pl.DataFrame, years: float, flow: Flow) -> pl.DataFrame:
    """Rows of subjects old enough at the prediction time; unknown ages pass only where no age is asked for."""
    if years <= 0:
        return rows
    lived = (pl.col("prediction_time") - pl.col("birth")).dt.total_microseconds()
    return flow.keep(f"aged {years:g} or older", rows, lived / (MICROSECONDS_PER_DAY * DAYS_PER_YEAR) >= years)


def alive() -> pl.Expr:
    """Whether the subject lives beyond the prediction time."""
    return pl.col("death").is_null() | (pl.col("death") > pl.col("prediction_time"))


def first_after(rows: pl.DataFrame, times: pl.DataFrame, name: str) -> pl.DataFrame:
    """Add to `rows` the earliest of the subject's `times` strictly after the prediction time, or null.

    Args:
        rows: Columns `subject_id`, `prediction_time` and any others.
        times: Columns `subject_id`, `time`.
        name: The column to add.

    >>> from datetime import datetime as d
    >>> rows = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [d(2020, 1, 1), d(2020, 1, 3)]})
    >>> times = pl.DataFrame({"subject_id": [1, 1], "time": [d(2020, 1, 1), d(2020, 1, 2)]})
    >>> first_after(rows, times, "next")["next"].to_list()
    [datetime.datetime(2020, 1, 2, 0, 0), None]
    """
    asked = rows.with_row_index("_row").select("_row", "subject_id", at="prediction_time")
    both = pl.concat([times.select("subject_id", at="time", then="time"), asked], how="diagonal")
    # At one instant the times come first, so that filling backward from a row reaches later ones only.
    found = (
        both.sort("subject_id", "at", "_row", nulls_last=False)
        .with_columns(pl.col("then").backward_fill().over("subject_id"))
        .filter(pl.col("_row").is_not_null())
        .sort("_row")
    )
    return rows.with_columns(found["then"].alias(name))


def binary_within(rows: pl.DataFrame, horizon_days: int, flow: Flow) -> pl.DataFrame:
    """Binary labels of `event_at` within (t, t + horizon]; censored rows are left out and counted.

    A window that passes a stated end of observation is left out whatever the label and whoever died before that end,
    or the rows at the end would be chosen by their outcome. Where follow-up ends with the last event, the outcome
    itself prolongs it, so that leaving out its positives would choose by outcome, too: they stay. So does a subject
    whose observation ends with death.

    Args:
        rows: Also columns `event_at` (null where it never comes), `death`, `observed_until`, `end_stated`.
        horizon_days: Length of the window.
        flow: Counts censored, labelled, positive, negative and dead rows.
    """
    end = pl.col("prediction_time") + pl.duration(days=horizon_days)
    rows = rows.with_columns(
        boolean_value=(pl.col("event_at") <= end).fill_null(False),
        died_within=(pl.col("death") <= end).fill_null(False),
        observed=pl.col("observed_until") >= end,
    )
    positive, died = pl.col("boolean_value"), pl.col("died_within")
    known = pl.col("observed") | (died & ends_with_death()) | (positive & ~pl.col("end_stated"))
    flow.add(CENSORED_WITHIN, rows.filter(~known))
    flow.add("of them with the event before the stated end of observation", rows.filter(~known & positive))
    rows = rows.filter(known)
    count_binary(rows, flow)
    flow.add("negative that died within the window", rows.filter(~positive & died))
    return rows.select("subject_id", "prediction_time", "boolean_value")


def ends_with_death() -> pl.Expr:
    """Whether death ends a subject's observation; a stated end after the death cuts the dead as it cuts the living."""
    return ~(pl.col("end_stated") & (pl.col("death") < pl.col("observed_until")).fill_null(False))


def count_binary(rows: pl.DataFrame, flow: Flow) -> None:
    """Count labelled, positive and negative rows."""
    flow.add("labelled", rows)
    flow.add("positive", rows.filter("boolean_value"))
    flow.add("negative", rows.filter(~pl.col("boolean_value")))


def no_matching_code(name: str, codes: tuple[str, ...], flow: Flow) -> CohortError:
    """The error of a task whose codes nobody has."""
    return CohortError(
        f"no subject has a code of task {name}", flow=flow.as_list(),
        expected=f"codes that start with {', '.join(codes)}",
        remedy="metadata/codes.parquet of the dataset lists its codes" if all("//" in code for code in codes)
        else f"codes begin with their system, for example ICD10CM//{codes[0]}",
    )  # fmt: skip


def no_death(name: str, flow: Flow) -> CohortError:
    """The error of a task about death in a dataset without any."""
    return CohortError(
        f"task {name} needs deaths, and the dataset records none", flow=flow.as_list(),
        expected=f"events of code {DEATH_CODE}", remedy="use a dataset with deaths",
    )  # fmt: skip
