"""The two files of the UCI diabetes set: finding, reading and checking them."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import polars as pl

from ehrsequencing.errors import DataError

ENCOUNTERS_FILE, MAPPING_FILE = "diabetic_data.csv", "ids_mapping.csv"
MAX_DAYS_IN_HOSPITAL = 14

COUNTS_AT_ADMISSION = {
    "number_outpatient": "Outpatient visits in the year before the encounter",
    "number_emergency": "Emergency visits in the year before the encounter",
    "number_inpatient": "Inpatient visits in the year before the encounter",
}
COUNTS_AT_DISCHARGE = {
    "time_in_hospital": "Days from admission to discharge",
    "num_lab_procedures": "Laboratory tests during the encounter",
    "num_procedures": "Procedures other than laboratory tests during the encounter",
    "num_medications": "Distinct drugs given during the encounter",
    "number_diagnoses": "Diagnoses entered for the encounter",
}
MAPPED = {  # column -> (prefix of the code, whether it is known at admission)
    "admission_type_id": ("UCI_ADMISSION_TYPE", True),
    "admission_source_id": ("UCI_ADMISSION_SOURCE", True),
    "discharge_disposition_id": ("UCI_DISCHARGE", False),
}
CATEGORIES = {  # column -> (prefix, kind, whether it is known at admission, values allowed: None for any)
    "medical_specialty": ("UCI_SPECIALTY", "encounter", True, None),
    "payer_code": ("UCI_PAYER", "encounter", False, None),
    "max_glu_serum": ("UCI_MAX_GLU_SERUM", "lab", False, ("Norm", ">200", ">300")),
    "A1Cresult": ("UCI_A1C", "lab", False, ("Norm", ">7", ">8")),
    "change": ("UCI_CHANGE", "drug", False, ("Ch", "No")),
    "diabetesMed": ("UCI_DIABETES_MED", "drug", False, ("Yes", "No")),
}
DRUGS = (
    "metformin", "repaglinide", "nateglinide", "chlorpropamide", "glimepiride", "acetohexamide", "glipizide",
    "glyburide", "tolbutamide", "pioglitazone", "rosiglitazone", "acarbose", "miglitol", "troglitazone", "tolazamide",
    "examide", "citoglipton", "insulin", "glyburide-metformin", "glipizide-metformin", "glimepiride-pioglitazone",
    "metformin-rosiglitazone", "metformin-pioglitazone",
)  # fmt: skip
DRUG_STATES = {"Up": "dose increased", "Down": "dose decreased", "Steady": "dose unchanged"}
STATIC = {"race": "RACE", "gender": "GENDER"}
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
MISSING = ("?", "None", "Unknown/Invalid", "")
INTEGERS = ("encounter_id", "patient_nbr", *MAPPED, *COUNTS_AT_ADMISSION, *COUNTS_AT_DISCHARGE)
COLUMNS = (*INTEGERS, *STATIC, "age", "weight", *CATEGORIES, *DIAGNOSES, *DRUGS, "readmitted")


def read(src: Path) -> tuple[pl.DataFrame, dict[str, dict[int, str]]]:
    """The encounters as text, and descriptions per identifier column.

    Raises:
        DataError: a file or column is missing, empty, malformed or not in UTF-8.
    """
    contents = _contents(src)
    name = f"{src}: {ENCOUNTERS_FILE}"
    text = _text(contents[ENCOUNTERS_FILE], name)
    # Polars reads a blank line as a row without values.
    filled = "\n".join(line for line in text.splitlines() if line.strip())
    try:
        table = pl.read_csv(filled.encode(), infer_schema=False)
    except (pl.exceptions.NoDataError, pl.exceptions.ComputeError) as problem:
        raise DataError(
            f"{name} is empty or malformed", got=str(problem).splitlines()[0], expected="a CSV file"
        ) from None
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise DataError(
            f"{name} lacks {', '.join(missing)}", got=f"{len(table.columns)} columns",
            expected="the columns of the publisher's file", remedy="use the file as published by the UCI repository",
        )  # fmt: skip
    if table.is_empty():
        raise DataError(f"{name} is empty", got="a header and 0 rows", expected="one row per encounter")
    return table.select(COLUMNS), _mapping(contents[MAPPING_FILE], f"{src}: IDs_mapping.csv")


def _text(content: bytes, where: str) -> str:
    if content.count(b'"') % 2:
        raise DataError(f"{where} has a quotation mark that is never closed", expected="an even number of them")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{where} is not in UTF-8", got=f"{problem.reason} on line {content[: problem.start].count(10) + 1}",
            expected="the publisher's file", remedy="convert the file to UTF-8",
        ) from None  # fmt: skip


def _contents(src: Path) -> dict[str, bytes]:
    """Both files by their lower-case name."""
    if not src.exists():
        raise DataError(f"{src} is missing", expected="a folder or zip with diabetic_data.csv and IDs_mapping.csv")
    found: dict[str, bytes] = {}
    if src.is_dir():
        for file in sorted(src.rglob("*.csv")) + sorted(src.rglob("*.CSV")):
            if file.name.lower() in (ENCOUNTERS_FILE, MAPPING_FILE):
                found.setdefault(file.name.lower(), file.read_bytes())
    else:
        try:
            with zipfile.ZipFile(src) as archive:
                for member in archive.namelist():
                    name = Path(member).name.lower()
                    if name in (ENCOUNTERS_FILE, MAPPING_FILE) and not member.startswith("__MACOSX/"):
                        found.setdefault(name, archive.read(member))
        except zipfile.BadZipFile as problem:
            raise DataError(f"{src} is no readable zip", got=str(problem), expected="a folder or the zip") from None
    for name, spelling in ((ENCOUNTERS_FILE, ENCOUNTERS_FILE), (MAPPING_FILE, "IDs_mapping.csv")):
        if name not in found:
            raise DataError(
                f"{src} has no {spelling}", got=", ".join(found) or "neither file",
                expected="diabetic_data.csv and IDs_mapping.csv",
                remedy="download set 296 of the UCI repository and pass its zip",
            )  # fmt: skip
    return found


def _mapping(content: bytes, where: str) -> dict[str, dict[int, str]]:
    """Descriptions per identifier column; the file is three tables under one another, parted by empty rows."""
    tables: dict[str, dict[int, str]] = {}
    current: dict[int, str] = {}
    for line, row in enumerate(csv.reader(io.StringIO(_text(content, where), newline=None)), start=1):
        if not row or not row[0].strip():
            continue
        if row[0] in MAPPED:
            current = tables.setdefault(row[0], {})
        elif row[0].strip().isdecimal() and len(row) == 2:
            current[int(row[0])] = " ".join(row[1].split())
        else:
            raise DataError(f"{where} line {line} is malformed", got=",".join(row), expected="identifier,description")
    if missing := [column for column in MAPPED if not tables.get(column)]:
        raise DataError(f"{where} lacks the table of {', '.join(missing)}", got=", ".join(tables) or "no table")
    return tables


def _refuse(table: pl.DataFrame, column: str, bad: pl.Expr, expected: str) -> None:
    """Name the first row where `bad` holds or is null (line 1 is the header; blank lines do not count)."""
    rows = table.with_row_index("line", offset=2).filter(bad.fill_null(True)).select("line", column)
    if len(rows):
        raise DataError(
            f"column {column} of {ENCOUNTERS_FILE} has {len(rows)} unusable values",
            got=f"{rows.item(0, column)!r} on line {rows.item(0, 'line')}", expected=expected,
        )  # fmt: skip


def parse(table: pl.DataFrame) -> pl.DataFrame:
    """Integers as Int64, age and weight as band and midpoint, missing values as null.

    Raises:
        DataError: a value does not parse, or an encounter is repeated.
    """
    table = table.with_columns(pl.all().str.strip_chars())
    for column in INTEGERS:
        number = pl.col(column).cast(pl.Int64, strict=False)
        _refuse(table, column, number.is_null() | (number < 0), "a whole number, not negative")
    _refuse(table, "age", ~pl.col("age").str.contains(r"^\[\d+-\d+\)$"), "a decade such as [70-80)")
    weight = pl.col("weight")
    band = weight.is_in(MISSING) | weight.str.contains(r"^(\[\d+-\d+\)|>\d+)$")
    _refuse(table, "weight", weight.is_not_null() & ~band, "a band or '?'")
    table = table.with_columns(pl.col(INTEGERS).cast(pl.Int64))
    days = pl.col("time_in_hospital")
    _refuse(table, "time_in_hospital", ~days.is_between(1, MAX_DAYS_IN_HOSPITAL), f"1 to {MAX_DAYS_IN_HOSPITAL} days")
    _refuse(table, "readmitted", ~pl.col("readmitted").is_in(["NO", "<30", ">30"]), "NO, <30 or >30")
    for drug in DRUGS:
        _refuse(table, drug, ~pl.col(drug).is_in(["No", *DRUG_STATES]), f"No, {', '.join(DRUG_STATES)}")
    for column, (_, _, _, allowed) in CATEGORIES.items():
        if allowed is not None:
            bad = pl.col(column).is_not_null() & ~pl.col(column).is_in([*allowed, *MISSING])
            _refuse(table, column, bad, f"{', '.join(allowed)} or missing")
    if twice := table.filter(pl.col("encounter_id").is_duplicated())["encounter_id"].unique().sort().to_list():
        raise DataError(
            f"{ENCOUNTERS_FILE} repeats {len(twice)} values of encounter_id", got=twice[0], expected="each once"
        )
    text = [*STATIC, "weight", *CATEGORIES, *DIAGNOSES]
    bounds = {name: pl.col(name).str.extract_all(r"\d+").cast(pl.List(pl.Float32)) for name in ("age", "weight")}
    return table.with_columns(
        pl.when(pl.col(text).is_in(MISSING)).then(None).otherwise(pl.col(text)).name.keep(),
        age_years=bounds["age"].list.mean(),
        weight_pounds=bounds["weight"].list.mean(),
        line=pl.int_range(2, pl.len() + 2),
    )
