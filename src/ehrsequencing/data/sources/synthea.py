"""Synthea's native CSV export, every generation of it.

Source: Walonoski et al. 2018, doi:10.1093/jamia/ocx079; the columns of each generation are those of the project's
CSVExporter, https://github.com/synthetichealth/synthea/wiki/CSV-File-Data-Dictionary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.finishing import end_days
from ehrsequencing.data.sources.identifiers import refuse_collisions, refuse_nul, with_identifier
from ehrsequencing.data.sources.problems import Place, quoted
from ehrsequencing.data.sources.spool import DATE_ONLY, EXACT, EventSpool, event, named, summary
from ehrsequencing.data.sources.synthea_tables import (
    NO_TIME,
    SPECS,
    STOPPED,
    SUBJECT,
    TIMES,
    VISIT,
    VISITS,
    Spec,
    with_times,
)
from ehrsequencing.data.sources.tables import Piece, Table, column_names, find_tables, keyed, require_tables
from ehrsequencing.data.sources.target import Target
from ehrsequencing.errors import DataError

PEOPLE = "patients"
PATIENTS: dict[str, Kind] = {"id": "text", "birthdate": "time"}
ATTRIBUTES = ("gender", "race", "ethnicity")
PATIENTS_OPTIONAL: dict[str, Kind] = {"deathdate": "time", **dict.fromkeys(ATTRIBUTES, "text")}
NOTES = [
    "subject_id and visit_id are the first 63 bits of BLAKE2b (8 bytes, big-endian) of the lower-case UUID of the "
    "patient and the encounter, so that they stay the same in every export.",
    "Events are stamped at START (DATE in tables and generations without it). A table whose times are all midnight "
    "knows dates: its events are stamped at the last second of the day (births and encounters at its beginning), "
    "unless no table has a time of day.",
    "What began before the encounter that recorded it is stamped at the encounter's start.",
    "A STOP on a later day than its START is an event of its own, under the code STOP//CODE and of kind other, so that "
    "an end counts as no new disease or drug. It belongs to the latest encounter begun by then whose last day is not "
    "over, else to none. A STOP on the day of its START is none (counted), but of a stay it is the discharge.",
    "Encounters of class inpatient are stays: HOSPITAL_ADMISSION//SNOMED//code and HOSPITAL_DISCHARGE//UNKNOWN. Other "
    "encounters are VISIT//CLASS//SNOMED//code at their start. Exports without ENCOUNTERCLASS have no stays.",
    "Codes are SNOMED (conditions, procedures, care plans, devices, supplies), RXNORM (medications), CVX "
    "(immunizations) and LOINC (observations), or of the row's SYSTEM. Allergies are ALLERGY//SYSTEM//code, imaging "
    "IMAGING//modality//body site, observations without a LOINC code (QALY, DALY, QOLS) SYNTHEA//code.",
    "Further images of a study (one row each in newer exports) are one event.",
    "MEDS_DEATH is DEATHDATE. Synthea issues death certificates days later: these are events after death.",
    "Left out: costs, payers, claims, organizations and providers; REASONCODE, which repeats a condition; DISPENSES "
    "and totals, which are known at the end only; MARITAL and addresses, which are those at the end of the simulation; "
    "reactions of allergies; UDI of devices; the procedure of an imaging study.",
    "The export does not state when the simulation ended: subjects are observed until their last event.",
]  # fmt: skip


def load(src: Path, target: Target) -> None:
    """Import a folder of Synthea's CSV tables; those that are missing are named in the manifest.

    Args:
        src: Folder with `patients` and any of the other tables, columns in any order and case.
        target: Where it is written, and how.

    Raises:
        DataError: a table or column is missing, a file is damaged, a time does not parse, a patient or encounter is
            repeated, two UUIDs have one number; with `strict`, a row without a place.
        RunError: `out` exists.
    """
    tables = find_tables(src)
    require_tables(tables, (PEOPLE,), src)
    people = tables[PEOPLE].whole(PATIENTS, PATIENTS_OPTIONAL)
    refuse_nul(people.rows, "id", people.file)
    registry = with_identifier(keyed(people, "id"), "id", SUBJECT)
    refuse_collisions(registry, "id", SUBJECT, str(people.file))
    specs = [spec for spec in SPECS if spec.name in tables]
    for spec in specs:
        _refuse_undated(tables[spec.name])
    used = {PEOPLE, *(spec.name for spec in SPECS)}
    with (
        target.writer() as writer,
        target.spool(
            writer, registry.select(SUBJECT, birth="birthdate"), [tables[spec.name] for spec in specs], PEOPLE
        ) as spool,
    ):
        _add_people(spool, people, registry)
        for spec in specs:
            _add(spool, tables[spec.name], spec, registry)
        timed = {spec.name for spec in specs if spool.notes(spec.name).get("timed")}
        short = {spec.name: many for spec in specs if (many := spool.notes(spec.name).get("short"))}
        finish = _Finish(list(spool.tables), timed)
        written = spool.write(writer, finish, finish.conflicts)
        codes = spool.book().join(written["events_by_code"], on="code", how="semi")
        writer.finish(
            codes,
            source="synthea",
            options={"strict": target.strict},
            notes=NOTES,
            extra=summary(
                spool,
                written,
                codes,
                date_only=not timed,
                ends_on_the_day_of_their_start=short,
                conflicts=dict(finish.conflicts),
                tables_missing=sorted(used - set(tables)),
                tables_not_read=sorted(set(tables) - used),
            ),
        )


def _refuse_undated(table: Table) -> None:
    """DataError where a file has neither START nor DATE."""
    for file in table.files:
        found = column_names(file)
        if not {"start", "date"} & set(found):
            raise DataError(f"{file} lacks start", got=f"columns {', '.join(found)}", expected="START or DATE")


def _add_people(spool: EventSpool, people: Piece, registry: pl.DataFrame) -> None:
    rows = people.rows.join(registry.select("row", SUBJECT), on="row", how="left", maintain_order="left")
    born, died = pl.col("birthdate").dt.truncate("1d"), pl.col("deathdate")
    clock = pl.when(died != died.dt.truncate("1d")).then(EXACT).otherwise(DATE_ONLY)
    spool.add(
        replace(people, rows=rows),
        event(
            rows, pl.lit(BIRTH_CODE), born, "demographic", description=pl.lit("Birth"), where=born.is_not_null(),
        ),
        event(
            rows, pl.lit(DEATH_CODE), died, "demographic", description=pl.lit("Death"), clock=clock,
            where=died.is_not_null(),
        ),
        *(
            event(rows, named(name.upper(), name), None, "demographic", where=pl.col(name).is_not_null())
            for name in ATTRIBUTES
        ),
    )  # fmt: skip


def _add(spool: EventSpool, table: Table, spec: Spec, registry: pl.DataFrame) -> None:
    """Take a table's events; note whether it has times of day, and count the ends that become none."""
    visit = "id" if spec.name == VISITS else "encounter"
    for piece in spool.read(table, spec.required, {**TIMES, **spec.optional}):
        rows, has_times = with_times(_identified(piece, visit, registry))
        notes = spool.notes(spec.name)
        notes["timed"] = has_times or notes.get("timed", False)
        notes["short"] = notes.get("short", 0) + int(rows["short"].sum())
        wrong = {column: found for column, bad in spec.numbers.items() if len(found := rows.filter(bad))}
        places = {
            column: Place(piece.file, found["row"][0], quoted(found[column][0])) for column, found in wrong.items()
        }
        unreadable = piece.unreadable | {column: len(found) for column, found in wrong.items()}
        generation = {"start", "date", *({"stop"} if "start" in piece.absent else ())}
        absent = tuple(column for column in piece.absent if column not in generation)
        piece = replace(piece, rows=rows, unreadable=unreadable, first=piece.first | places, absent=absent)
        spool.add(piece, *spec.events(rows), no_time=NO_TIME)


