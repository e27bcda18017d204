from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.errors import ConfigError, MetricError
from ehrsequencing.evaluation.bootstrap import evaluate
from ehrsequencing.evaluation.subgroups import available, check_grouping, groups_of, subgroup_metrics

BORN = datetime(1960, 1, 1)


def at(year):
    return datetime(year, 6, 1)


@pytest.fixture
def store(tmp_path):
    rows = [
        # Dated code that follows the prediction; two sexes, the later one wins from its date on.
        (1, BORN, "MEDS_BIRTH"), (1, None, "GENDER//Female"), (1, at(2000), "ICD10CM//E11.9"),
        (1, at(2010), "GENDER//Male"),
        (2, None, "GENDER//Male"), (2, at(2001), "ICD10CM//I10"), (2, None, "RACE//Asian//Korean"),
        (3, datetime(1999, 6, 2), "MEDS_BIRTH"), (3, at(2000), "ICD10CM//I10"), (3, at(2000), "INSURANCE//Medicare"),
    ]  # fmt: skip
    folder = tmp_path / "meds/data/train"
    folder.mkdir(parents=True)
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
    frame.with_columns(
        pl.col("time").cast(pl.Datetime("us")), numeric_value=pl.lit(None, dtype=pl.Float32)
    ).write_parquet(folder / "0.parquet")
    return prepare(tmp_path / "meds", tmp_path / "store", min_count=1)


def examples(split, *pairs):
    """Examples of (subject, prediction time)."""
    subject = np.array([one for one, _ in pairs])
    until = np.array([(time - datetime(1970, 1, 1)) // timedelta(microseconds=1) for _, time in pairs])
    return Examples(split.index_of(subject), until, np.zeros(len(subject), dtype=np.float32), subject)


def found(store, by, *pairs):
    split = store.split("train")
    return groups_of(by, split, examples(split, *pairs), store.vocabulary).tolist()


def test_what_is_known_at_the_prediction_and_nothing_later(store):
    assert found(store, "sex", (1, at(2000)), (1, at(2009)), (1, at(2010)), (2, at(2001)), (3, at(2000))) == [
        "Female", "Female", "Male", "Male", "unknown",
    ]  # fmt: skip
    assert found(store, "ICD10CM//E11", (1, at(1999)), (1, at(2000)), (2, at(2001))) == ["without", "with", "without"]


def test_ages_at_their_edges(store):
    born = datetime(1999, 6, 2)
    pairs = [(3, born + timedelta(days=days)) for days in (365, 18 * 365.25 - 1, 18 * 365.25, 65 * 365.25, 80 * 365.25)]
    assert found(store, "age", *pairs, (2, at(2001))) == ["0-17", "0-17", "18-44", "65-79", "80+", "unknown"]
    split = store.split("train")
    undated = Examples(np.array([0]), np.array([STATIC_TIME]), None, np.array([1]))
    assert groups_of("age", split, undated, store.vocabulary).tolist() == ["unknown"]


def test_years_and_any_code_system(store):
    assert found(store, "year", (1, datetime(1999, 12, 31, 23)), (1, datetime(2000, 1, 1))) == ["1999", "2000"]
    assert found(store, "year", (1, datetime(1955, 1, 1))) == ["1955"]
    assert found(store, "INSURANCE//", (3, at(2000)), (3, at(1999)), (1, at(2000))) == [
        "Medicare",
        "unknown",
        "unknown",
    ]
    assert found(store, "race", (2, at(2001))) == ["Asian//Korean"]
    assert found(store, "RACE//Asian//", (2, at(2001))) == ["Korean"]


def test_groupings_that_the_data_have(store):
    assert available(store.vocabulary) == ["sex", "age", "race"]
    with pytest.raises(ConfigError, match="--by names an empty grouping; expected sex, age, race, year, none"):
        check_grouping("", store.vocabulary)
    for by in ("ethnicity", "colour", "icd10cm//", "[UNK]"):
        with pytest.raises(ConfigError, match=f"--by {by}: no code of the vocabulary begins with".replace("[", r"\[")):
            check_grouping(by, store.vocabulary)


def test_metrics_are_those_of_the_rows_of_the_group():
    rng = np.random.default_rng(0)
    y, subjects = rng.random(600) < 0.4, np.arange(600) // 2
    p = 1 / (1 + np.exp(-(y + rng.normal(size=600))))
    sex = np.where(subjects % 3 == 0, "F", "M").astype(object)
    groups = subgroup_metrics({"sex": sex}, y, {"a": [p], "b": [1 - p]}, subjects, resamples=50)
    assert [(group.by, group.name, group.n, group.subjects) for group in groups] == [
        ("sex", "F", 200, 100), ("sex", "M", 400, 200),
    ]  # fmt: skip
    rows = sex == "F"
    own = evaluate(y[rows], p[rows], subjects[rows], metrics=["auroc", "brier", "ece"], resamples=50)
    assert groups[0].metrics["a"] == own
    assert groups[0].positives == y[rows].sum()
    assert groups[0].metrics["b"]["auroc"].value == pytest.approx(1 - own["auroc"].value)


def test_small_groups_are_stated_and_not_scored():
    y = np.arange(100) < 30
    p = np.linspace(0, 1, 100)
    group = np.where(np.arange(100) < 9, "nine positives", "rest").astype(object)
    group[95:] = "unknown"
    small, rest, unknown = subgroup_metrics({"x": group}, y, {"m": [p]}, np.arange(100), resamples=20)
    assert (small.metrics, small.too_small) == ({}, "0 subjects of the rarer class, fewer than 10")
    assert rest.too_small is None
    assert rest.metrics["m"]["auroc"].n == 86
    # What is unknown comes last, and subjects count, not rows.
    assert unknown.name == "unknown"
    assert unknown.metrics == {}
    one = subgroup_metrics({"x": np.full(100, "all", dtype=object)}, y, {"m": [p]}, np.zeros(100), resamples=20)[0]
    assert one.too_small == "1 subjects of the rarer class, fewer than 10"


def test_too_many_groups_and_wrong_lengths():
    y, p = np.arange(100) < 30, np.linspace(0, 1, 100)
    with pytest.raises(ConfigError, match="--by x makes too many groups; got 100; expected at most 40"):
        subgroup_metrics({"x": np.arange(100).astype(str)}, y, {"m": [p]}, np.arange(100))
    with pytest.raises(MetricError, match="grouping x must name every row"):
        subgroup_metrics({"x": ["a"]}, y, {"m": [p]}, np.arange(100))
