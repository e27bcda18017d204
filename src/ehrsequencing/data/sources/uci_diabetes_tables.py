"""The two files of the UCI diabetes set: finding, reading and checking them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ehrsequencing.data.sources.problems import ARCHIVE_PROBLEMS, quoted
from ehrsequencing.data.sources.spool import MAX_AGE_YEARS
from ehrsequencing.errors import DataError

ENCOUNTERS_FILE, MAPPING_FILE = "diabetic_data.csv", "ids_mapping.csv"
MAX_DAYS_IN_HOSPITAL = 14
MAX_COUNT = 1000
"""Of procedures, drugs and diagnoses of a stay, which has 14 days at most, and of visits of a year."""
MAX_POUNDS = 1400
"""The heaviest human on record weighed 1,400 lb."""

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
CATEGORIES = {  # column -> (prefix, whether it is known at admission, values allowed: None for any)
    "medical_specialty": ("UCI_SPECIALTY", True, None),
    "payer_code": ("UCI_PAYER", False, None),
    "max_glu_serum": ("UCI_MAX_GLU_SERUM", False, ("Norm", ">200", ">300")),
    "A1Cresult": ("UCI_A1C", False, ("Norm", ">7", ">8")),
    "change": ("UCI_CHANGE", False, ("Ch", "No")),
    "diabetesMed": ("UCI_DIABETES_MED", False, ("Yes", "No")),
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
BANDS = {"age": ("age_years", MAX_AGE_YEARS), "weight": ("weight_pounds", MAX_POUNDS)}  # midpoint, and its most
COLUMNS = (*INTEGERS, *STATIC, "age", "weight", *CATEGORIES, *DIAGNOSES, *DRUGS, "readmitted")


def read(src: Path) -> tuple[Path, pl.DataFrame, dict[str, dict[int, str]]]:
    """Where the encounters lie, the encounters as text, and descriptions per identifier column.

    Raises:
        DataError: a file or column is missing, there twice, empty, malformed or not in UTF-8.
    """
    contents = _contents(src)
    name, content = contents[ENCOUNTERS_FILE]
    text = _text(content, name)
    # Polars reads a blank line as a row without values.
    filled = "\n".join(line for line in text.splitlines() if line.strip())
    try:
        table = pl.read_csv(filled.encode(), infer_schema=False)
    except (pl.exceptions.NoDataError, pl.exceptions.ComputeError) as problem:
        raise DataError(
            f"{name} is empty or malformed", got=str(problem).splitlines()[0], expected="a CSV file"
        ) from None
    header = next(csv.reader([filled.partition("\n")[0]]))
    if repeated := [column for column, count in Counter(header).items() if count > 1]:
        raise DataError(f"{name} repeats columns", got=", ".join(repeated), expected="each name once")
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise DataError(
            f"{name} lacks {', '.join(missing)}", got=f"{len(table.columns)} columns",
            expected="the columns of the publisher's file", remedy="use the file as published by the UCI repository",
        )  # fmt: skip
    if table.is_empty():
        raise DataError(f"{name} is empty", got="a header and 0 rows", expected="one row per encounter")
    file, content = contents[MAPPING_FILE]
    return name, table.select(COLUMNS), _mapping(content, file)


def _text(content: bytes, where: Path) -> str:
    if content.count(b'"') % 2:
        raise DataError(f"{where} has a quotation mark that is never closed", expected="an even number of them")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{where} is not in UTF-8", got=f"{problem.reason} on line {content[: problem.start].count(10) + 1}",
            expected="the publisher's file", remedy="convert the file to UTF-8",
        ) from None  # fmt: skip


def _contents(src: Path) -> dict[str, tuple[Path, bytes]]:
    """Both files by their lower-case name: where they lie, and what they hold."""
    if not src.exists():
        raise DataError(f"{src} is missing", expected="a folder or zip with diabetic_data.csv and IDs_mapping.csv")
    found: dict[str, tuple[Path, bytes]] = {}
    for place, content in _folder_files(src) if src.is_dir() else _zip_members(src):
        first, _ = found.setdefault(place.name.lower(), (place, content))
        if first != place:
            raise DataError(
                f"{src} has {place.name} twice", got=f"{first.relative_to(src)} and {place.relative_to(src)}",
                expected="one", remedy="remove the one not meant, or pass the folder of the other",
            )  # fmt: skip
    for name, spelling in ((ENCOUNTERS_FILE, ENCOUNTERS_FILE), (MAPPING_FILE, "IDs_mapping.csv")):
        if name not in found:
            raise DataError(
                f"{src} has no {spelling}", got=", ".join(found) or "neither file",
                expected="diabetic_data.csv and IDs_mapping.csv",
                remedy="download set 296 of the UCI repository and pass its zip",
            )  # fmt: skip
    return found


def _is_ours(place: Path) -> bool:
    """Whether it is one of the two files, and none that macOS or a tool put beside them."""
    return place.name.lower() in (ENCOUNTERS_FILE, MAPPING_FILE) and "__MACOSX" not in place.parts


def _folder_files(src: Path) -> Iterator[tuple[Path, bytes]]:
    for file in sorted(src.rglob("*")):
        if _is_ours(file.relative_to(src)) and file.is_file():
            yield file, file.read_bytes()


def _zip_members(src: Path) -> Iterator[tuple[Path, bytes]]:
    try:
        with zipfile.ZipFile(src) as archive:
            members = [member for member in archive.namelist() if _is_ours(Path(member))]
            contents = [(src / member, archive.read(member)) for member in members]
    except ARCHIVE_PROBLEMS as problem:
        raise DataError(
            f"{src} is no readable zip", got=str(problem).splitlines()[0] if str(problem) else None,
            expected="a folder or the zip", remedy="compare its checksum with the publisher's",
        ) from None  # fmt: skip
    yield from contents


def _mapping(content: bytes, where: Path) -> dict[str, dict[int, str]]:
    """Descriptions per identifier column; the file is three tables under one another, parted by empty rows."""
    tables: dict[str, dict[int, str]] = {}
    current: dict[int, str] = {}
    for line, row in enumerate(csv.reader(io.StringIO(_text(content, where), newline=None)), start=1):
        if not row or not row[0].strip():
            continue
        if row[0] in MAPPED:
            current = tables.setdefault(row[0], {})
        elif row[0].strip().isdecimal() and len(row) == 2:
            text = " ".join(row[1].split())
            if current.setdefault(int(row[0]), text) != text:
                raise DataError(
                    f"{where} line {line} describes {row[0].strip()} a second time, and differently",
                    got=f"{quoted(text)} and before {quoted(current[int(row[0])])}", expected="one description each",
                )  # fmt: skip
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


def odd_band(column: str, most: float) -> pl.Expr:
    """Where a band of a column is none: its ends are equal or swapped, or its midpoint is `most` or more.

    >>> table = pl.DataFrame({"age": ["[70-80)", "[80-70)", "[900-1000)", None]})
    >>> table.filter(odd_band("age", 125))["age"].to_list()
    ['[80-70)', '[900-1000)']
    """
    ends = pl.col(column).str.extract_all(r"[0-9]+").cast(pl.List(pl.Float64), strict=False)
    swapped = (ends.list.len() > 1) & (ends.list.first() >= ends.list.last())
    return pl.col(column).is_not_null() & (swapped | ~(ends.list.mean() < most).fill_null(False))


def parse(table: pl.DataFrame) -> pl.DataFrame:
    """Integers as Int64, age and weight as band and midpoint, missing values as null.

    The midpoint of a band that is odd is null, too.

    Raises:
        DataError: a value does not parse, or an encounter is repeated.
    """
    table = table.with_columns(pl.all().str.strip_chars())
    for column in INTEGERS:
        number = pl.col(column).cast(pl.Int64, strict=False)
        _refuse(table, column, number.is_null() | (number < 0), "a whole number, not negative")
    _refuse(table, "age", ~pl.col("age").str.contains(r"^\[[0-9]+-[0-9]+\)$"), "a decade such as [70-80)")
    weight = pl.col("weight")
    band = weight.is_in(MISSING) | weight.str.contains(r"^(\[[0-9]+-[0-9]+\)|>[0-9]+)$")
    _refuse(table, "weight", weight.is_not_null() & ~band, "a band or '?'")
    table = table.with_columns(pl.col(INTEGERS).cast(pl.Int64))
    days = pl.col("time_in_hospital")
    _refuse(table, "time_in_hospital", ~days.is_between(1, MAX_DAYS_IN_HOSPITAL), f"1 to {MAX_DAYS_IN_HOSPITAL} days")
    _refuse(table, "readmitted", ~pl.col("readmitted").is_in(["NO", "<30", ">30"]), "NO, <30 or >30")
    for drug in DRUGS:
        _refuse(table, drug, ~pl.col(drug).is_in(["No", *DRUG_STATES]), f"No, {', '.join(DRUG_STATES)}")
    for column, (_, _, allowed) in CATEGORIES.items():
        if allowed is not None:
            bad = pl.col(column).is_not_null() & ~pl.col(column).is_in([*allowed, *MISSING])
            _refuse(table, column, bad, f"{', '.join(allowed)} or missing")
    if twice := table.filter(pl.col("encounter_id").is_duplicated())["encounter_id"].unique().sort().to_list():
        raise DataError(
            f"{ENCOUNTERS_FILE} repeats {len(twice)} values of encounter_id", got=twice[0], expected="each once"
        )
    text = [*STATIC, "weight", *CATEGORIES, *DIAGNOSES]
    table = table.with_columns(
        pl.when(pl.col(text).is_in(MISSING)).then(None).otherwise(pl.col(text)).name.keep(),
        row=pl.int_range(1, pl.len() + 1),
    )
    ends = {name: pl.col(name).str.extract_all(r"[0-9]+").cast(pl.List(pl.Float64), strict=False) for name in BANDS}
    midpoints = {
        midpoint: pl.when(~odd_band(name, most)).then(ends[name].list.mean()).cast(pl.Float32)
        for name, (midpoint, most) in BANDS.items()
    }
    return table.with_columns(**midpoints)
