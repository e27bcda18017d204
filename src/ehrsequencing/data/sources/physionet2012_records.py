"""The records of the Challenge 2012: finding and reading them in each form, and the events that a row becomes."""

from __future__ import annotations

import datetime
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR
from ehrsequencing.data.sources.cells import Kind
from ehrsequencing.data.sources.problems import ARCHIVE_PROBLEMS
from ehrsequencing.data.sources.spool import event, named
from ehrsequencing.data.sources.tables import Piece, Table, find_tables, joined
from ehrsequencing.errors import DataError

EPOCH = datetime.datetime(2000, 1, 1)
PREFIX = "PHYSIONET2012"
LETTERS = ("a", "b", "c")
ARCHIVES = (".zip", ".tar.gz")
COLUMNS: dict[str, Kind] = {"time": "text", "parameter": "text", "value": "number"}
ROWS_PER_PIECE = 200_000
MAX_YEARS = 200
ONCE = ("RecordID", "Age", "Gender", "Height", "ICUType")
CARE_UNITS = {
    1: "CORONARY CARE UNIT", 2: "CARDIAC SURGERY RECOVERY UNIT", 3: "MEDICAL ICU", 4: "SURGICAL ICU",
}  # fmt: skip
PARAMETERS = pl.DataFrame(
    [
        ("Albumin", "Albumin", "g/dL", "lab"),
        ("ALP", "Alkaline phosphatase", "IU/L", "lab"),
        ("ALT", "Alanine transaminase", "IU/L", "lab"),
        ("AST", "Aspartate transaminase", "IU/L", "lab"),
        ("Bilirubin", "Bilirubin", "mg/dL", "lab"),
        ("BUN", "Blood urea nitrogen", "mg/dL", "lab"),
        ("Cholesterol", "Cholesterol", "mg/dL", "lab"),
        ("Creatinine", "Creatinine in serum", "mg/dL", "lab"),
        ("DiasABP", "Diastolic arterial blood pressure, invasive", "mmHg", "vital"),
        ("FiO2", "Fraction of inspired oxygen (0 to 1)", None, "vital"),
        ("GCS", "Glasgow coma score (3 to 15)", None, "vital"),
        ("Glucose", "Glucose in serum", "mg/dL", "lab"),
        ("HCO3", "Bicarbonate in serum", "mmol/L", "lab"),
        ("HCT", "Haematocrit", "%", "lab"),
        ("Height", "Height", "cm", "vital"),
        ("HR", "Heart rate", "bpm", "vital"),
        ("K", "Potassium in serum", "mEq/L", "lab"),
        ("Lactate", "Lactate", "mmol/L", "lab"),
        ("MAP", "Mean arterial blood pressure, invasive", "mmHg", "vital"),
        ("MechVent", "Mechanical ventilation", None, "procedure"),
        ("Mg", "Magnesium in serum", "mmol/L", "lab"),
        ("Na", "Sodium in serum", "mEq/L", "lab"),
        ("NIDiasABP", "Diastolic arterial blood pressure, cuff", "mmHg", "vital"),
        ("NIMAP", "Mean arterial blood pressure, cuff", "mmHg", "vital"),
        ("NISysABP", "Systolic arterial blood pressure, cuff", "mmHg", "vital"),
        ("PaCO2", "Partial pressure of carbon dioxide in arterial blood", "mmHg", "lab"),
        ("PaO2", "Partial pressure of oxygen in arterial blood", "mmHg", "lab"),
        ("pH", "pH of arterial blood", None, "lab"),
        ("Platelets", "Platelets", "cells/nL", "lab"),
        ("RespRate", "Respiration rate", "bpm", "vital"),
        ("SaO2", "Oxygen saturation of haemoglobin", "%", "lab"),
        ("SysABP", "Systolic arterial blood pressure, invasive", "mmHg", "vital"),
        ("Temp", "Temperature", "Cel", "vital"),
        ("TroponinI", "Troponin I", "ug/L", "lab"),
        ("TroponinT", "Troponin T", "ug/L", "lab"),
        ("Urine", "Urine output", "mL", "vital"),
        ("WBC", "White blood cells", "cells/nL", "lab"),
        ("Weight", "Weight", "kg", "vital"),
    ],
    schema=["parameter", "description", "unit", "measured"],
    orient="row",
)
MAY_BE_ZERO = ("HR", "MechVent", "RespRate", "Urine")
"""What can stop or be off; elsewhere 0 is no value of somebody alive."""


