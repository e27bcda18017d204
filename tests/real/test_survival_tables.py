"""SUPPORT and primary biliary cirrhosis by the shipped mappings: counts and labels are those of the files."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.splits import split_of
from ehrsequencing.data.store import TokenStore
from ehrsequencing.tasks.audit import audit
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.cohorts import build_labels

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "survival"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(), reason="EHRSEQ_DATA does not name a folder with survival"
)
ORIGIN = pl.datetime(2000, 1, 1)
UNKNOWN_AT_ENTRY = ("hospdead", "slos", "sfdm2", "dnr", "dnrday", "charges", "totcst", "totmcst", "avtisst")
SCORES = ("aps", "sps", "prg2m", "prg6m", "surv2m", "surv6m")
LANDMARKS = {1: 365.25, 3: 1095.75, 5: 1826.25}


def imported(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp(name)
    dataset = import_source("table", RAW / f"{name}.csv", folder / "meds", mapping=Path(name), strict=True)
    prepare(folder / "meds", folder / "store")
    return dataset, pl.concat([dataset.scan(split) for split in SPLITS]).collect(), folder


@pytest.fixture(scope="module")
def support2(tmp_path_factory):
    return imported(tmp_path_factory, "support2")


@pytest.fixture(scope="module")
def pbc2(tmp_path_factory):
    return imported(tmp_path_factory, "pbc2")


def raw(name):
    table = pl.read_csv(RAW / f"{name}.csv", infer_schema=False, null_values="NA")
    return table.with_columns(pl.all().str.strip_chars().replace("", None))


def audited(folder, labels, manifest):
    """The label file as read again, after an audit that found no error."""
    write_labels(folder / "labels.parquet", labels, manifest)
    labels, manifest = read_labels(folder / "labels.parquet")
    report = audit(TokenStore.open(folder / "store"), labels, manifest)
    report.raise_errors()
    return labels


def values(events, code):
    return events.filter(code=code)["numeric_value"].to_numpy().astype(np.float64)


def test_support2_is_what_the_file_says(support2):
    dataset, events, _ = support2
    table = raw("support2")
    assert events["subject_id"].n_unique() == len(table) == 9105
    held = dataset.subject_splits()
    assert held["split"].to_list() == split_of(held["subject_id"].to_numpy()).tolist()
    for code, column in (
        ("Creatinine", "crea"), ("Sodium", "sod"), ("Albumin", "alb"), ("Mean arterial pressure", "meanbp"),
        ("Heart rate", "hrt"), ("Coma score", "scoma"), ("Comorbidities", "num.co"), ("PaO2/FiO2", "pafi"),
        ("ADL calibrated to the surrogate", "adlsc"), ("Days in hospital at entry", "hday"), ("Urine output", "urine"),
    ):  # fmt: skip
        expected = table[column].drop_nulls().cast(pl.Float64).to_numpy()
        found = values(events, f"SUPPORT//{code}")
        assert len(found) == len(expected), column
        assert np.allclose(np.sort(found), np.sort(expected), rtol=1e-6), column
    for name, column in (
        ("Disease group", "dzgroup"),
        ("Cancer", "ca"),
        ("Income", "income"),
        ("Dementia", "dementia"),
    ):
        prefix = f"SUPPORT//{name}//"
        found = dict(events.filter(pl.col("code").str.starts_with(prefix))["code"].value_counts().iter_rows())
        assert found == {f"{prefix}{v}": n for v, n in table[column].drop_nulls().value_counts().iter_rows()}
    dated = events.filter(~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]) & pl.col("time").is_not_null())
    assert dated.select((pl.col("time") == ORIGIN).all()).item()
    ages = events.filter(code=BIRTH_CODE).select((ORIGIN - pl.col("time")).dt.total_days() / 365.25)
    assert np.allclose(np.sort(ages.to_series()), np.sort(table["age"].cast(pl.Float64)), atol=0.003)


def test_support2_holds_nothing_of_the_future(support2):
    dataset, _, _ = support2
    given = str(dataset.manifest["options"]["mapping"])
    for column in (*UNKNOWN_AT_ENTRY, *SCORES):
        assert f"'{column}'" not in given
        assert column in " ".join(dataset.manifest["notes"])
    columns = set(raw("support2").columns)
    used = {column for column in columns if f"'{column}'" in given}
    assert columns - used == {*UNKNOWN_AT_ENTRY, *SCORES}


def test_time_to_death_of_support2(support2):
    dataset, _, folder = support2
    labels, manifest = build_labels(dataset, "time_to:death", CohortRules(history_days=0, spacing_days=73_000))
    found = audited(folder, labels, manifest).sort("subject_id")
    table = raw("support2").with_columns(pl.col("sno", "death", "d.time").cast(pl.Int64)).sort("sno")
    assert found["subject_id"].to_list() == table["sno"].to_list()
    assert found["integer_value"].to_list() == table["death"].to_list()
    assert found["float_value"].to_list() == table["d.time"].to_list()
    assert (table["death"].sum(), table["d.time"].min()) == (6201, 3)
    assert manifest["causes"] == ["death"]
    steps = {step["step"]: step["rows"] for step in manifest["flow"]}
    assert steps["excluded: no follow-up after the prediction time"] == 0


def test_pbc2_is_what_the_file_says(pbc2):
    _, events, _ = pbc2
    table = raw("pbc2")
    assert events["subject_id"].n_unique() == table["id"].n_unique() == 312
    for code, column in (
        ("Bilirubin", "serBilir"), ("Cholesterol", "serChol"), ("Albumin", "albumin"), ("AST", "SGOT"),
        ("Alkaline phosphatase", "alkaline"), ("Platelets", "platelets"), ("Prothrombin time", "prothrombin"),
    ):  # fmt: skip
        found = events.filter(code=f"PBC//{code}").with_columns(
            year=(pl.col("time") - ORIGIN).dt.total_microseconds() / 86_400e6 / 365.25
        )
        expected = table.drop_nulls(column).select(pl.col("id", "year", column).cast(pl.Float64)).sort("id", "year")
        assert np.allclose(found.sort("subject_id", "time")["numeric_value"], expected[column], rtol=1e-6)
        assert np.allclose(found.sort("subject_id", "time")["year"], expected["year"], atol=1e-9)
    for name, column in (("Oedema", "edema"), ("Histologic stage", "histologic"), ("Ascites", "ascites")):
        prefix = f"PBC//{name}//"
        found = dict(events.filter(pl.col("code").str.starts_with(prefix))["code"].value_counts().iter_rows())
        assert found == {f"{prefix}{v}": n for v, n in table[column].drop_nulls().value_counts().iter_rows()}
    first = table.unique("id", keep="first", maintain_order=True)
    drugs = dict(events.filter(pl.col("code").str.starts_with("PBC//Drug//"))["code"].value_counts().iter_rows())
    assert drugs == {f"PBC//Drug//{v}": n for v, n in first["drug"].value_counts().iter_rows()}
    assert (events.filter(code=DEATH_CODE).height, events.filter(code="PBC//Transplant").height) == (140, 29)


@pytest.mark.parametrize("years", LANDMARKS)
def test_landmarks_of_pbc2(pbc2, years):
    dataset, events, folder = pbc2
    rules = CohortRules(at_days=(LANDMARKS[years],))
    labels, manifest = build_labels(dataset, "time_to:death|PBC//Transplant", rules)
    found = audited(folder, labels, manifest).sort("subject_id")
    first = raw("pbc2").unique("id").select(pl.col("id", "years").cast(pl.Float64), "status")
    expected = first.filter(pl.col("years") > years).sort("id")
    cause = expected["status"].replace_strict({"alive": 0, "dead": 1, "transplanted": 2})
    assert found["subject_id"].to_list() == expected["id"].to_list()
    assert found["integer_value"].to_list() == cause.to_list()
    assert np.allclose(found["float_value"], (expected["years"] - years) * 365.25, atol=2e-5, rtol=1e-6)
    assert manifest["causes"] == ["death", "PBC//Transplant"]
    counts = {1: (290, 118, 29), 3: (245, 81, 21), 5: (202, 52, 14)}[years]
    assert (len(found), *(int((cause == k).sum()) for k in (1, 2))) == counts
    later = events.filter(code="PBC//Transplant").join(found, on="subject_id").filter(
        pl.col("time") <= pl.col("prediction_time")
    )  # fmt: skip
    assert later.is_empty(), "no transplanted subject is asked"


def test_three_landmarks_in_one_file_are_the_three_files(pbc2):
    dataset, _, _ = pbc2
    task = "time_to:death|PBC//Transplant"
    apart = [build_labels(dataset, task, CohortRules(at_days=(days,)))[0] for days in LANDMARKS.values()]
    together, _ = build_labels(dataset, task, CohortRules(at_days=tuple(LANDMARKS.values())))
    assert together.equals(pl.concat(apart).sort("subject_id", "prediction_time"))


def omop(name, *columns, **named):
    table = pl.read_csv(RAW.parent / "omop_gibleed" / f"{name}.csv", infer_schema=False)
    return table.select(pl.col("person_id").cast(pl.Float64).cast(pl.Int64).alias("subject_id"), *columns, **named)


def day(column):
    return pl.col(column).str.slice(0, 10).str.to_date()


@pytest.fixture(scope="module")
def gibleed(tmp_path_factory):
    """The imported dataset, and by subject birth, first and last day, bleed and all days of diagnoses."""
    dataset = import_source("omop", RAW.parent / "omop_gibleed", tmp_path_factory.mktemp("gibleed") / "meds")
    birth = omop("person", birth=day("birth_datetime"))
    bleed = omop("condition_occurrence", "condition_concept_id", bleed=day("condition_start_date"))
    bleed = bleed.filter(pl.col("condition_concept_id").cast(pl.Float64) == 192671)
    days = [
        omop(name, day=day(column))
        for name, column in (
            ("condition_occurrence", "condition_start_date"), ("drug_exposure", "drug_exposure_start_date"),
            ("procedure_occurrence", "procedure_date"), ("measurement", "measurement_date"),
            ("observation", "observation_date"), ("visit_occurrence", "visit_start_date"),
        )
    ]  # fmt: skip
    days = pl.concat(days).join(birth, on="subject_id").filter(pl.col("day") >= pl.col("birth")).drop("birth")
    ends = omop("observation_period", day=day("observation_period_end_date"))
    followed = pl.concat([days, ends, omop("visit_occurrence", day=day("visit_end_date"))])
    people = (
        birth.join(bleed.group_by("subject_id").agg(pl.col("bleed").min()), on="subject_id", how="left")
        .join(days.group_by("subject_id").agg(first=pl.col("day").min()), on="subject_id")
        .join(followed.group_by("subject_id").agg(last=pl.col("day").max()), on="subject_id")
    )
    diagnosed = omop("condition_occurrence", day=day("condition_start_date")).unique()
    return dataset, people, diagnosed


def expected_bleeds(people):
    """(subject, landmark, status, days) of rows with columns `at`, of those still at risk."""
    risk = people.filter(
        (pl.col("at") >= pl.col("first") + pl.duration(days=365)) & (pl.col("bleed") > pl.col("at")).fill_null(True)
    )
    until = pl.when(pl.col("bleed").is_not_null()).then("bleed").otherwise("last")
    rows = risk.with_columns(days=(until - pl.col("at")).dt.total_days(), status=pl.col("bleed").is_not_null())
    return (
        rows.filter(pl.col("days") > 0).sort("subject_id").select("subject_id", pl.col("status").cast(pl.Int64), "days")
    )


def test_time_to_first_bleed_at_an_age(gibleed):
    dataset, people, _ = gibleed
    rules = CohortRules(at_age_years=(35.0,), spacing_days=73_000)
    labels, manifest = build_labels(dataset, "time_to:SNOMED//74474003", rules)
    expected = expected_bleeds(people.with_columns(at=pl.col("birth") + pl.duration(days=round(35 * 365.25))))
    assert labels.select("subject_id", "integer_value").rows() == expected.select("subject_id", "status").rows()
    assert labels["float_value"].to_list() == expected["days"].to_list()
    assert (len(labels), labels["integer_value"].sum()) == (2620, 422)
    assert manifest["causes"] == ["event"], "nobody dies in these records"


def test_time_to_first_bleed_from_the_first_condition_after_an_age(gibleed):
    dataset, people, diagnosed = gibleed
    rules = CohortRules(at_kind="diagnosis", minimum_age_years=35, spacing_days=73_000)
    labels, _ = build_labels(dataset, "time_to:SNOMED//74474003", rules)
    old = diagnosed.join(people, on="subject_id").filter(
        (pl.col("day") - pl.col("birth")).dt.total_days() / 365.25 >= 35
    )  # fmt: skip
    old = old.filter(pl.col("day") >= pl.col("first") + pl.duration(days=365))
    at = old.group_by("subject_id").agg(at=pl.col("day").min())
    found = dict(labels.select("subject_id", pl.col("prediction_time").dt.date()).iter_rows())
    expected = expected_bleeds(people.join(at, on="subject_id"))
    # A day on which a visit ends later is asked at that visit's end; with single-day visits that is the day itself.
    wanted = dict(at.iter_rows())
    same = [subject for subject, day_asked in found.items() if day_asked == wanted[subject]]
    assert len(same) >= 0.98 * len(found)
    rows = {subject: rest for subject, *rest in labels.select("subject_id", "integer_value", "float_value").iter_rows()}
    told = {subject: rest for subject, *rest in expected.iter_rows()}
    assert all(rows[subject] == told[subject] for subject in same)
    assert len(set(told) ^ set(rows)) <= 0.02 * len(rows)
