import io
import json

import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.synthetic import (
    MAX_SEED,
    SUBJECTS_PER_SEED,
    block_frame,
    latent_bytes,
    subject_ids,
    synthesise,
    trajectories,
)
from ehrsequencing.data.synthetic_disease import replay
from ehrsequencing.data.synthetic_model import load_model
from ehrsequencing.data.synthetic_statistics import BlockStatistics, summarise
from ehrsequencing.errors import ConfigError, RunError

MODEL = load_model()


def frame_of(seed, subjects, mode="realistic"):
    return block_frame(MODEL, seed, np.asarray(subjects), mode)[0]


@pytest.fixture(scope="module")
def records():
    return frame_of(0, np.arange(1_500))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    seen = []
    path = synthesise(
        tmp_path_factory.mktemp("synthetic") / "meds", subjects=300, seed=2, workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(300, 300)]
    return path


def test_first_subjects_are_the_same_in_any_number(records):
    few = frame_of(0, np.arange(37))
    assert few.equals(records.filter(pl.col("subject_id").is_in(few["subject_id"].unique().to_list())))
    alone = frame_of(0, [1_203])
    assert alone.equals(records.filter(pl.col("subject_id") == 1_204))


def test_seeds_share_nobody(records):
    other = frame_of(1, np.arange(100))
    assert not set(other["subject_id"]) & set(records["subject_id"])
    bodies = [
        {tuple(group["code"]) for _, group in frame.group_by("subject_id")} for frame in (other, records.head(20_000))
    ]
    assert not bodies[0] & bodies[1]
    largest = subject_ids(MAX_SEED, np.array([SUBJECTS_PER_SEED - 1]))
    assert 0 < int(largest[0]) * 1_000 < 2**63


def test_volume(records):
    dated = records.filter(pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("MEDS_"))
    per_subject = dated.group_by("subject_id").agg(events=pl.len(), visits=pl.col("visit_id").n_unique())
    assert len(per_subject) == 1_500, "no empty subject"
    assert per_subject["events"].median() >= 80
    assert per_subject["visits"].median() >= 8
    assert records["code"].n_unique() >= 400


def test_time_runs_forward_from_birth_to_death(records):
    ordered = records.filter(pl.col("time").is_not_null())
    spans = ordered.group_by("subject_id", maintain_order=True).agg(
        sorted=pl.col("time").is_sorted(),
        birth_first=pl.col("code").first() == "MEDS_BIRTH",
        births=(pl.col("code") == "MEDS_BIRTH").sum(),
        deaths=(pl.col("code") == "MEDS_DEATH").sum(),
        last=pl.col("code").last(),
        age_years=(pl.col("time").get(1) - pl.col("time").first()).dt.total_days() / 365.25,
    )
    assert spans["sorted"].all() and spans["birth_first"].all()
    assert (spans["births"] == 1).all()
    assert ((spans["deaths"] == 0) | (spans["last"] == "MEDS_DEATH")).all()
    assert 0 < spans["deaths"].sum() < 500
    assert spans["age_years"].min() >= 29.9 and spans["age_years"].max() < 83
    static = records.filter(pl.col("time").is_null())
    assert static["code"].str.contains("^(GENDER|RACE)//").all() and len(static) == 3_000


def test_visits(records):
    visits = (
        records.filter(pl.col("visit_id").is_not_null())
        .group_by("visit_id")
        .agg(
            subjects=pl.col("subject_id").n_unique(),
            encounters=pl.col("code").str.starts_with("VISIT//").sum(),
            inpatient=(pl.col("code") == "VISIT//inpatient").any(),
            discharges=pl.col("code").str.starts_with("DISCHARGE//").sum(),
            days=(pl.col("time").max() - pl.col("time").min()).dt.total_hours() / 24,
            start=pl.col("time").min(),
            end=pl.col("time").max(),
            subject=pl.col("subject_id").first(),
        )
        .sort("subject", "start")
    )
    assert (visits["subjects"] == 1).all() and (visits["encounters"] == 1).all()
    assert (visits["discharges"] == visits["inpatient"]).all()
    assert visits["days"].max() <= 9 and (visits.filter(~pl.col("inpatient"))["days"] == 0).all()
    apart = visits.with_columns(previous=pl.col("end").shift(1).over("subject")).drop_nulls("previous")
    assert (apart["start"] > apart["previous"]).all(), "visits of a subject do not overlap"
    assert (apart["visit_id"] > apart["visit_id"].shift(1).fill_null(0)).all(), "numbered in order of time"
    repeated = records.filter(pl.col("time").is_not_null()).select("subject_id", "time", "code").is_duplicated()
    assert not repeated.any()