def _identified(piece: Piece, visit: str, registry: pl.DataFrame) -> pl.DataFrame:
    """Rows with `subject_id` and `visit_id`."""
    for column in ("patient", visit):
        refuse_nul(piece.rows, column, piece.file)
    rows = with_identifier(with_identifier(piece.rows, "patient", SUBJECT), visit, VISIT)
    met = rows.select(id="patient", subject_id=SUBJECT).drop_nulls().unique()
    known = registry.join(met, on=SUBJECT, how="semi").select("id", SUBJECT)
    refuse_collisions(pl.concat([known, met]), "id", SUBJECT, f"{registry.height} patients and {piece.file}")
    return rows


class _Finish:
    """Last changes to a shard: days ended, visits made consistent, images of a study made one; counts conflicts."""

    def __init__(self, tables: list[str], timed: set[str]) -> None:
        self.visits = tables.index(VISITS) if VISITS in tables else None
        self.images = tables.index("imaging_studies") if "imaging_studies" in tables else None
        self.timed = [index for index, name in enumerate(tables) if name in timed]
        self.conflicts: Counter[str] = Counter()

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        events = end_days(events, self.timed)
        if self.visits is not None:
            _refuse_repeated_visits(events.filter(pl.col("table") == self.visits))
            spans = _spans(events, self.visits)
            events, unknown, early = _in_visits(events, spans)
            self.conflicts["events_of_encounters_that_are_not_in_encounters"] += unknown
            self.conflicts["events_before_their_encounter_stamped_at_its_start"] += early
            events = _stops_in_visits(events, spans, self.visits)
        return self._one_image(events)

    def _one_image(self, events: pl.DataFrame) -> pl.DataFrame:
        if self.images is None:
            return events
        images = events.filter(pl.col("table") == self.images)
        if images.is_empty():
            return events
        first = images.unique([SUBJECT, "time", "code", VISIT], keep="first", maintain_order=True)
        kept = pl.concat([events.filter(pl.col("table") != self.images), first])
        self.conflicts["further_images_of_a_study"] += len(events) - len(kept)
        return kept


