"""Diabetes 130-US hospitals for the years 1999-2008, as the UCI repository publishes it (set 296, CC BY 4.0).

Source: Strack et al. 2014, doi:10.1155/2014/781670; https://doi.org/10.24432/C5230J.
"""

from __future__ import annotations

import csv
import datetime
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.calendar import NO_DATES
from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, EVENT_SCHEMA, SPLITS, kind_of_code
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError

ENCOUNTERS_FILE, MAPPING_FILE = "diabetic_data.csv", "ids_mapping.csv"
EPOCH = datetime.datetime(2000, 1, 1)
DAYS_BETWEEN_ADMISSIONS = 30
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
MISSING_DESCRIPTIONS = ("NULL", "Not Available", "Not Mapped", "Unknown/Invalid")
INTEGERS = ("encounter_id", "patient_nbr", *MAPPED, *COUNTS_AT_ADMISSION, *COUNTS_AT_DISCHARGE)
COLUMNS = (*INTEGERS, *STATIC, "age", "weight", *CATEGORIES, *DIAGNOSES, *DRUGS, "readmitted")

DIED = (11, 19, 20, 21)
HOSPICE = (13, 14)
LABEL = "readmission_30d"
NOTES = [
    f"{NO_DATES} Encounters of a patient are ordered by encounter_id; the n-th (from 0) is admitted "
    f"at {EPOCH.date()} + n * {DAYS_BETWEEN_ADMISSIONS} days and discharged time_in_hospital days later. "
    "Gaps between encounters are unknown: differences between visits say order, never duration.",
    "Ages are published as decades: MEDS_BIRTH lies the midpoint of the first encounter's decade before its admission, "
    "and UCI_AGE carries the midpoint at every encounter.",
    "Stamped at admission: age, admission type and source, medical specialty, visits of the prior year. "
    "Stamped at discharge: everything else, diagnoses and drugs included.",
    "The principal diagnosis (diag_1) is present twice: as ICD9CM//CODE like the others, so that its statistics are "
    "shared, and as DIAGNOSIS_PRINCIPAL//ICD9CM//CODE.",
    "Race and gender are the first known value; undated where the first encounter states it, else dated at the "
    "admission that first does, so that no encounter is described by a later one.",
    "'?', 'None', 'Unknown/Invalid' and identifiers described as NULL, Not Available, Not Mapped or Unknown/Invalid "
    "are missing and make no event.",
    "Weight is the midpoint of the published band in pounds; '>200' is taken as 200.",
    "MEDS_DEATH is at discharge of dispositions 11, 19, 20 and 21 where it is the patient's last encounter.",
    "`readmitted` is a label (labels/readmission_30d.parquet) and never an event.",
]


