"""The mappings that the package ships, on a few rows written here."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.sources.table_mapping import SHIPPED, read_mapping
from ehrsequencing.errors import CohortError, ConfigError, DataError
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.cohorts import build_labels

SUPPORT = [
    "sno",
    "age",
    "death",
    "sex",
    "hospdead",
    "slos",
    "d.time",
    "dzgroup",
    "dzclass",
    "num.co",
    "edu",
    "income",
    "scoma",
    "charges",
    "totcst",
    "totmcst",
    "avtisst",
    "race",
    "sps",
    "aps",
    "surv2m",
    "surv6m",
    "hday",
    "diabetes",
    "dementia",
    "ca",
    "prg2m",
    "prg6m",
    "dnr",
    "dnrday",
    "meanbp",
    "wblc",
    "hrt",
    "resp",
    "temp",
    "pafi",
    "alb",
    "bili",
    "crea",
    "sod",
    "ph",
    "glucose",
    "bun",
    "urine",
    "adlp",
    "adls",
    "sfdm2",
    "adlsc",
]
PBC = [
    "sno.",
    "id",
    "years",
    "status",
    "drug",
    "age",
    "sex",
    "year",
    "ascites",
    "hepatomegaly",
    "spiders",
    "edema",
    "serBilir",
    "serChol",
    "albumin",
    "alkaline",
    "SGOT",
    "platelets",
    "prothrombin",
    "histologic",
    "status2",
]
RULES = CohortRules(history_days=0, spacing_days=73_000, minimum_age_years=0)


def support(tmp_path, *rows, name="support2"):
    table = [
        {"age": 60, "sex": "male", "dzgroup": "CHF", "crea": 1.5, "hospdead": 1, "hday": 2, "temp": 37} | row
        for row in rows
    ]
    lines = [",".join(str(row.get(column, "")) for column in SUPPORT) for row in table]
    (tmp_path / "support2.csv").write_text("\n".join([",".join(SUPPORT), *lines]) + "\n")
    return import_source("table", tmp_path / "support2.csv", tmp_path / "meds", mapping=Path(name), strict=True)


def pbc(tmp_path, *rows):
    table = [{"age": 50.5, "sex": "female", "drug": "placebo", "edema": "No edema"} | row for row in rows]
    lines = [",".join(str(row.get(column, "NA")) for column in PBC) for row in table]
    (tmp_path / "pbc2.csv").write_text("\n".join([",".join(PBC), *lines]) + "\n")
    return import_source("table", tmp_path / "pbc2.csv", tmp_path / "meds", mapping=Path("pbc2"), strict=True)


def events(dataset):
    frame = pl.concat([dataset.scan(split) for split in SPLITS]).collect()
    return frame.with_columns(days=(frame["time"] - dt.datetime(2000, 1, 1)).dt.total_seconds() / 86_400)


def test_support2_at_one_instant(tmp_path):
    found = events(support(tmp_path, {"sno": 1, "death": 1, "d.time": 9, "meanbp": 80, "ca": "no", "sps": 33.5}))
    assert {row[0]: row[1:] for row in found.select("code", "days", "numeric_value", "unit").rows()} == {
        "GENDER//M": (None, None, None), "MEDS_BIRTH": (-21_915.0, None, None), "MEDS_DEATH": (9.0, None, None),
        "SUPPORT//Days in hospital at entry": (0.0, 2.0, "d"), "SUPPORT//Temperature": (0.0, 37.0, "Cel"),
        "SUPPORT//Disease group//CHF": (0.0, None, None), "SUPPORT//Cancer//no": (0.0, None, None),
        "SUPPORT//Creatinine": (0.0, 1.5, "mg/dL"), "SUPPORT//Mean arterial pressure": (0.0, 80.0, "mmHg"),
    }  # fmt: skip


def test_nobody_is_followed_for_no_time(tmp_path):
    """Who dies or leaves at entry itself is left out under a name of its own."""
    followed = ((1, 1, 5), (2, 0, 7), (3, 1, 0), (4, 0, 0))
    rows = [{"sno": subject, "death": death, "d.time": days} for subject, death, days in followed]
    labels, manifest = build_labels(support(tmp_path, *rows), "time_to:death", RULES)
    assert labels.select("subject_id", "integer_value", "float_value").rows() == [(1, 1, 5.0), (2, 0, 7.0)]
    flow = {step["step"]: step["rows"] for step in manifest["flow"]}
    assert (flow["ends of visits"], flow["alive"]) == (4, 3)
    assert flow["excluded: no follow-up after the prediction time"] == 1


def test_all_censored(tmp_path):
    dataset = support(tmp_path, {"sno": 1, "death": 0, "d.time": 7})
    with pytest.raises(CohortError, match="task time_to:death needs deaths, and the dataset records none"):
        build_labels(dataset, "time_to:death", RULES)


def test_negative_follow_up_is_no_death_before_entry(tmp_path):
    dataset = support(tmp_path, {"sno": 1, "death": 1, "d.time": 5}, {"sno": 2, "death": 1, "d.time": -3})
    labels, manifest = build_labels(dataset, "time_to:death", RULES)
    assert labels["subject_id"].to_list() == [1]
    assert {step["step"]: step["rows"] for step in manifest["flow"]}["alive"] == 1


def test_pbc2_over_time(tmp_path):
    dataset = pbc(
        tmp_path,
        {"id": 1, "years": 4, "status": "transplanted", "year": 0, "serBilir": 2},
        {"id": 1, "years": 4, "status": "transplanted", "year": 2, "serBilir": 3, "edema": "edema no diuretics"},
        {"id": 2, "years": 6, "status": "dead", "year": 0},
        {"id": 3, "years": 8, "status": "alive", "year": 0},
        {"id": 4, "years": 1, "status": "alive", "year": 0},
    )
    found = events(dataset).filter(pl.col("subject_id") == 1).select("code", "days", "numeric_value").rows()
    assert sorted(found, key=str) == sorted([
        ("GENDER//F", None, None), ("MEDS_BIRTH", -18_446.0, None), ("PBC//Drug//placebo", 0.0, None),
        ("PBC//Oedema//No edema", 0.0, None), ("PBC//Bilirubin", 0.0, 2.0), ("PBC//Bilirubin", 730.5, 3.0),
        ("PBC//Oedema//edema no diuretics", 730.5, None), ("PBC//Transplant", 1461.0, None),
    ], key=str)  # fmt: skip
    at = CohortRules(at_days=(1095.75, 1826.25))
    labels, manifest = build_labels(dataset, "time_to:death|PBC//Transplant", at)
    years = (labels["prediction_time"] - dt.datetime(2000, 1, 1)).dt.total_seconds() / 86_400 / 365.25
    assert list(zip(labels["subject_id"], years, labels["integer_value"], labels["float_value"], strict=True)) == [
        (1, 3.0, 2, 365.25), (2, 3.0, 1, 1095.75), (2, 5.0, 1, 365.25), (3, 3.0, 0, 1826.25), (3, 5.0, 0, 1095.75),
    ]  # fmt: skip
    assert manifest["causes"] == ["death", "PBC//Transplant"]


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pbc2").write_text('source = "mine"\n[visits]\nsubject = "a"\nvisit = "v"\nstart = "s"\n')
    assert read_mapping(Path("pbc2")).source == "mine"
    assert read_mapping(Path("support2")).source == "support2"


def test_an_unknown_name_lists_those_there_are():
    assert set(SHIPPED) == {"pbc2", "support2"}
    with pytest.raises(
        ConfigError, match="mapping support3 is missing; expected a TOML file, or one of pbc2, support2"
    ):
        read_mapping(Path("support3"))


def test_another_file_lacks_the_columns(tmp_path):
    (tmp_path / "x.csv").write_text("sno,age\n1,50\n")
    with pytest.raises(DataError, match=r"x\.csv lacks sex, "):
        import_source("table", tmp_path / "x.csv", tmp_path / "meds", mapping=Path("support2"))


def test_an_origin_is_needed_where_events_are_at_it(tmp_path):
    mapping = tmp_path / "mapping.toml"
    block = '[[tables]]\nsubject = "a"\nat_origin = true\nconstant = "X"\nkind = "lab"\n'
    mapping.write_text(block)
    with pytest.raises(ConfigError, match="times that are numbers, ages and at_origin need the origin"):
        read_mapping(mapping)
    mapping.write_text("origin = 2000-01-01\n" + block + "undated = true\n")
    with pytest.raises(ConfigError, match="give one of time, at_origin = true, at_visit and undated = true"):
        read_mapping(mapping)
    mapping.write_text("origin = 2000-01-01T06:00:00\n" + block)
    (tmp_path / "x.csv").write_text("a\n1\n")
    found = events(import_source("table", tmp_path / "x.csv", tmp_path / "meds", mapping=mapping))
    assert found.select("code", "days").rows() == [("X", 0.25)]
