from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from audit_world import DAY, World
from scipy import sparse

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS, STATIC_TIME
from ehrsequencing.tasks.checks_data import SHIFT_AUROC_ERROR, shift, told_apart
from ehrsequencing.tasks.checks_units import units

# dates


def first_and_last(clean, split="train"):
    """Rows of the first and the last dated event of every subject."""
    store = clean.store.split(split)
    static = np.add.reduceat(store.visit < 0, store.offsets[:-1], dtype=np.int64)
    return store, store.offsets[:-1] + static, store.offsets[1:] - 1


def dated(clean, folder, which, subject, moment, **columns):
    """The first or the last event of one subject of train at another time."""
    store, first, last = first_and_last(clean)
    time = np.array(store.time)
    time[(first if which == "first" else last)[subject]] = moment
    return clean.tampered(folder, "train", time=time, **columns)


def micros(*day):
    return round((datetime(*day) - datetime(1970, 1, 1)) / timedelta(microseconds=1))


def undated(clean):
    """Birth, death and end of observation unknown, for faults of the calendar alone."""
    split = clean.store.split("train")
    return {name: np.full(len(split), STATIC_TIME) for name in ("birth_time", "death_time")}


def test_events_before_1900(clean, tmp_path):
    named = int(clean.store.split("train").subject_id[3])
    world = dated(clean, tmp_path / "fault", "first", 3, micros(1899, 12, 31), **undated(clean))
    finding = world.only("dates")
    assert (finding.what, finding.got, finding.subjects) == (
        "events lie before 1900", "events of 1 subject of 1,000", (named,),
    )  # fmt: skip
    near = dated(clean, tmp_path / "near", "first", 3, micros(1900, 1, 1), **undated(clean)).only("dates", "warning")
    assert near.what == "events lie before 1825 days without any event of anybody"


def test_events_before_birth(clean, tmp_path):
    birth = int(clean.store.split("train").birth_time[3])
    assert dated(clean, tmp_path / "near", "first", 3, birth).found("dates") == []
    finding = dated(clean, tmp_path / "fault", "first", 3, birth - 1).only("dates")
    assert finding.what == "events lie before birth"


def test_events_after_death(clean, tmp_path):
    store = clean.store.split("train")
    dead = np.flatnonzero(store.death_time != STATIC_TIME)[0]
    death = int(store.death_time[dead])
    assert dated(clean, tmp_path / "near", "last", dead, death + DAY - 1).found("dates") == []
    deaths = sum(int((clean.store.split(name).death_time != STATIC_TIME).sum()) for name in SPLITS)
    results = dated(clean, tmp_path / "results", "last", dead, death + DAY).only("dates", "warning")
    assert results.what == "events lie after death, up to 1 day"
    finding = dated(clean, tmp_path / "fault", "last", dead, death + 90 * DAY).only("dates")
    assert finding.got == f"events of 1 subject of {deaths} dead"
    assert finding.subjects == (int(store.subject_id[dead]),)


def test_predictions_after_death(clean):
    split = clean.store.split("train")
    dead = np.flatnonzero(split.death_time != STATIC_TIME)[0]
    row = clean.labels.filter("boolean_value").head(1)

    def asked(moment):
        moved = row.with_columns(
            subject_id=pl.lit(int(split.subject_id[dead]), dtype=pl.Int64),
            prediction_time=pl.lit(int(moment), dtype=pl.Int64).cast(pl.Datetime("us")),
        )
        return clean.with_labels(pl.concat([clean.labels, moved]))

    assert asked(split.death_time[dead] + DAY - 1).found("dates") == []
    assert asked(split.death_time[dead] + DAY).only("dates").what == "prediction times lie a day or more after death"


def test_events_after_the_end_of_the_dataset(clean, tmp_path):
    end = max(int(clean.store.split(name).observation_end.max()) for name in SPLITS)
    unknown = undated(clean)
    assert dated(clean, tmp_path / "near", "last", 3, end, **unknown).found("dates") == []
    finding = dated(clean, tmp_path / "fault", "last", 3, end + DAY, **unknown).only("dates")
    assert finding.what == "events lie after the end of the dataset"