def find_sets(src: Path, unpacked: Path) -> dict[str, Table]:
    """The sets that lie in a folder, by letter.

    Args:
        src: The folder.
        unpacked: Where to put the records of archives.

    Raises:
        DataError: the folder or every set is missing, a set is there in two forms, or an archive is damaged or empty.
    """
    tables = find_tables(src)
    lying = {path.name.lower(): path for path in sorted(src.iterdir())}
    sets = {}
    for letter in LETTERS:
        name = f"set-{letter}"
        forms = [name] if name in tables else []
        records = _records(lying[name]) if name in lying and lying[name].is_dir() else ()
        forms += [f"{name}/"] if records else []
        forms += [name + suffix for suffix in ARCHIVES if name + suffix in lying]
        if len(forms) > 1:
            raise DataError(
                f"{src} has {name} in {len(forms)} forms", got=", ".join(forms), expected="one",
                remedy="remove those not meant",
            )  # fmt: skip
        if forms == [name]:
            sets[letter] = tables[name]
        elif records:
            sets[letter] = Table(name, records)
        elif forms:
            sets[letter] = Table(name, _unpack(lying[forms[0]], unpacked / name))
    if not sets:
        raise DataError(
            f"{src} has no set of records", got=", ".join(sorted(lying)) or "an empty folder",
            expected="set-a.csv, set-a/, set-a.zip or set-a.tar.gz",
        )  # fmt: skip
    return sets


def _is_record(name: str) -> bool:
    return re.fullmatch(r"\d+\.txt", name, re.IGNORECASE) is not None


def _records(folder: Path) -> tuple[Path, ...]:
    """The record files of a folder, or of the folder of the same name within (as some tools unpack it)."""
    inner = folder / folder.name
    return tuple(path for path in sorted((inner if inner.is_dir() else folder).iterdir()) if _is_record(path.name))


def _unpack(archive: Path, folder: Path) -> tuple[Path, ...]:
    """The record files of an archive, under their own names whatever folder they lie in."""
    folder.mkdir()
    try:
        for name, content in _members(archive):
            (folder / name).write_bytes(content)
    except ARCHIVE_PROBLEMS as problem:
        raise DataError(
            f"{archive} is damaged or cut short", got=str(problem).splitlines()[0] if str(problem) else None,
            expected="the publisher's archive", remedy="compare its checksum with the publisher's",
        ) from None  # fmt: skip
    if not (records := _records(folder)):
        raise DataError(f"{archive} has no records", expected="files such as 132539.txt")
    return records


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.namelist():
                if _is_record(Path(member).name):
                    yield Path(member).name, bundle.read(member)
    else:
        with tarfile.open(archive) as bundle:
            for entry in bundle:
                content = bundle.extractfile(entry) if entry.isfile() and _is_record(Path(entry.name).name) else None
                if content is not None:
                    yield Path(entry.name).name, content.read()


def read(table: Table) -> Iterator[Piece]:
    """Rows of a set: `recordid`, `minutes` (Int32, after admission), `parameter` and `value` (Float64).

    Raises:
        DataError: as `Table.read`; also a time that is no `hh:mm`.
    """
    if table.files[0].suffix != ".txt":
        for piece in table.read({"recordid": "id", **COLUMNS}):
            yield _timed(piece, piece.rows)
        return
    gathered: list[Piece] = []
    for file in table.files:
        for piece in Table(table.name, (file,)).read(COLUMNS):
            record = pl.lit(int(file.stem), dtype=pl.Int64)
            gathered.append(_timed(piece, piece.rows.with_columns(recordid=record)))
        if sum(len(piece.rows) for piece in gathered) > ROWS_PER_PIECE or file == table.files[-1]:
            if gathered:
                yield joined(gathered, file.parent)
            gathered = []


def _timed(piece: Piece, rows: pl.DataFrame) -> Piece:
    hours_minutes = rows["time"].str.extract_groups(r"^(\d{1,4}):([0-5]\d)$").struct.unnest()
    hours, minutes = (hours_minutes[name].cast(pl.Int32) for name in hours_minutes.columns)
    wrong = hours.is_null() & rows["time"].is_not_null()
    if wrong.any():
        first = wrong.arg_true()[0]
        raise DataError(
            f"column time of {piece.file} has {int(wrong.sum())} values that are no times",
            got=f"{rows['time'][first]!r} in row {rows['row'][first]}", expected="hours and minutes such as 07:30",
        )  # fmt: skip
    timed = rows.select("row", "recordid", (hours * 60 + minutes).alias("minutes"), "parameter", "value")
    return replace(piece, rows=timed)


