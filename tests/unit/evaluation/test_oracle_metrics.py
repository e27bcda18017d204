from itertools import combinations

import numpy as np
import pytest

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.oracle import concordance_bound, expected_brier, expected_concordance


@pytest.fixture
def incidence():
    random = np.random.default_rng(1)
    return np.cumsum(random.dirichlet(np.ones(5), 30), axis=1)[:, :4]


def simulated(incidence, futures, seed=2):
    """Interval of each subject's event in many worlds; the number of horizons where there is none."""
    draw = np.random.default_rng(seed).random((futures, len(incidence), 1))
    return (draw > incidence).sum(-1)


def test_expected_concordance_is_that_of_simulated_outcomes(incidence):
    risk = incidence[:, 1].round(1)
    assert len(np.unique(risk)) < len(risk), "ties among the risks"
    good = total = 0.0
    for times in simulated(incidence, 3_000):
        for a, b in combinations(range(12), 2):
            if times[a] != times[b]:
                early, late = (a, b) if times[a] < times[b] else (b, a)
                good += 1.0 if risk[early] > risk[late] else 0.5 if risk[early] == risk[late] else 0.0
                total += 1
    assert expected_concordance(incidence[:12], risk[:12]) == pytest.approx(good / total, abs=0.01)


def test_no_score_passes_the_bound(incidence):
    bound = concordance_bound(incidence)
    random = np.random.default_rng(3)
    scores = [*incidence.T, *random.random((50, 30))]
    reached = [expected_concordance(incidence, score) for score in scores]
    assert 0.5 < max(reached) <= bound
    assert expected_concordance(incidence, np.zeros(30)) == pytest.approx(0.5)
    assert expected_concordance(incidence, -scores[0]) == pytest.approx(1 - reached[0])


def test_bound_of_certain_outcomes_is_one():
    assert concordance_bound(np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])) == 1
    alike = np.tile([[0.2, 0.5]], (4, 1))
    assert concordance_bound(alike) == pytest.approx(0.5)


def test_bound_does_not_depend_on_the_batch(incidence, monkeypatch):
    whole = concordance_bound(incidence)
    monkeypatch.setattr("ehrsequencing.evaluation.oracle._ROWS", 7)
    assert concordance_bound(incidence) == pytest.approx(whole, rel=1e-12)


def test_brier():
    assert expected_brier([0.5, 1.0]) == 0.125
    assert expected_brier([0.0, 1.0]) == 0


def test_malformed_input_is_refused():
    with pytest.raises(MetricError, match="malformed"):
        concordance_bound([[0.5, 0.2]])
    with pytest.raises(MetricError, match="malformed"):
        concordance_bound([0.5, 0.2])
    with pytest.raises(MetricError, match="told apart"):
        concordance_bound([[0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(MetricError, match="one value per subject"):
        expected_concordance([[0.1], [0.2]], [1.0])
    with pytest.raises(MetricError, match="malformed"):
        expected_brier([1.5])
