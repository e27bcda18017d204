"""MIMIC-IV as PhysioNet publishes it: folders `hosp/` and `icu/` of CSV files, compressed or not.

Source: Johnson et al. 2023, doi:10.1038/s41597-022-01899-x; https://mimic.mit.edu/docs/iv/.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrsequencing.data.calendar import SHIFTED_DATES
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.mimic import (
    ASIDE_NOTE,
    DEATH_NOTE,
    ITEMS,
    LAB_ITEMS,
    TEXT_NOTE,
    VISIT_NOTE,
    Release,
    import_release,
)
from ehrsequencing.data.sources.mimic_tables import (
    NO_DISCHARGE,
    OF_ADMISSION,
    VISIT,
    Context,
    Spec,
    billed,
    billed_procedures,
    chart_spec,
    date_spec,
    drg_spec,
    end_of_day,
    icu_procedure_spec,
    icu_stay_spec,
    input_spec,
    lab_spec,
    microbiology_code,
    number,
    output_spec,
    prescribed,
    services,
    transfers,
    unless,
)
from ehrsequencing.data.sources.spool import event, named
from ehrsequencing.data.sources.tables import Table, find_tables, require_tables
from ehrsequencing.data.sources.target import Target
from ehrsequencing.errors import DataError

FOLLOW_UP_DAYS = 365
NOTES = [
    f"{SHIFTED_DATES} per subject by the publisher, so that those of two subjects do not compare.",
    "Events are stamped when they were known. At discharge: billing diagnoses, procedure codes, HCPCS codes and DRG of "
    "the admission. At storetime where it is later than charttime: laboratory results, microbiology, charts, outputs. "
    "At starttime and endtime: ICU procedures, their duration at the end; ICU inputs, or at storetime where it is "
    "later, the rate at the start and the amount at the end. At charttime: administrations (emar). At starttime: "
    "prescriptions. At the end of the day: outpatient measurements (omr), which have a date only.",
    "MEDS_BIRTH is 1 January of anchor_year - anchor_age, so ages are off by up to a year; an anchor_age of 91 means "
    "older than 89.",
    DEATH_NOTE,
    "metadata/observation.parquet: deaths are published up to one year after the last discharge, so observation ends "
    "365 days after it. Admissions to other hospitals, and after the end of data collection, are unseen.",
    VISIT_NOTE,
    "Race, language, marital status and insurance are dated at the admission that states them first or anew.",
    "ICD codes carry the publisher's dots again. Prescriptions are named by drug, since NDC numbers tell apart package "
    "and manufacturer. Laboratory codes are LAB//itemid//unit, or LOINC where the dictionary gives it; abnormal "
    "results have a second event, LAB_FLAG//itemid//abnormal, and so have those below or above their reference range, "
    "LAB_FLAG//itemid//low or high.",
    TEXT_NOTE,
    ASIDE_NOTE,
]  # fmt: skip


def load(src: Path, target: Target) -> None:
    """Import `hosp/` and `icu/`; tables that are missing are named in the manifest.

    Args:
        src: Folder with `hosp/` (at least patients and admissions) and, where at hand, `icu/`.
        target: Where it is written, and how.

    Raises:
        DataError: a table or column is missing, a file is damaged, an identifier or time does not parse, a subject is
            repeated; with `strict`, a row without a place.
        RunError: `out` exists.
    """
    import_release(RELEASE, _tables(src), target)


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


def _people(rows: pl.DataFrame) -> pl.DataFrame:
    """Birth on 1 January; null where the year is unknown or no year."""
    year = pl.col("anchor_year") - pl.col("anchor_age")
    return rows.with_columns(birth=pl.datetime(pl.when(year.is_between(1, 9999)).then(year), 1, 1, time_unit="us"))


def _microbiology(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    known = pl.coalesce("storetime", end_of_day("storedate"), "charttime", end_of_day("chartdate"))
    value, text = pl.col("dilution_value"), pl.col("dilution_text")
    return [event(rows, microbiology_code("test_name"), known, "lab", visit=VISIT, value=value, text=text)]


def _prescriptions(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    return prescribed(rows, pl.col("starttime"))


def _emar(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    code = named("EMAR", "medication", pl.col("event_txt").fill_null("UNKNOWN"))
    return [event(rows, code, pl.col("charttime"), "drug", visit=VISIT)]


def _omr(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    """A blood pressure, 110/70, becomes two numbers; units stand in the name, `Weight (Lbs)`."""
    pair = pl.col("result_value").str.extract_groups(r"^(\d+)/(\d+)$")
    rows = rows.with_columns(SYSTOLIC=pair.struct[0].cast(pl.Float32), DIASTOLIC=pair.struct[1].cast(pl.Float32))
    is_pair, found, time = pl.col("SYSTOLIC").is_not_null(), number("result_value"), end_of_day("chartdate")
    unit = pl.col("result_name").str.extract(r"\(([^()]+)\)$")
    return [
        event(
            rows, named("OMR", "result_name"), time, "vital", where=~is_pair, value=found, unit=unit,
            text=unless(found, "result_value"),
        ),
        *(
            event(rows, named("OMR", "result_name", pl.lit(part)), time, "vital", where=is_pair, value=pl.col(part))
            for part in ("SYSTOLIC", "DIASTOLIC")
        ),
    ]  # fmt: skip


_ICD: dict[str, Kind] = {**OF_ADMISSION, "icd_code": "text", "icd_version": "id"}
_TITLES: tuple[dict[str, Kind], dict[str, Kind]] = (
    {"icd_code": "text", "icd_version": "id", "long_title": "text"}, {},
)  # fmt: skip
RELEASE = Release(
    source="mimic-iv",
    patients="hosp/patients",
    admissions="hosp/admissions",
    patient_columns=(
        {"subject_id": "id", "gender": "text", "anchor_age": "id", "anchor_year": "id"}, {"dod": "time"},
    ),
    people=_people,
    conflicts=lambda _: {},
    attributes={
        "race": "RACE", "language": "LANGUAGE", "marital_status": "MARITAL_STATUS", "insurance": "INSURANCE",
    },
    unstated=("?", "___"),
    dictionaries={
        "hosp/d_labitems": LAB_ITEMS, "hosp/d_icd_diagnoses": _TITLES, "hosp/d_icd_procedures": _TITLES,
        "icu/d_items": ITEMS,
    },
    specs=(
        Spec(
            "hosp/transfers", {**OF_ADMISSION, "eventtype": "text", "intime": "time"},
            transfers("careunit", "UNKNOWN"), {"careunit": "text"},
        ),
        Spec("hosp/services", {**OF_ADMISSION, "transfertime": "time", "curr_service": "text"}, services),
        Spec("hosp/diagnoses_icd", _ICD, billed("d_icd_diagnoses", "diagnosis"), no_time=NO_DISCHARGE),
        Spec("hosp/procedures_icd", _ICD, billed("d_icd_procedures", "procedure"), no_time=NO_DISCHARGE),
        Spec(
            "hosp/hcpcsevents", {**OF_ADMISSION, "hcpcs_cd": "text"},
            billed_procedures("HCPCS", "hcpcs_cd", "short_description"), {"short_description": "text"},
            no_time=NO_DISCHARGE,
        ),
        drg_spec("hosp/drgcodes"),
        lab_spec("hosp/labevents", storetime="time", ref_range_lower="number", ref_range_upper="number"),
        Spec(
            "hosp/microbiologyevents", {**OF_ADMISSION, "chartdate": "time", "test_name": "text"}, _microbiology,
            {
                "charttime": "time", "storedate": "time", "storetime": "time", "org_name": "text", "ab_name": "text",
                "interpretation": "text", "dilution_value": "number", "dilution_text": "text",
            },
        ),
        Spec(
            "hosp/prescriptions", {**OF_ADMISSION, "starttime": "time", "drug": "text"}, _prescriptions,
            {"dose_val_rx": "text", "dose_unit_rx": "text"},
        ),
        Spec("hosp/emar", {**OF_ADMISSION, "charttime": "time", "medication": "text"}, _emar, {"event_txt": "text"}),
        Spec(
            "hosp/omr", {"subject_id": "id", "chartdate": "time", "result_name": "text", "result_value": "text"}, _omr,
        ),
        icu_stay_spec("icu/icustays"),
        chart_spec("icu/chartevents"),
        output_spec("icu/outputevents"),
        date_spec("icu/datetimeevents"),
        icu_procedure_spec("icu/procedureevents"),
        input_spec("icu/inputevents"),
    ),
    follow_up_days=FOLLOW_UP_DAYS,
    notes=NOTES,
)  # fmt: skip
