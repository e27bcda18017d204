"""The publisher's demo of MIMIC-III 1.4: 100 subjects who all die, 129 admissions."""

import os
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from ehrsequencing.cli.main import app
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "mimic_iii_demo"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with mimic_iii_demo",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("mimic-iii", RAW, tmp_path_factory.mktemp("mimic") / "meds", strict=True)


@pytest.fixture(scope="module")
def events(dataset):
    return pl.concat([dataset.scan(split) for split in SPLITS]).collect()


@cache
def raw(table):
    return pl.read_csv(RAW / f"{table}.csv.gz", infer_schema_length=None, try_parse_dates=True)


def starting(events, prefix):
    return events.filter(pl.col("code").str.starts_with(prefix))


def test_every_row_of_every_table_is_accounted_for(dataset, events):
    manifest = dataset.manifest
    assert manifest["events_dropped"] == {}
    assert manifest["tables_missing"] == ["chartevents"]
    assert manifest["tables_not_read"] == ["caregivers", "d_cpt"]
    assert manifest["visits"] == events["visit_id"].drop_nulls().n_unique() == 129
    for name, account in manifest["tables"].items():
        table = raw(name.upper())
        withdrawn = (table["statusdescription"] == "Rewritten").sum() if "statusdescription" in table.columns else 0
        assert account["rows"] == len(table) == account["rows_with_events"] + withdrawn, name
        assert sum(account.get("rows_without_events", {}).values()) == withdrawn


def test_counts_of_each_table(events):
    given = raw("INPUTEVENTS_MV").filter(pl.col("statusdescription") != "Rewritten").height
    done = raw("PROCEDUREEVENTS_MV").filter(pl.col("statusdescription") != "Rewritten").height
    carevue = raw("INPUTEVENTS_CV")
    labs = raw("LABEVENTS").join(raw("D_LABITEMS").select("itemid", "loinc_code"), on="itemid", how="left")
    for prefix, rows in (
        ("HOSPITAL_ADMISSION//", 129), ("HOSPITAL_DISCHARGE//", 129), ("TRANSFER_TO//", 524), ("SERVICE//", 163),
        ("CALLOUT//", 77), ("CALLOUT_OUTCOME//", 77), ("ICU_ADMISSION//", 136), ("ICU_DISCHARGE//", 136),
        ("ICD9CM//", 1761), ("ICD9PROC//", 506), ("CPT//", 1579), ("DRG//", 297), ("MICROBIOLOGY//", 2003),
        ("DRUG//", 10_398), ("OUTPUT//", 11_320), ("DATETIME//", 15_551), ("INPUT//START//", given),
        ("INPUT//END//", given), ("PROCEDURE//START//", done), ("PROCEDURE//END//", done),
        ("INPUT//AMOUNT//", carevue["amount"].count()), ("INPUT//RATE//", carevue["rate"].count()),
        ("LOINC//", labs["loinc_code"].count()), ("LAB//", labs["loinc_code"].null_count()),
        ("LAB_FLAG//", labs["flag"].count()), ("MEDS_BIRTH", 100), ("MEDS_DEATH", 100), ("GENDER//", 100),
    ):  # fmt: skip
        assert starting(events, prefix).height == rows > 0, prefix


def test_codes_are_the_publishers_with_dots(events):
    for code, table, plain in (
        ("ICD9CM//995.91", "DIAGNOSES_ICD", "99591"), ("ICD9CM//038.9", "DIAGNOSES_ICD", "0389"),
        ("ICD9CM//E878.8", "DIAGNOSES_ICD", "E8788"), ("ICD9CM//V58.61", "DIAGNOSES_ICD", "V5861"),
        ("ICD9PROC//96.71", "PROCEDURES_ICD", "9671"), ("ICD9PROC//00.14", "PROCEDURES_ICD", "0014"),
    ):  # fmt: skip
        codes = pl.read_csv(RAW / f"{table}.csv.gz", infer_schema=False)["icd9_code"]
        assert events.filter(code=code).height == (codes == plain).sum() > 0, code


def test_values_and_units(dataset, events):
    labs = raw("LABEVENTS")
    found = events.filter(pl.col("code").str.contains("^(LAB|LOINC)//"))
    assert found["numeric_value"].count() == labs["valuenum"].count()
    assert found["numeric_value"].cast(pl.Float64).sum() == pytest.approx(labs["valuenum"].sum(), rel=1e-6)
    creatinine = events.filter(code="LOINC//2160-0")
    assert creatinine.height == labs.filter(itemid=50912).height > 1000
    assert creatinine["unit"].drop_nulls().unique().to_list() == ["mg/dL"]
    description = dict(dataset.codes().select("code", "description").iter_rows())
    assert description["LOINC//2160-0"] == "Creatinine"
    outputs = raw("OUTPUTEVENTS")
    total = starting(events, "OUTPUT//")["numeric_value"].cast(pl.Float64).sum()
    assert total == pytest.approx(outputs["value"].sum(), rel=1e-6)


