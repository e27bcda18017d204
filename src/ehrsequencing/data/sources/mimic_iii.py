"""MIMIC-III 1.4 as PhysioNet publishes it: one folder of CSV files, compressed or not.

Source: Johnson et al. 2016, doi:10.1038/sdata.2016.35; https://mimic.mit.edu/docs/iii/.
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
    ended_before,
    icu_procedure_spec,
    icu_stay_spec,
    input_spec,
    lab_spec,
    microbiology_code,
    output_spec,
    prescribed,
    services,
    transfers,
)
from ehrsequencing.data.sources.spool import event, named
from ehrsequencing.data.sources.tables import find_tables, require_tables
from ehrsequencing.data.sources.target import Target

FOLLOW_UP_DAYS = 90
SHIFT_YEARS, AGE_OF_SHIFTED_YEARS = 300, 91
CULTURE_DAYS = 8
NOTES = [
    f"{SHIFTED_DATES} per subject by the publisher, so that those of two subjects do not compare.",
    "Events are stamped when they were known. At discharge: billing diagnoses, procedure codes, CPT and DRG of the "
    "admission. At storetime where it is later than the time charted: charts, outputs, inputs. At starttime and "
    "endtime: MetaVision's procedures, their duration at the end. Laboratory results are stamped at charttime, when "
    "the specimen was taken: no time of the result is published, so a result may be known an hour or more too early. "
    f"Microbiology: {CULTURE_DAYS} days after the specimen, or at discharge where that is earlier, since no time of "
    "the result is published and cultures take days. Prescriptions, which have a date only: at the end of the day, or "
    "at discharge on the day of discharge.",
    "MEDS_BIRTH is dob. Subjects older than 89 are published as born 300 years before their first admission; their "
    f"age is unknown, and MEDS_BIRTH is set {AGE_OF_SHIFTED_YEARS} years before that admission (the publisher states a "
    "median of 91.4, and writes 91 for them in MIMIC-IV).",
    DEATH_NOTE,
    "dod is the hospital's date of death, else that of the Social Security register (dod_ssn), which the publisher "
    "says reaches 90 days after discharge for admissions charted in MetaVision (from 2008) and 4 years for those in "
    "CareVue. metadata/observation.parquet ends 90 days after the last discharge for everyone. Later deaths stay, so "
    "that beyond it the dead are seen and the living are not. Admissions to other hospitals are unseen.",
    VISIT_NOTE,
    "Race (column ethnicity), religion, language, marital status and insurance are dated at the admission that states "
    "them first or anew.",
    "ICD-9 codes carry their dots again. Prescriptions are named by drug. Laboratory codes are LOINC where the "
    "dictionary gives it, else LAB//itemid//unit; abnormal results have a second event, LAB_FLAG//itemid//abnormal.",
    "CareVue and MetaVision name the same measurement by different itemids; they are kept apart.",
    TEXT_NOTE,
    ASIDE_NOTE,
]  # fmt: skip


def load(src: Path, target: Target) -> None:
    """Import a folder of tables, names in either case; those that are missing are named in the manifest.

    Args:
        src: Folder with PATIENTS and ADMISSIONS at least.
        target: Where it is written, and how.

    Raises:
        DataError: a table or column is missing, a file is damaged, an identifier or time does not parse, a subject is
            repeated; with `strict`, a row without a place.
        RunError: `out` exists.
    """
    tables = find_tables(src)
    require_tables(tables, ("patients", "admissions"), src)
    import_release(RELEASE, tables, target)


def _people(rows: pl.DataFrame) -> pl.DataFrame:
    """Birth and day of death; `shifted` where the publisher moved the birth to hide an age above 89."""
    first = pl.col("first_admitted")
    years = (first - pl.col("dob")).dt.total_days() / 365.25
    stand_in = first.dt.truncate("1d").dt.offset_by(f"-{AGE_OF_SHIFTED_YEARS}y")
    return rows.with_columns(
        shifted=years.is_between(SHIFT_YEARS - 1, SHIFT_YEARS + 1).fill_null(False),
        dod=pl.coalesce("dod", "dod_hosp", "dod_ssn"),
    ).with_columns(birth=pl.when("shifted").then(stand_in).otherwise("dob"))


def _conflicts(people: pl.DataFrame) -> dict[str, int]:
    return {
        "subjects_older_than_89_of_unknown_age": int(people["shifted"].sum()),
        "subjects_with_two_days_of_death": people.filter(
            pl.col("dod_hosp").dt.date() != pl.col("dod_ssn").dt.date()
        ).height,
    }


def _nine(rows: pl.DataFrame) -> pl.DataFrame:
    """Codes as MIMIC-IV names them: `icd_code`, and `icd_version`, which is always 9."""
    return rows.rename({"icd9_code": "icd_code"}).with_columns(icd_version=pl.lit(9, dtype=pl.Int64))


def _to_dictionary(name: str, rows: pl.DataFrame) -> pl.DataFrame:
    return _nine(rows) if name.startswith("d_icd") else rows


def _callout(rows: pl.DataFrame, _: Context) -> list[pl.DataFrame]:
    """A bed outside intensive care is asked for, and what came of it."""
    called = named("CALLOUT", pl.col("callout_service").fill_null("UNKNOWN"))
    outcome = pl.col("callout_outcome")
    return [
        event(rows, called, pl.col("createtime"), "encounter", visit=VISIT),
        event(
            rows, named("CALLOUT_OUTCOME", outcome), ended_before(pl.col("createtime"), pl.col("outcometime")),
            "encounter", visit=VISIT, where=outcome.is_not_null(),
        ),
    ]  # fmt: skip


def _microbiology(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    rows = context.at_discharge(rows)
    taken, left = pl.coalesce("charttime", end_of_day("chartdate")), pl.col("discharged")
    grown = taken + pl.duration(days=CULTURE_DAYS)
    known = pl.when(left >= taken).then(pl.min_horizontal(grown, left)).otherwise(grown)
    value, text = pl.col("dilution_value"), pl.col("dilution_text")
    code = microbiology_code("spec_type_desc")
    return [event(rows, code, known, "lab", visit=VISIT, value=value, text=text)]


def _prescriptions(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    rows = context.at_discharge(rows)
    left = pl.col("discharged")
    same_day = left.dt.date() == pl.col("startdate").dt.date()
    return prescribed(rows, pl.when(same_day).then(left).otherwise(end_of_day("startdate")))


def _carevue_inputs(rows: pl.DataFrame, context: Context) -> list[pl.DataFrame]:
    """Amounts and rates are charted apart; rows with neither say that something was stopped or charted."""
    rows = context.described(rows, "d_items", ["itemid"], ["label"])
    known = pl.max_horizontal("charttime", "storetime")
    amount, rate, label = pl.col("amount"), pl.col("rate"), pl.col("label")

    def part(name: str, where: pl.Expr, value: pl.Expr | None, unit: str | None, text: str | None) -> pl.DataFrame:
        return event(
            rows, named("INPUT", pl.lit(name), "itemid"), known, "drug", visit=VISIT, where=where, value=value,
            unit=None if unit is None else pl.col(unit), text=None if text is None else pl.col(text),
            description=pl.concat_str([label, pl.lit(f", {name.lower()}")]),
        )  # fmt: skip

    return [
        part("AMOUNT", amount.is_not_null(), amount, "amountuom", None),
        part("RATE", rate.is_not_null(), rate, "rateuom", None),
        part("CHARTED", amount.is_null() & rate.is_null(), None, None, "stopped"),
    ]


_ICD: dict[str, Kind] = {**OF_ADMISSION, "icd9_code": "text"}
_TITLES: tuple[dict[str, Kind], dict[str, Kind]] = ({"icd9_code": "text", "long_title": "text"}, {})
_DIAGNOSES, _PROCEDURES = billed("d_icd_diagnoses", "diagnosis"), billed("d_icd_procedures", "procedure")
RELEASE = Release(
    source="mimic-iii",
    patients="patients",
    admissions="admissions",
    patient_columns=(
        {"subject_id": "id", "gender": "text", "dob": "birth"},
        {"dod": "time", "dod_hosp": "time", "dod_ssn": "time"},
    ),
    people=_people,
    conflicts=_conflicts,
    attributes={
        "ethnicity": "RACE", "religion": "RELIGION", "language": "LANGUAGE", "marital_status": "MARITAL_STATUS",
        "insurance": "INSURANCE",
    },
    unstated=(
        "?", "UNKNOWN (DEFAULT)", "UNKNOWN/NOT SPECIFIED", "UNABLE TO OBTAIN", "UNOBTAINABLE", "NOT SPECIFIED",
    ),
    dictionaries={
        "d_labitems": LAB_ITEMS, "d_icd_diagnoses": _TITLES, "d_icd_procedures": _TITLES, "d_items": ITEMS,
    },
    to_dictionary=_to_dictionary,
    specs=(
        Spec(
            "transfers", {**OF_ADMISSION, "eventtype": "text", "intime": "time"},
            transfers("curr_careunit", "NO ICU"), {"curr_careunit": "text"},
        ),
        Spec("services", {**OF_ADMISSION, "transfertime": "time", "curr_service": "text"}, services),
        Spec(
            "callout", {**OF_ADMISSION, "createtime": "time"}, _callout,
            {"callout_service": "text", "callout_outcome": "text", "outcometime": "time"},
            no_time="createtime or outcometime missing, or outcome before createtime",
        ),
        icu_stay_spec("icustays"),
        Spec(
            "diagnoses_icd", _ICD, lambda rows, context: _DIAGNOSES(_nine(rows), context), no_time=NO_DISCHARGE,
        ),
        Spec(
            "procedures_icd", _ICD, lambda rows, context: _PROCEDURES(_nine(rows), context), no_time=NO_DISCHARGE,
        ),
        Spec(
            "cptevents", {**OF_ADMISSION, "cpt_cd": "text"},
            billed_procedures("CPT", "cpt_cd", "description", "subsectionheader"),
            {"description": "text", "subsectionheader": "text"}, no_time=NO_DISCHARGE,
        ),
        drg_spec("drgcodes"),
        lab_spec("labevents"),
        Spec(
            "microbiologyevents", {**OF_ADMISSION, "chartdate": "time", "spec_type_desc": "text"}, _microbiology,
            {
                "charttime": "time", "org_name": "text", "ab_name": "text", "interpretation": "text",
                "dilution_value": "number", "dilution_text": "text",
            },
        ),
        Spec(
            "prescriptions", {**OF_ADMISSION, "startdate": "time", "drug": "text"}, _prescriptions,
            {"dose_val_rx": "text", "dose_unit_rx": "text"},
        ),
        Spec(
            "inputevents_cv", {**OF_ADMISSION, "itemid": "id", "charttime": "time", "amount": "number"},
            _carevue_inputs,
            {"storetime": "time", "amountuom": "text", "rate": "number", "rateuom": "text", "stopped": "text"},
        ),
        chart_spec("chartevents", marked="error"),
        output_spec("outputevents", marked="iserror"),
        date_spec("datetimeevents", marked="error"),
        icu_procedure_spec("procedureevents_mv"),
        input_spec("inputevents_mv"),
    ),
    follow_up_days=FOLLOW_UP_DAYS,
    notes=NOTES,
)  # fmt: skip