def test_illness_makes_visits_denser(records):
    visits = records.group_by("subject_id").agg(
        n=pl.col("visit_id").n_unique(),
        ill=pl.col("code").str.contains("ICD10CM//(I50|E11|N18|J44)").any(),
        years=(pl.col("time").max() - pl.col("time").filter(pl.col("code") != "MEDS_BIRTH").min()).dt.total_days()
        / 365,
    )
    rate = visits.group_by("ill").agg(rate=pl.col("n").sum() / pl.col("years").sum()).sort("ill")["rate"]
    assert rate[1] > 1.35 * rate[0]


def test_values_have_units_and_follow_states_and_drugs(records):
    valued = records.filter(pl.col("numeric_value").is_not_null())
    assert (
        valued["unit"].null_count() == 0 and (valued.group_by("code").agg(pl.col("unit").n_unique())["unit"] == 1).all()
    )
    numeric = set(valued["code"])
    assert records.filter(pl.col("code").is_in(list(numeric)) & pl.col("numeric_value").is_null()).is_empty()
    for lab in MODEL.labs:
        values = valued.filter(pl.col("code") == lab.code)["numeric_value"]
        assert len(values) > 0 and lab.low - 1e-3 <= values.min() <= values.max() <= lab.high + 1e-3
    diabetic = records.filter(pl.col("code").str.starts_with("ICD10CM//E11"))["subject_id"].unique().to_list()
    glycated = valued.filter(pl.col("code") == "LOINC//4548-4").with_columns(ill=pl.col("subject_id").is_in(diabetic))
    means = glycated.group_by("ill").agg(pl.col("numeric_value").mean()).sort("ill")["numeric_value"]
    assert means[1] > means[0] + 0.5


def test_labs_persist_within_a_subject(records):
    pairs = (
        records.filter(pl.col("code") == "LOINC//33762-6")
        .with_columns(previous=pl.col("numeric_value").shift(1).over("subject_id"))
        .drop_nulls("previous")
    )
    assert pairs.select(pl.corr("numeric_value", "previous", method="spearman")).item() > 0.8


def test_natriuretic_peptide_rises_before_heart_failure(records):
    first = records.filter(pl.col("code").str.starts_with("ICD10CM//I50")).group_by("subject_id").agg(
        onset=pl.col("time").min()
    )  # fmt: skip
    peptide = records.filter(pl.col("code") == "LOINC//33762-6").join(first, on="subject_id", how="left")
    cases = peptide.filter(pl.col("time") < pl.col("onset"))
    others = peptide.filter(pl.col("onset").is_null())

    def rise(frame):
        ends = frame.sort("time").group_by("subject_id").agg(
            first=pl.col("numeric_value").first().log(), last=pl.col("numeric_value").last().log(), n=pl.len()
        )  # fmt: skip
        return ends.filter(pl.col("n") >= 3).select((pl.col("last") - pl.col("first")).mean()).item()

    assert rise(cases) > rise(others) + 0.3