def without_ends(clean, folder):
    world = clean.tampered(folder, "train", **undated(clean))
    for name in SPLITS:
        (folder / name / "observation_end.npy").write_bytes((folder / name / "death_time.npy").read_bytes())
        store = world.store.split(name)
        world.tampered(folder, name, observation_end=np.full(len(store), STATIC_TIME))
    return world


def test_events_in_the_future_and_lone_ones(clean, tmp_path):
    world = without_ends(clean, tmp_path / "store")
    assert world.found("dates") == []
    now = round((datetime.now() - datetime(1970, 1, 1)) / timedelta(microseconds=1))
    finding = dated(world, tmp_path / "future", "last", 3, now + 3 * DAY)
    assert "events lie in the future" in [found.what for found in finding.found("dates")]
    last = max(int(clean.store.split(name).time.max()) for name in SPLITS)
    lone = last + 365 * DAY
    assert lone < now
    assert (
        dated(world, tmp_path / "lone", "last", 3, lone).only("dates", "warning").got == "events of 1 subject of 1,000"
    )
    assert dated(world, tmp_path / "late", "last", 3, lone - DAY).found("dates") == []


def test_lone_events_at_the_start(clean, tmp_path):
    begin = min(int(clean.store.split(name).time[clean.store.split(name).visit >= 0].min()) for name in SPLITS)
    days = 5 * 365 * DAY
    assert dated(clean, tmp_path / "near", "first", 3, begin - days + DAY, **undated(clean)).found("dates") == []
    finding = dated(clean, tmp_path / "fault", "first", 3, begin - days - DAY, **undated(clean)).only(
        "dates", "warning"
    )
    assert finding.got == "events of 1 subject of 1,000"


@pytest.mark.parametrize(("day", "found"), [((1970, 1, 1), 1), ((1971, 3, 1), 0)])
def test_a_placeholder_for_no_date(clean, tmp_path, day, found):
    """Every fifth record begins on one day, and others on any day of half a century."""
    store, first, _ = first_and_last(clean)
    time = np.array(store.time)
    time[first[::5]] = micros(*day)
    time[first[1::5]] = np.linspace(micros(1961, 1, 1), micros(2011, 1, 1), len(first[1::5])).astype(np.int64)
    findings = clean.tampered(tmp_path / "store", "train", time=time, **undated(clean)).found("dates")
    assert [finding.severity for finding in findings] == ["warning"] * found
    for finding in findings:
        assert finding.what == "events lie at midnight of 1970-01-01, and no others for a year"
        assert finding.got == f"events of {len(first[::5])} subjects of 1,000"


def test_records_that_count_from_a_placeholder(clean, tmp_path):
    store, first, _ = first_and_last(clean)
    begin = np.repeat(store.time[first], store.lengths)
    time = np.where(store.time > STATIC_TIME, store.time - begin, store.time)
    world = clean.tampered(tmp_path / "store", "train", time=time, **undated(clean))
    assert not [finding for finding in world.found("dates") if "1970-01-01" in finding.what]


def test_shifted_dates_are_named_once(clean, tmp_path):
    world = without_ends(clean, tmp_path / "store")
    for name in SPLITS:
        split = world.store.split(name)
        times = {column: getattr(split, column) for column in ("time", "birth_time", "death_time")}
        columns = {key: np.where(time > STATIC_TIME, time + 120 * 365 * DAY, time) for key, time in times.items()}
        world = world.tampered(tmp_path / "store", name, **columns)
    assert "shifted" in world.only("dates", "warning").what


# units


