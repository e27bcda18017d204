"""The publisher's 101,766 encounters."""

import os
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.tasks.cohorts import check_labels

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "uci_diabetes130"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with uci_diabetes130",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("uci-diabetes", RAW, tmp_path_factory.mktemp("uci") / "meds")


@pytest.fixture(scope="module")
def events(dataset):
    return pl.concat([dataset.scan(split) for split in SPLITS]).collect()


@pytest.fixture(scope="module")
def raw():
    return pl.read_csv(RAW / "diabetic_data.csv", infer_schema=False)


def test_counts_are_the_publishers(dataset, events):
    assert dataset.manifest["encounters"] == 101_766
    assert dataset.manifest["counts"]["subjects"] == 71_518
    assert events["visit_id"].drop_nulls().n_unique() == 101_766
    assert events.filter(code="MEDS_BIRTH").height == 71_518
    assert dataset.manifest["conflicts"]["patients_with_several_values_of_race"] == 123
    assert dataset.manifest["conflicts"]["patients_with_several_values_of_gender"] == 3
    # 1,652 discharges by death, 13 of them followed by another encounter of the same patient.
    assert events.filter(code="MEDS_DEATH").height == 1_639


def test_events_are_the_tables_cells(events, raw):
    """Counted in the raw table in another way than the importer's."""
    for code, column, value in (
        ("UCI_DRUG//insulin//Up", "insulin", "Up"),
        ("UCI_DRUG//glyburide-metformin//Steady", "glyburide-metformin", "Steady"),
        ("UCI_A1C//>8", "A1Cresult", ">8"),
        ("UCI_CHANGE//Ch", "change", "Ch"),
        ("DIAGNOSIS_PRINCIPAL//ICD9CM//428", "diag_1", "428"),
        ("UCI_DISCHARGE//1", "discharge_disposition_id", "1"),
        ("UCI_SPECIALTY//Cardiology", "medical_specialty", "Cardiology"),
    ):
        assert events.filter(code=code).height == (raw[column] == value).sum() > 0
    anywhere = pl.any_horizontal(pl.col("diag_1", "diag_2", "diag_3") == "250.83")
    assert events.filter(code="ICD9CM//250.83").height == raw.select(anywhere.sum()).item() > 0
    inpatient = events.filter(code="UCI_NUMBER_INPATIENT")["numeric_value"].sum()
    assert inpatient == raw["number_inpatient"].cast(pl.Int64).sum()
    assert raw.columns[-1] == "readmitted" and not events["code"].str.contains("(?i)readmi").any()


def test_labels_are_the_publishers(dataset, raw):
    labels, manifest = read_labels(dataset.path / "labels/readmission_30d.parquet")
    kept = raw.filter(~pl.col("discharge_disposition_id").is_in(["11", "13", "14", "19", "20", "21"]))
    assert len(labels) == len(kept) == 99_343
    assert labels["boolean_value"].sum() == (kept["readmitted"] == "<30").sum() == 11_314
    assert {step["step"]: step["rows"] for step in manifest["flow"]}["labelled"] == 99_343
    ordered = kept.select(pl.col("patient_nbr", "encounter_id").cast(pl.Int64), "readmitted").sort(
        "patient_nbr", "encounter_id"
    )
    assert (labels["subject_id"] == ordered["patient_nbr"]).all()
    assert (labels["boolean_value"] == (ordered["readmitted"] == "<30")).all()
    assert check_labels(labels, dataset.subject_splits())["held_out"]["positives"] > 1_000


def test_the_next_encounter_is_never_an_input(dataset, events):
    """At every prediction time, exactly the encounter just ended and those before it are visible."""
    labels, _ = read_labels(dataset.path / "labels/readmission_30d.parquet")
    visits = events.filter(pl.col("visit_id").is_not_null()).group_by("subject_id", "visit_id").agg(
        admitted=pl.col("time").min(), discharged=pl.col("time").max()
    )  # fmt: skip
    visits = visits.sort("subject_id", "visit_id").with_columns(
        next_admitted=pl.col("admitted").shift(-1).over("subject_id")
    )
    assert visits.select((pl.col("discharged") < pl.col("next_admitted")).all()).item()
    labelled = labels.join(
        visits, left_on=["subject_id", "prediction_time"], right_on=["subject_id", "discharged"], how="left"
    )
    assert len(labelled) == len(labels)
    assert labelled["visit_id"].null_count() == 0, "every prediction time is the discharge of one encounter"
    assert labelled["next_admitted"].null_count() > 0
    assert (labelled["prediction_time"] < labelled["next_admitted"]).all()


def test_no_static_row_describes_a_later_encounter(dataset, events, raw):
    first = raw.with_columns(pl.col("patient_nbr", "encounter_id").cast(pl.Int64)).sort("patient_nbr", "encounter_id")
    first = first.group_by("patient_nbr", maintain_order=True).first()
    undated = events.filter(pl.col("time").is_null() & pl.col("code").str.starts_with("RACE//"))
    assert undated.height == (first["race"] != "?").sum()
    stated = undated.join(first, left_on="subject_id", right_on="patient_nbr")
    assert (stated["code"] == "RACE//" + stated["race"]).all()
