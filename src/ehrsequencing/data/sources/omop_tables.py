"""OMOP's tables of events: which columns are read, and the events that a row becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.omop_concepts import placeholder
from ehrsequencing.data.sources.reference import range_flag
from ehrsequencing.data.sources.spool import DATE_ONLY, EXACT, MIDNIGHT, event, named
from ehrsequencing.data.sources.tables import Advance, Table

SUBJECT, VISIT, VISITS = "person_id", "visit_occurrence_id", "visit_occurrence"
ATTRIBUTES = ("gender", "race", "ethnicity")
PERSON: dict[str, Kind] = {SUBJECT: "id", "year_of_birth": "id"}
PERSON_OPTIONAL: dict[str, Kind] = {
    "month_of_birth": "id", "day_of_birth": "id", "birth_datetime": "time",
    **dict.fromkeys((f"{name}_concept_id" for name in ATTRIBUTES), "id"),
    **dict.fromkeys((f"{name}_source_value" for name in ATTRIBUTES), "text"),
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """One table.

    Attributes:
        name: The table.
        required, optional: Its columns.
        times: New column (`start`, `end`) to the stem of the columns `STEM_date` and `STEM_datetime`.
        events: From typed rows with these times, and the concepts that are stays in hospital, to events.
        concept_values: Columns of concepts that become a unit or a text.
        no_time: Why an event may lack a time.
        end: Column with the date of the end, where it is read only to count those before the start.
    """

    name: str
    required: Mapping[str, Kind]
    optional: Mapping[str, Kind]
    times: Mapping[str, str]
    events: Callable[[pl.DataFrame, frozenset[int]], list[pl.DataFrame]]
    concept_values: tuple[str, ...] = ()
    no_time: str = field(default="without a date")
    end: str | None = None

    def contradictions(self) -> dict[str, pl.Expr]:
        """For `EventSpool.add`."""
        start = f"{self.times['start']}_date"
        return {} if self.end is None else {f"{self.end} before {start}": pl.col(self.end) < pl.col(start)}


def birth() -> pl.Expr:
    """The beginning of the day of birth; null where the year is missing or there is no such day."""
    parts = [
        pl.when(pl.col("year_of_birth").is_between(1, 9999)).then("year_of_birth").cast(pl.String).str.zfill(4),
        pl.col("month_of_birth").fill_null(1).cast(pl.String).str.zfill(2),
        pl.col("day_of_birth").fill_null(1).cast(pl.String).str.zfill(2),
    ]
    written = pl.concat_str(parts, separator="-").str.to_date("%Y-%m-%d", strict=False)
    return pl.coalesce(pl.col("birth_datetime").dt.truncate("1d"), written.cast(pl.Datetime("us")))


def person_events(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Birth, and undated gender, race and ethnicity."""
    born = birth()
    events = [
        event(
            rows, pl.lit(BIRTH_CODE), born, "demographic", subject=SUBJECT, where=born.is_not_null(),
            description=pl.lit("Birth"),
        )
    ]  # fmt: skip
    for name in ATTRIBUTES:
        code = pl.coalesce(placeholder(f"{name}_concept_id"), named(name.upper(), f"{name}_source_value"))
        events.append(event(rows, code, None, "demographic", subject=SUBJECT, where=code.is_not_null()))
    return events


def with_times(rows: pl.DataFrame, spec: Spec) -> tuple[pl.DataFrame, bool]:
    """Add the times of a spec and their clocks (`start_clock`); tell whether one has a time of day."""
    timed = False
    for name, stem in spec.times.items():
        date, exact = pl.col(f"{stem}_date"), pl.col(f"{stem}_datetime")
        midnight = exact == exact.dt.truncate("1d")
        clock = pl.when(exact.is_null()).then(DATE_ONLY).when(midnight).then(MIDNIGHT).otherwise(EXACT)
        rows = rows.with_columns(pl.coalesce(exact, date.dt.truncate("1d")).alias(name), clock.alias(f"{name}_clock"))
        timed |= bool((rows[f"{name}_clock"] == EXACT).any())
    return rows, timed


def _coded(stem: str) -> pl.Expr:
    """The standard concept, else the source's, else the source's own value."""
    return pl.coalesce(
        placeholder(f"{stem}_concept_id"), placeholder(f"{stem}_source_concept_id"),
        named("OMOP_SOURCE", f"{stem}_source_value"),
    )  # fmt: skip


def _domain(
    name: str, stem: str, start: str, kind: str, values: Mapping[str, Kind] | None = None, end: str | None = None
) -> Spec:
    """A table with one event per row: the code from `STEM_concept_id`, the time from `START_date`."""
    values = values or {}
    flag = range_flag("value_as_number", "range_low", "range_high")

    def events(rows: pl.DataFrame, _: frozenset[int]) -> list[pl.DataFrame]:
        value = unit = text = None
        if values:
            value = pl.col("value_as_number")
            unit = pl.coalesce(placeholder("unit_concept_id"), "unit_source_value")
            written = [column for column in ("value_as_string", "value_source_value") if column in values]
            text = pl.when(value.is_null()).then(pl.coalesce(*written, placeholder("value_as_concept_id")))
        made = [
            event(
                rows, _coded(stem), pl.col("start"), kind, subject=SUBJECT, visit=VISIT, value=value, unit=unit,
                text=text, clock=pl.col("start_clock"),
            )
        ]  # fmt: skip
        if "range_low" in values:
            made.append(
                event(
                    rows, named("LAB_FLAG", _coded(stem), flag), pl.col("start"), kind, subject=SUBJECT, visit=VISIT,
                    clock=pl.col("start_clock"), where=flag.is_not_null() & _coded(stem).is_not_null(),
                )
            )  # fmt: skip
        return made

    return Spec(
        name,
        {SUBJECT: "id", f"{stem}_concept_id": "id", f"{start}_date": "time"},
        {
            f"{start}_datetime": "time", VISIT: "id", f"{stem}_source_concept_id": "id",
            f"{stem}_source_value": "text", **values, **({} if end is None else {end: "time"}),
        },
        {"start": start},
        events,
        tuple(column for column in values if column.endswith("_concept_id")),
        end=end,
    )  # fmt: skip


