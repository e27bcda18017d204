"""Diabetes 130-US hospitals for the years 1999-2008, as the UCI repository publishes it (set 296, CC BY 4.0).

Source: Strack et al. 2014, doi:10.1155/2014/781670; https://doi.org/10.24432/C5230J.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.calendar import NO_DATES
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, EVENT_SCHEMA, SPLITS, kind_of_code
from ehrsequencing.data.sources.target import Target
from ehrsequencing.data.sources.uci_diabetes_tables import (
    CATEGORIES,
    COUNTS_AT_ADMISSION,
    COUNTS_AT_DISCHARGE,
    DIAGNOSES,
    DRUG_STATES,
    DRUGS,
    ENCOUNTERS_FILE,
    MAPPED,
    STATIC,
    parse,
    read,
)
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError

EPOCH = datetime.datetime(2000, 1, 1)
DAYS_BETWEEN_ADMISSIONS = 30

MISSING_DESCRIPTIONS = ("NULL", "Not Available", "Not Mapped", "Unknown/Invalid")
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


def load(src: Path, target: Target) -> None:
    """Import the publisher's zip or a folder with its two CSV files.

    Args:
        src: Folder or zip with `diabetic_data.csv` and `IDs_mapping.csv`, in whichever case and at whichever depth.
        target: Where it is written, and how.

    Raises:
        DataError: a file or column is missing, a value does not parse, an encounter is repeated; with `strict`, an
            encounter after a discharge by death.
        RunError: `out` exists.
    """
    table, mapping = read(src)
    encounters, conflicts = _timeline(parse(table))
    if target.strict and len(after := encounters.filter("after_death")):
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
    with target.writer() as writer:
        by_split = events.join(splits, on="subject_id").partition_by("split", as_dict=True, include_key=False)
        for done, split in enumerate(SPLITS, start=1):
            whole = writer.folder / f".{split}.whole"
            if (split,) in by_split and not whole.exists():
                writer.write_events(split, 0, by_split[(split,)])
                whole.touch()
            if target.progress is not None:
                target.progress(done, len(SPLITS))
        writer.finish(
            codes,
            source="uci-diabetes",
            options={"strict": target.strict},
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
