"""Tasks about hospital stays: readmission, death in hospital, length of stay."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from ehrsequencing.errors import CohortError, ConfigError, LabelError
from ehrsequencing.tasks.base import (
    AdmissionRules,
    DischargeRules,
    Flow,
    Shard,
    Task,
    alive,
    binary_within,
    check_horizon,
    count_binary,
    of_age,
)
from ehrsequencing.tasks.stays import STAY_CODES, TRANSFER_HOURS, find_stays

FOUND = f"hospital stays (transfers within {TRANSFER_HOURS} hours or on one day joined)"


class StayTask(Task):
    """A task asked once per hospital stay."""

    def stays(self, shard: Shard, flow: Flow) -> pl.DataFrame:
        """The stays whose end is known, with their subjects' columns."""
        flow.add("subjects", shard.subjects)
        stays = find_stays(shard.events, shard.subjects)
        flow.add(FOUND, stays)
        flow.add("of them joined from several admissions", stays.filter(pl.col("admissions") > 1))
        flow.add("of them without a discharge code, ended by death", stays.filter("closed_by_death"))
        self.refuse_undated(stays)
        return flow.keep("with a known end", stays, pl.col("discharge").is_not_null()).join(
            shard.subjects.drop("death"), on="subject_id", how="left", maintain_order="left"
        )

    def refuse_undated(self, stays: pl.DataFrame) -> None:
        """Raise LabelError where the task needs the time between stays and the source made it up."""

    def refuse_missing(self, flow: Flow) -> None:
        if not flow.rows(FOUND):
            codes = ", ".join(code for row in STAY_CODES for code in row.admission)
            raise CohortError(
                f"task {self.name} needs hospital stays, and the dataset has none", flow=flow.as_list(),
                expected=f"admission codes {codes} with discharge codes",
                remedy="docs/tasks.md lists the codes of admission and discharge",
            )  # fmt: skip


@dataclass(frozen=True)
class ReadmissionTask(StayTask):
    """Binary: does a new hospital stay begin within a horizon after a discharge?

    Raises:
        ConfigError: the horizon is out of range.
    """

    family: ClassVar[str] = "readmission"
    name: str
    horizon_days: int
    codes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)

    @property
    def rules(self) -> DischargeRules:
        return DischargeRules()

    def refuse_undated(self, stays: pl.DataFrame) -> None:
        if not stays["gaps_known"].all():
            raise LabelError(
                f"task {self.name} needs the time between stays, which this source does not know",
                got="stays whose dates only tell their order",
                remedy="use the labels that came with the dataset (labels/readmission_30d.parquet)",
            )

    def examples(self, shard: Shard, rules: DischargeRules, flow: Flow) -> pl.DataFrame:
        rows = self.stays(shard, flow).with_columns(prediction_time="discharge")
        rows = flow.keep("not ended by death", rows, ~pl.col("died") & alive())
        return of_age(rows, rules.minimum_age_years, flow)

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        # Whoever is dead is not admitted: such rows exist where organs are donated.
        lives = pl.col("death").is_null() | (pl.col("next_admission").dt.date() <= pl.col("death").dt.date())
        return binary_within(rows.with_columns(event_at=pl.when(lives).then("next_admission")), self.horizon_days, flow)


class _InHospitalTask(StayTask):
    """A task asked some hours after admission, about the rest of the stay."""

    codes: tuple[str, ...] = ()

    @property
    def rules(self) -> AdmissionRules:
        return AdmissionRules()

    def examples(self, shard: Shard, rules: AdmissionRules, flow: Flow) -> pl.DataFrame:
        hours = rules.hours_after_admission
        self.refuse_early(hours)
        death = pl.when(pl.col("death") >= pl.col("admission")).then("death")
        rows = self.stays(shard, flow).with_columns(
            prediction_time=pl.col("admission") + pl.duration(hours=hours), end=pl.min_horizontal("discharge", death)
        )
        rows = flow.keep(f"longer than {hours} hours", rows, pl.col("end") > pl.col("prediction_time"))
        return of_age(flow.keep("alive", rows, alive()), rules.minimum_age_years, flow)

    def refuse_early(self, hours: int) -> None:
        """Raise ConfigError where the answer is known at the prediction time."""

    def outcomes(self, rows: pl.DataFrame, shard: Shard, flow: Flow) -> pl.DataFrame:
        rows = rows.with_columns(boolean_value=self.positive())
        count_binary(rows, flow)
        flow.add("negative that died in the stay", rows.filter(~pl.col("boolean_value") & pl.col("died")))
        return rows.select("subject_id", "prediction_time", "boolean_value")

    @abstractmethod
    def positive(self) -> pl.Expr:
        """The label."""


@dataclass(frozen=True)
class InpatientMortalityTask(_InHospitalTask):
    """Binary: does the subject die in the stay?"""

    family: ClassVar[str] = "mortality_inpatient"
    name: str
    horizon_days: None = None

    def positive(self) -> pl.Expr:
        return pl.col("died")


@dataclass(frozen=True)
class LengthOfStayTask(_InHospitalTask):
    """Binary: does the stay last longer than `horizon_days` days from admission?

    Raises:
        ConfigError: the number of days is out of range.
    """

    family: ClassVar[str] = "los_over"
    name: str
    horizon_days: int

    def __post_init__(self) -> None:
        check_horizon(self.name, self.horizon_days)

    def refuse_early(self, hours: int) -> None:
        if hours >= 24 * self.horizon_days:
            raise ConfigError(
                f"task {self.name} is asked when its answer is known", got=f"hours_after_admission {hours}",
                expected=f"fewer than {24 * self.horizon_days} hours",
            )  # fmt: skip

    def positive(self) -> pl.Expr:
        return pl.col("end") > pl.col("admission") + pl.duration(days=self.horizon_days)

    def details(self) -> dict[str, Any]:
        return {"window": f"(prediction time, admission + {self.horizon_days} days]"}
