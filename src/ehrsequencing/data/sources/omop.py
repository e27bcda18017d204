"""OMOP Common Data Model, versions 5.3 and 5.4, as CSV or parquet.

Source: OHDSI, https://ohdsi.github.io/CommonDataModel/cdm53.html and cdm54.html.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl

from ehrsequencing.data.schema import DEATH_CODE
from ehrsequencing.data.sources.finishing import end_days, first_only, known_visits
from ehrsequencing.data.sources.omop_concepts import (
    PLACEHOLDER,
    VITALS,
    concepts_of,
    inpatient_concepts,
    parent_codes,
    read_ancestors,
    read_concepts,
    resolution,
)
from ehrsequencing.data.sources.omop_tables import (
    PERSON,
    PERSON_OPTIONAL,
    SPECS,
    SUBJECT,
    VISITS,
    Spec,
    birth,
    observation_ends,
    person_events,
    with_times,
)
from ehrsequencing.data.sources.spool import (
    EventSpool,
    merge_codes,
    midnight_notes,
    summary,
    write_observation_end,
)
from ehrsequencing.data.sources.tables import Table, find_tables, keyed, require_tables
from ehrsequencing.data.sources.target import Target

INPATIENT = frozenset({9201, 262, 8717})
VOCABULARY = ("concept", "concept_ancestor")
NOTES = [
    "Codes are VOCABULARY//code of the standard concept, else of the source concept, else OMOP_SOURCE//value; "
    "OMOP//concept_id where the concept table lacks the concept.",
    "Events are stamped at their start. Where no table has a time of day, all events of a day carry its midnight and "
    "are known on that day; where some have one, events known by date only are stamped at the end of the day (starts "
    "of visits at its beginning).",
    "Visits of concepts 9201, 262 and 8717, and with concept_ancestor of what descends from them, are stays: "
    "HOSPITAL_ADMISSION//VISIT and HOSPITAL_DISCHARGE//DESTINATION (UNKNOWN where it is not stated). Other visits have "
    "their own code, such as VISIT//OP, at their start.",
    "visit_id is visit_occurrence_id where visit_occurrence has it; other events form a visit per calendar day.",
    "MEDS_BIRTH is at the beginning of the day of birth; an unknown month or day is the first. MEDS_DEATH is the "
    "earliest date of death.",
    "parent_codes in metadata/codes.parquet, with concept_ancestor: the ingredients of RxNorm's drugs, and the next "
    "concepts above all other codes.",
    "A measurement outside its range_low and range_high has a second event, LAB_FLAG//CODE//low or high.",
    "metadata/observation.parquet: the end of the last observation period; gaps between periods are not marked.",
]  # fmt: skip


def load(src: Path, target: Target) -> None:
    """Import a folder of CDM tables; those that are missing are named in the manifest.

    Args:
        src: Folder with `person` and any of the other tables, names in whichever case, each as NAME.csv, NAME.csv.gz,
            NAME.parquet, or a folder NAME of such parts.
        target: Where it is written, and how.

    Raises:
        DataError: a table or column is missing, a file is damaged, an identifier or time does not parse, a person is
            repeated; with `strict`, a row without a place.
        RunError: `out` exists.
    """
    tables = find_tables(src)
    require_tables(tables, ("person",), src)
    people = tables["person"].whole(PERSON, PERSON_OPTIONAL)
    subjects = keyed(people, SUBJECT).select(subject_id=SUBJECT, birth=birth())
    read = [tables[name] for name in (*(spec.name for spec in SPECS), *VOCABULARY) if name in tables]
    used = {"person", "observation_period", *VOCABULARY, *(spec.name for spec in SPECS)}
    with (
        target.writer() as writer,
        target.spool(writer, subjects, read, "person") as spool,
    ):
        spool.add(people, *person_events(people.rows))
        inpatient = inpatient_concepts(tables.get("concept_ancestor"), INPATIENT, spool.advance)
        referred: set[int] = set()
        timed: list[str] = []
        for spec in SPECS:
            if spec.name in tables:
                _add(spool, tables[spec.name], spec, inpatient)
                notes = spool.notes(spec.name)
                referred.update(notes.get("concepts", ()))
                timed += [spec.name] * bool(notes.get("timed"))
        ends, periods = observation_ends(tables.get("observation_period"), subjects, date_only=not timed)
        book = spool.book()
        coded = concepts_of(book["code"])
        ancestors = read_ancestors(tables.get("concept_ancestor"), coded, spool.advance)
        concepts = read_concepts(tables.get("concept"), referred | coded | set(ancestors["ancestor_id"]), spool.advance)
        finish = _Finish(list(spool.tables), resolution(book["code"], concepts), concepts, timed)
        written = spool.write(writer, finish, finish.conflicts)
        codes = _code_table(book, finish.codes).join(written["events_by_code"], on="code", how="semi")
        codes = codes.join(parent_codes(ancestors, concepts), on="code", how="left")
        if ends is not None:
            write_observation_end(writer, ends)
        writer.finish(
            codes,
            source="omop",
            options={"strict": target.strict},
            notes=[*NOTES, *midnight_notes(spool, timed)],
            extra=summary(
                spool,
                written,
                codes,
                date_only=not timed,
                events_at_midnight=spool.midnights(timed),
                conflicts={**finish.conflicts, **periods},
                codes_without_concept=len(concepts_of(codes["code"])),
                tables_missing=sorted(used - set(tables)),
                tables_not_read=sorted(set(tables) - used),
            ),
        )


def _add(spool: EventSpool, table: Table, spec: Spec, inpatient: frozenset[int]) -> None:
    """Take a table's events; note the concepts of its units and values, and whether it has times of day."""
    concepts: set[int] = set()
    for piece in spool.read(table, spec.required, spec.optional):
        rows, has_times = with_times(piece.rows, spec)
        for column in spec.concept_values:
            concepts.update(rows[column].drop_nulls().unique())
        notes = spool.notes(spec.name)
        notes |= {"timed": has_times or notes.get("timed", False), "concepts": sorted(concepts)}
        spool.add(piece, *spec.events(rows, inpatient), no_time=spec.no_time, contradictions=spec.contradictions())


