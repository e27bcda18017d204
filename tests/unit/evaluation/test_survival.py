"""Concordance: ties, edges, invariances and what is refused. Equality with other software is in tests/reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation import survival, survival_pairs
from ehrsequencing.evaluation.survival import (
    antolini_concordance,
    concordance_index,
    uno_concordance,
    wolbers_concordance,
)
from ehrsequencing.evaluation.survival_curves import censoring_curve
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction

ALL = (concordance_index, uno_concordance, wolbers_concordance)


def some(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 60, size=n).astype(float), rng.random(n) < 0.5, rng.normal(size=n).round(1)


@pytest.mark.parametrize("concordance", ALL)
def test_equal_risks_give_one_half(concordance):
    durations, event, _ = some()
    durations[event & (durations == durations.max())] -= 1
    assert concordance(durations, event, np.zeros(200)) == 0.5
    flat = SurvivalPrediction.of_one_cause([30, 60], np.full((200, 2), 0.5))
    assert antolini_concordance(durations, event, flat) == 0.5


def test_perfect_and_reversed_risks():
    durations, event = np.arange(1.0, 7), np.array([1, 0, 1, 1, 0, 1])
    assert concordance_index(durations, event, -durations) == 1
    assert concordance_index(durations, event, durations) == 0


def test_an_event_comes_before_a_censoring_of_its_day_and_two_events_are_no_pair():
    assert concordance_index([5, 5], [True, False], [2, 1]) == 1
    assert concordance_index([5, 5], [False, True], [2, 1]) == 0
    with pytest.raises(MetricError, match="without a comparable pair"):
        concordance_index([5, 5], [True, True], [2, 1])
    assert concordance_index([5, 5, 9], [True, True, False], [1, 2, 1]) == 0.75


def test_infinite_risks_are_ordered():
    assert concordance_index([1, 2, 3], [1, 1, 1], [np.inf, 0, -np.inf]) == 1
    assert concordance_index([1, 2, 3], [1, 1, 0], [np.inf, np.inf, -np.inf]) == pytest.approx(2.5 / 3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_turning_the_risk_turns_the_concordance_and_order_of_rows_is_nothing(seed):
    durations, event, risk = some(60, seed)
    for concordance in ALL:
        value = concordance(durations, event, risk, tau=50)
        assert concordance(durations, event, -risk, tau=50) == pytest.approx(1 - value, abs=1e-12)
        assert concordance(durations, event, np.exp(3 * risk), tau=50) == value
        shuffled = np.random.default_rng(seed).permutation(60)
        again = concordance(durations[shuffled], event[shuffled], risk[shuffled], tau=50)
        assert again == pytest.approx(value, abs=1e-12)


def test_large_groups_are_parted_alone(monkeypatch):
    durations, event, risk = some(500)
    expected = [concordance(durations, event, risk, tau=55) for concordance in ALL]
    monkeypatch.setattr(survival_pairs, "_BLOCK", 16)
    assert [concordance(durations, event, risk, tau=55) for concordance in ALL] == pytest.approx(expected, abs=1e-12)


def test_many_weightings_are_each_by_itself(monkeypatch):
    durations, event, risk = some(100)
    pairs = survival_pairs.PairCounts(durations, event, risk, keep=True)
    weights = np.random.default_rng(1).poisson(1, size=(5, 100)).astype(float)
    together = pairs.sums(weights, weights)
    monkeypatch.setattr(survival_pairs, "_BLOCK", 16)
    apart = pairs.sums(weights, weights)
    np.testing.assert_array_equal(together, apart)


def test_uno_without_censoring_is_harrell_and_tau_cuts():
    durations, _, risk = some()
    event = np.ones(200, bool)
    assert uno_concordance(durations, event, risk) == pytest.approx(concordance_index(durations, event, risk))
    durations, event, risk = some()
    late = durations >= 20
    assert concordance_index(durations, event, risk, tau=20) == pytest.approx(
        concordance_index(np.where(late, 20, durations), event & ~late, risk)
    )


def test_unos_weights_may_come_from_other_subjects():
    durations, event, risk = some()
    own = censoring_curve(durations, event)
    assert uno_concordance(durations, event, risk, tau=40, censoring=own) == uno_concordance(
        durations, event, risk, tau=40
    )
    other = censoring_curve([10, 20, 30], [0, 1, 0])
    with pytest.raises(MetricError, match="the last event, or tau, lies where nobody is uncensored any more; got 39"):
        uno_concordance(durations, event, risk, tau=40, censoring=other)
    other = censoring_curve([10, 20, 30], [0, 1, 1])
    with pytest.raises(
        MetricError, match="beyond the follow-up of the censoring curve; got 39 days; expected at most 30"
    ):
        uno_concordance(durations, event, risk, tau=40, censoring=other)


def test_an_event_where_g_is_0_is_refused_with_the_largest_tau():
    durations, event = [1, 2, 3, 3], [1, 0, 1, 0]
    with pytest.raises(MetricError, match="the last event, or tau, lies where .* got 3 days; expected below 3. Remedy"):
        uno_concordance(durations, event, [4, 3, 2, 1])
    assert uno_concordance(durations, event, [4, 3, 2, 1], tau=3) == 1
    with pytest.raises(MetricError, match="nobody is uncensored any more; got 3 days; expected below 3"):
        wolbers_concordance(durations, event, [4, 3, 2, 1], weighted=True)


def test_antolini_sees_curves_that_cross():
    early, late = [0.2, 0.15], [0.6, 0.1]
    prediction = SurvivalPrediction.of_one_cause([10, 20], [early, late, [0.9, 0.8]])
    assert antolini_concordance([5, 20, 25], [1, 1, 0], prediction) == 1
    # On day 20 the second has the lower survival, on day 5 too little of it.
    assert antolini_concordance([20, 5, 25], [1, 1, 0], prediction) == pytest.approx(2 / 3)
    assert antolini_concordance([5, 20, 25], [1, 1, 0], prediction, tau=20) == 1
    # An event after the last day predicted is the first of no pair.
    assert antolini_concordance([5, 21, 25], [1, 1, 0], prediction) == 1


def test_antolini_equals_harrell_where_hazards_are_proportional():
    durations, event, risk = some()
    days = np.arange(10.0, 61, 10)
    curves = np.exp(-np.exp(risk)[:, None] * days / 100)
    found = antolini_concordance(durations, event, SurvivalPrediction.of_one_cause(days, curves))
    assert found == pytest.approx(concordance_index(durations, event, risk), abs=1e-12)


@pytest.mark.parametrize("causes", [1, 2])
def test_antolini_in_small_blocks(monkeypatch, causes):
    rng = np.random.default_rng(0)
    durations, cause = rng.integers(1, 9, size=120).astype(float), rng.integers(0, causes + 1, size=120)
    shares = rng.dirichlet(np.ones(causes + 1), size=120)
    first = shares[:, 1:] * rng.random((120, 1))
    incidence = np.stack([first, shares[:, 1:]], axis=2)
    prediction = SurvivalPrediction([4.0, 9.0], 1 - incidence.sum(1), incidence)
    prepared = survival.Antolini(durations, cause, prediction)
    weights = rng.poisson(1, size=(3, 120)).astype(float)
    expected = prepared(weights)
    monkeypatch.setattr(survival, "_CELLS", 300)
    np.testing.assert_allclose(prepared(weights), expected, rtol=1e-12)
    repeated = np.repeat(np.arange(120), weights[0].astype(int))
    alone = antolini_concordance(durations[repeated], cause[repeated], prediction.take(repeated))
    assert alone == pytest.approx(expected[0], abs=1e-12)


def test_survival_that_reaches_0():
    prediction = SurvivalPrediction.of_one_cause([10, 20], [[0.0, 0.0], [0.5, 0.0], [0.5, 0.4]])
    assert antolini_concordance([10, 20, 25], [1, 1, 0], prediction) == 1
    # From within the interval on which survival falls to 0, it is 0: a tie with who is there already.
    assert antolini_concordance([15, 25, 30], [1, 0, 0], prediction) == 0.75


@pytest.mark.parametrize("concordance", ALL)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"durations": [1.0, 2.0]}, r"two vectors of one length; got shapes \(2,\) and \(3,\)"),
        ({"durations": [], "event": [], "risk": []}, r"two vectors of one length; got shapes \(0,\)"),
        ({"durations": [1.0, 0.0, 2.0]}, "finite and above 0 days; got 1 of 3 that are not, such as 0. Remedy"),
        ({"durations": [1.0, -3.0, 2.0]}, "such as -3"),
        ({"durations": [1.0, np.nan, 2.0]}, "such as nan"),
        ({"durations": [1.0, np.inf, 2.0]}, "such as inf"),
        ({"event": [0.5, 1, 1]}, "must be"),
        ({"event": [np.nan, 1, 1]}, "must be"),
        ({"event": ["a", "b", "c"]}, "must be"),
        ({"event": [0, 0, 0]}, "without a comparable pair: .*; got 3 subjects. Remedy: use more"),
        ({"durations": [1.0], "event": [1], "risk": [1.0]}, "without a comparable pair: .*; got 1 subjects"),
        ({"risk": [1.0, 2.0]}, r"risk needs one number per subject; got shape \(2,\); expected shape \(3,\)"),
        ({"risk": [[1.0, 2.0, 3.0]]}, "risk needs one number per subject"),
        ({"risk": [1.0, np.nan, 2.0]}, "risk must not be NaN; got 1 of 3"),
        ({"tau": 0}, "tau is a number of days above 0; got 0"),
        ({"tau": float("nan")}, "tau is a number of days above 0; got nan"),
        ({"tau": 0.5}, "without a comparable pair"),
    ],
)
def test_what_is_refused(concordance, change, message):
    given_input = {"durations": [1.0, 2.0, 3.0], "event": [1, 0, 1], "risk": [3.0, 2.0, 1.0], **change}
    durations, event, risk = (given_input.pop(name) for name in ("durations", "event", "risk"))
    with pytest.raises(MetricError, match=message):
        concordance(durations, event, risk, **given_input)


def test_outcomes_of_several_causes_are_refused_where_one_is_wanted():
    with pytest.raises(MetricError, match="must be 0 or 1; got 2. Remedy: .* functions that take `cause`"):
        concordance_index([1, 2, 3], [0, 1, 2], [1, 2, 3])
    with pytest.raises(MetricError, match="causes must be whole numbers, 0 censored, 1 the event; got -1"):
        wolbers_concordance([1, 2, 3], [0, 1, -1], [1, 2, 3])


def test_a_prediction_must_fit():
    prediction = SurvivalPrediction.of_one_cause([1, 2], [[0.5, 0.2]] * 2)
    with pytest.raises(MetricError, match="one row per subject; got 2; expected 3"):
        antolini_concordance([1, 2, 3], [1, 0, 1], prediction)
    with pytest.raises(MetricError, match="the prediction has no such cause; got 2; expected 1 to 1"):
        antolini_concordance([1, 2], [1, 0], prediction, of_cause=2)