def test_random_mode_has_the_shape_and_nothing_to_learn(records):
    random = frame_of(0, np.arange(1_500), "random")
    dated = pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("MEDS_")
    real, control = records.filter(dated), random.filter(dated)
    assert (
        real.group_by("subject_id")
        .len()
        .sort("subject_id")
        .equals(control.group_by("subject_id").len().sort("subject_id"))
    )
    assert real["visit_id"].n_unique() == control["visit_id"].n_unique()
    assert control["numeric_value"].null_count() == len(control) and random["time"].null_count() == 0
    counts = control["code"].value_counts()["count"].to_numpy()
    drawable = len(MODEL.book.codes) - 2
    assert len(counts) == drawable
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi_square - drawable) < 6 * np.sqrt(2 * drawable)
    # Distinct times: the canonical order inside one time would tell a masked code from its neighbours.
    assert not control.select("subject_id", "time").is_duplicated().any()
    codes = control["code"].rank("dense")
    following = pl.DataFrame({"a": codes.cast(pl.Float64), "s": control["subject_id"]}).with_columns(
        b=pl.col("a").shift(1).over("s")
    )
    assert abs(following.drop_nulls().select(pl.corr("a", "b")).item()) < 0.01
    last = random.filter(pl.col("time").is_not_null()).group_by("subject_id", maintain_order=True).agg(pl.col("code"))
    for codes_of_subject in last["code"]:
        assert "MEDS_DEATH" not in codes_of_subject.to_list()[:-1]


def test_dataset_opens_with_manifest_and_observation(dataset):
    found = MedsDataset.open(dataset)
    statistics = found.manifest["statistics"]
    assert found.fixed_code_book and statistics["subjects"] == 300
    events = sum(found.scan(split).select(pl.len()).collect().item() for split in ("train", "tuning", "held_out"))
    births_and_static = 3 * 300 + statistics["deaths"]
    assert statistics["events"] == events - births_and_static
    assert set(statistics["conditions"]) == set(MODEL.conditions.names)
    assert found.codes().filter("numeric").height == len(MODEL.labs)
    observed = found.observation_end()
    assert observed is not None and len(observed) == 300
    last = found.scan("train").group_by("subject_id").agg(last=pl.col("time").max()).collect()
    joined = last.join(observed, on="subject_id")
    assert (joined["observation_end"] >= joined["last"]).all()


def test_statistics_match_the_records(dataset):
    found = MedsDataset.open(dataset)
    events = pl.concat([found.scan(split) for split in ("train", "tuning", "held_out")]).collect()
    statistics = found.manifest["statistics"]
    assert statistics["codes_in_use"] == events["code"].n_unique()
    assert statistics["deaths"] == (events["code"] == "MEDS_DEATH").sum()
    visits = events.drop_nulls("visit_id").group_by("subject_id").agg(pl.col("visit_id").n_unique())["visit_id"]
    assert statistics["visits_per_subject"]["median"] == visits.median()


def test_latent_states_are_those_of_a_replay(dataset):
    with np.load(dataset / "latent" / "0.npz") as latent:
        assert int(latent["first_subject"]) == 0
        states = list(replay(MODEL, latent["keys"], 30))
        assert (latent["level"][30] == states[30].level.T).all()
        known = np.unpackbits(latent["known"], axis=-1, count=len(latent["conditions"]))
        assert (known[30] == states[30].known.T).all()


def test_latent_bytes_load_without_pickle():
    paths = trajectories(MODEL, 0, np.arange(5))
    with np.load(io.BytesIO(latent_bytes(MODEL, 0, paths)), allow_pickle=False) as latent:
        assert latent["level"].shape == (paths.steps.max() + 1, 5, len(MODEL.conditions.names))


def test_workers_do_not_change_the_records(tmp_path):
    synthesise(tmp_path / "two", subjects=2_501, workers=2)
    two = {p.name: p.read_bytes() for p in sorted((tmp_path / "two" / "data").rglob("1.parquet"))}
    alone = frame_of(0, [2_500])
    assert list(two) == ["1.parquet"]
    assert pl.read_parquet(io.BytesIO(two["1.parquet"])).select(alone.columns).equals(alone)


def test_heart_failure_statistic_is_within_its_range():
    frame, states, visits = block_frame(MODEL, 0, np.arange(1_500))
    summary = summarise(MODEL, BlockStatistics.empty(MODEL) + BlockStatistics.of(MODEL, frame, states, visits))
    assert 0.025 < summary["heart_failure_one_year"]["rate"] < 0.05
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    "wrong",
    [{"subjects": 0}, {"subjects": 5, "seed": -1}, {"subjects": 5, "mode": "real"}, {"subjects": 5, "workers": 0}],
)
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="got"):
        synthesise(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()


def test_existing_folder_is_kept(dataset):
    with pytest.raises(RunError, match="exists"):
        synthesise(dataset, subjects=5, workers=1)
