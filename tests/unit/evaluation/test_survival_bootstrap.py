"""Intervals of survival metrics over subjects, paired differences, and what is left out or refused."""

import numpy as np
import pytest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival import (
    antolini_concordance,
    concordance_index,
    uno_concordance,
    wolbers_concordance,
)
from ehrsequencing.evaluation.survival_bootstrap import (
    METRICS,
    evaluate_survival,
    survival_difference,
)
from ehrsequencing.evaluation.survival_calibration import calibration_index
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.evaluation.survival_scores import brier_score, cumulative_auc, integrated_brier

DAYS = np.arange(1.0, 21) * 100


def cohort(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    event, censored = rng.exponential(1000 / np.exp(x)), rng.exponential(2000, size=n)
    return np.ceil(np.minimum(event, censored)), (event <= censored).astype(int), x


def curves(x: np.ndarray, risk: bool = False) -> SurvivalPrediction:
    return SurvivalPrediction.of_one_cause(DAYS, np.exp(-np.exp(x)[:, None] / 1000 * DAYS), x if risk else None)


NAMES = [*(name for name in METRICS if not METRICS[name].needs_horizon), "auc@365", "brier@365", "ici@365", "c_uno@700"]


def test_values_are_those_of_the_functions():
    durations, event, x = cohort(150)
    prediction = curves(x)
    found = evaluate_survival(durations, event, [prediction], np.arange(150), 1000, metrics=NAMES, resamples=20)
    at = 1 - prediction.at([365]).survival[:, 0]
    grid = np.linspace(20, 1000, 50)
    expected = {
        "c_harrell": concordance_index(durations, event, x),
        "c_uno": uno_concordance(durations, event, x, tau=1000),
        "c_uno@700": uno_concordance(durations, event, x, tau=700),
        "c_antolini": antolini_concordance(durations, event, prediction),
        "c_wolbers": wolbers_concordance(durations, event, x),
        "ibs": integrated_brier(durations, event, 1 - prediction.at(grid).survival, grid),
        "auc@365": cumulative_auc(durations, event, x, 365)[1],
        "brier@365": brier_score(durations, event, at, 365)[0],
        "ici@365": calibration_index(durations, event, at, 365).ici,
    }
    for name in NAMES:
        estimate = found[name]
        assert estimate.value == pytest.approx(expected[name], abs=1e-12), name
        assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.higher_is_better == (name.split("@")[0] not in ("ibs", "brier", "ici")), name
        assert (estimate.n, estimate.positives, estimate.subjects) == (150, int(event.sum()), 150), name


def test_a_resample_is_the_repeated_rows():
    """The interval's samples, one by one, from the functions on repeated rows; the censoring is estimated anew."""
    durations, event, x = cohort(80)
    subjects = np.arange(80) // 2
    for name, function in (
        ("c_harrell", lambda rows: concordance_index(durations[rows], event[rows], x[rows])),
        ("c_uno", lambda rows: uno_concordance(durations[rows], event[rows], x[rows], tau=1000)),
        ("brier@500", lambda rows: brier_score(
            durations[rows], event[rows], 1 - curves(x[rows]).at([500]).survival, [500])[0]),
    ):  # fmt: skip
        found = evaluate_survival(durations, event, [curves(x)], subjects, 1000, metrics=[name], resamples=40, seed=3)
        rng = np.random.default_rng(3)
        drawn = rng.integers(40, size=(40, 40))
        rows = [np.concatenate([[2 * s, 2 * s + 1] for s in subjects_drawn]) for subjects_drawn in drawn]
        samples = [function(chosen) for chosen in rows]
        assert found[name].subject_sd == pytest.approx(np.std(samples, ddof=1), abs=1e-9), name


def test_the_interval_covers_what_it_should():
    """The 95 % interval of Harrell's C holds the value on 50,000 subjects in at least 51 of 60 samples."""
    durations, event, x = cohort(50_000, 99)
    truth = concordance_index(durations, event, x)
    held = 0
    for seed in range(60):
        durations, event, x = cohort(150, seed)
        found = evaluate_survival(
            durations, event, [curves(x)], np.arange(150), 1000, metrics=["c_harrell"], resamples=100, seed=seed
        )["c_harrell"]
        held += found.low <= truth <= found.high
    assert held >= 51


def test_several_seeds_widen_the_interval():
    durations, event, x = cohort(150)
    rng = np.random.default_rng(0)
    seeds = [curves(x + rng.normal(scale=1.5, size=150)) for _ in range(3)]
    found = evaluate_survival(durations, event, seeds, np.arange(150), 1000, metrics=["c_harrell"], resamples=200)
    single = [concordance_index(durations, event, -p.survival[:, 9]) for p in seeds]
    estimate = found["c_harrell"]
    assert estimate.value == pytest.approx(np.mean(single))
    assert estimate.seed_sd == pytest.approx(np.std(single, ddof=1))
    assert estimate.seeds == 3


def test_paired_differences_cancel_what_is_common():
    durations, event, x = cohort(200)
    noisy = x + np.random.default_rng(0).normal(scale=0.3, size=200)
    arguments = (durations, event, [curves(x)], [curves(noisy)], np.arange(200), 1000)
    for name in ("c_harrell", "ibs"):
        apart = [
            evaluate_survival(durations, event, [curves(r)], np.arange(200), 1000, metrics=[name], resamples=200)[name]
            for r in (x, noisy)
        ]
        found = survival_difference(*arguments, name, resamples=200)
        assert found.value == pytest.approx(apart[0].value - apart[1].value)
        assert found.low <= found.value <= found.high
        assert found.high - found.low < apart[0].high - apart[0].low
        assert found.higher_is_better == METRICS[name].higher_is_better
    same = survival_difference(durations, event, [curves(x)], [curves(x)], np.arange(200), 1000, resamples=20)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_a_models_own_risk_ranks_it():
    durations, event, x = cohort(100)
    prediction = SurvivalPrediction.of_one_cause(DAYS, curves(x).survival, -x)
    found = evaluate_survival(durations, event, [prediction], np.arange(100), 1000, metrics=["c_harrell"], resamples=2)
    assert found["c_harrell"].value == pytest.approx(concordance_index(durations, event, -x))


def test_competing_causes():
    rng = np.random.default_rng(0)
    durations, cause = rng.integers(1, 1500, size=120).astype(float), rng.integers(0, 3, size=120)
    shares = rng.dirichlet(np.ones(3), size=120)
    prediction = SurvivalPrediction([2000.0], shares[:, :1], shares[:, 1:, None])
    found = evaluate_survival(
        durations, cause, [prediction], np.arange(120), 1000, metrics=["c_wolbers", "brier@700"], of_cause=2,
        resamples=10,
    )  # fmt: skip
    at = prediction.at([700, 1000]).incidence[:, 1]
    area = prediction.at(np.arange(1, 51) * 20.0).incidence[:, 1].mean(1)
    assert found["c_wolbers"].value == pytest.approx(wolbers_concordance(durations, cause, area, of_cause=2))
    assert found["brier@700"].value == pytest.approx(brier_score(durations, cause, at[:, 0], 700, of_cause=2)[0])


def test_few_events_are_no_certainty():
    durations, event, x = np.arange(1.0, 41), np.zeros(40, int), -np.arange(40.0)
    event[:4] = 1
    found = evaluate_survival(
        durations, event, [curves(x)], np.arange(40), 20, metrics=["c_harrell", "auc@20", "brier@20"], resamples=400
    )
    assert (found["c_harrell"].value, found["auc@20"].value) == (1, pytest.approx(1))
    assert found["auc@20"].high <= 1
    assert found["c_harrell"].low < 0.6
    assert found["c_harrell"].redrawn + found["auc@20"].redrawn > 0
    assert found["brier@20"].high > found["brier@20"].value
    difference = survival_difference(
        durations, event, [curves(x)], [curves(-x)], np.arange(40), 20, "c_harrell", resamples=50
    )
    assert difference.low < 0.7 < difference.value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["c_index"]}, "unknown survival metric; got c_index; expected c_harrell"),
        ({"metrics": ["auc"]}, "auc is defined at a horizon; got auc; expected auc@DAYS"),
        ({"metrics": ["auc@year"]}, "a horizon is a number of days; got auc@year; expected auc@DAYS"),
        ({"metrics": ["brier@9000"]}, "a day beyond the last one predicted; got 9000 days; expected at most 2000"),
        ({"horizon": 0}, "asked for days after the prediction time"),
        ({"horizon": float("nan")}, "asked for days after the prediction time"),
        ({"predictions": []}, "no predictions to judge; got 0 seeds"),
        ({"predictions": [curves(np.zeros(3))]}, "one row per outcome; got 3; expected 50"),
        ({"cause": np.zeros(50, int)}, "no event of the cause at all; got 0 of 50. Remedy"),
        ({"of_cause": 2}, "no event of the cause at all"),
        ({"subject_ids": np.zeros(50)}, "needs at least two"),
        ({"subject_ids": np.zeros(3)}, "must name the subject of every row"),
        ({"resamples": 1}, "at least 2 resamples"),
        (
            {"durations": np.full(50, 5.0), "horizon": 5, "metrics": ["c_harrell"], "cause": np.ones(50, int)},
            "c_harrell is undefined on these subjects; got 50 subjects. Remedy",
        ),
    ],
)
def test_what_is_refused(change, message):
    durations, event, x = cohort(50)
    arguments = {
        "durations": durations, "cause": event, "predictions": [curves(x)], "subject_ids": np.arange(50),
        "horizon": 500, "resamples": 5, **change,
    }  # fmt: skip
    with pytest.raises(MetricError, match=message):
        evaluate_survival(**arguments)


def test_metrics_undefined_in_most_resamples_are_refused():
    durations, event = np.append(1.0, np.arange(2.0, 42)), np.append(1, np.zeros(40, int))
    subjects = np.append(0, np.arange(40) % 30 + 1)
    x = np.zeros(41)
    with pytest.raises(MetricError, match="auc@5 is undefined in most resamples; got .* of 10. Remedy"):
        for seed in range(20):
            evaluate_survival(durations, event, [curves(x)], subjects, 20, metrics=["auc@5"], resamples=10, seed=seed)
