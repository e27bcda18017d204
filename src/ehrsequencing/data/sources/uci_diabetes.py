"""Diabetes 130-US hospitals for the years 1999-2008, as the UCI repository publishes it (set 296, CC BY 4.0).

Source: Strack et al. 2014, doi:10.1155/2014/781670; https://doi.org/10.24432/C5230J.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.calendar import NO_DATES
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, kind_of_code
from ehrsequencing.data.sources.spool import event, summary
from ehrsequencing.data.sources.tables import Held, Piece
from ehrsequencing.data.sources.target import Target
from ehrsequencing.data.sources.uci_diabetes_tables import (
    BANDS,
    CATEGORIES,
    COUNTS_AT_ADMISSION,
    COUNTS_AT_DISCHARGE,
    DIAGNOSES,
    DRUG_STATES,
    DRUGS,
    ENCOUNTERS_FILE,
    MAPPED,
    MAX_COUNT,
    STATIC,
    odd_band,
    parse,
    read,
)
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
    f"Ages and weights whose band cannot be, counts above {MAX_COUNT}, and identifiers that IDs_mapping.csv lacks are "
    "missing and make no event; they are counted. A diagnosis that an encounter repeats is one event.",
    "`readmitted` is a label (labels/readmission_30d.parquet) and never an event.",
]


def load(src: Path, target: Target) -> None:
    """Import the publisher's zip or a folder with its two CSV files.

    Args:
        src: Folder or zip with `diabetic_data.csv` and `IDs_mapping.csv`, in whichever case and at whichever depth.
        target: Where it is written, and how.

    Raises:
        DataError: a file or column is missing, a value does not parse, an encounter is repeated; with `strict`, a
            value that cannot be, or an encounter after a discharge by death.
        RunError: `out` exists.
    """
    file, table, mapping = read(src)
    encounters, conflicts = _timeline(parse(table))
    if target.strict and len(after := encounters.filter("after_death")):
        first = after.sort("row").row(0, named=True)
        raise DataError(
            f"{file} has {len(after)} encounters after a discharge by death",
            got=f"encounter {first['encounter_id']} of patient {first['patient_nbr']} on line {first['row'] + 1}",
            remedy="mend the file, or import without strict, which counts them in the manifest",
        )
    name = ENCOUNTERS_FILE.removesuffix(".csv")
    held = Held(name, (file if src.is_dir() else src,), pieces=(Piece(name, file, encounters),))
    subjects = encounters.filter("first").select(subject_id="patient_nbr", birth=_birth())
    with target.writer() as writer, target.spool(writer, subjects, [held], name) as spool:
        for piece in spool.read(held, {}):
            spool.add(piece, *_events(piece.rows, mapping), contradictions=_contradictions(mapping))
        written = spool.write(writer)
        book = spool.book().join(written["events_by_code"], on="code", how="semi")
        codes = _code_table(book, mapping)
        writer.finish(
            codes,
            source="uci-diabetes",
            options={"strict": target.strict},
            notes=NOTES,
            extra=summary(spool, written, codes, encounters=len(encounters), conflicts=conflicts, labels=[LABEL]),
        )
        writer.write_labels(LABEL, *_labels(encounters))


def _contradictions(mapping: dict[str, dict[int, str]]) -> dict[str, pl.Expr]:
    """What makes a cell one that cannot be, by what is told of it; the cell then makes no event."""
    return {
        **{f"{column} that cannot be": odd_band(column, most) for column, (_, most) in BANDS.items()},
        **{f"{column} above {MAX_COUNT}": pl.col(column) > MAX_COUNT for column in COUNTS_AT_ADMISSION},
        **{f"{column} above {MAX_COUNT}": pl.col(column) > MAX_COUNT for column in COUNTS_AT_DISCHARGE},
        **{f"{column} that IDs_mapping.csv lacks": ~pl.col(column).is_in(list(mapping[column])) for column in MAPPED},
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
    conflicts["diagnoses_repeated_in_an_encounter"] = sum(
        int(encounters.select(_repeated(place).sum()).item()) for place in range(len(DIAGNOSES))
    )
    encounters = encounters.with_columns(after_death=died.cum_sum().over("patient_nbr") - died > 0)
    conflicts["encounters_after_a_discharge_by_death"] = int(encounters["after_death"].sum())
    return encounters, conflicts


def _birth() -> pl.Expr:
    """The age before the admission; null without an age."""
    return pl.col("admitted") - pl.duration(days=(pl.col("age_years") * DAYS_PER_YEAR).round().cast(pl.Int64))


def _events(encounters: pl.DataFrame, mapping: dict[str, dict[int, str]]) -> list[pl.DataFrame]:
    """Events as `EventSpool.add` takes them; kinds and descriptions come with the code table."""
    events: list[pl.DataFrame] = []

    def add(
        code: pl.Expr,
        time: pl.Expr | None,
        *,
        where: pl.Expr | None = None,
        value: pl.Expr | None = None,
        unit: str | None = None,
        text: pl.Expr | None = None,
        in_visit: bool = True,
    ) -> None:
        stated = code.is_not_null()
        events.append(
            event(
                encounters, code, time, "other", subject="patient_nbr", visit="encounter_id" if in_visit else None,
                value=value, unit=pl.lit(unit, dtype=pl.String), text=text,
                where=stated if where is None else stated & where,
            )
        )  # fmt: skip

    admitted, discharged = pl.col("admitted"), pl.col("discharged")
    known_age, known_weight = pl.col("age_years").is_not_null(), pl.col("weight_pounds").is_not_null()
    add(pl.lit(BIRTH_CODE), _birth(), where=pl.col("first") & known_age, in_visit=False)
    for column, prefix in STATIC.items():
        known = pl.col(column).is_not_null()
        first_known = known & (known.cum_sum().over("patient_nbr") == 1)
        add(_prefixed(prefix, column), None, where=first_known & pl.col("first"), in_visit=False)
        add(_prefixed(prefix, column), admitted, where=first_known & ~pl.col("first"))
    add(pl.lit("UCI_AGE"), admitted, where=known_age, value=pl.col("age_years"), unit="a", text=pl.col("age"))
    for column, (prefix, at_admission) in MAPPED.items():
        known = pl.col(column).is_in([key for key, text in mapping[column].items() if text not in MISSING_DESCRIPTIONS])
        add(_prefixed(prefix, column), admitted if at_admission else discharged, where=known)
    for column, (prefix, at_admission, _) in CATEGORIES.items():
        add(_prefixed(prefix, column), admitted if at_admission else discharged)
    for column in (*COUNTS_AT_ADMISSION, *COUNTS_AT_DISCHARGE):
        time = admitted if column in COUNTS_AT_ADMISSION else discharged
        unit = "d" if column == "time_in_hospital" else None
        plausible = pl.col(column) <= MAX_COUNT
        add(pl.lit(f"UCI_{column.upper()}"), time, where=plausible, value=pl.col(column), unit=unit)
    add(
        pl.lit("UCI_WEIGHT"),
        discharged,
        where=known_weight,
        value=pl.col("weight_pounds"),
        unit="[lb_av]",
        text=pl.col("weight"),
    )
    add(_prefixed("DIAGNOSIS_PRINCIPAL//ICD9CM", "diag_1"), discharged)
    for place, column in enumerate(DIAGNOSES):
        add(_prefixed("ICD9CM", column), discharged, where=~_repeated(place))
    for drug in DRUGS:
        add(_prefixed(f"UCI_DRUG//{drug}", drug), discharged, where=pl.col(drug) != "No")
    add(pl.lit(DEATH_CODE), discharged, where=pl.col("last") & pl.col("discharge_disposition_id").is_in(DIED))
    return events


def _repeated(place: int) -> pl.Expr:
    """Whether a diagnosis of an encounter, by its place among the three, is there before."""
    before = (pl.col(DIAGNOSES[place]) == pl.col(column) for column in DIAGNOSES[:place])
    return pl.any_horizontal(pl.lit(False), *(same.fill_null(False) for same in before))


def _prefixed(prefix: str, column: str) -> pl.Expr:
    """Code `prefix//value`; null where the value is."""
    return pl.lit(f"{prefix}//") + pl.col(column).cast(pl.String)


def _code_table(book: pl.DataFrame, mapping: dict[str, dict[int, str]]) -> pl.DataFrame:
    """Every code of the book (columns `code`, `numeric`) with description and kind."""
    described = {
        BIRTH_CODE: "Birth",
        DEATH_CODE: "Death",
        "UCI_AGE": "Age, midpoint of the decade",
        "UCI_WEIGHT": "Weight",
    }
    for column, text in (COUNTS_AT_ADMISSION | COUNTS_AT_DISCHARGE).items():
        described[f"UCI_{column.upper()}"] = text
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

    def describe(code: str) -> str | None:
        prefix, _, rest = code.partition("//")
        if prefix == "UCI_DRUG":
            drug, state = rest.split("//")
            return f"{drug.capitalize()}, {DRUG_STATES[state]}"
        return described.get(code, f"{words_of[prefix]}: {rest}" if prefix in words_of else None)

    table = book.select("code", "numeric").sort("code")
    codes = table["code"].to_list()
    return table.with_columns(
        description=pl.Series([describe(code) for code in codes], dtype=pl.String),
        kind=pl.Series([kind_of_code(code) for code in codes], dtype=pl.String),
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
