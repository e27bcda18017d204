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
    "ICD10CM": "diagnosis", "ICD9CM": "diagnosis", "SNOMED": "diagnosis",
    "RXNORM": "drug", "ATC": "drug", "NDC": "drug",
    "ICD10PCS": "procedure", "ICD9PCS": "procedure", "CPT": "procedure", "HCPCS": "procedure",
    "LOINC": "lab",
    "VISIT": "encounter", "ADMISSION": "encounter", "DISCHARGE": "encounter",
    # MIMIC-IV in the MEDS convention
    "DIAGNOSIS": "diagnosis", "MEDICATION": "drug", "PROCEDURE": "procedure", "LAB": "lab",
    "HOSPITAL_ADMISSION": "encounter", "HOSPITAL_DISCHARGE": "encounter",
    "GENDER": "demographic", "RACE": "demographic", "ETHNICITY": "demographic",
}  # fmt: skip


def kind_of_code(code: str) -> str:
    """Kind by the code's system, for datasets whose `codes.parquet` does not say.

    >>> kind_of_code("ICD10CM//E11.9"), kind_of_code("MEDS_BIRTH"), kind_of_code("HOUSE//X")
    ('diagnosis', 'demographic', 'other')
    """
    if code in (BIRTH_CODE, DEATH_CODE):
        return "demographic"
    return _KIND_OF_SYSTEM.get(code.split("//", 1)[0], "other")
