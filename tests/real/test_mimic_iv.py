"""The publisher's demo of MIMIC-IV 2.2: 100 subjects, 275 admissions."""

import os
from datetime import datetime
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import LabelError
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.cohorts import build_labels
from ehrsequencing.tasks.temporal import split_by_time

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "mimic_iv_demo"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with mimic_iv_demo",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("mimic-iv", RAW, tmp_path_factory.mktemp("mimic") / "meds")


@pytest.fixture(scope="module")
def events(dataset):
    return pl.concat([dataset.scan(split) for split in SPLITS]).collect()


@cache
def raw(table):
    return pl.read_csv(RAW / f"{table}.csv.gz", infer_schema_length=None, try_parse_dates=True)


def starting(events, prefix):
    return events.filter(pl.col("code").str.starts_with(prefix))


def test_every_row_of_every_table_is_an_event(dataset, events):
    assert dataset.manifest["events_dropped"] == {}
    assert dataset.manifest["counts"]["subjects"] == 100
    assert dataset.manifest["visits"] == events["visit_id"].drop_nulls().n_unique() == 275
    assert dataset.manifest["tables_missing"] == ["hosp/d_icd_diagnoses", "hosp/d_icd_procedures", "hosp/emar"]
    for prefix, table, rows in (
        ("HOSPITAL_ADMISSION//", "hosp/admissions", 275), ("HOSPITAL_DISCHARGE//", "hosp/admissions", 275),
        ("TRANSFER_TO//", "hosp/transfers", 1190), ("SERVICE//", "hosp/services", 319),
        ("ICD", "hosp/diagnoses_icd", 4506), ("HCPCS//", "hosp/hcpcsevents", 61), ("DRG//", "hosp/drgcodes", 454),
        ("LAB//", "hosp/labevents", 107_727), ("MICROBIOLOGY//", "hosp/microbiologyevents", 2899),
        ("DRUG//", "hosp/prescriptions", 18_087), ("ICU_ADMISSION//", "icu/icustays", 140),
        ("ICU_DISCHARGE//", "icu/icustays", 140), ("OUTPUT//", "icu/outputevents", 9362),
        ("PROCEDURE//START//", "icu/procedureevents", 1468), ("PROCEDURE//END//", "icu/procedureevents", 1468),
    ):  # fmt: skip
        diagnoses = events.filter(pl.col("code").str.contains("^ICD(9|10)CM//"))
        found = diagnoses if prefix == "ICD" else starting(events, prefix)
        assert found.height == len(raw(table)) == rows, prefix
    blood_pressures = raw("hosp/omr")["result_value"].str.contains("/").sum()
    assert starting(events, "OMR//").height == len(raw("hosp/omr")) + blood_pressures == 2964 + 872


def test_codes_are_the_publishers_with_dots(events):
    diagnoses, procedures = raw("hosp/diagnoses_icd"), raw("hosp/procedures_icd")
    for code, table, version, plain in (
        ("ICD9CM//428.0", diagnoses, 9, "4280"), ("ICD9CM//584.9", diagnoses, 9, "5849"),
        ("ICD9CM//E849.7", diagnoses, 9, "E8497"), ("ICD10CM//I10", diagnoses, 10, "I10"),
        ("ICD10CM//N17.9", diagnoses, 10, "N179"), ("ICD9PROC//38.93", procedures, 9, "3893"),
        ("ICD10PCS//02HV33Z", procedures, 10, "02HV33Z"),
    ):  # fmt: skip
        expected = table.filter(icd_version=version).filter(pl.col("icd_code").str.strip_chars() == plain).height
        assert events.filter(code=code).height == expected > 0, code
    known = diagnoses.select(pl.col("icd_version", "icd_code")).unique().height
    assert events.filter(pl.col("code").str.contains("^ICD(9|10)CM//"))["code"].n_unique() == known


def test_times_are_when_things_were_known(events):
    admissions = raw("hosp/admissions").with_columns(end=pl.max_horizontal("dischtime", "deathtime"))
    billed = events.filter(pl.col("code").str.contains("^(ICD|DRG|HCPCS)"))
    joined = billed.join(admissions, left_on=["subject_id", "visit_id"], right_on=["subject_id", "hadm_id"], how="left")
    assert (joined["time"] == joined["end"]).all()
    labs = raw("hosp/labevents")
    expected = labs.select(pl.max_horizontal("charttime", "storetime")).to_series().sort()
    assert starting(events, "LAB//")["time"].sort().equals(expected, null_equal=False)
    assert (labs["storetime"] > labs["charttime"]).sum() > 100_000


def test_stays_have_their_length(events):
    starts = starting(events, "HOSPITAL_ADMISSION//").select("visit_id", start="time")
    ends = starting(events, "HOSPITAL_DISCHARGE//").select("visit_id", end="time")
    stays = starts.join(ends, on="visit_id", validate="1:1")
    days = (pl.col("end") - pl.col("start")).dt.total_seconds() / 86_400
    admissions = raw("hosp/admissions")
    published = (pl.max_horizontal("dischtime", "deathtime") - pl.col("admittime")).dt.total_seconds() / 86_400
    for longest in (3, 7):
        expected = admissions.select((published > longest).sum()).item()
        assert stays.select((days > longest).sum()).item() == expected > 50