def test_times_are_when_things_were_known(events):
    admissions = raw("ADMISSIONS").with_columns(end=pl.max_horizontal("dischtime", "deathtime"))
    billed = events.filter(pl.col("code").str.contains("^(ICD9|DRG|CPT)"))
    joined = billed.join(admissions, left_on=["subject_id", "visit_id"], right_on=["subject_id", "hadm_id"], how="left")
    assert (joined["time"] == joined["end"]).all()
    cultures = raw("MICROBIOLOGYEVENTS").join(admissions.select("hadm_id", "end"), on="hadm_id", how="left")
    taken = pl.coalesce("charttime", pl.col("chartdate") + pl.duration(days=1) - pl.duration(seconds=1))
    later = taken + pl.duration(days=8)
    expected = pl.when(pl.col("end") >= taken).then(pl.min_horizontal(later, "end")).otherwise(later)
    found = starting(events, "MICROBIOLOGY//")["time"].sort()
    assert found.equals(cultures.select(time=expected)["time"].sort(), check_names=False)
    days = (cultures.select(expected - taken).to_series().dt.total_seconds() / 86_400).sort()
    assert days.min() >= 0 and days.max() == 8
    drugs = starting(events, "DRUG//")
    dates = raw("PRESCRIPTIONS")["startdate"].dt.date().sort()
    assert drugs["time"].dt.date().sort().equals(dates, check_names=False)
    assert (drugs["time"].dt.time().cast(pl.String) != "00:00:00").all()


def test_births_of_the_oldest(dataset, events):
    first = raw("ADMISSIONS").group_by("subject_id").agg(pl.col("admittime").min())
    people = raw("PATIENTS").join(first, on="subject_id").join(
        events.filter(code="MEDS_BIRTH").select("subject_id", birth="time"), on="subject_id", validate="1:1"
    )  # fmt: skip
    shifted = people.filter(pl.col("admittime").dt.year() - pl.col("dob").dt.year() == 300)
    assert shifted.height == dataset.manifest["conflicts"]["subjects_older_than_89_of_unknown_age"] == 8
    assert (shifted["admittime"].dt.year() - shifted["birth"].dt.year() == 91).all()
    others = people.join(shifted, on="subject_id", how="anti")
    assert (others["birth"] == others["dob"]).all()


def test_deaths(dataset, events):
    deaths = events.filter(code="MEDS_DEATH").join(raw("PATIENTS"), on="subject_id")
    assert (deaths["time"].dt.date() == deaths["dod"].dt.date()).all()
    inside = deaths.filter(pl.col("visit_id").is_not_null()).sort("visit_id")
    published = raw("ADMISSIONS").filter(pl.col("deathtime").is_not_null()).sort("hadm_id")
    assert inside.height == published.height == 40
    assert (inside["time"] == published["deathtime"]).all()
    assert dataset.manifest["conflicts"]["deaths_after_the_end_of_observation"] == 39


def stays():
    """Admissions in order, with what the tasks ask; no two lie within six hours or on one day."""
    people = raw("PATIENTS").select("subject_id", "dob", death=pl.coalesce("dod_hosp", "dod_ssn"))
    end = pl.max_horizontal("dischtime", "deathtime")
    rows = raw("ADMISSIONS").join(people, on="subject_id").sort("subject_id", "admittime").with_columns(
        end=end, next=pl.col("admittime").shift(-1).over("subject_id"), died=pl.col("deathtime").is_not_null(),
    )  # fmt: skip
    assert (rows["next"] - rows["end"]).min().total_seconds() > 86_400
    return rows


def labels(dataset, task, path):
    result = CliRunner().invoke(app, ["task", "build", str(dataset.path), "--task", task, "--out", str(path)])
    assert result.exit_code == 0, result.output
    return read_labels(path)[0]


def counts(rows, at):
    adult = (pl.col(at) - pl.col("dob")).dt.total_days() >= 18 * 365.25
    rows = rows.filter(adult)
    return len(rows), rows["subject_id"].n_unique(), int(rows["y"].sum())


def test_readmission(dataset, tmp_path):
    found = labels(dataset, "readmission_30d", tmp_path / "labels.parquet")
    back = (pl.col("next") <= pl.col("end") + pl.duration(days=30)).fill_null(False)
    expected = counts(stays().filter(~pl.col("died")).with_columns(y=back), "end")
    assert (len(found), found["subject_id"].n_unique(), int(found["boolean_value"].sum())) == expected == (88, 66, 11)


@pytest.mark.parametrize("task", ["mortality_inpatient", "los_over_3d"])
def test_tasks_within_the_stay(dataset, tmp_path, task):
    found = labels(dataset, task, tmp_path / "labels.parquet")
    day = pl.col("admittime") + pl.duration(days=1)
    long = pl.col("end") > pl.col("admittime") + pl.duration(days=3)
    asked = stays().filter(pl.col("end") > day).with_columns(
        at=day, y=pl.col("died") if task == "mortality_inpatient" else long
    )  # fmt: skip
    expected = counts(asked, "at")
    assert (len(found), found["subject_id"].n_unique(), int(found["boolean_value"].sum())) == expected
    assert expected[0] == 117


def test_preparation(dataset, events, tmp_path):
    store = prepare(dataset.path, tmp_path / "store")
    prepared = sum(store.manifest["counts"][split]["events"] for split in SPLITS)
    assert prepared == len(events) - 100 - 100