def load(
    src: Path,
    out: Path,
    *,
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Import the publisher's zip or a folder with its two CSV files.

    Args:
        src: Folder or zip with `diabetic_data.csv` and `IDs_mapping.csv`, in whichever case and at whichever depth.
        out: Folder of the MEDS dataset.
        overwrite: Replace what lies at `out`.
        strict: An encounter after a discharge by death, which is then no death, is an error.
        progress: Called with (splits written, splits).

    Raises:
        DataError: a file or column is missing, a value does not parse, an encounter is repeated; with `strict`, an
            encounter after a discharge by death.
        RunError: `out` exists.
    """
    table, mapping = _read(src)
    encounters, conflicts = _timeline(_parse(table))
    if strict and len(after := encounters.filter("after_death")):
        first = after.sort("line").row(0, named=True)
        raise DataError(
            f"{src}: {ENCOUNTERS_FILE} has {len(after)} encounters after a discharge by death",
            got=f"encounter {first['encounter_id']} of patient {first['patient_nbr']} on line {first['line']}",
            remedy="mend the file, or import without strict, which counts them in the manifest",
        )
    events = _events(encounters, mapping)
    codes = _code_table(events, mapping)
    labels, manifest = _labels(encounters)
    patients = encounters["patient_nbr"].unique().sort()
    splits = pl.DataFrame({"subject_id": patients, "split": split_of(patients.to_numpy())})
    with MedsWriter(out, overwrite) as writer:
        by_split = events.join(splits, on="subject_id").partition_by("split", as_dict=True, include_key=False)
        for done, split in enumerate(SPLITS, start=1):
            if (split,) in by_split:
                writer.write_events(split, 0, by_split[(split,)])
            if progress is not None:
                progress(done, len(SPLITS))
        writer.finish(
            codes,
            source="uci-diabetes",
            options={"strict": strict},
            notes=NOTES,
            extra={
                **_account(encounters, events, codes),
                "encounters": len(encounters),
                "conflicts": conflicts,
                "labels": [LABEL],
            },
        )
        writer.write_labels(LABEL, labels, manifest)


def _account(encounters: pl.DataFrame, events: pl.DataFrame, codes: pl.DataFrame) -> dict[str, Any]:
    """Entries that every source states; each encounter makes events (its age at least), what is odd is refused."""
    kinds = events.join(codes.select("code", "kind"), on="code").group_by("kind").len().sort("kind")
    with_events = events["visit_id"].drop_nulls().n_unique()
    made = {"rows": len(encounters), "events": len(events), "rows_with_events": with_events}
    return {
        "visits": len(encounters),
        "events_by_kind": dict(kinds.iter_rows()),
        "events_dropped": {},
        "events_repeated": 0,
        "events_merged": 0,
        "tables": {ENCOUNTERS_FILE.removesuffix(".csv"): made},
    }


def _read(src: Path) -> tuple[pl.DataFrame, dict[str, dict[int, str]]]:
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
    for line, row in enumerate(csv.reader(io.StringIO(_text(content, where))), start=1):
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


def _parse(table: pl.DataFrame) -> pl.DataFrame:
    """Integers as Int64, age and weight as band and midpoint, missing values as null."""
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


def _timeline(encounters: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Add `admitted`, `discharged` (pseudo-dates), `first`, `last` and `after_death`; count what contradicts itself."""
    encounters = encounters.sort("patient_nbr", "encounter_id").with_columns(
        order=pl.int_range(pl.len()).over("patient_nbr"),
        last=pl.int_range(pl.len()).reverse().over("patient_nbr") == 0,
    )
    epoch = pl.lit(EPOCH, dtype=pl.Datetime("us"))
    admitted = epoch + pl.duration(days=pl.col("order") * DAYS_BETWEEN_ADMISSIONS)
    encounters = encounters.with_columns(
        first=pl.col("order") == 0,
        admitted=admitted,
        discharged=admitted + pl.duration(days=pl.col("time_in_hospital")),
    )
    died = pl.col("discharge_disposition_id").is_in(DIED)
    patient = encounters.group_by("patient_nbr")
    conflicts = {
        f"patients_with_several_values_of_{column}": int(
            patient.agg(pl.col(column).drop_nulls().n_unique() > 1)[column].sum()
        )
        for column in STATIC
    }
    conflicts["encounters_younger_than_the_one_before"] = int(
        encounters.select((pl.col("age_years").diff().over("patient_nbr") < 0).sum()).item()
    )
    encounters = encounters.with_columns(after_death=died.cum_sum().over("patient_nbr") - died > 0)
    conflicts["encounters_after_a_discharge_by_death"] = int(encounters["after_death"].sum())
    return encounters, conflicts


def _events(encounters: pl.DataFrame, mapping: dict[str, dict[int, str]]) -> pl.DataFrame:
    """Long table of events, columns of `EVENT_SCHEMA`."""
    rows: list[pl.DataFrame] = []

    def add(
        code: pl.Expr,
        time: pl.Expr,
        *,
        where: pl.Expr | None = None,
        value: pl.Expr | None = None,
        unit: str | None = None,
        text: pl.Expr | None = None,
        in_visit: bool = True,
    ) -> None:
        nothing = pl.lit(None)
        rows.append(
            encounters.filter(pl.lit(True) if where is None else where)
            .select(
                subject_id=pl.col("patient_nbr"),
                time=time.cast(pl.Datetime("us")),
                code=code,
                numeric_value=(nothing if value is None else value).cast(pl.Float32),
                visit_id=(pl.col("encounter_id") if in_visit else nothing).cast(pl.Int64),
                unit=pl.lit(unit, dtype=pl.String),
                text_value=(nothing if text is None else text).cast(pl.String),
            )
            .filter(pl.col("code").is_not_null())
        )

    admitted, discharged = pl.col("admitted"), pl.col("discharged")
    birth = admitted - pl.duration(days=(pl.col("age_years") * DAYS_PER_YEAR).round().cast(pl.Int64))
    add(pl.lit(BIRTH_CODE), birth, where=pl.col("first"), in_visit=False)
    for column, prefix in STATIC.items():
        known = pl.col(column).is_not_null()
        first_known = known & (known.cum_sum().over("patient_nbr") == 1)
        add(_prefixed(prefix, column), pl.lit(None), where=first_known & pl.col("first"), in_visit=False)
        add(_prefixed(prefix, column), admitted, where=first_known & ~pl.col("first"))
    add(pl.lit("UCI_AGE"), admitted, value=pl.col("age_years"), unit="a", text=pl.col("age"))
    for column, (prefix, at_admission) in MAPPED.items():
        missing = [key for key, description in mapping[column].items() if description in MISSING_DESCRIPTIONS]
        known = ~pl.col(column).is_in(missing)
        add(_prefixed(prefix, column), admitted if at_admission else discharged, where=known)
    for column, (prefix, _, at_admission, _) in CATEGORIES.items():
        add(_prefixed(prefix, column), admitted if at_admission else discharged)
    for column in (*COUNTS_AT_ADMISSION, *COUNTS_AT_DISCHARGE):
        time = admitted if column in COUNTS_AT_ADMISSION else discharged
        unit = "d" if column == "time_in_hospital" else None
        add(pl.lit(f"UCI_{column.upper()}"), time, value=pl.col(column), unit=unit)
    known_weight = pl.col("weight").is_not_null()
    add(
        pl.lit("UCI_WEIGHT"),
        discharged,
        where=known_weight,
        value=pl.col("weight_pounds"),
        unit="[lb_av]",
        text=pl.col("weight"),
    )
    first, second, third = (pl.col(column) for column in DIAGNOSES)
    add(_prefixed("DIAGNOSIS_PRINCIPAL//ICD9CM", "diag_1"), discharged)
    add(_prefixed("ICD9CM", "diag_1"), discharged)
    add(_prefixed("ICD9CM", "diag_2"), discharged, where=second.ne_missing(first))
    add(_prefixed("ICD9CM", "diag_3"), discharged, where=third.ne_missing(first) & third.ne_missing(second))
    for drug in DRUGS:
        add(_prefixed(f"UCI_DRUG//{drug}", drug), discharged, where=pl.col(drug) != "No")
    add(pl.lit(DEATH_CODE), discharged, where=pl.col("last") & pl.col("discharge_disposition_id").is_in(DIED))
    return pl.concat(rows).select(*EVENT_SCHEMA)


def _prefixed(prefix: str, column: str) -> pl.Expr:
    """Code `prefix//value`; null where the value is."""
    return pl.lit(f"{prefix}//") + pl.col(column).cast(pl.String)


def _code_table(events: pl.DataFrame, mapping: dict[str, dict[int, str]]) -> pl.DataFrame:
    """Every code in the events with description, kind and numeric flag."""
    described = {
        BIRTH_CODE: "Birth",
        DEATH_CODE: "Death",
        "UCI_AGE": "Age, midpoint of the decade",
        "UCI_WEIGHT": "Weight",
    }
    kinds = {"UCI_AGE": "demographic", "UCI_WEIGHT": "vital"}
    for column, text in (COUNTS_AT_ADMISSION | COUNTS_AT_DISCHARGE).items():
        described[f"UCI_{column.upper()}"], kinds[f"UCI_{column.upper()}"] = text, "encounter"
    for column, (prefix, _) in MAPPED.items():
        words = column.removesuffix("_id").replace("_", " ").capitalize()
        described |= {f"{prefix}//{key}": f"{words}: {text}" for key, text in mapping[column].items()}
    named = {
        "medical_specialty": "Specialty", "payer_code": "Payer", "max_glu_serum": "Maximum glucose in serum",
        "A1Cresult": "Haemoglobin A1c", "change": "Change of diabetes drugs", "diabetesMed": "Diabetes drug prescribed",
    }  # fmt: skip
    words_of = {prefix: named[column] for column, (prefix, *_) in CATEGORIES.items()} | {
        prefix: column.capitalize() for column, prefix in STATIC.items()
    }
    kind_of = {prefix: kind for prefix, kind, *_ in CATEGORIES.values()} | {
        "UCI_DRUG": "drug",
        "DIAGNOSIS_PRINCIPAL": "diagnosis",
        **{prefix: "encounter" for prefix, _ in MAPPED.values()},
    }

    def describe(code: str) -> str | None:
        prefix, _, rest = code.partition("//")
        if prefix == "UCI_DRUG":
            drug, state = rest.split("//")
            return f"{drug.capitalize()}, {DRUG_STATES[state]}"
        return described.get(code, f"{words_of[prefix]}: {rest}" if prefix in words_of else None)

    def kind(code: str) -> str:
        return kinds.get(code) or kind_of.get(code.partition("//")[0]) or kind_of_code(code)

    table = events.group_by("code").agg(numeric=pl.col("numeric_value").is_not_null().any()).sort("code")
    codes = table["code"].to_list()
    return table.with_columns(
        description=pl.Series([describe(code) for code in codes], dtype=pl.String),
        kind=pl.Series([kind(code) for code in codes], dtype=pl.String),
    )


def _labels(encounters: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Readmission within 30 days, at the discharge of every encounter not ending in death or hospice."""
    disposition = pl.col("discharge_disposition_id")
    labelled = encounters.filter(~disposition.is_in([*DIED, *HOSPICE])).select(
        subject_id=pl.col("patient_nbr"),
        prediction_time=pl.col("discharged"),
        boolean_value=pl.col("readmitted") == "<30",
    )

    def step(name: str, rows: pl.DataFrame, subject: str = "patient_nbr") -> dict[str, Any]:
        return {"step": name, "rows": len(rows), "subjects": rows[subject].n_unique()}

    flow = [
        step("encounters", encounters),
        step("excluded: discharged by death (dispositions 11, 19, 20, 21)", encounters.filter(disposition.is_in(DIED))),
        step("excluded: discharged to hospice (dispositions 13, 14)", encounters.filter(disposition.is_in(HOSPICE))),
        step("labelled", labelled, "subject_id"),
        step("positive", labelled.filter("boolean_value"), "subject_id"),
    ]
    manifest = {
        "task": LABEL,
        "kind": "binary",
        "prediction_time": "discharge of the encounter, inclusive; before the patient's next admission",
        "horizon_days": 30,
        "follow_up": "source",
        "rules": [
            "positive where the publisher's `readmitted` is '<30', negative where it is 'NO' or '>30'",
            "every encounter counts, the last one of a patient included",
            "excluded: discharges by death or to hospice, which cannot be followed by a readmission of interest",
        ],
        "flow": flow,
    }
    return labelled, manifest