def measured(folder: Path, values: dict[str | None, np.ndarray], code="LOINC//2345-7") -> World:
    """A store of 60 subjects whose train has these values by unit."""
    rows = [(unit, float(value)) for unit, numbers in values.items() for value in numbers]
    start, place = datetime(2020, 1, 1), np.arange(len(rows))
    train = pl.DataFrame(rows, schema={"unit": pl.String, "numeric_value": pl.Float32}, orient="row").with_columns(
        subject_id=pl.Series(place % 40),
        time=pl.lit(start).cast(pl.Datetime("us")) + pl.duration(days=pl.Series(place // 40)),
        code=pl.lit(code),
    )
    for split, first in (("train", 0), ("tuning", 100), ("held_out", 200)):
        path = folder / "meds" / "data" / split / "0.parquet"
        path.parent.mkdir(parents=True)
        train.with_columns(pl.col("subject_id") + first).write_parquet(path)
    store = prepare(folder / "meds", folder / "store")
    labels = pl.DataFrame(
        {"subject_id": [0, 1, 100, 101, 200, 201], "prediction_time": [start] * 6, "boolean_value": [True, False] * 3}
    )
    empty = {"integer_value": pl.Int64, "float_value": pl.Float32, "categorical_value": pl.String}
    columns = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in empty.items()]
    return World(store.path, labels.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")), *columns), {})


def glucose(number, scale=1.0, seed=0):
    return np.exp(np.random.default_rng(seed).normal(np.log(100), 0.3, number)) * scale


def test_two_units_of_one_code(tmp_path):
    world = measured(tmp_path, {"mg/dL": glucose(400), "mmol/L": glucose(60, 1 / 18, 1), None: glucose(60, 1.0, 2)})
    finding = world.only("units")
    assert finding.what == "LOINC//2345-7 mixes units of different scale"
    assert "mg/dL with median" in finding.got
    assert "mmol/L" in finding.got
    assert "(60)" in finding.got


@pytest.mark.parametrize("scale", [1.0, 1.5, 1 / 1.5])
def test_two_spellings_of_one_unit(tmp_path, scale):
    assert measured(tmp_path, {"mg/dL": glucose(400), "mg/dl": glucose(60, scale, 1)}).found("units") == []


def test_a_few_values_in_another_unit(tmp_path):
    assert measured(tmp_path / "few", {"mg/dL": glucose(400), "mmol/L": glucose(19, 1 / 18)}).found("units") == []
    rare = measured(tmp_path / "rare", {"mg/dL": glucose(4000), "mmol/L": glucose(25, 1 / 18)})
    assert rare.only("units", "warning").what == "LOINC//2345-7 mixes units of different scale"


def test_forms_of_a_drug_are_other_quantities(tmp_path):
    doses = measured(tmp_path, {"mL": glucose(400), "BAG": np.ones(200)}, code="RXNORM//313002")
    assert doses.only("units", "warning").what == "RXNORM//313002 mixes units of different scale"


def test_two_units_under_one_name(tmp_path):
    mixed = np.concatenate([glucose(300), glucose(100, 1 / 18, 1)])
    assert measured(tmp_path / "mixed", {None: mixed}).only("units", "warning").what == (
        "LOINC//2345-7 in no unit has two groups of values"
    )
    assert (
        measured(tmp_path / "skewed", {None: np.exp(np.random.default_rng(0).normal(0, 2, 400))}).found("units") == []
    )
    assert measured(tmp_path / "doses", {"mg": np.tile([5.0, 10.0, 500.0, 1000.0], 100)}).found("units") == []


@pytest.mark.parametrize("factor", [88.4, 1 / 18.02, 1000])
def test_a_few_values_times_a_factor_under_one_name(tmp_path, factor):
    mixed = np.concatenate([glucose(1900), glucose(100, factor, 1)])
    assert "two groups of values" in measured(tmp_path, {"mg/dL": mixed}).only("units", "warning").what


def test_pounds_written_as_kilograms(tmp_path):
    weight = np.exp(np.random.default_rng(0).normal(np.log(75), 0.22, 1000))
    assert measured(tmp_path / "clean", {"kg": weight}).found("units") == []
    mixed = np.where(np.random.default_rng(1).random(1000) < 0.3, weight * 2.2046, weight)
    finding = measured(tmp_path / "mixed", {"kg": mixed}).only("units", "warning")
    assert finding.what == "LOINC//2345-7 in kg has two groups of values a known factor apart"
    assert "2.2046 times the others" in finding.got
    # Heavier people, but not by the factor, and nobody in between missing.
    wide = np.concatenate([weight, weight[:300] * 1.4])
    assert measured(tmp_path / "wide", {"kg": wide}).found("units") == []


def test_a_store_without_numbers(clean, tmp_path):
    world = measured(tmp_path, {"mg/dL": np.full(40, np.nan)})
    assert units(world.data()) == "no numeric value"


# splits drawn alike


def test_a_split_by_hash_is_drawn_alike(clean):
    assert clean.found("shift") == []


def test_another_coding_in_one_split(clean, tmp_path):
    """A frequent code of train is another one in held-out."""
    split = clean.store.split("held_out")
    code = np.array(split.code)
    common = np.bincount(code, minlength=len(clean.store.vocabulary)).argmax()
    world = clean.tampered(tmp_path / "store", "held_out", code=np.where(code == common, common + 1, code))
    finding = world.only("shift")
    assert finding.what == "train and held_out are drawn differently"
    assert clean.store.vocabulary.tokens[common] in finding.got


def test_older_subjects_in_one_split(clean, tmp_path):
    split = clean.store.split("held_out")
    near = clean.tampered(tmp_path / "near", "held_out", birth_time=split.birth_time - round(1 * 365.25 * DAY))
    assert near.found("shift") == []
    finding = clean.tampered(
        tmp_path / "store", "held_out", birth_time=split.birth_time - round(20 * 365.25 * DAY)
    ).only("shift")
    assert "foremost age (+" in finding.got


def test_many_small_differences_add_up():
    """No feature differs by 0.15 standard deviations; together they tell the split."""
    random, side = np.random.default_rng(0), np.arange(800) < 300
    alike = sparse.csr_array((random.random((800, 300)) < 0.3).astype(np.float32))
    shifted = sparse.csr_array((random.random((800, 300)) < np.where(side, 0.36, 0.3)[:, None]).astype(np.float32))
    area, error = told_apart(alike, side)
    assert area - 3 * error < 0.5 < area + 3 * error
    area, error = told_apart(shifted, side)
    assert area - 3 * error > SHIFT_AUROC_ERROR


def test_a_later_split_is_named_as_such(clean, tmp_path):
    split = clean.store.split("held_out")
    years = 6 * 365 * DAY
    ids = split.subject_id
    columns = {
        name: np.where(getattr(split, name) > STATIC_TIME, getattr(split, name) + years, STATIC_TIME)
        for name in ("time", "birth_time", "death_time", "observation_end")
    }
    world = clean.tampered(tmp_path / "store", "held_out", **columns)
    later = pl.col("prediction_time") + pl.when(pl.col("subject_id").is_in(ids)).then(years).otherwise(0).cast(
        pl.Duration("us")
    )
    finding = world.with_labels(clean.labels.with_columns(prediction_time=later)).only("shift", "warning")
    assert finding.what == "train and held_out are drawn differently: held_out lies later in time"
    assert finding.expected == "a drift that is meant, as in temporal validation"


def test_positives_are_oftener_in_one_split(clean):
    held = clean.store.split("held_out").subject_id
    drawn = pl.Series(np.random.default_rng(0).random(len(clean.labels)))

    def raised(share):
        more = pl.col("subject_id").is_in(held.tolist()) & (drawn < share)
        return clean.with_labels(clean.labels.with_columns(pl.col("boolean_value") | more))

    finding = raised(0.5).only("shift", "warning")
    assert finding.what == "train and held_out have different shares of positives"
    assert " in train, " in finding.got
    assert raised(0.04).found("shift") == []


def test_few_subjects_are_not_compared(tmp_path):
    assert shift(measured(tmp_path, {"mg/dL": glucose(400)}).data()) == "train has too few subjects"
