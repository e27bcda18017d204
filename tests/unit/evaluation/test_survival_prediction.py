"""Curves of survival predictions: checks, interpolation, median and restricted mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction


def competing(hazards: np.ndarray, days: np.ndarray) -> SurvivalPrediction:
    """From cause-specific hazards [n, causes, T] of intervals, any cause at most 1."""
    survival = np.cumprod(1 - hazards.sum(1), axis=1)
    begin = np.concatenate([np.ones((len(survival), 1)), survival[:, :-1]], axis=1)
    return SurvivalPrediction(days, survival, np.cumsum(hazards * begin[:, None], axis=2))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5))
def test_curves_sum_to_one_at_any_day(seed, causes, length):
    rng = np.random.default_rng(seed)
    hazards = rng.dirichlet(np.ones(causes + 1), size=(4, length)).transpose(0, 2, 1)[:, :causes]
    hazards[0] = 0
    hazards[1, :, 0] = 1 / causes
    days = np.cumsum(rng.integers(1, 100, size=length)).astype(float)
    prediction = competing(hazards, days)
    asked = np.unique(np.append(rng.uniform(0.01, days[-1], size=7), days))
    found = prediction.at(asked)
    np.testing.assert_allclose(found.survival + found.incidence.sum(1), 1, atol=1e-9)
    own = np.isin(asked, days)
    np.testing.assert_array_equal(found.survival[:, own], prediction.survival)
    np.testing.assert_array_equal(found.incidence[..., own], prediction.incidence)


def test_hazard_is_constant_between_days():
    prediction = SurvivalPrediction.of_one_cause([10, 20], [np.exp([-0.5, -1.0]), [1.0, 0.0]])
    found = prediction.at([5, 15])
    np.testing.assert_allclose(found.survival[0], np.exp([-0.25, -0.75]))
    assert found.survival[1].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(prediction.median(), [np.log(2) / 0.05, 10])
    np.testing.assert_allclose(prediction.restricted_mean(15), [(1 - np.exp(-0.75)) / 0.05, 10])
    assert SurvivalPrediction.of_one_cause([10], [[0.9]]).median().tolist() == [np.inf]


def test_restricted_mean_of_a_curve_that_hardly_falls():
    prediction = SurvivalPrediction.of_one_cause([100], [[1.0], [1 - 1e-13], [1 - 1e-6]])
    np.testing.assert_allclose(prediction.restricted_mean(100), [100, 100, 100 * (1 - 5e-7)], rtol=1e-12)


def test_rounding_is_mended_and_rows_are_taken():
    prediction = SurvivalPrediction.of_one_cause([1, 2], [[0.5, 0.5 + 5e-7], [0.4, 0.1]], risk=[-np.inf, 3])
    assert prediction.survival[0].tolist() == [0.5, 0.5]
    taken = prediction.take([1])
    assert (len(taken), taken.causes, taken.risk.tolist()) == (1, 1, [3.0])
    with pytest.raises(ValueError, match="read-only"):
        prediction.survival[0, 0] = 1


GOOD = {"days": [1.0, 2.0], "survival": [[0.9, 0.8]], "incidence": [[[0.1, 0.2]]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": [2.0, 1.0]}, r"must rise from above 0; got \[2., 1.\]"),
        ({"days": [0.0, 1.0]}, "must rise from above 0"),
        ({"days": []}, "must rise from above 0"),
        ({"days": [1.0, np.nan]}, "must rise from above 0"),
        ({"survival": [[0.9]]}, r"one row per subject and one column per day; got \(1, 1\); expected \(n, 2\)"),
        ({"survival": np.ones((0, 2)), "incidence": np.ones((0, 1, 2))}, "one row per subject"),
        ({"incidence": [[0.1, 0.2]]}, r"subjects, causes and days; got \(1, 2\); expected \(1, causes, 2\)"),
        ({"survival": [[0.9, np.nan]]}, "survival must be finite; got 1 values that are not. Remedy: NaN comes"),
        ({"survival": [[0.9, 0.95]]}, "survival must never rise with time; got a step of 0.05"),
        ({"incidence": [[[0.1, 0.05]]]}, "incidence must never fall with time; got a step of -0.05"),
        ({"survival": [[1.1, 0.8]]}, r"survival must lie in \[0, 1\]; got 0.8 to 1.1"),
        ({"survival": [[0.9, 0.7]]}, "do not sum to one; got a gap of 0.1; expected at most 1e-06"),
        ({"risk": [1.0, 2.0]}, r"one number per subject; got shape \(2,\), 0 NaN; expected shape \(1,\)"),
        ({"risk": [np.nan]}, "got shape .*, 1 NaN"),
    ],
)
def test_malformed_curves_are_refused(change, message):
    with pytest.raises(MetricError, match=message):
        SurvivalPrediction(**{**GOOD, **change})


def test_days_outside_the_grid_are_refused():
    prediction = SurvivalPrediction(**GOOD)
    with pytest.raises(MetricError, match="a day beyond the last one predicted; got 3 days; expected at most 2"):
        prediction.at([1, 3])
    with pytest.raises(MetricError, match="a day beyond the last one predicted"):
        prediction.restricted_mean(2.5)
    with pytest.raises(MetricError, match="days after the prediction time; got .*0.*; expected above 0"):
        prediction.at([0.0, 1.0])
    with pytest.raises(MetricError, match="days after the prediction time"):
        prediction.restricted_mean(float("nan"))
