"""The expected Harrell's C against pairs counted by hand and against outcomes that were drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import ConfigError
from ehrsequencing.tasks.concordance import Baseline, expected_harrell, scale_for, solve_beta


def pairwise(log_hazard, weight=None):
    """Mean of h_i / (h_i + h_j) over pairs, the higher hazard first; ties count half."""
    hazard = np.exp(log_hazard)
    first = np.maximum(hazard[:, None], hazard[None, :]) / (hazard[:, None] + hazard[None, :])
    upper = np.triu_indices(len(hazard), 1)
    return np.average(first[upper], weights=None if weight is None else weight[upper])


def harrell(days, event, risk):
    """As defined: pairs whose earlier time is an event; a censored subject of the same time is later."""
    earlier = (days[:, None] < days[None, :]) | ((days[:, None] == days[None, :]) & event[:, None] & ~event[None, :])
    comparable = earlier & event[:, None]
    good = (risk[:, None] > risk[None, :]) + (risk[:, None] == risk[None, :]) / 2
    return good[comparable].mean()


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=12), st.floats(0.3, 4), st.floats(1, 5_000))
@settings(deadline=None, max_examples=25)
def test_without_censoring_it_is_the_mean_over_pairs(risk, shape, scale):
    risk = np.array(risk)
    assert expected_harrell(risk, Baseline(scale, shape)) == pytest.approx(pairwise(risk), abs=1e-6)


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=12), st.floats(1e-5, 0.1), st.floats(5, 5_000), st.integers(0, 9)
)
@settings(deadline=None, max_examples=25)
def test_exponential_clocks_weigh_the_pairs(risk, censoring, horizon, seed):
    """Of four exponential clocks an event rings first with its share; by the horizon with the chance that any has."""
    risk = np.array(risk)
    leaving = censoring * np.random.default_rng(seed).uniform(0.1, 3, len(risk))
    hazard = np.exp(risk) / 100
    events, all_four = hazard[:, None] + hazard[None, :], (hazard + leaving)[:, None] + (hazard + leaving)[None, :]
    weight = events / all_four * -np.expm1(-all_four * horizon)
    found = expected_harrell(risk, Baseline(100.0, 1.0, horizon), leaving)
    assert found == pytest.approx(pairwise(risk, weight), abs=1e-6)


def test_equal_risks_and_extremes():
    assert expected_harrell(np.zeros(5), Baseline(10.0)) == pytest.approx(0.5)
    assert expected_harrell(np.array([-90.0, 90.0]), Baseline(10.0)) == pytest.approx(1.0)
    assert expected_harrell(np.array([0.0, 0.0, 90.0]), Baseline(10.0)) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("shape", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("leaving", ["nobody", "independently", "by risk", "by another state"])
def test_drawn_outcomes_have_it(shape, leaving):
    """The mean C of the true risk over many samples, within four standard errors of that mean."""
    random = np.random.default_rng(7)
    n, repeats = 700, 60
    z = random.normal(size=n) + random.integers(0, 2, n)
    beta = solve_beta(z, 0.8, horizon_days=1000, shape=shape, events=0.5)
    baseline = Baseline(scale_for(beta * z, shape, 1000, 0.5), shape, 1000)
    rate = {
        "nobody": np.zeros(n), "independently": np.full(n, 0.002), "by risk": 0.001 * np.exp(z),
        "by another state": 0.002 * np.exp(random.normal(size=n) * 1.5),
    }[leaving]  # fmt: skip
    expected = expected_harrell(beta * z, baseline, rate)
    found = []
    for _ in range(repeats):
        event_at = baseline.times(beta * z, random.exponential(size=n))
        left = np.full(n, np.inf)
        np.divide(random.exponential(size=n), rate, out=left, where=rate > 0)
        end = np.minimum(left, 1000)
        found.append(harrell(np.minimum(event_at, end), event_at <= end, z))
    error = np.std(found, ddof=1) / np.sqrt(repeats)
    assert error < 0.004
    # The expectation is that of a large sample: a ratio of sums in one of 700 strays by about 1 / n.
    assert abs(np.mean(found) - expected) < 4 * error + 0.3 / n
    if leaving == "nobody":
        assert expected == pytest.approx(0.8, abs=1e-8)


def test_the_scale_gives_the_share_of_events():
    z = np.random.default_rng(1).normal(size=500)
    for events, shape in ((0.03, 1.0), (0.5, 2.0), (0.97, 0.5)):
        scale = scale_for(2 * z, shape, 365, events)
        assert 1 - Baseline(scale, shape).survival(2 * z, 365).mean() == pytest.approx(events, abs=1e-9)


def test_stronger_is_better_and_bounded():
    z = np.random.default_rng(2).normal(size=300)
    betas = [solve_beta(z, c, horizon_days=100) for c in (0.501, 0.6, 0.7, 0.8, 0.9, 0.97)]
    assert betas == sorted(betas)
    tied = np.repeat([0.0, 1.0], 50)
    with pytest.raises(
        ConfigError, match=r"no strength gives this best C; got 0\.9; expected above 0\.5 and below 0\.\d{3}"
    ):
        solve_beta(tied, 0.9, horizon_days=100)
    with pytest.raises(ConfigError, match=r"no strength gives this best C; got 0\.4; expected above 0\.5"):
        solve_beta(z, 0.4, horizon_days=100)
