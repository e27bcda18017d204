"""Product-limit curves at their edges. Equality with other software is in tests/reference."""

import numpy as np
import pytest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival_curves import (
    aalen_johansen,
    censoring_curve,
    kaplan_meier,
    nelson_aalen,
    restricted_mean,
)


def test_kaplan_meier_without_censoring_is_the_share_left():
    durations = np.array([3.0, 1, 2, 2])
    curve = kaplan_meier(durations, np.ones(4, bool))
    assert curve.at([0.5, 1, 1.5, 2, 3, 99]).tolist() == [1, 0.75, 0.75, 0.25, 0, 0]
    np.testing.assert_allclose(curve.variance, curve.value * (1 - curve.value) / 4, atol=1e-15)


def test_incidences_and_survival_sum_to_one():
    rng = np.random.default_rng(0)
    durations, cause = rng.integers(1, 50, size=300).astype(float), rng.integers(0, 4, size=300)
    total = sum(aalen_johansen(durations, cause, k).value for k in (1, 2, 3))
    np.testing.assert_allclose(total + kaplan_meier(durations, cause > 0).value, 1, atol=1e-12)
    assert aalen_johansen(durations, cause, 4).value.max() == 0


def test_aalen_johansen_of_one_cause_has_greenwoods_variance_without_ties():
    rng = np.random.default_rng(0)
    durations, event = rng.permutation(80) + 1.0, rng.random(80) < 0.6
    alone, survival = aalen_johansen(durations, event), kaplan_meier(durations, event)
    np.testing.assert_allclose(alone.value, 1 - survival.value, atol=1e-12)
    inner = survival.value > 0
    np.testing.assert_allclose(alone.variance[inner], survival.variance[inner], rtol=1e-9, atol=1e-12)


def test_censoring_takes_events_out_of_risk_first():
    curve = censoring_curve([2, 2, 2, 5], [1, 0, 0, 1])
    assert curve.value.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert censoring_curve([1, 2], [1, 2]).value.tolist() == [1, 1]


@pytest.mark.parametrize("curve", [kaplan_meier, nelson_aalen, aalen_johansen])
def test_intervals_hold_the_value_and_are_never_nan(curve):
    durations = [1, 2, 3, 4, 5, 6]
    for event in ([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0]):
        found = curve(durations, event)
        low, high = found.interval([0.5, *durations, 7])
        value = found.at([0.5, *durations, 7])
        assert (low <= value).all()
        assert (value <= high).all()


def test_the_interval_of_the_restricted_mean_covers_it():
    """Of 300 samples the 95 % interval holds the true mean in 91 to 99 %."""
    rng = np.random.default_rng(0)
    truth = 1 - np.exp(-1)
    held = 0
    for _ in range(300):
        event, censored = rng.exponential(size=100), rng.exponential(3, size=100)
        _, low, high = restricted_mean(np.minimum(event, censored), event <= censored, 1)
        held += low <= truth <= high
    assert 0.91 <= held / 300 <= 0.99


def test_horizons_beyond_follow_up_are_refused():
    with pytest.raises(MetricError, match="beyond the end of follow-up; got 5 days; expected at most 4. Remedy"):
        restricted_mean([1, 4], [True, False], 5)
    with pytest.raises(MetricError, match="a horizon is a number of days above 0; got 0"):
        restricted_mean([1, 4], [True, False], 0)
    assert restricted_mean([1, 4], [True, True], 5)[0] == 2.5
    with pytest.raises(MetricError, match="a cause is a number from 1 on; got 0"):
        aalen_johansen([1, 4], [1, 0], 0)