def _visits(rows: pl.DataFrame, inpatient: frozenset[int]) -> list[pl.DataFrame]:
    stay = pl.col("visit_concept_id").is_in(sorted(inpatient)).fill_null(False)
    code = pl.coalesce(
        placeholder("visit_concept_id"), placeholder("visit_source_concept_id"), pl.lit("VISIT//UNKNOWN")
    )
    destination = pl.coalesce(
        placeholder("discharged_to_concept_id"), placeholder("discharge_to_concept_id"), pl.lit("UNKNOWN")
    )
    start, end = pl.col("start"), pl.col("end")
    # A day without a time of day ends after all that happened on it.
    by_day = (end == end.dt.truncate("1d")) & (end == start.dt.truncate("1d"))
    clock = pl.when(by_day).then(DATE_ONLY).otherwise("end_clock")
    return [
        event(rows, code, start, "encounter", subject=SUBJECT, visit=VISIT, where=~stay),
        event(
            rows, pl.concat_str(pl.lit("HOSPITAL_ADMISSION//"), code), start, "encounter", subject=SUBJECT,
            visit=VISIT, where=stay,
        ),
        event(
            rows, pl.concat_str(pl.lit("HOSPITAL_DISCHARGE//"), destination),
            pl.when((end >= start) | by_day).then(end), "encounter", subject=SUBJECT, visit=VISIT, clock=clock,
            where=stay,
        ),
    ]  # fmt: skip


def _deaths(rows: pl.DataFrame, _: frozenset[int]) -> list[pl.DataFrame]:
    return [
        event(
            rows, pl.lit(DEATH_CODE), pl.col("start"), "demographic", subject=SUBJECT, clock=pl.col("start_clock"),
            description=pl.lit("Death"),
        )
    ]  # fmt: skip


_VALUES: dict[str, Kind] = {
    "value_as_number": "number", "value_as_concept_id": "id", "unit_concept_id": "id", "unit_source_value": "text",
    "value_source_value": "text",
}  # fmt: skip
SPECS = (
    Spec(
        VISITS,
        {SUBJECT: "id", VISIT: "id", "visit_concept_id": "id", "visit_start_date": "time", "visit_end_date": "time"},
        {
            "visit_start_datetime": "time", "visit_end_datetime": "time", "visit_source_concept_id": "id",
            "discharge_to_concept_id": "id", "discharged_to_concept_id": "id",
        },
        {"start": "visit_start", "end": "visit_end"},
        _visits,
        no_time="visit without a start, or stay without an end that follows its start",
    ),
    _domain("condition_occurrence", "condition", "condition_start", "diagnosis", end="condition_end_date"),
    _domain("drug_exposure", "drug", "drug_exposure_start", "drug", end="drug_exposure_end_date"),
    _domain("procedure_occurrence", "procedure", "procedure", "procedure", end="procedure_end_date"),
    _domain(
        "measurement", "measurement", "measurement", "lab", {**_VALUES, "range_low": "number", "range_high": "number"},
    ),
    _domain("observation", "observation", "observation", "other", {**_VALUES, "value_as_string": "text"}),
    _domain("device_exposure", "device", "device_exposure_start", "other", end="device_exposure_end_date"),
    Spec("death", {SUBJECT: "id", "death_date": "time"}, {"death_datetime": "time"}, {"start": "death"}, _deaths),
)  # fmt: skip


def observation_ends(
    table: Table | None, subjects: pl.DataFrame, *, date_only: bool, advance: Advance | None = None
) -> tuple[pl.DataFrame | None, dict[str, int]]:
    """Columns `subject_id`, `observation_end` of the last observation period, and counts of rows that contradict.

    The end is the period's last day: its midnight where the dataset knows dates only, else its last second.
    """
    if table is None:
        return None, {}
    ends = pl.DataFrame(schema={"subject_id": pl.Int64, "observation_end": pl.Datetime("us")})
    conflicts: Counter[str] = Counter()
    columns: dict[str, Kind] = {SUBJECT: "id", "observation_period_end_date": "time"}
    for piece in table.read(columns, {"observation_period_start_date": "time"}, advance):
        start, end = pl.col("observation_period_start_date"), pl.col("observation_period_end_date")
        conflicts["observation_periods_that_end_before_they_start"] += len(piece.rows.filter(end < start))
        conflicts["observation_periods_without_a_plausible_end"] += piece.rows[
            "observation_period_end_date"
        ].null_count()
        rows = piece.rows.select(
            subject_id=SUBJECT, observation_end=pl.col("observation_period_end_date").dt.truncate("1d")
        ).drop_nulls()
        known = rows.join(subjects, on="subject_id", how="semi")
        conflicts["observation_periods_of_unknown_persons"] += len(rows) - len(known)
        ends = pl.concat([ends, known]).group_by("subject_id").agg(pl.col("observation_end").max())
    if not date_only:
        ends = ends.with_columns(pl.col("observation_end") + pl.duration(days=1) - pl.duration(seconds=1))
    return ends.sort("subject_id"), dict(conflicts)