class _Finish:
    """Last changes to a shard: concepts resolved, days ended, visits and deaths made consistent; counts conflicts."""

    def __init__(self, tables: list[str], codes: pl.DataFrame, concepts: pl.DataFrame, timed: list[str]) -> None:
        self.codes = codes
        self.visits = tables.index(VISITS) if VISITS in tables else None
        self.timed = [index for index, name in enumerate(tables) if name in timed]
        written = concepts.with_columns(placeholder=pl.concat_str(pl.lit(PLACEHOLDER), "concept_id"))
        self.units = written.select(unit="placeholder", found_unit=pl.col("code").str.replace(r"^.*?//", ""))
        self.texts = written.select(text_value="placeholder", found_text="name")
        self.conflicts: Counter[str] = Counter()

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        for names in (self.codes.select("code", "resolved"), self.units, self.texts):
            events = events.join(names, on=names.columns[0], how="left", maintain_order="left")
        events = events.with_columns(
            code=pl.coalesce("resolved", "code"),
            unit=pl.coalesce("found_unit", "unit"),
            text_value=pl.coalesce("found_text", "text_value"),
        ).drop("resolved", "found_unit", "found_text")
        events = end_days(events, self.timed)
        if self.visits is not None:
            visits = events.filter(pl.col("table") == self.visits).drop_nulls("visit_id")
            starts = visits.filter(~pl.col("code").str.starts_with("HOSPITAL_DISCHARGE//"))
            self.conflicts["visits_stated_more_than_once"] += len(starts) - starts["visit_id"].n_unique()
            events, unknown = known_visits(events, self.visits)
            self.conflicts["events_of_visits_that_are_not_in_visit_occurrence"] += unknown
        events, further = first_only(events, DEATH_CODE)
        self.conflicts["further_deaths_of_a_person"] += further
        return events


def _code_table(book: pl.DataFrame, resolved: pl.DataFrame) -> pl.DataFrame:
    """The book under resolved codes; vital signs by their LOINC code."""
    rows = book.join(resolved, on="code", how="left", maintain_order="left").select(
        "kind", "numeric", code=pl.coalesce("resolved", "code"), description=pl.coalesce("name", "description")
    )
    vital = pl.col("code").is_in([f"LOINC//{code}" for code in VITALS]) & (pl.col("kind") == "lab")
    return merge_codes(rows).with_columns(kind=pl.when(vital).then(pl.lit("vital")).otherwise("kind"))
