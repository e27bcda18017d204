"""Cox regression against lifelines (Efron, unpenalised) and scikit-survival (elastic net)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter, NelsonAalenFitter
from lifelines.datasets import load_rossi
from scipy import sparse
from sksurv.linear_model import CoxnetSurvivalAnalysis

from ehrsequencing.baselines.cox import PartialLikelihood, fit_cox


def rossi():
    frame = load_rossi().astype(float)
    return (
        frame,
        frame.drop(columns=["week", "arrest"]).to_numpy(),
        frame["week"].to_numpy(),
        frame["arrest"].to_numpy(),
    )


def test_the_partial_likelihood_is_lifelines_with_ties():
    frame, X, weeks, arrest = rossi()
    other = CoxPHFitter().fit(frame, "week", "arrest")
    likelihood = PartialLikelihood(weeks, arrest == 1)
    loss, _ = likelihood.loss_and_gradient(X @ other.params_.to_numpy())
    assert -loss * len(X) == pytest.approx(other.log_likelihood_, abs=1e-9)
    mine = fit_cox(sparse.csr_matrix(X), likelihood, penalty=0.0, l1_ratio=0.0)
    assert mine.converged
    assert mine.weights == pytest.approx(other.params_.to_numpy(), abs=2e-4)


@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_the_elastic_net_is_scikit_survivals_without_ties(l1_ratio):
    _, X, weeks, arrest = rossi()
    X = (X - X.mean(0)) / X.std(0)
    weeks = weeks + np.random.default_rng(0).random(len(weeks)) * 1e-3
    outcome = np.array(list(zip(arrest == 1, weeks, strict=True)), dtype=[("event", bool), ("time", float)])
    other = CoxnetSurvivalAnalysis(l1_ratio=l1_ratio, alphas=[0.02], normalize=False, tol=1e-12).fit(X, outcome)
    mine = fit_cox(sparse.csr_matrix(X), PartialLikelihood(weeks, arrest == 1), penalty=0.02, l1_ratio=l1_ratio)
    assert mine.weights == pytest.approx(other.coef_.ravel(), abs=2e-4)
    assert ((mine.weights == 0) == (other.coef_.ravel() == 0)).all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=2, max_size=30))
def test_without_scores_the_baseline_hazard_is_nelson_aalen(rows):
    durations, events = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if not events.any():
        return
    other = NelsonAalenFitter(nelson_aalen_smoothing=False).fit(durations, events)
    days = np.array([0.5, 1, 2.5, 4, 6, 9])
    mine = PartialLikelihood(durations, events).cumulative_hazard(np.zeros(len(rows)), days)
    assert mine == pytest.approx(other.cumulative_hazard_at_times(days).to_numpy(), abs=1e-12)


def test_the_baseline_hazard_is_lifelines():
    frame, X, weeks, arrest = rossi()
    other = CoxPHFitter().fit(frame, "week", "arrest")
    days = np.array([5.0, 20.0, 52.0])
    score = (X - X.mean(0)) @ other.params_.to_numpy()
    mine = PartialLikelihood(weeks, arrest == 1).cumulative_hazard(score, days)
    assert mine == pytest.approx(other.baseline_cumulative_hazard_.loc[days].to_numpy().ravel(), abs=1e-9)
