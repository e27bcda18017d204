"""Open tables that no importer was written for, imported by a mapping; counts are those of the files."""

import os
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source

DATA = Path(os.environ.get("EHRSEQ_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not (DATA / "uci_diabetes130").exists(),
    reason="EHRSEQ_DATA does not name a folder with uci_diabetes130",
)
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


def test_the_stays_of_uci(tmp_path):
    raw = pl.read_csv(DATA / "uci_diabetes130" / "diabetic_data.csv", infer_schema_length=None)
    dataset, events = imported(tmp_path, DATA / "uci_diabetes130" / "diabetic_data.csv", UCI)
    assert dataset.manifest["visits"] == len(raw)
    diagnoses = events.filter(pl.col("code").str.starts_with("ICD9CM//"))
    assert len(diagnoses) == (raw["diag_1"] != "?").sum()
    for prefix in ("HOSPITAL_ADMISSION//", "HOSPITAL_DISCHARGE//"):
        found = events.filter(pl.col("code").str.starts_with(prefix))
        assert (len(found), found["subject_id"].n_unique()) == (len(raw), raw["patient_nbr"].n_unique())