def subjects(pieces: list[Piece]) -> pl.DataFrame:
    """`subject_id` and `birth` of every record; null without an age.

    Raises:
        DataError: a descriptor is there twice, a RecordID contradicts its record, or there is no record.
    """
    described = []
    for piece in pieces:
        rows = piece.rows.filter(pl.col("parameter").is_in(ONCE) & pl.col("recordid").is_not_null())
        other = rows.filter((pl.col("parameter") == "RecordID") & pl.col("value").ne_missing(pl.col("recordid")))
        if len(other):
            first = other.row(0, named=True)
            raise DataError(
                f"a record in {piece.file} names another", got=f"RecordID {first['value']:g} in row {first['row']}"
                if first["value"] is not None else f"no RecordID in row {first['row']}",
                expected=str(first["recordid"]),
            )  # fmt: skip
        described.append(rows.select("recordid", "parameter", "value", file=pl.lit(str(piece.file))))
    records = pl.concat([pl.Series(dtype=pl.Int64), *(piece.rows["recordid"] for piece in pieces)])
    records = records.drop_nulls().unique().sort()
    if records.is_empty():
        raise DataError("the sets have no record", got="0 rows", expected="at least one")
    known = pl.concat(described)
    if len(twice := known.filter(known.select("recordid", "parameter").is_duplicated())):
        raise DataError(
            f"{twice['file'][-1]} has a record that is there already",
            got=f"{twice['parameter'][-1]} of record {twice['recordid'][-1]}",
            expected="each descriptor once a record", remedy="remove the second file or row",
        )  # fmt: skip
    ages = known.filter(parameter="Age").select(subject_id="recordid", birth=_birth())
    return pl.DataFrame({"subject_id": records}).join(ages, on="subject_id", how="left", maintain_order="left")


def _epoch() -> pl.Expr:
    return pl.lit(EPOCH, dtype=pl.Datetime("us"))


def _birth() -> pl.Expr:
    """`value` years before admission; null where that is no age."""
    years = pl.when(pl.col("value").is_between(0, MAX_YEARS)).then(pl.col("value"))
    return _epoch() - pl.duration(days=(years * DAYS_PER_YEAR).round().cast(pl.Int64))


def aside() -> pl.Expr:
    """Why no event is made of a row; null for the others."""
    name, value = pl.col("parameter"), pl.col("value")
    return (
        pl.when(name == "RecordID").then(pl.lit("the record's own number"))
        .when(value < 0).then(pl.lit("missing: written as a negative number"))
        .when((value == 0) & name.is_in(PARAMETERS["parameter"].to_list()) & ~name.is_in(MAY_BE_ZERO))
        .then(pl.lit("missing: written as 0"))
    )  # fmt: skip


def events(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """One event per row: birth, gender, the unit of care, and everything measured."""
    rows = rows.join(PARAMETERS, on="parameter", how="left", maintain_order="left")
    name, value, measured = pl.col("parameter"), pl.col("value"), pl.col("measured")
    time = _epoch() + pl.duration(minutes=pl.col("minutes"))
    gender = value.replace_strict({0: "F", 1: "M"}, default=None, return_dtype=pl.String)
    care_unit = value.replace_strict(CARE_UNITS, default=None, return_dtype=pl.String)
    described = measured.is_not_null() | name.is_in(("Age", "Gender", "ICUType"))
    record = "recordid"
    return [
        event(
            rows, pl.lit(BIRTH_CODE), _birth(), "demographic", subject=record, description=pl.lit("Birth"),
            where=name == "Age",
        ),
        event(rows, named("GENDER", gender), None, "demographic", subject=record, where=name == "Gender"),
        event(
            rows, named("ICU_ADMISSION", care_unit), time, "encounter", subject=record, visit=record,
            where=name == "ICUType",
        ),
        # A parameter that the challenge does not name has no code, which drops and counts the row.
        event(
            rows, pl.lit(None, dtype=pl.String), time, "other", subject=record,
            where=~described.fill_null(False),
        ),
        *(
            event(
                rows, named(PREFIX, "parameter"), time, kind, subject=record, visit=record, value=value,
                unit=pl.col("unit"), description=pl.col("description"), where=measured == kind,
            )
            for kind in ("lab", "vital", "procedure")
        ),
    ]  # fmt: skip
