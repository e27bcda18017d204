"""Cox regression: gradients, ties, extremes and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse

from ehrsequencing.baselines.cox import PartialLikelihood, fit_cox, strongest_penalty
from ehrsequencing.errors import LabelError, ShapeError


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.floats(-2, 2)), min_size=2, max_size=12))
def test_the_gradient_is_that_of_the_loss_under_ties(rows):
    durations, events = [row[0] for row in rows], [row[1] for row in rows]
    if not any(events):
        return
    likelihood, score = PartialLikelihood(durations, events), np.array([row[2] for row in rows])
    numeric = optimize.approx_fprime(score, lambda s: likelihood.loss_and_gradient(s)[0], 1e-7)
    assert likelihood.loss_and_gradient(score)[1] == pytest.approx(numeric, abs=1e-5)


def test_two_tied_events_share_the_risk_set_by_halves():
    loss, _ = PartialLikelihood([1, 1, 2], [True, True, False]).loss_and_gradient(np.zeros(3))
    assert loss == pytest.approx((np.log(3) + np.log(2)) / 3)


def test_scores_of_ninety_are_safe():
    score = np.array([90.0, -90.0, 0.0, 90.0])
    loss, gradient = PartialLikelihood([1.0, 2.0, 3.0, 4.0], [True, True, True, False]).loss_and_gradient(score)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert loss == pytest.approx((np.log(2) + 180 + 90) / 4)


def test_the_strongest_penalty_leaves_nothing_and_a_little_less_leaves_one():
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(rng.normal(size=(200, 5)))
    likelihood = PartialLikelihood(rng.exponential(np.exp(-X.toarray()[:, 2])), rng.random(200) < 0.7)
    top = strongest_penalty(X, likelihood)
    assert not fit_cox(X, likelihood, penalty=top, l1_ratio=1.0).weights.any()
    assert np.flatnonzero(fit_cox(X, likelihood, penalty=0.9 * top, l1_ratio=1.0).weights).tolist() == [2]


def test_refusals():
    with pytest.raises(LabelError, match="no event is observed; got 2 censored durations; expected one or more"):
        PartialLikelihood([1, 2], [False, False])
    with pytest.raises(ShapeError, match="two vectors of one length"):
        PartialLikelihood([1, 2], [True])
