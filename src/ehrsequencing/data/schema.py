"""Columns, kinds and splits that every artefact shares."""

from __future__ import annotations

import polars as pl

SPLITS = ("train", "tuning", "held_out")
KINDS = ("diagnosis", "drug", "procedure", "lab", "vital", "encounter", "demographic", "other")
BIRTH_CODE, DEATH_CODE = "MEDS_BIRTH", "MEDS_DEATH"
STATIC_TIME = -(2**63)
"""Time, in the token store, of rows that carry no date: known at every prediction time."""
MICROSECONDS_PER_DAY = 86_400_000_000
DAYS_PER_YEAR = 365.25

EVENT_SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "visit_id": pl.Int64(),
    "unit": pl.String(),
    "text_value": pl.String(),
}
LABEL_SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean(),
    "integer_value": pl.Int64(),
    "float_value": pl.Float32(),
    "categorical_value": pl.String(),
}
CODE_SCHEMA: dict[str, pl.DataType] = {
    "code": pl.String(),
    "description": pl.String(),
    "kind": pl.String(),
    "numeric": pl.Boolean(),
}

_KIND_OF_SYSTEM = {
    system: kind
    for kind, systems in {
        "diagnosis": ("ICD10CM", "ICD9CM", "SNOMED", "DIAGNOSIS", "DIAGNOSIS_PRINCIPAL"),
        "drug": (
            "RXNORM", "ATC", "NDC", "CVX", "MEDICATION", "DRUG", "EMAR", "INPUT",
            "UCI_DRUG", "UCI_CHANGE", "UCI_DIABETES_MED",
        ),
        "procedure": ("ICD10PCS", "ICD9PCS", "ICD9PROC", "CPT", "CPT4", "HCPCS", "PROCEDURE", "IMAGING"),
        "lab": ("LOINC", "LAB", "LAB_FLAG", "MICROBIOLOGY", "UCI_MAX_GLU_SERUM", "UCI_A1C"),
        "vital": ("CHART", "OUTPUT", "OMR", "UCI_WEIGHT"),
        "encounter": (
            "VISIT", "ADMISSION", "DISCHARGE", "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "ED_REGISTRATION", "ED_OUT",
            "TRANSFER_TO", "SERVICE", "ICU_ADMISSION", "ICU_DISCHARGE", "CALLOUT", "CALLOUT_OUTCOME", "DRG",
            "UCI_ADMISSION_TYPE", "UCI_ADMISSION_SOURCE", "UCI_DISCHARGE", "UCI_SPECIALTY", "UCI_PAYER",
            "UCI_NUMBER_OUTPATIENT", "UCI_NUMBER_EMERGENCY", "UCI_NUMBER_INPATIENT", "UCI_TIME_IN_HOSPITAL",
            "UCI_NUM_LAB_PROCEDURES", "UCI_NUM_PROCEDURES", "UCI_NUM_MEDICATIONS", "UCI_NUMBER_DIAGNOSES",
        ),
        "demographic": (
            BIRTH_CODE, DEATH_CODE, "GENDER", "RACE", "ETHNICITY", "LANGUAGE", "MARITAL_STATUS", "INSURANCE",
            "RELIGION", "UCI_AGE",
        ),
    }.items()
    for system in systems
}  # fmt: skip
"""What the sources give to the codes of a system, those of MIMIC in the MEDS convention included."""


def kind_of_code(code: str) -> str:
    """Kind by the code's system, for datasets whose `codes.parquet` does not say.

    >>> kind_of_code("ICD10CM//E11.9"), kind_of_code("MEDS_BIRTH"), kind_of_code("HOUSE//X")
    ('diagnosis', 'demographic', 'other')
    """
    return _KIND_OF_SYSTEM.get(code.split("//", 1)[0], "other")
