"""Open tables that no importer was written for, imported by a mapping; counts are those of the files."""

import os
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, SPLITS
from ehrsequencing.data.sources import import_source

DATA = Path(os.environ.get("EHRSEQ_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not (DATA / "survival").exists(),
    reason="EHRSEQ_DATA does not name a folder with survival",
)
PBC = """
source = "pbc2"
missing = ["NA"]
origin = 2000-01-01
[subjects]
subject = "id"
age = "age"
sex = "sex"
death = "years"
death_where = { status = "dead" }
observed_until = "years"
time_format = "years"
[[tables]]
name = "visits"
subject = "id"
time = "year"
time_format = "years"
prefix = "PBC"
kind = "lab"
columns.Bilirubin = { column = "serBilir", unit = "mg/dL" }
columns.Cholesterol = { column = "serChol", unit = "mg/dL" }
columns.Albumin = { column = "albumin", unit = "g/dL" }
columns.Platelets = "platelets"
columns.Prothrombin = { column = "prothrombin", unit = "s" }
columns.Edema = { column = "edema", as = "code" }
[[tables]]
name = "treatment"
subject = "id"
undated = true
prefix = "ARM"
code = "drug"
where = { year = 0 }
kind = "drug"
"""
SUPPORT = """
source = "support2"
origin = 2000-01-01
[subjects]
subject = "sno"
age = "age"
sex = "sex"
death = "d.time"
death_where = { death = 1 }
observed_until = "d.time"
time_format = "days"
[[tables]]
subject = "sno"
time = "d.time"
time_format = "days"
where = { hospdead = 0 }
constant = "FOLLOWED"
kind = "other"
[[tables]]
subject = "sno"
undated = true
prefix = "SUPPORT"
kind = "lab"
columns = { Creatinine = "crea", Sodium = "sod", Disease = { column = "dzgroup", as = "code" } }
"""
UCI = """
source = "uci-by-mapping"
missing = ["?"]
origin = 2000-01-01
[subjects]
subject = "patient_nbr"
[visits]
subject = "patient_nbr"
visit = "encounter_id"
start = "encounter_id"
end = "encounter_id"
class = "admission_type_id"
inpatient = true
discharge = "discharge_disposition_id"
time_format = "seconds"
[[tables]]
subject = "patient_nbr"
visit = "encounter_id"
at_visit = "end"
prefix = "ICD9CM"
code = "diag_1"
kind = "diagnosis"
"""


def imported(tmp_path, file, mapping):
    (tmp_path / "mapping.toml").write_text(mapping)
    dataset = import_source("table", file, tmp_path / "meds", mapping=tmp_path / "mapping.toml")
    return dataset, pl.concat([dataset.scan(split) for split in SPLITS]).collect()


def test_pbc2(tmp_path):
    file = DATA / "survival" / "pbc2.csv"
    raw = pl.read_csv(file, null_values="NA", infer_schema_length=None)
    dataset, events = imported(tmp_path, file, PBC)
    assert events["subject_id"].n_unique() == raw["id"].n_unique() == 312
    dead = raw.unique("id").filter(status="dead")
    deaths = events.filter(code=DEATH_CODE)
    assert len(deaths) == len(dead) == 140
    days = deaths.join(dead, left_on="subject_id", right_on="id").select(
        (pl.col("time") - pl.datetime(2000, 1, 1)).dt.total_seconds() / 86400 / 365.25 - pl.col("years")
    )
    assert days.to_series().abs().max() < 1e-6
    for code, column in (("PBC//Bilirubin", "serBilir"), ("PBC//Cholesterol", "serChol"), ("PBC//Albumin", "albumin")):
        found = events.filter(code=code)["numeric_value"]
        assert len(found) == raw[column].count()
        assert found.sum() == pytest.approx(raw[column].sum(), rel=1e-5)
    edema = events.filter(pl.col("code").str.starts_with("PBC//Edema//"))["code"].value_counts()
    assert dict(edema.iter_rows()) == {
        f"PBC//Edema//{value}": count for value, count in raw["edema"].value_counts().iter_rows()
    }
    assert events.filter(pl.col("code").str.starts_with("ARM//"))["subject_id"].n_unique() == 312
    assert events.filter(code=BIRTH_CODE).height == 312
    assert len(dataset.observation_end()) == 312
    assert dataset.manifest["events_dropped"] == {}
    prepare(tmp_path / "meds", tmp_path / "store")


def test_support2(tmp_path):
    file = DATA / "survival" / "support2.csv"
    raw = pl.read_csv(file, infer_schema_length=None)
    dataset, events = imported(tmp_path, file, SUPPORT)
    assert events["subject_id"].n_unique() == len(raw) == 9105
    assert events.filter(code=DEATH_CODE).height == raw["death"].sum()
    assert events.filter(code="FOLLOWED").height == (raw["hospdead"] == 0).sum()
    assert events.filter(code="SUPPORT//Creatinine").height == raw["crea"].count()
    tables = dataset.manifest["tables"]
    assert tables["support2#2"]["rows_without_events"] == {"excluded by where": int(raw["hospdead"].sum())}
    assert [account["rows"] for account in tables.values()] == [9105, 9105, 9105]


def test_the_stays_of_uci(tmp_path):
    raw = pl.read_csv(DATA / "uci_diabetes130" / "diabetic_data.csv", infer_schema_length=None)
    dataset, events = imported(tmp_path, DATA / "uci_diabetes130" / "diabetic_data.csv", UCI)
    assert dataset.manifest["visits"] == len(raw)
    diagnoses = events.filter(pl.col("code").str.starts_with("ICD9CM//"))
    assert len(diagnoses) == (raw["diag_1"] != "?").sum()
    for prefix in ("HOSPITAL_ADMISSION//", "HOSPITAL_DISCHARGE//"):
        found = events.filter(pl.col("code").str.starts_with(prefix))
        assert (len(found), found["subject_id"].n_unique()) == (len(raw), raw["patient_nbr"].n_unique())