def test_deaths_are_in_hospital_and_after(events):
    deaths = events.filter(code="MEDS_DEATH")
    admissions, patients = raw("hosp/admissions"), raw("hosp/patients")
    assert deaths.height == patients["dod"].is_not_null().sum() == 31
    inside = deaths.filter(pl.col("visit_id").is_not_null()).sort("visit_id")
    published = admissions.filter(pl.col("deathtime").is_not_null()).sort("hadm_id")
    assert inside.height == published.height == 15
    assert (inside["time"] == published["deathtime"]).all()
    assert (inside["visit_id"] == published["hadm_id"]).all()
    days = deaths.join(patients, on="subject_id").select((pl.col("time").dt.date() == pl.col("dod")).all())
    assert days.item()


def test_laboratory_values_units_and_flags(dataset, events):
    labs, lab_events = raw("hosp/labevents"), starting(events, "LAB//")
    assert lab_events["numeric_value"].count() == labs["valuenum"].count()
    assert lab_events["numeric_value"].cast(pl.Float64).sum() == pytest.approx(labs["valuenum"].sum(), rel=1e-6)
    creatinine = labs.filter(itemid=50912)
    found = events.filter(code="LAB//50912//mg/dL")
    assert found.height == creatinine.height > 2000 and found["unit"].unique().to_list() == ["mg/dL"]
    flags = starting(events, "LAB_FLAG//").group_by(pl.col("code").str.extract("([a-z]+)$").alias("flag")).len()
    below, above = pl.col("valuenum") < pl.col("ref_range_lower"), pl.col("valuenum") > pl.col("ref_range_upper")
    ranged = labs.filter((pl.col("ref_range_lower") < pl.col("ref_range_upper")).fill_null(True))
    assert dict(flags.sort("flag").iter_rows()) == {
        "abnormal": labs["flag"].count(), "high": ranged.select(above.sum()).item(),
        "low": ranged.select(below.sum()).item(),
    }  # fmt: skip
    assert labs["flag"].count() == 40_275
    negative = labs.filter(pl.col("valuenum").is_null() & (pl.col("value") == "NEG")).height
    assert lab_events.filter(text_value="NEG").height == negative > 100
    description = dict(dataset.codes().select("code", "description").iter_rows())
    assert description["LAB//50912//mg/dL"] == "Creatinine"


def test_births_and_preparation(dataset, events, tmp_path):
    patients = raw("hosp/patients")
    births = events.filter(code="MEDS_BIRTH").join(patients, on="subject_id")
    assert births.height == 100
    assert (births["time"].dt.year() == births["anchor_year"] - births["anchor_age"]).all()
    store = prepare(dataset.path, tmp_path / "store")
    prepared = sum(store.manifest["counts"][split]["events"] for split in SPLITS)
    assert prepared == len(events) - 100 - 31
    assert sum(store.manifest["counts"][split]["deaths"] for split in SPLITS) == 31


def test_shifted_dates_do_not_split_by_time(dataset):
    labels, manifest = build_labels(dataset, "readmission_30d")
    with pytest.raises(LabelError, match="so time cannot split it; got the note 'Dates are shif"):
        split_by_time(dataset, labels, manifest, train_before=datetime(2150, 1, 1))


def test_onsets_are_new_in_both_versions_of_icd(dataset, events):
    labels, manifest = build_labels(dataset, "type_2_diabetes_1y")
    assert manifest["notes"] == []
    coded = events.filter(pl.col("code").str.contains(r"^(ICD9CM//250\.\d[02]|ICD10CM//E11)"))
    before = labels.join(coded.select("subject_id", "time"), on="subject_id").filter(
        pl.col("time") <= pl.col("prediction_time")
    )
    assert coded["code"].str.starts_with("ICD9CM").any() and before.is_empty()
    assert "also hold ICD9CM" in build_labels(dataset, "onset:ICD10CM//I10@365", CohortRules(0))[1]["notes"][0]


def test_rules_of_visits_and_codes(dataset, events, tmp_path):
    """Visits by gaps and codes of three characters, counted from the events in another way."""
    store = prepare(dataset.path, tmp_path / "store", visits="visit_id+gap:72h", roll_up=["icd10=3", "icd9=3"])
    dated = events.filter(pl.col("time").is_not_null(), ~pl.col("code").str.starts_with("MEDS_"))
    loose = dated.filter(pl.col("visit_id").is_null()).sort("subject_id", "time")
    gap = pl.col("time") - pl.col("time").shift(1)
    begins = (pl.col("subject_id") != pl.col("subject_id").shift(1)).fill_null(True) | (gap > pl.duration(hours=72))
    visits = loose.select(begins.sum()).item() + dated["visit_id"].n_unique() - 1
    assert sum(store.manifest["counts"][split]["visits"] for split in SPLITS) == visits
    diagnoses = raw("hosp/diagnoses_icd").select("icd_version", code=pl.col("icd_code").str.strip_chars())
    kept = pl.when((pl.col("icd_version") == 9) & pl.col("code").str.starts_with("E")).then(4).otherwise(3)
    categories = diagnoses.select("icd_version", pl.col("code").str.slice(0, kept)).unique()
    known = set(store.rolled_codes.values())
    found = {f"ICD{'9' if version == 9 else '10'}CM//{code}" for version, code in categories.iter_rows()}
    assert known <= found
    book = set(dataset.codes()["code"])
    assert {store.rolled_codes.get(code, code) for code in book if code.startswith(("ICD9CM", "ICD10CM"))} == found
