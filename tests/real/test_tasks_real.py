"""Labels of MIMIC-IV demo and GiBleed against SQL on the publishers' tables."""

import datetime as dt
import os
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.tasks.base import AdmissionRules, CohortRules, DischargeRules
from ehrsequencing.tasks.cohorts import build_labels

DATA = os.environ.get("EHRSEQ_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="EHRSEQ_DATA does not name the real data; see tests/real/README.md")
LATE = CohortRules(10_950, 73_000, 0)
"""Thirty years after the first event, once per subject."""
STAYS = """
WITH a AS (
  SELECT *, MAX(dischtime) OVER (
    PARTITION BY subject_id ORDER BY admittime ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
  FROM admissions),
b AS (
  SELECT *, SUM(before IS NULL OR (admittime > datetime(before, '+6 hours') AND date(admittime) <> date(before)))
    OVER (PARTITION BY subject_id ORDER BY admittime) AS stay
  FROM a),
stays AS (
  SELECT subject_id, MIN(admittime) AS a, MAX(dischtime) AS d, MAX(hospital_expire_flag) AS died,
    LEAD(MIN(admittime)) OVER (PARTITION BY subject_id ORDER BY MIN(admittime)) AS next
  FROM b GROUP BY subject_id, stay)
"""


def table(path):
    return pl.read_csv(path, infer_schema=False)


def query(tables, sql):
    connection = sqlite3.connect(":memory:")
    for name, frame in tables.items():
        connection.execute(f"CREATE TABLE {name} ({', '.join(frame.columns)})")
        marks = ", ".join("?" * frame.width)
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", frame.iter_rows())
        connection.execute(f"CREATE INDEX by_subject_of_{name} ON {name} (subject_id)")
    return connection.execute(sql).fetchall()


def write(folder, events, ends=None):
    (folder / "data").mkdir(parents=True)
    events.sort("subject_id", "time").write_parquet(folder / "data/0.parquet")
    if ends is not None:
        (folder / "metadata").mkdir()
        ends.write_parquet(folder / "metadata/observation.parquet")
    return MedsDataset.open(folder)


def rows(frame, code, time):
    when = pl.coalesce(pl.col(time).str.to_datetime(fmt, strict=False) for fmt in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d"))
    return frame.select(
        subject_id=pl.col("subject_id").cast(pl.Float64).cast(pl.Int64), time=when.cast(pl.Datetime("us")), code=code
    ).drop_nulls()


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    """Admissions, diagnoses and deaths as the MEDS convention of MIMIC-IV writes them: no visit_id."""
    folder = Path(str(DATA)) / "mimic_iv_demo/hosp"
    admissions, patients = table(folder / "admissions.csv.gz"), table(folder / "patients.csv.gz")
    diagnoses = table(folder / "diagnoses_icd.csv.gz").join(admissions.select("hadm_id", "dischtime"), on="hadm_id")
    deaths = patients.join(
        admissions.group_by("subject_id").agg(pl.col("deathtime").min()), on="subject_id", how="left"
    ).with_columns(died=pl.coalesce("deathtime", "dod"))
    unknown = pl.lit("UNK")
    kind, place = pl.col("admission_type"), pl.col("admission_location").fill_null(unknown)
    events = pl.concat(
        [
            rows(admissions, pl.format("HOSPITAL_ADMISSION//{}//{}", kind, place), "admittime"),
            rows(
                admissions,
                pl.format("HOSPITAL_DISCHARGE//{}", pl.col("discharge_location").fill_null(unknown)),
                "dischtime",
            ),
            rows(diagnoses, pl.format("DIAGNOSIS//ICD//{}//{}", "icd_version", "icd_code"), "dischtime"),
            rows(deaths, pl.lit("MEDS_DEATH"), "died"),
        ]
    )
    tables = {"admissions": admissions, "deaths": deaths.select("subject_id", "died").drop_nulls()}
    return write(tmp_path_factory.mktemp("mimic") / "meds", events), tables


def counts(labels):
    return len(labels), int(labels["boolean_value"].sum())


def test_mimic_death_in_hospital(mimic):
    dataset, tables = mimic
    labels, _ = build_labels(dataset, "mortality_inpatient", AdmissionRules(24, 0))
    [expected] = query(tables, STAYS + "SELECT COUNT(*), SUM(died) FROM stays WHERE d > datetime(a, '+24 hours')")
    assert counts(labels) == expected
    assert expected[1] > 10


@pytest.mark.parametrize("days", [3, 7])
def test_mimic_length_of_stay(mimic, days):
    dataset, tables = mimic
    labels, _ = build_labels(dataset, f"los_over_{days}d", AdmissionRules(24, 0))
    sql = f"SELECT COUNT(*), SUM(d > datetime(a, '+{days} days')) FROM stays WHERE d > datetime(a, '+24 hours')"
    assert counts(labels) == query(tables, STAYS + sql)[0]


@pytest.mark.parametrize("days", [7, 30, 90])
def test_mimic_readmission(mimic, days):
    """Known: readmitted, dead, or seen again (or dying) after the window."""
    dataset, tables = mimic
    labels, _ = build_labels(dataset, f"readmission_{days}d", DischargeRules(0))
    sql = f"""
    , judged AS (
      SELECT s.*, datetime(d, '+{days} days') AS until, datetime(deaths.died) AS death,
        (SELECT MAX(dischtime) FROM admissions x WHERE x.subject_id = s.subject_id) AS last
      FROM stays s LEFT JOIN deaths USING (subject_id)
      WHERE NOT s.died AND (deaths.died IS NULL OR date(deaths.died) NOT BETWEEN date(a) AND date(d)))
    SELECT COUNT(*), SUM(next IS NOT NULL AND next <= until) FROM judged
    WHERE (death IS NULL OR death > d) AND ((next IS NOT NULL AND next <= until) OR last >= until OR death IS NOT NULL)
    """
    assert counts(labels) == query(tables, STAYS + sql)[0]


@pytest.mark.parametrize(
    "task", ["mortality_365d", "next_visit_codes", "phenotype:common", "time_to:death", "heart_failure_1y"]
)
def test_mimic_has_every_other_task(mimic, task):
    rules = CohortRules(0, 3_650 if task == "time_to:death" else 30, 0)
    labels, manifest = build_labels(mimic[0], task, rules)
    assert len(labels) > 20
    if task == "phenotype:common":
        assert len(manifest["categories"]) >= 12


@pytest.fixture(scope="module")
def gibleed(tmp_path_factory):
    """Conditions by SNOMED CT identifier; follow-up ends with the observation period."""
    folder = Path(str(DATA)) / "omop_gibleed"
    concepts = table(folder / "concept.csv").select(condition_concept_id="concept_id", concept_code="concept_code")
    conditions = table(folder / "condition_occurrence.csv").join(concepts, on="condition_concept_id").select(
        "concept_code", "condition_start_date", subject_id="person_id"
    )  # fmt: skip
    periods = table(folder / "observation_period.csv").select(
        subject_id=pl.col("person_id").cast(pl.Float64).cast(pl.Int64),
        observation_end=pl.col("observation_period_end_date").str.to_datetime("%Y-%m-%d"),
    )
    events = rows(conditions, pl.format("SNOMED//{}", "concept_code"), "condition_start_date")
    seen = periods.join(events, on="subject_id", how="semi")
    ends = seen.group_by("subject_id").agg(pl.col("observation_end").max())
    tables = {
        "conditions": events.select(
            "subject_id", pl.col("time").dt.strftime("%Y-%m-%d").alias("day"), pl.col("code").str.slice(8)
        ),
        "ends": ends.select("subject_id", pl.col("observation_end").dt.strftime("%Y-%m-%d").alias("until")),
    }
    return write(tmp_path_factory.mktemp("gibleed") / "meds", events, ends), tables


ASKED = """
WITH first AS (SELECT subject_id, MIN(day) AS first, MAX(day) AS last FROM conditions GROUP BY subject_id),
followed AS (
  SELECT f.*, MAX(last, COALESCE(until, last)) AS seen FROM first f LEFT JOIN ends USING (subject_id)),
bleed AS (SELECT subject_id, MIN(day) AS bleed FROM conditions WHERE code = '74474003' GROUP BY subject_id),
asked AS (
  SELECT c.subject_id, MIN(c.day) AS t, bleed, seen FROM conditions c JOIN followed USING (subject_id)
  LEFT JOIN bleed USING (subject_id)
  WHERE c.day >= date(first, '+10950 days') AND (bleed IS NULL OR bleed > c.day) GROUP BY c.subject_id)
"""


def test_gibleed_time_to_bleeding(gibleed):
    dataset, tables = gibleed
    labels, manifest = build_labels(dataset, "time_to:SNOMED//74474003", LATE)
    assert manifest["date_only"]
    [expected] = query(tables, ASKED + """
    SELECT COUNT(*), SUM(bleed IS NOT NULL),
      SUM(julianday(COALESCE(bleed, seen)) - julianday(t)) FROM asked WHERE COALESCE(bleed, seen) > t
    """)  # fmt: skip
    assert (len(labels), int((labels["integer_value"] == 1).sum())) == expected[:2]
    assert labels["float_value"].cast(pl.Float64).sum() == pytest.approx(expected[2])
    assert expected[1] > 300


def test_gibleed_onset_of_bleeding(gibleed):
    dataset, tables = gibleed
    labels, _ = build_labels(dataset, "onset:SNOMED//74474003@3650", LATE)
    [expected] = query(tables, ASKED + """
    SELECT COUNT(*), SUM(bleed IS NOT NULL AND bleed <= date(t, '+3650 days')) FROM asked
    WHERE seen >= date(t, '+3650 days')
    """)  # fmt: skip
    assert counts(labels) == expected


def test_gibleed_phenotypes(gibleed):
    dataset, tables = gibleed
    labels, manifest = build_labels(dataset, "phenotype:common@3650", LATE)
    assert {"osteoarthritis", "gastrointestinal_bleeding", "fracture", "peptic_ulcer"} <= set(manifest["categories"])
    any_time = ASKED.replace("AND (bleed IS NULL OR bleed > c.day)", "")
    for name, code in (
        ("osteoarthritis", "396275006"),
        ("gastrointestinal_bleeding", "74474003"),
        ("peptic_ulcer", "13200003"),
    ):
        [(expected,)] = query(tables, any_time + f"""
        SELECT COUNT(DISTINCT a.subject_id) FROM asked a JOIN conditions c USING (subject_id)
        WHERE c.code = '{code}' AND c.day > t AND c.day <= date(t, '+3650 days') AND seen >= date(t, '+3650 days')
        """)  # fmt: skip
        assert (labels["categorical_value"] == name).sum() == expected, name


def test_gibleed_next_visit(gibleed):
    dataset, tables = gibleed
    labels, manifest = build_labels(dataset, "next_visit_codes", LATE)
    assert len(manifest["categories"]) > 20
    any_time = ASKED.replace("AND (bleed IS NULL OR bleed > c.day)", "")
    [(examples, sinusitis)] = query(tables, any_time + """
    , next AS (SELECT a.subject_id, MIN(c.day) AS day FROM asked a JOIN conditions c USING (subject_id)
      WHERE c.day > t GROUP BY a.subject_id)
    SELECT COUNT(DISTINCT n.subject_id), COUNT(DISTINCT CASE WHEN code = '444814009' THEN n.subject_id END)
    FROM next n JOIN conditions USING (subject_id, day)
    """)  # fmt: skip
    assert labels.n_unique(["subject_id", "prediction_time"]) == examples
    assert (labels["categorical_value"] == "SNOMED//444814009").sum() == sinusitis


def test_uci_length_of_stay(tmp_path):
    """Every encounter of the UCI records is a stay of `time_in_hospital` days; dates alone."""
    table_ = pl.read_csv(Path(str(DATA)) / "uci_diabetes130/diabetic_data.csv", infer_schema=False, n_rows=3_000)
    table_ = table_.unique("patient_nbr")
    admitted = dt.datetime(2000, 1, 1)
    days = pl.col("time_in_hospital").cast(pl.Int64)
    one = table_.select(subject_id=pl.col("patient_nbr").cast(pl.Int64), days=days)
    start = one.select("subject_id", time=pl.lit(admitted, dtype=pl.Datetime("us")), code=pl.lit("UCI_AGE"))
    end = one.select(
        "subject_id", time=pl.lit(admitted, dtype=pl.Datetime("us")) + pl.duration(days=pl.col("days")),
        code=pl.lit("UCI_TIME_IN_HOSPITAL"),
    )  # fmt: skip
    labels, _ = build_labels(write(tmp_path / "meds", pl.concat([start, end])), "los_over_3d", AdmissionRules(24, 0))
    assert counts(labels) == (int((one["days"] > 1).sum()), int((one["days"] > 3).sum()))
