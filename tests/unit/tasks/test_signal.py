"""Outcomes made from the record, and subjects who leave, on 1,000 synthetic subjects."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
from small_datasets import write_dataset
from test_concordance import harrell
from typer.testing import CliRunner

from ehrsequencing.cli.task import app
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.oracle import oracle_frame, outcome_of
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, DataError, LabelError
from ehrsequencing.tasks.audit import audit
from ehrsequencing.tasks.base import CohortRules
from ehrsequencing.tasks.censoring import OUTCOME, Censoring, censor, exponentials, state_scores
from ehrsequencing.tasks.cohorts import build_labels
from ehrsequencing.tasks.concordance import Baseline
from ehrsequencing.tasks.signal import Signal, expected_c, signal_labels, signal_oracle

START = dt.datetime(2020, 1, 1)


@pytest.fixture(scope="module")
def world(clean):
    """The dataset, and labels of time to heart failure."""
    dataset = MedsDataset.open(clean.path.parent / "meds")
    return dataset, *build_labels(dataset, "time_to:ICD10CM//I50@1825")


@pytest.mark.parametrize("codes", ["ICD10CM//I50", "ICD10CM//Z99.2,ICD10PCS//5A1D", "death"])
def test_outcomes_of_the_generator(world, codes):
    """Heart failure, dialysis and death happen, and follow-up ends administratively."""
    labels, manifest = build_labels(world[0], f"time_to:{codes}")
    flow = {step["step"]: step["rows"] for step in manifest["flow"]}
    assert flow["event"] >= 5 and flow["censored"] > flow["event"]
    assert manifest["causes"][0] == ("death" if codes == "death" else "event")
    assert labels["float_value"].min() > 0


@pytest.mark.parametrize("censoring", [Censoring(0.3), Censoring(0.3, 1.5)])
def test_who_leaves(world, censoring):
    dataset, labels, manifest = world
    labels = labels[:300]
    censored, told = censor(dataset, labels, manifest, censoring)
    both = labels.join(censored, on=["subject_id", "prediction_time"], suffix="_after", maintain_order="left")
    assert len(both) == len(labels) == len(censored), "one row a subject: nobody has left before it"
    left = both["float_value_after"] < both["float_value"]
    assert (both.filter(left)["integer_value_after"] == 0).all()
    stay = both.filter(~left)
    assert stay["integer_value"].equals(stay["integer_value_after"], check_names=False)
    assert stay["float_value"].equals(stay["float_value_after"], check_names=False)
    flow = {step["step"]: step["rows"] for step in told["flow"]}
    assert flow["left before follow-up ended"] == left.sum()
    assert flow["event that is seen"] == sum(split["positives"] for split in told["splits"].values())
    assert told["censoring"]["kind"] == ("informative" if censoring.strength else "independent")
    again, _ = censor(dataset, labels.reverse(), manifest, censoring)
    assert again.sort("subject_id", "prediction_time").equals(censored)
    gap = both.select(pl.Series(state_scores(dataset, both)).alias("score"), left).group_by("float_value_after").agg(
        pl.col("score").mean()
    ).sort("float_value_after")["score"]  # fmt: skip
    assert (gap[1] - gap[0] > 0.4) == bool(censoring.strength), "with a strength the ill leave first"


def test_leaving_is_the_subjects_own(world):
    dataset, labels, manifest = world
    whole, _ = censor(dataset, labels, manifest, Censoring(1.0))
    some, _ = censor(dataset, labels[::3], manifest, Censoring(1.0))
    assert some.equals(whole[::3])


def test_times_to_leaving_are_exponential():
    rows = pl.DataFrame({"subject_id": np.arange(20_000), "prediction_time": [START] * 20_000})
    for seed in (0, 1):
        drawn = np.sort(exponentials(rows, OUTCOME, seed))
        assert np.abs(-np.expm1(-drawn) - (np.arange(20_000) + 0.5) / 20_000).max() < 1.63 / np.sqrt(20_000)
    assert np.corrcoef(exponentials(rows, OUTCOME), exponentials(rows, OUTCOME, 1))[0, 1] < 0.03
    later = rows.with_columns(pl.col("prediction_time") + pl.duration(days=1))
    assert not (exponentials(rows, OUTCOME) == exponentials(later, OUTCOME)).any()


def test_who_left_is_asked_no_more(world):
    """Landmarks of one subject share the time of leaving."""
    dataset = world[0]
    labels, manifest = build_labels(dataset, "time_to:death@3000", CohortRules(365, 200, 18.0))
    censored, told = censor(dataset, labels, manifest, Censoring(0.5))
    assert len(censored) < len(labels)
    flow = {step["step"]: step["rows"] for step in told["flow"]}
    assert flow["excluded: left before the prediction time"] == len(labels) - len(censored)
    both = censored.join(labels, on=["subject_id", "prediction_time"], suffix="_before")
    early = both.filter(pl.col("float_value") < pl.col("float_value_before"))
    ends = early.with_columns(end=pl.col("prediction_time") + pl.duration(seconds=pl.col("float_value") * 86_400))
    spread = ends.group_by("subject_id").agg(pl.len(), (pl.col("end").max() - pl.col("end").min()).dt.total_minutes())
    assert spread["end"].max() < 10 and spread["len"].max() > 3, "rows of a subject end at one instant, up to float32"


def test_the_ceiling_does_not_know_who_leaves(world):
    dataset, labels, manifest = world
    labels = labels[:60]
    censored, told = censor(dataset, labels, manifest, Censoring(0.5, 1.0))
    before, after = (
        oracle_frame(dataset, rows[:4], about, horizons_days=(365, 1095), futures=20, workers=1, cache=False)
        for rows, about in ((labels, manifest), (censored, told))
    )
    assert before.equals(after)
    assert before["ceiling"].max() > 0


@pytest.mark.parametrize("censoring", [None, Censoring(0.4), Censoring(0.25, 1.0)])
def test_the_best_c_is_the_stated_one(world, censoring):
    """C of the true risk in draws of the outcome, against the C that the labels state."""
    dataset, cohort, manifest = world
    labels, told = signal_labels(dataset, cohort[:300], manifest, Signal(0.8))
    oracle, made = signal_oracle(dataset, labels, told), told["signal"]
    assert made["expected_c_harrell"] == 0.8
    assert made["expected_c_all_pairs"] < 0.8, "whoever is seen to have the event has the higher hazards"
    expected, rates = expected_c(dataset, labels, told), np.zeros(len(labels))
    assert expected == pytest.approx(0.8, abs=1e-6)
    if censoring is not None:
        censored, about = censor(dataset, labels, told, censoring)
        expected, without = expected_c(dataset, censored, about), expected
        assert expected > without
        score = np.zeros(len(labels))
        if censoring.strength:
            score = (state_scores(dataset, labels) - about["censoring"]["score_mean"]) / about["censoring"]["score_sd"]
            assert (score.mean(), score.std()) == pytest.approx((0, 1), abs=1e-9)
        rates = censoring.rates_per_day(score)
    baseline = Baseline(made["scale_days"], made["shape"], made["horizon_days"])
    found = []
    for seed in range(100):
        event_at = baseline.times(oracle["log_hazard"].to_numpy(), exponentials(labels, OUTCOME, seed))
        if seed == 0:
            days = np.minimum(event_at, 1825)
            assert labels["float_value"].to_list() == pytest.approx(days, rel=1e-6)
            assert labels["integer_value"].to_list() == (event_at <= 1825).astype(int).tolist()
        end = np.full(len(labels), 1825.0)
        if censoring is not None:
            end = np.minimum(end, np.random.default_rng(seed).exponential(size=len(labels)) / rates)
        found.append(harrell(np.minimum(event_at, end), event_at <= end, oracle["z"].to_numpy()))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    # The expectation is that of a large sample: a ratio of sums in one of 300 strays by about 1 / n.
    assert abs(np.mean(found) - expected) < 4 * error + 0.3 / 300 < 0.012


def test_the_risk_reads_the_past_alone(world, tmp_path):
    """Without anything after the prediction time, and for some rows by themselves, it is the same."""
    dataset, cohort, manifest = world
    labels, told = signal_labels(dataset, cohort, manifest, Signal(0.75))
    oracle = signal_oracle(dataset, labels, told)
    assert abs(oracle["z"].mean()) < 1e-9 and oracle["z"].std(ddof=0) == pytest.approx(1)
    assert signal_oracle(dataset, labels[5::7], told).equals(oracle[5::7])
    events = pl.concat([dataset.scan(split).select("subject_id", "time", "code", "visit_id") for split in SPLITS])
    past = events.collect().join(labels.select("subject_id", "prediction_time"), on="subject_id").filter(
        (pl.col("time") <= pl.col("prediction_time")).fill_null(True)
    )  # fmt: skip
    kinds = dict(dataset.codes().select("code", "kind").iter_rows())
    cut = write_dataset(tmp_path / "cut", past.drop("prediction_time").rows(), kinds=kinds.get)
    assert signal_oracle(cut, labels, told)["z"].to_list() == pytest.approx(oracle["z"].to_list(), abs=1e-12)
    assert [name for name in oracle.columns if name.startswith("survival")] == [
        "survival@456.25", "survival@912.5", "survival@1368.75", "survival@1825",
    ]  # fmt: skip
    assert 1 - oracle["survival@1825"].mean() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_parts_of_the_risk(tmp_path, share):
    """Four codes: counts of a and c raise it, of b and d lower it; order asks a after c and b after d."""
    days = {1: "a1 c2", 2: "c1 a2", 3: "a1 a2 a3 b4 d5 c9", 4: "d1 b2 c3 a3", 5: "a1", 6: "b1 d2 a3"}
    rows = [
        (subject, START + dt.timedelta(days=int(step[1:])), f"DX//{step[0]}", None)
        for subject, steps in days.items() for step in steps.split()
    ]  # fmt: skip
    rows += [(subject, START + dt.timedelta(days=10), "end", None) for subject in days]
    rows += [(subject, START + dt.timedelta(days=20), "DX//c", None) for subject in days]  # the future
    dataset = write_dataset(tmp_path, rows, kinds=lambda code: "diagnosis" if code[:2] == "DX" else "other")
    at = pl.Series([START + dt.timedelta(days=10)] * 6)
    cohort = pl.DataFrame({"subject_id": list(days)}).with_columns(prediction_time=at)
    labels, told = signal_labels(
        dataset, cohort, {"kind": "survival", "horizon_days": 90}, Signal(0.7, order_share=share)
    )
    # Rows that hold each: a 6, c 4, b 3, d 3.
    assert told["signal"]["codes"] == ["DX//a", "DX//c", "DX//b", "DX//d"]
    counts = np.log([2 / 2, 2 / 2, 4 * 2 / 2 / 2, 2 * 2 / 2 / 2, 2, 2 * 2 / 2])
    # Pairs are (rank 0, rank 2) = (a, b) and (rank 1, rank 3) = (c, d); signs + for a and b, - for c and d.
    order = np.array([0, 0, -1 + 1, 1 + 1, 0, 1])
    z = signal_oracle(dataset, labels, told)["z"].to_numpy()
    expected = order if share else counts
    assert z == pytest.approx((expected - expected.mean()) / expected.std())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda w: Signal(0.5), ConfigError, "the signal is out of range; got .*expected best_c 0.5 to 1, "),
        (lambda w: Signal(0.8, order_share=1.1), ConfigError, "the signal is out of range"),
        (lambda w: Signal(0.8, events=float("nan")), ConfigError, "the signal is out of range"),
        (lambda w: Censoring(0), ConfigError, "censoring is out of range; got .*expected rate_per_year above"),
        (lambda w: Censoring(1, 11), ConfigError, "censoring is out of range"),
        (lambda w: Censoring(float("nan")), ConfigError, "censoring is out of range"),
        (lambda w: censor(w[0], w[1], {"kind": "binary"}, Censoring(1)), LabelError, "only survival labels are"),
        (lambda w: censor(w[0], w[1], {**w[2], "censoring": 1}, Censoring(1)), LabelError, "censored already; got 1"),
        (lambda w: censor(w[0], w[1][:50], w[2], Censoring(1000)), LabelError, "nobody has the event before leaving"),
        (lambda w: signal_oracle(w[0], w[1], w[2]), LabelError, r"have no made outcome; got time_to:ICD10CM//I50@1825"),
        (lambda w: signal_labels(w[0], w[1], {"kind": "survival"}, Signal(0.8)), ConfigError, "labels with a horizon"),
        (lambda w: signal_labels(w[0], w[1][:0], w[2], Signal(0.8)), LabelError, "and time once; got 0 rows"),
        (lambda w: signal_labels(w[0], w[1], w[2], Signal(0.9999)), ConfigError, "no strength gives this best C"),
        (lambda w: state_scores(w[0], w[1].with_columns(pl.col("subject_id") + 10**7)), LabelError, "not about this"),
        (
            lambda w: state_scores(w[0], w[1].with_columns(pl.col("prediction_time") + pl.duration(minutes=1))),
            LabelError, "a state is known at the ends of visits alone; got subject .*expected a cohort without stated",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(world, make, error, message):
    with pytest.raises(error, match=message):
        make(world)


def test_states_are_known_of_synthetic_records_alone(tmp_path):
    rows = [(1, START + dt.timedelta(days=day), code, None) for day, code in ((0, "A"), (400, "B"), (500, "A"))]
    dataset = write_dataset(tmp_path, rows)
    labels = pl.DataFrame({"subject_id": [1], "prediction_time": [START], "integer_value": [1], "float_value": [400.0]})
    manifest = {"kind": "survival"}
    assert len(censor(dataset, labels, manifest, Censoring(1e-6))[0]) == 1
    with pytest.raises(DataError, match="has no oracle; got source test"):
        censor(dataset, labels, manifest, Censoring(0.1, 1.0))
    with pytest.raises(LabelError, match="a made outcome reads four codes at least; got 0 in the histories"):
        signal_labels(dataset, labels, {"kind": "survival", "horizon_days": 9}, Signal(0.8))


def test_the_command(world, tmp_path, clean):
    dataset, out = world[0], tmp_path / "labels.parquet"
    run = ["build", str(dataset.path), "--task", "time_to:death@1825", "--out", str(out), "--best-c", "0.8"]
    shown = CliRunner().invoke(app, [*run, "--censoring-rate", "0.1", "--order-share", "0.3"], catch_exceptions=False)
    assert "true risk, for evaluation alone, written to" in shown.stdout
    labels, manifest = read_labels(out)
    oracle = pl.read_parquet(tmp_path / "labels.oracle.parquet")
    assert labels.select("subject_id", "prediction_time").equals(oracle.select("subject_id", "prediction_time"))
    assert (manifest["task"], manifest["cohort"]) == ("signal:0.8@1825", "time_to:death@1825")
    assert (manifest["signal"]["order_share"], manifest["censoring"]["rate_per_year"]) == (0.3, 0.1)
    assert set(pl.read_parquet_schema(out)) == {"subject_id", "prediction_time", "integer_value", "float_value"}
    assert oracle.equals(signal_oracle(dataset, labels, manifest)), "the manifest as read back says the same"
    audit(TokenStore.open(clean.path), labels, manifest).raise_errors()
    (tmp_path / "labels.parquet").unlink()
    (tmp_path / "labels.json").unlink()
    with pytest.raises(Exception, match=r"labels\.oracle\.parquet exists already"):
        CliRunner().invoke(app, run, catch_exceptions=False)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("time_to:death@9", ("--order-share", "0.5"), "--order-share has no effect alone; expected --best-c beside it"),
        ("time_to:death@9", ("--censoring-strength", "1"), "--censoring-strength has no effect alone; expected --cens"),
        ("mortality_9d", ("--best-c", "0.8"), "--best-c and --censoring-rate are for survival tasks; got mortality_9d"),
        ("mortality_9d", ("--censoring-rate", "0.8"), "are for survival tasks"),
        (
            "time_to:death",
            ("--best-c", "0.8"),
            "a made outcome needs survival labels with a horizon; got time_to:death",
        ),
    ],
)
def test_options_that_make_no_sense(world, tmp_path, task, options, message):
    run = ["build", str(world[0].path), "--task", task, "--out", str(tmp_path / "l.parquet"), *options]
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, run, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"task": "time_to:A|B@9", "codes": ["A"], "competing_codes": ["B"]},
            "death as a competing cause alone; got B",
        ),
        ({"task": "signal:0.8@9", "codes": [], "horizon_days": 9}, "does not know this task; got signal:0.8@9"),
    ],
)
def test_what_the_oracle_of_the_generator_does_not_know(told, message):
    with pytest.raises(ConfigError, match=message):
        outcome_of(told)
