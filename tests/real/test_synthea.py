"""Synthea's own CSV export, as OHDSI's dbt-synthea ships it: 27 patients."""

import hashlib
import os
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import CohortError
from ehrsequencing.tasks.cohorts import build_labels

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "synthea_csv"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with synthea_csv",
)


def identifier(text):
    return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) >> 1


TABLES = {
    "conditions": ("START", "SNOMED//", 438),
    "medications": ("START", "RXNORM//", 663),
    "procedures": ("START", "SNOMED//", 249),
    "careplans": ("START", "SNOMED//", 49),
    "devices": ("START", "SNOMED//", 3),
    "immunizations": ("DATE", "CVX//", 29),
    "supplies": ("DATE", "SNOMED//", 72),
    "observations": ("DATE", "LOINC//", 990),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("synthea", RAW, tmp_path_factory.mktemp("synthea") / "meds")


@pytest.fixture(scope="module")
def events(dataset):
    return pl.concat([dataset.scan(split) for split in SPLITS]).collect()


@cache
def raw(table):
    frame = pl.read_csv(RAW / f"{table}.csv", infer_schema=False)
    days = pl.col("^(START|STOP|DATE|BIRTHDATE|DEATHDATE)$").str.slice(0, 10).str.to_date().name.suffix("_DAY")
    return frame.with_columns(days)


def test_every_row_of_every_table_is_an_event(dataset, events):
    """Rows by patient, day and code, looked up in another way than the importer's."""
    manifest = dataset.manifest
    assert manifest["events_dropped"] == {} and manifest["events_merged"] == 0
    assert manifest["tables_not_read"] == ["claims", "organizations", "payer_transitions", "payers", "providers"]
    expected = []
    for table, (date, system, count) in TABLES.items():
        rows = raw(table)
        assert len(rows) == count == manifest["tables"][table]["rows"] == manifest["tables"][table]["rows_with_events"]
        code = (
            pl.when(pl.col("CODE").is_in(["QALY", "DALY", "QOLS"])).then(pl.lit("SYNTHEA//")).otherwise(pl.lit(system))
        )
        expected.append(rows.select("PATIENT", code=code + pl.col("CODE"), day=f"{date}_DAY"))
    visits = raw("encounters").filter(pl.col("ENCOUNTERCLASS") != "inpatient")
    code = pl.format("VISIT//{}//SNOMED//{}", "ENCOUNTERCLASS", "CODE")
    expected.append(visits.select("PATIENT", code=code, day="START_DAY"))
    names = pl.DataFrame({"PATIENT": raw("patients")["Id"]}).with_columns(
        subject_id=pl.col("PATIENT").map_elements(identifier, return_dtype=pl.Int64)
    )
    wanted = pl.concat(expected).join(names, on="PATIENT").select("subject_id", "code", "day")
    made = events.filter(pl.col("code").str.contains("^(SNOMED|RXNORM|CVX|LOINC|SYNTHEA|VISIT)//"))
    assert len(made) == len(wanted)
    by_code = ["subject_id", "code"]
    assert made.group_by(by_code).len().sort(by_code).equals(wanted.group_by(by_code).len().sort(by_code))
    made = made.select(*by_code, day=pl.col("time").dt.date())
    moved = made.join(wanted, on=["subject_id", "code", "day"], how="anti").filter(
        ~pl.col("code").str.contains("^SNOMED")
    )
    assert moved.is_empty(), "only what has a date but no time moves to the encounter that recorded it"


def test_ends(dataset, events):
    later = {
        table: raw(table).filter(pl.col("STOP_DAY") > pl.col("START_DAY")) for table in ("conditions", "medications")
    }
    ends = events.filter(pl.col("code").str.starts_with("STOP//"))
    drugs = ends.filter(pl.col("code").str.starts_with("STOP//RXNORM//"))
    assert len(drugs) == len(later["medications"]) == 597
    assert sorted(drugs["time"].dt.date()) == sorted(later["medications"]["STOP_DAY"])
    both = [
        table for table in ("conditions", "procedures", "careplans", "devices", "medications") if "STOP" in raw(table)
    ]
    count = sum(raw(table).filter(pl.col("STOP_DAY") > pl.col("START_DAY")).height for table in both)
    visits = raw("encounters").filter(
        (pl.col("STOP_DAY") > pl.col("START_DAY")) & (pl.col("ENCOUNTERCLASS") != "inpatient")
    )
    assert len(ends) == count + len(visits)
    short = sum(raw(table).filter(pl.col("STOP_DAY") == pl.col("START_DAY")).height for table in (*both, "encounters"))
    stays = raw("encounters").filter(ENCOUNTERCLASS="inpatient", STOP_DAY=pl.col("START_DAY")).height
    assert sum(dataset.manifest["ends_on_the_day_of_their_start"].values()) == short - stays


def test_stays_and_people(dataset, events):
    stays = raw("encounters").filter(ENCOUNTERCLASS="inpatient")
    assert len(stays) == 11
    assert events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION//")).height == 11
    ended = events.filter(code="HOSPITAL_DISCHARGE//UNKNOWN").join(
        stays.select(visit_id=pl.col("Id").map_elements(identifier, return_dtype=pl.Int64), stop="STOP"), on="visit_id"
    )
    assert (ended["time"].dt.to_string("%Y-%m-%dT%H:%M:%SZ") == ended["stop"]).all() and len(ended) == 11
    deaths = events.filter(code="MEDS_DEATH")
    assert sorted(deaths["time"].dt.date()) == sorted(raw("patients")["DEATHDATE_DAY"].drop_nulls())
    assert dataset.manifest["counts"]["subjects"] == events.filter(code="MEDS_BIRTH").height == 27
    assert dataset.manifest["visits"] == raw("encounters")["Id"].n_unique() == 604


def test_numbers_and_texts(events):
    observed = raw("observations")
    made = events.filter(pl.col("code").str.contains("^(LOINC|SYNTHEA)//"))
    numbers = observed.filter(TYPE="numeric")["VALUE"].cast(pl.Float64)
    assert len(numbers) == made["numeric_value"].count() == 599
    assert made["numeric_value"].cast(pl.Float64).sum() == pytest.approx(numbers.sum(), rel=1e-6)
    assert made["text_value"].count() == observed.filter(TYPE="text").height == 391
    assert made.filter(unit="mg/dL").height == observed.filter(UNITS="mg/dL").height == 79


def test_nothing_is_known_before_its_encounter(events):
    begin = events.filter(pl.col("code").str.contains("^(VISIT|HOSPITAL_ADMISSION)//")).select("visit_id", begin="time")
    joined = events.join(begin, on="visit_id")
    assert len(joined) > 3000
    assert (joined["time"] >= joined["begin"]).all()


def test_readmission(dataset):
    """Of eight stays of adults none is followed within 30 days; within a year, as the dates of the file say."""
    with pytest.raises(CohortError, match="readmission_30d has one class; got 0 rows at step 'positive'") as caught:
        build_labels(dataset, "readmission_30d")
    flow = {row["step"]: row["rows"] for row in caught.value.flow}
    found = next(rows for step, rows in flow.items() if step.startswith("hospital stays"))
    assert (found, flow["labelled"], flow["positive"]) == (11, 8, 0)
    labels, _ = build_labels(dataset, "readmission_365d")
    time = pl.col("^(START|STOP)$").str.to_datetime("%Y-%m-%dT%H:%M:%SZ")
    stays = raw("encounters").filter(ENCOUNTERCLASS="inpatient").with_columns(time).sort("PATIENT", "START")
    born = raw("patients").select(PATIENT="Id", born="BIRTHDATE_DAY")
    stays = stays.with_columns(following=pl.col("START").shift(-1).over("PATIENT")).join(born, on="PATIENT")
    adult = (pl.col("STOP").dt.date() - pl.col("born")).dt.total_days() >= 18 * 365.25
    again = stays.filter(adult & (pl.col("following") - pl.col("STOP") <= pl.duration(days=365)))
    found = labels.filter("boolean_value").select("prediction_time")
    assert sorted(found["prediction_time"]) == sorted(again["STOP"]) and len(again) > 0


def test_onset_of_anemia(dataset):
    labels, _ = build_labels(dataset, "onset:SNOMED//271737000@365")
    positive = labels.filter("boolean_value")["subject_id"].unique()
    anemia = raw("conditions").filter(CODE="271737000")["PATIENT"].unique()
    assert len(positive) == 2 and set(positive) <= {identifier(patient) for patient in anemia}


def test_preparation(dataset, events, tmp_path):
    store = prepare(dataset.path, tmp_path / "store", min_count=1)
    vital = events.filter(pl.col("code").str.starts_with("MEDS_")).height
    assert sum(store.manifest["counts"][split]["events"] for split in SPLITS) == len(events) - vital