def _refuse_repeated_visits(visits: pl.DataFrame) -> None:
    begun = visits.filter(pl.col("code").str.contains(r"^(VISIT|HOSPITAL_ADMISSION)(//|$)"))
    if len(twice := begun.filter(pl.struct(SUBJECT, VISIT).is_duplicated() & pl.col(VISIT).is_not_null())):
        subject, visit = twice.select(SUBJECT, VISIT).row(0)
        raise DataError(
            f"{VISITS} has an encounter twice, or two encounters whose identifiers have the same number",
            got=f"visit_id {visit} of subject_id {subject}", expected="each Id once",
        )  # fmt: skip


def _spans(events: pl.DataFrame, visits: int) -> pl.DataFrame:
    """Columns `subject_id`, `visit_id`, `begin`, `over` (the end of the last day) of every encounter."""
    of_visits = events.filter((pl.col("table") == visits) & pl.col(VISIT).is_not_null())
    times = of_visits.group_by(SUBJECT, VISIT).agg(begin=pl.col("time").min(), end=pl.col("time").max())
    return times.select(SUBJECT, VISIT, "begin", over=pl.col("end").dt.truncate("1d") + pl.duration(days=1))


def _in_visits(events: pl.DataFrame, spans: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Take `visit_id` from events without a known encounter, and stamp what began before its encounter at its start.

    Returns:
        The events, how many had an unknown encounter, and how many began before it.
    """
    events = events.join(spans.drop("over"), on=[SUBJECT, VISIT], how="left", maintain_order="left")
    unknown = pl.col(VISIT).is_not_null() & pl.col("begin").is_null()
    counts = events.select(unknown=unknown.sum(), early=(pl.col("time") < pl.col("begin")).sum()).row(0)
    known = pl.when(pl.col("begin").is_not_null()).then(VISIT)
    events = events.with_columns(known.alias(VISIT), time=pl.max_horizontal("time", "begin")).drop("begin")
    return events, *counts


def _stops_in_visits(events: pl.DataFrame, spans: pl.DataFrame, visits: int) -> pl.DataFrame:
    """Give each end the visit in which it happened: what began in one visit may end years later."""
    events = events.with_row_index("place")
    ends = pl.col("code").str.starts_with(STOPPED) & (pl.col("table") != visits)
    stops = events.filter(ends).drop(VISIT).sort("time").join_asof(
        spans.sort("begin", VISIT), left_on="time", right_on="begin", by=SUBJECT, check_sortedness=False
    )  # fmt: skip
    inside = stops.select("place", inside=pl.when(pl.col("time") < pl.col("over")).then(VISIT))
    joined = events.join(inside, on="place", how="left", maintain_order="left")
    return joined.with_columns(visit_id=pl.when(ends).then("inside").otherwise(VISIT)).drop("place", "inside")
