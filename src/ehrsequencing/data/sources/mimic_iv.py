"""MIMIC-IV as PhysioNet publishes it: folders `hosp/` and `icu/` of CSV files, compressed or not.

Source: Johnson et al. 2023, doi:10.1038/s41597-022-01899-x; https://mimic.mit.edu/docs/iv/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.calendar import SHIFTED_DATES
from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.mimic_iv_tables import SPECS, Context, end_of_day
from ehrsequencing.data.sources.spool import EventSpool, event, named, summary, write_observation_end
from ehrsequencing.data.sources.tables import Piece, Table, find_tables, keyed, once, require_tables
from ehrsequencing.errors import DataError

FOLLOW_UP_DAYS = 365
PATIENTS: dict[str, Kind] = {"subject_id": "id", "gender": "text", "anchor_age": "id", "anchor_year": "id"}
ADMISSIONS: dict[str, Kind] = {
    "subject_id": "id", "hadm_id": "id", "admittime": "time", "dischtime": "time", "admission_type": "text",
}  # fmt: skip
ADMISSIONS_OPTIONAL: dict[str, Kind] = {
    "deathtime": "time", "admission_location": "text", "discharge_location": "text", "insurance": "text",
    "language": "text", "marital_status": "text", "race": "text", "edregtime": "time", "edouttime": "time",
}  # fmt: skip
ATTRIBUTES = {"race": "RACE", "language": "LANGUAGE", "marital_status": "MARITAL_STATUS", "insurance": "INSURANCE"}
DICTIONARIES: dict[str, tuple[dict[str, Kind], dict[str, Kind]]] = {
    "hosp/d_labitems": ({"itemid": "id", "label": "text"}, {"fluid": "text", "loinc_code": "text"}),
    "hosp/d_icd_diagnoses": ({"icd_code": "text", "icd_version": "id", "long_title": "text"}, {}),
    "hosp/d_icd_procedures": ({"icd_code": "text", "icd_version": "id", "long_title": "text"}, {}),
    "icu/d_items": ({"itemid": "id", "label": "text"}, {}),
}
MISSING = ("?", "___")
NOTES = [
    f"{SHIFTED_DATES} per subject by the publisher, so that those of two subjects do not compare.",
    "Events are stamped when they were known. At discharge: billing diagnoses, procedure codes, HCPCS codes and DRG of "
    "the admission. At storetime where it is later than charttime: laboratory results, microbiology, outputs. At "
    "starttime and endtime: ICU procedures, their duration at the end. At charttime: administrations (emar). At "
    "starttime: prescriptions. At the end of the day: outpatient measurements (omr), which have a date only.",
    "MEDS_BIRTH is 1 January of anchor_year - anchor_age, so ages are off by up to a year; an anchor_age of 91 means "
    "older than 89.",
    "MEDS_DEATH is the earliest deathtime of the subject's admissions, else the end of the day dod. An admission whose "
    "deathtime is later than its dischtime (published as midnight) is discharged at deathtime.",
    "metadata/observation.parquet: deaths are published up to one year after the last discharge, so observation ends "
    "365 days after it. Admissions to other hospitals, and after the end of data collection, are unseen.",
    "visit_id is hadm_id; events outside an admission have none and form a visit per calendar day.",
    "Race, language, marital status and insurance are dated at the admission that states them first or anew.",
    "ICD codes carry the publisher's dots again. Prescriptions are named by drug, since NDC numbers tell apart package "
    "and manufacturer. Laboratory codes are LAB//itemid//unit, or LOINC where the dictionary gives it; abnormal "
    "results have a second event, LAB_FLAG//itemid//abnormal.",
    "text_value is the result as written where it is no number.",
]  # fmt: skip


def load(
    src: Path,
    out: Path,
    *,
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    request: Mapping[str, Any] | None = None,
) -> None:
    """Import `hosp/` and `icu/`; tables that are missing are named in the manifest.

    Args:
        src: Folder with `hosp/` (at least patients and admissions) and, where at hand, `icu/`.
        out: Folder of the MEDS dataset.
        overwrite: Replace what lies at `out`.
        strict: An event that would be dropped is an error.
        progress: Called with (steps done, steps).
        request: All that decides the outcome, as JSON; the import can then be taken up after a kill.

    Raises:
        DataError: a table or column is missing, a file is damaged, an identifier or time does not parse, a subject is
            repeated; with `strict`, a row without a place.
        RunError: `out` exists.
    """
    tables = _tables(src)
    patients, admissions = tables["hosp/patients"].whole(PATIENTS, {"dod": "time"}), _admissions(tables)
    subjects = keyed(patients, "subject_id").select("subject_id", birth=_birth())
    read = {spec.name: tables[spec.name] for spec in SPECS if spec.name in tables}
    used = {"hosp/patients", "hosp/admissions", *DICTIONARIES, *(spec.name for spec in SPECS)}
    context = Context(admissions.rows, {name: _dictionary(tables, name) for name in DICTIONARIES})
    with (
        MedsWriter(out, overwrite, request) as writer,
        EventSpool(
            writer.folder / ".spool", subjects, read.values(), registry="patients", strict=strict, progress=progress
        ) as spool,
    ):
        conflicts = _add_people(spool, patients, admissions)
        for spec in SPECS:
            if spec.name not in read:
                continue
            for piece in spool.read(read[spec.name], spec.required, spec.optional):
                spool.add(piece, *spec.events(piece.rows, context), no_time=spec.no_time)
        codes = spool.book()
        written = spool.write(writer)
        codes = codes.join(written["events_by_code"], on="code", how="semi")
        write_observation_end(writer, _observation(admissions.rows, subjects))
        writer.finish(
            codes,
            source="mimic-iv",
            options={"strict": strict},
            notes=NOTES,
            extra=summary(
                spool,
                written,
                codes,
                conflicts=conflicts,
                tables_missing=sorted(used - set(tables)),
                tables_not_read=sorted(set(tables) - used),
            ),
        )


def _tables(src: Path) -> dict[str, Table]:
    """Tables as `hosp/NAME` and `icu/NAME`."""
    if not src.is_dir():
        raise DataError(f"{src} is missing or no folder", expected="a folder with hosp/ and icu/")
    folders = {path.name.lower(): path for path in sorted(src.iterdir()) if path.is_dir()}
    if "hosp" not in folders:
        raise DataError(
            f"{src} has no folder hosp", got=", ".join(sorted(folders)) or "no folder", expected="hosp/ and icu/",
            remedy="pass the folder of MIMIC-IV that holds hosp/ and icu/",
        )  # fmt: skip
    tables = {
        f"{module}/{name}": Table(f"{module}/{name}", table.files)
        for module in ("hosp", "icu")
        if module in folders
        for name, table in find_tables(folders[module]).items()
    }
    require_tables(tables, ("hosp/patients", "hosp/admissions"), src)
    return tables


def _dictionary(tables: dict[str, Table], name: str) -> pl.DataFrame | None:
    """Rows of a dictionary, each key once; None where it is missing."""
    if name not in tables:
        return None
    required, optional = DICTIONARIES[name]
    keys = [column for column in required if column not in ("label", "long_title")]
    piece = tables[name].whole(required, optional)
    return once(piece.rows.drop("row"), keys, piece.file)


def _birth() -> pl.Expr:
    """1 January of the year of birth; null where it is unknown or no year."""
    year = pl.col("anchor_year") - pl.col("anchor_age")
    return pl.datetime(pl.when(year.is_between(1, 9999)).then(year), 1, 1, time_unit="us")


def _admissions(tables: dict[str, Table]) -> Piece:
    """Admissions by subject and time, with `discharged`: null where dischtime is missing or before admittime."""
    piece = tables["hosp/admissions"].whole(ADMISSIONS, ADMISSIONS_OPTIONAL)
    keyed(piece, "hadm_id")
    last = pl.max_horizontal("dischtime", "deathtime")
    rows = piece.rows.with_columns(
        discharged=pl.when(pl.col("dischtime").is_not_null() & (last >= pl.col("admittime"))).then(last)
    )
    return replace(piece, rows=rows.sort("subject_id", "admittime", "hadm_id"))


def _add_people(spool: EventSpool, patients: Piece, admissions: Piece) -> dict[str, int]:
    """Events of patients and admissions; returns counts of what contradicts itself."""
    rows = patients.rows.join(
        admissions.rows.group_by("subject_id").agg(pl.all().sort_by("deathtime", nulls_last=True).first()).select(
            "subject_id", "deathtime", died_in=pl.when(pl.col("deathtime").is_not_null()).then("hadm_id")
        ),
        on="subject_id", how="left", maintain_order="left",
    )  # fmt: skip
    rows = rows.with_columns(died=pl.coalesce("deathtime", end_of_day("dod")))
    birth = _birth()
    spool.add(
        replace(patients, rows=rows),
        event(rows, pl.lit(BIRTH_CODE), birth, "demographic", description=pl.lit("Birth"), where=birth.is_not_null()),
        event(rows, named("GENDER", "gender"), None, "demographic", where=pl.col("gender").is_not_null()),
        event(
            rows, pl.lit(DEATH_CODE), pl.col("died"), "demographic", visit="died_in", description=pl.lit("Death"),
            where=pl.col("died").is_not_null(),
        ),
    )  # fmt: skip
    visits = admissions.rows

    def of_visit(code: pl.Expr, time: str, kind: str = "encounter", where: pl.Expr | None = None) -> pl.DataFrame:
        return event(visits, code, pl.col(time), kind, visit="hadm_id", where=where)

    kind_and_origin = [pl.col(column).fill_null("UNKNOWN") for column in ("admission_type", "admission_location")]
    spool.add(
        admissions,
        of_visit(pl.lit("ED_REGISTRATION"), "edregtime", where=pl.col("edregtime").is_not_null()),
        of_visit(pl.lit("ED_OUT"), "edouttime", where=pl.col("edouttime").is_not_null()),
        of_visit(named("HOSPITAL_ADMISSION", *kind_and_origin), "admittime"),
        *(
            of_visit(named(prefix, column), "admittime", "demographic", _changed(column))
            for column, prefix in ATTRIBUTES.items()
        ),
        of_visit(named("HOSPITAL_DISCHARGE", pl.col("discharge_location").fill_null("UNKNOWN")), "discharged"),
        no_time="admission or discharge without a time, or discharge before admission",
        contradictions={"edouttime before edregtime": pl.col("edouttime") < pl.col("edregtime")},
    )
    in_hospital = visits.filter(pl.col("deathtime").is_not_null())
    died = rows.filter(pl.col("deathtime").is_not_null() & pl.col("dod").is_not_null())
    return {
        "admissions_discharged_at_deathtime": in_hospital.filter(pl.col("deathtime") > pl.col("dischtime")).height,
        "subjects_whose_dod_is_another_day_than_deathtime": died.filter(
            pl.col("dod").dt.date() != pl.col("deathtime").dt.date()
        ).height,
    }


def _changed(column: str) -> pl.Expr:
    """Whether an admission states another value than the one that the subject's earlier admissions stated last."""
    stated = pl.when(~pl.col(column).is_in(MISSING)).then(pl.col(column))
    before = stated.forward_fill().shift(1).over("subject_id")
    return (stated.is_not_null() & stated.ne_missing(before)).fill_null(False)


def _observation(admissions: pl.DataFrame, subjects: pl.DataFrame) -> pl.DataFrame:
    """`metadata/observation.parquet`: 365 days after the last discharge."""
    known = admissions.join(subjects, on="subject_id", how="semi")
    last = known.group_by("subject_id").agg(pl.col("discharged").max())
    ends = last.drop_nulls().select(
        "subject_id", observation_end=pl.col("discharged") + pl.duration(days=FOLLOW_UP_DAYS)
    )
    return ends.sort("subject_id")
