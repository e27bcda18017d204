"""OHDSI's GiBleed: 2,694 persons of Synthea in CDM 5.3, identifiers written as floats."""

import os
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source

RAW = Path(os.environ.get("EHRSEQ_DATA", "")) / "omop_gibleed"
pytestmark = pytest.mark.skipif(
    not os.environ.get("EHRSEQ_DATA") or not RAW.exists(),
    reason="EHRSEQ_DATA does not name a folder with omop_gibleed",
)
DOMAINS = (
    ("condition_occurrence", "condition_concept_id", "condition_start_date", 65_332),
    ("drug_exposure", "drug_concept_id", "drug_exposure_start_date", 67_707),
    ("procedure_occurrence", "procedure_concept_id", "procedure_date", 37_409),
    ("measurement", "measurement_concept_id", "measurement_date", 44_053),
    ("observation", "observation_concept_id", "observation_date", 1477),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return import_source("omop", RAW, tmp_path_factory.mktemp("omop") / "meds")


@pytest.fixture(scope="module")
def events(dataset):
    return pl.concat([dataset.scan(split) for split in SPLITS]).collect()


@cache
def raw(table):
    return pl.read_csv(RAW / f"{table}.csv", infer_schema_length=None, try_parse_dates=True)


def test_events_are_the_rows_of_the_tables(dataset, events):
    """Every (person, day, concept) of the five tables, looked up in another way than the importer's."""
    assert dataset.manifest["counts"]["subjects"] == 2694
    names = raw("concept").select(
        "concept_id", code=pl.col("vocabulary_id").str.to_uppercase() + "//" + pl.col("concept_code")
    )
    rows = []
    for table, concept, date, count in DOMAINS:
        found = raw(table)
        assert len(found) == count == dataset.manifest["tables"][table]["rows"]
        rows.append(
            found.join(names, left_on=concept, right_on="concept_id", how="left").select(
                pl.col("person_id").cast(pl.Int64).alias("subject_id"),
                pl.col(date).cast(pl.Datetime("us")).alias("time"),
                "code",
            )
        )
    born = raw("person").select(subject_id=pl.col("person_id").cast(pl.Int64), birth=pl.col("birth_datetime"))
    expected = pl.concat(rows).join(born, on="subject_id")
    early = expected.filter(pl.col("time") < pl.col("birth"))
    assert len(early) == 1
    assert dataset.manifest["events_dropped"] == {"before birth": 1}
    expected = expected.filter(pl.col("time") >= pl.col("birth")).drop("birth")
    dated = events.filter(pl.col("time").is_not_null() & ~pl.col("code").str.contains("^(MEDS_|HOSPITAL_)"))
    key = ["subject_id", "time", "code"]
    assert dated.select(key).sort(key).equals(expected.select(key).sort(key))


def test_persons_with_a_gastrointestinal_bleed(events):
    bleeds = events.filter(code="SNOMED//74474003")
    persons = raw("condition_occurrence").filter(condition_concept_id=192671)["person_id"].n_unique()
    assert bleeds["subject_id"].n_unique() == persons == 479


def test_stays_in_hospital(events):
    visits = raw("visit_occurrence").with_columns(pl.col("visit_occurrence_id").cast(pl.Int64))
    starts = events.filter(code="HOSPITAL_ADMISSION//VISIT//IP").select("visit_id", start="time")
    ends = events.filter(code="HOSPITAL_DISCHARGE//UNKNOWN").select("visit_id", end="time")
    stays = starts.join(ends, on="visit_id", validate="1:1").join(
        visits, left_on="visit_id", right_on="visit_occurrence_id", validate="1:1"
    )
    assert stays.height == len(visits) == 1037
    assert (stays["start"].dt.date() == stays["visit_start_date"]).all()
    assert (stays["end"].dt.date() == stays["visit_end_date"]).all()


def test_visits_without_a_row_fall_to_the_day(dataset, events):
    known = set(raw("visit_occurrence")["visit_occurrence_id"].cast(pl.Int64))
    lost = 0
    for table, *_ in DOMAINS:
        stated = raw(table)["visit_occurrence_id"].cast(pl.Int64).drop_nulls()
        lost += (~stated.is_in(list(known))).sum()
    conflicts = dataset.manifest["conflicts"]["events_of_visits_that_are_not_in_visit_occurrence"]
    assert lost - conflicts in (0, 1), "the dropped event may have stated one"
    assert set(events["visit_id"].drop_nulls()) == known
    assert dataset.manifest["visits"] == 1037


def test_people_and_observation(dataset, events):
    persons = raw("person")
    assert events.filter(code="GENDER//F").height == (persons["gender_concept_id"] == 8532).sum() == 1373
    assert events.filter(code="RACE//3").height == (persons["race_concept_id"] == 8516).sum() == 338
    assert dataset.manifest["date_only"] is True
    assert (events["time"].drop_nulls() == events["time"].drop_nulls().dt.truncate("1d")).all()
    ends = dataset.observation_end()
    periods = raw("observation_period").filter(pl.col("person_id").is_in(persons["person_id"].to_list()))
    assert len(ends) == len(periods) == 2694
    assert dataset.manifest["conflicts"]["observation_periods_of_unknown_persons"] == 5343 - 2694
    joined = ends.join(
        periods.select(pl.col("person_id").cast(pl.Int64), "observation_period_end_date"),
        left_on="subject_id",
        right_on="person_id",
    )
    assert (joined["observation_end"].dt.date() == joined["observation_period_end_date"]).all()


def test_preparation(dataset, events, tmp_path):
    store = prepare(dataset.path, tmp_path / "store")
    assert sum(store.manifest["counts"][split]["events"] for split in SPLITS) == len(events) - 2694
    assert sum(store.manifest["counts"][split]["subjects_without_birth"] for split in SPLITS) == 0


def test_drugs_roll_up_to_their_ingredients(dataset, tmp_path):
    """Against the tables: a drug with one ingredient becomes it, one with several stays."""
    names = (
        raw("concept")
        .filter(vocabulary_id="RxNorm")
        .select("concept_id", "concept_class_id", code="RXNORM//" + pl.col("concept_code").cast(pl.String))
    )
    above = raw("concept_ancestor").filter(pl.col("min_levels_of_separation") > 0)
    ingredients = (
        above.join(names, left_on="descendant_concept_id", right_on="concept_id")
        .join(names.filter(concept_class_id="Ingredient"), left_on="ancestor_concept_id", right_on="concept_id")
        .group_by("code").agg(pl.col("code_right").unique())
    )  # fmt: skip
    one = ingredients.filter(pl.col("code_right").list.len() == 1).explode("code_right")
    used = dataset.codes().select("code")
    expected = dict(one.join(used, on="code").select("code", "code_right").iter_rows())
    store = prepare(dataset.path, tmp_path / "store", roll_up=["rxnorm=ingredient"])
    assert {code: broader for code, broader in store.rolled_codes.items() if code != broader} == expected
    assert len(expected) == 80
    several = ingredients.filter(pl.col("code_right").list.len() > 1).join(used, on="code")
    assert store.manifest["roll_up"]["left_with_several_parents"] == len(several) == 16
