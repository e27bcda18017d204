"""Set A of the PhysioNet/CinC Challenge 2012: 4,000 stays."""

import os
import tarfile
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "physionet2012"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with physionet2012",
)
STATIC = ("RecordID", "Age", "Gender", "ICUType")
MAY_BE_ZERO = ("HR", "RespRate", "Urine", "MechVent")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("physionet2012", RAW, tmp_path_factory.mktemp("challenge") / "meds", strict=True)


@pytest.fixture(scope="module")
def events(dataset):
    return pl.concat([dataset.scan(split) for split in SPLITS]).collect()


@pytest.fixture(scope="module")
def raw():
    return pl.read_csv(RAW / "set-a.csv.gz")


@pytest.fixture(scope="module")
def outcomes():
    return pl.read_csv(RAW / "Outcomes-a.txt").sort("RecordID")


def test_every_row_is_an_event_or_counted(dataset, events, raw):
    account = dataset.manifest["tables"]["set-a"]
    assert account["rows"] == len(raw) == 1_757_980
    zero = (pl.col("Value") == 0) & ~pl.col("Parameter").is_in([*STATIC, *MAY_BE_ZERO])
    expected = {
        "missing: written as 0": raw.select(zero.sum()).item(),
        "missing: written as a negative number": int((raw["Value"] < 0).sum()),
        "the record's own number": 4000,
    }
    assert account["rows_without_events"] == expected
    assert account["events"] == account["rows_with_events"] == len(events) == len(raw) - sum(expected.values())
    assert dataset.manifest["events_dropped"] == {}
    assert dataset.manifest["visits"] == dataset.manifest["counts"]["subjects"] == 4000


def test_counts_and_sums_of_every_parameter(events, raw):
    kept = raw.filter(
        (pl.col("Value") >= 0) & ~pl.col("Parameter").is_in(STATIC)
        & ((pl.col("Value") > 0) | pl.col("Parameter").is_in(MAY_BE_ZERO))
    )  # fmt: skip
    wanted = kept.group_by("Parameter").agg(n=pl.len(), total=pl.col("Value").sum()).sort("Parameter")
    measured = events.filter(pl.col("code").str.starts_with("PHYSIONET2012//"))
    found = (
        measured.with_columns(Parameter=pl.col("code").str.strip_prefix("PHYSIONET2012//"))
        .group_by("Parameter").agg(n=pl.len(), total=pl.col("numeric_value").cast(pl.Float64).sum())
        .sort("Parameter")
    )  # fmt: skip
    assert found["Parameter"].to_list() == wanted["Parameter"].to_list() and len(found) == 38
    assert found["n"].to_list() == wanted["n"].to_list()
    assert found["total"].to_list() == pytest.approx(wanted["total"].to_list(), rel=1e-6)


def test_times_and_descriptors(events, raw):
    minutes = (pl.col("time") - pl.datetime(2000, 1, 1)).dt.total_minutes()
    heart = events.filter(code="PHYSIONET2012//HR").select("subject_id", minutes).sort("subject_id", "time")
    clock = pl.col("Time").str.split(":").list.eval(pl.element().cast(pl.Int64))
    wanted = raw.filter((pl.col("Parameter") == "HR") & (pl.col("Value") >= 0)).select(
        "RecordID", time=clock.list.first() * 60 + clock.list.last()
    )
    assert heart.rows() == wanted.sort("RecordID", "time").rows()
    ages = raw.filter(Parameter="Age").sort("RecordID")["Value"]
    births = events.filter(code="MEDS_BIRTH").sort("subject_id")
    years = births.select((pl.datetime(2000, 1, 1) - pl.col("time")).dt.total_days() / 365.25).to_series()
    assert years.to_list() == pytest.approx(ages.to_list(), abs=0.002)
    by_gender = raw.filter(Parameter="Gender")["Value"]
    assert events.filter(code="GENDER//M").height == (by_gender == 1).sum() == 2246
    units = raw.filter(Parameter="ICUType")["Value"]
    assert events.filter(code="ICU_ADMISSION//MEDICAL ICU").height == (units == 3).sum() == 1481


def test_no_outcome_is_an_event(dataset, events):
    codes = set(dataset.codes()["code"])
    assert not [code for code in codes if "DEATH" in code or "DISCHARGE" in code or "SAPS" in code or "SOFA" in code]
    assert events["time"].max().isoformat() == "2000-01-03T00:00:00"


def test_death_in_hospital(dataset, outcomes):
    labels, manifest = read_labels(dataset.path / "labels/mortality_inpatient.parquet")
    assert labels["subject_id"].to_list() == outcomes["RecordID"].to_list()
    assert labels["boolean_value"].cast(pl.Int64).to_list() == outcomes["In-hospital_death"].to_list()
    assert labels["boolean_value"].sum() == 554
    assert manifest["flow"][-1] == {"step": "of them with a survival below 2 days", "rows": 26, "subjects": 26}


def test_time_to_death(dataset, outcomes):
    labels, _ = read_labels(dataset.path / "labels/time_to_death.parquet")
    asked = outcomes.filter(~pl.col("Survival").is_between(0, 1))
    assert labels["subject_id"].to_list() == asked["RecordID"].to_list() and len(asked) == 3971
    survival = asked["Survival"]
    within = (survival >= 2) & (survival - 1.5 <= 365)
    assert labels["integer_value"].to_list() == within.cast(pl.Int64).to_list()
    days = asked.select(pl.when(within).then(pl.col("Survival") - 1.5).otherwise(365.0)).to_series()
    assert labels["float_value"].to_list() == pytest.approx(days.to_list())
    assert labels["integer_value"].sum() == 1014 and labels["float_value"].min() == 0.5
    assert (asked["Survival"] == -1).sum() == 2526


def test_the_publishers_archive_gives_the_same(events, raw, tmp_path):
    """A text file a record, packed as the publisher packs them."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "set-a").mkdir()
    some = raw.filter(pl.col("RecordID") < 133_000)
    for (record,), rows in some.partition_by("RecordID", as_dict=True, include_key=False).items():
        rows.write_csv(tmp_path / f"set-a/{record}.txt")
    with tarfile.open(tmp_path / "raw/set-a.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(tmp_path / "set-a", "set-a")
    (tmp_path / "raw/Outcomes-a.txt").write_bytes((RAW / "Outcomes-a.txt").read_bytes())
    other = import_source("physionet2012", tmp_path / "raw", tmp_path / "meds")
    found = pl.concat([other.scan(split) for split in SPLITS]).collect()
    assert found.equals(events.filter(pl.col("subject_id") < 133_000))
    assert len(found) > 70_000
    assert other.manifest["conflicts"]["outcomes_of_unknown_records"] > 3000


def test_preparation(dataset, events, tmp_path):
    store = prepare(dataset.path, tmp_path / "store")
    assert sum(store.manifest["counts"][split]["events"] for split in SPLITS) == len(events) - 4000
