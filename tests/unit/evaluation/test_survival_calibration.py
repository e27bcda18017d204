"""Calibration in groups, D-calibration and the calibration index, on outcomes whose incidence is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival_calibration import (
    calibration_groups,
    calibration_index,
    d_calibration,
)
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction

DAYS = np.arange(1.0, 41) * 100


def proportional(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Durations, events and the rate of each subject's exponential time."""
    rng = np.random.default_rng(seed)
    rate = np.exp(0.8 * rng.normal(size=n)) / 1000
    event, censored = rng.exponential(1 / rate), rng.exponential(1500, size=n)
    return np.minimum(event, censored), event <= censored, rate


def competing(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Durations, causes and each subject's incidence of the first cause by day 500."""
    rng = np.random.default_rng(seed)
    own, other = np.exp(0.8 * rng.normal(size=(2, n))) / 1000
    first, second, censored = (rng.exponential(1 / rate, size=n) for rate in (own, other, 1 / 1500))
    durations = np.minimum(np.minimum(first, second), censored)
    cause = np.where(censored <= durations, 0, np.where(first <= second, 1, 2))
    return durations, cause, own / (own + other) * (1 - np.exp(-(own + other) * 500))


def test_groups_of_a_calibrated_model_hold_its_predictions():
    durations, cause, incidence = competing(4000)
    rows = calibration_groups(durations, cause, incidence, 500, groups=5)
    assert [row["n"] for row in rows] == [800] * 5
    assert sum(row["low"] <= row["predicted"] <= row["high"] for row in rows) >= 4
    # Treating the other cause as censoring gives more than there is.
    naive = calibration_groups(durations, cause == 1, incidence, 500, groups=1)[0]
    whole = calibration_groups(durations, cause, incidence, 500, groups=1)[0]
    assert whole["low"] <= incidence.mean() <= whole["high"] < naive["low"]


def test_groups_at_their_edges():
    durations, cause, p = [10, 10, 3, 4, 1, 2], [0, 0, 0, 0, 1, 1], [0.1, 0.1, 0.5, 0.5, 0.9, 0.9]
    calm, unknown, certain = calibration_groups(durations, cause, p, 5, groups=3)
    assert (calm["observed"], calm["low"], calm["events"]) == (0, 0, 0)
    assert 0.5 < calm["high"] < 1
    assert (unknown["observed"], unknown["low"], unknown["high"], unknown["n"]) == (None, None, None, 2)
    assert (certain["observed"], certain["high"]) == (1, 1)
    assert 0 < certain["low"] < 0.5
    assert len(calibration_groups(durations, cause, [0.3] * 6, 5)) == 1
    for row in calibration_groups(durations, [0, 0, 0, 0, 1, 2], p, 5, groups=1):
        assert row["low"] <= row["observed"] <= row["high"]


def test_groups_are_refused():
    with pytest.raises(MetricError, match="at least one group; got 0"):
        calibration_groups([1, 2], [1, 0], [0.5, 0.5], 1, groups=0)
    with pytest.raises(MetricError, match="beyond the end of follow-up; got 3 days; expected at most 2"):
        calibration_groups([1, 2], [1, 0], [0.5, 0.5], 3)
    with pytest.raises(MetricError, match="one column per horizon"):
        calibration_groups([1, 2], [1, 0], [0.5], 1)


def test_d_calibration_accepts_the_truth_and_rejects_the_wrong():
    ps, censored = [], []
    for seed in range(100):
        durations, event, rate = proportional(400, seed)
        censored.append(d_calibration(durations, event, truth(rate)).p)
        whole = np.random.default_rng(seed).exponential(1 / rate)
        ps.append(d_calibration(whole, np.ones(400, bool), truth(rate)).p)
    assert kstest(ps, "uniform").pvalue > 0.001
    # Spreading the censored evens the counts out, so the test rejects the truth too seldom.
    assert np.mean(np.array(censored) < 0.05) <= 0.05
    durations, event, rate = proportional(4000)
    assert d_calibration(durations, event, truth(1.3 * rate)).p < 1e-6


def truth(rate: np.ndarray) -> SurvivalPrediction:
    return SurvivalPrediction.of_one_cause(np.append(DAYS, 1e5), np.exp(-rate[:, None] * np.append(DAYS, 1e5)))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_d_calibration_spreads_the_censored_one_by_one(seed, bins):
    rng = np.random.default_rng(seed)
    n = 30
    durations, event = rng.uniform(1, 50, size=n), rng.random(n) < 0.5
    curves = np.minimum.accumulate(rng.choice([0, 0.1, 0.5, 0.77, 0.9, 1], size=(n, 3)), axis=1)
    prediction = SurvivalPrediction.of_one_cause([10, 20, 40], curves)
    expected = np.zeros(bins)
    for i in range(n):
        day, happened = min(durations[i], 40), event[i] and durations[i] <= 40
        at = prediction.take([i]).at([day]).survival[0, 0]
        if happened:
            expected[min(int(at * bins), bins - 1)] += 1
        elif at == 0:
            expected[0] += 1
        else:
            for b in range(bins):
                overlap = min(at, (b + 1) / bins) - b / bins
                expected[b] += max(overlap, 0) / at
    found = d_calibration(durations, event, prediction, bins=bins)
    np.testing.assert_allclose(found.counts, expected, atol=1e-9)
    assert found.counts.sum() == pytest.approx(n)
    assert found.statistic == pytest.approx(((expected - n / bins) ** 2 / (n / bins)).sum())


def test_d_calibration_refuses():
    prediction = SurvivalPrediction.of_one_cause([1, 2], [[0.5, 0.2]] * 2)
    with pytest.raises(MetricError, match="one row per subject; got 2; expected 1"):
        d_calibration([1], [1], prediction)
    with pytest.raises(MetricError, match="at least two bins; got 1"):
        d_calibration([1, 2], [1, 0], prediction, bins=1)


@pytest.mark.parametrize("change", [lambda p: p, lambda p: p**2, lambda p: 1 - (1 - p) ** 1.5, lambda p: p / 2 + 0.3])
def test_the_index_finds_the_true_distance(change):
    for durations, cause, incidence in (competing(20_000), one_cause(20_000)):
        found = calibration_index(durations, cause, change(incidence), 500)
        assert found.ici == pytest.approx(np.abs(change(incidence) - incidence).mean(), abs=0.01)
        assert found.e50 <= found.e90 <= found.largest
        np.testing.assert_allclose(found.smoothed, incidence, atol=0.08)


def one_cause(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    durations, event, rate = proportional(n)
    return durations, event.astype(int), 1 - np.exp(-rate * 500)


def test_the_index_of_few_values_and_of_parted_classes():
    durations, event, rate = proportional(3000)
    constant = calibration_index(durations, event, np.full(3000, 0.4), 500)
    assert np.ptp(constant.smoothed) == 0
    two = calibration_index(durations, event, np.where(rate > 0.001, 0.9, 0.1), 500)
    assert len(np.unique(two.smoothed)) == 2
    parted = calibration_index([1, 2, 3, 10, 11, 12], [1, 1, 1, 0, 0, 0], [1, 0.8, 0.7, 0.3, 0.2, 0], 5)
    assert 0 < parted.ici < 0.25
    assert np.isfinite(parted.smoothed).all()


def test_the_index_needs_both_outcomes():
    with pytest.raises(MetricError, match="with and without the event by then; got 0 with and 2 without by 1 days"):
        calibration_index([2, 3], [1, 0], [0.5, 0.2], 1)
    with pytest.raises(MetricError, match="got 2 with and 0 without by 3 days. Remedy: choose another horizon"):
        calibration_index([2, 3], [1, 1], [0.5, 0.2], 3)
