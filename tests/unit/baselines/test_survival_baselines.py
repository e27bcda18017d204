"""Survival baselines: what each must find, competing causes, and what is refused."""

import sys

import numpy as np
import pytest
from scipy import sparse

from ehrsequencing.baselines.survival import SURVIVAL_BASELINES, fit_survival_baseline, from_hazards
from ehrsequencing.errors import ConfigError, LabelError, ShapeError
from ehrsequencing.evaluation.survival import concordance_index

DAYS = np.linspace(20, 400, 20)


def cohort(n=400, causes=1, seed=0):
    """Column 0 hastens the first cause, column 1 the second; a tenth is censored early, the rest at 500 days."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    times = np.stack([rng.exponential(200 * np.exp(-1.5 * X[:, k])) for k in range(causes)], 1)
    followed = np.where(rng.random(n) < 0.1, rng.uniform(1, 400, n), 500.0)
    first = times.min(1)
    cause = np.where(first <= followed, times.argmin(1) + 1, 0)
    return sparse.csr_matrix(X), np.column_stack((np.ceil(np.minimum(first, followed)), cause))


def fit(name, causes=1, budget=4, **changes):
    X, y = cohort(causes=causes)
    options = {"days": DAYS, "causes": causes, "budget": budget, "threads": 1} | changes
    return fit_survival_baseline(name, X[:300], y[:300], X[300:], y[300:], **options)


@pytest.mark.parametrize("name", SURVIVAL_BASELINES)
def test_each_orders_new_subjects_and_predicts_their_share(name):
    fitted = fit(name)
    X, y = cohort(n=600, seed=1)
    prediction = fitted.predict(X)
    assert len(fitted.tuning) == (1 if name == "kaplan_meier" else 4)
    assert fitted.chosen["ibs"] <= min(row["ibs"] for row in fitted.tuning) + 0.01
    observed = (y[:, 0] <= 200).mean()
    assert prediction.at([200.0]).incidence.mean() == pytest.approx(observed, abs=0.1)
    if name == "kaplan_meier":
        assert (prediction.survival == prediction.survival[0]).all()
        return
    soon = prediction.at([200.0]).incidence[:, 0, 0]
    assert concordance_index(y[:, 0], y[:, 1] == 1, soon) > 0.75
    if prediction.risk is not None:
        assert concordance_index(y[:, 0], y[:, 1] == 1, prediction.risk) > 0.75


@pytest.mark.parametrize("name", ["kaplan_meier", "cox", "survival_forest", "xgboost_cox", "xgboost_aft"])
def test_competing_causes_are_told_apart(name):
    X, _ = cohort(n=300, causes=2, seed=1)
    prediction = fit(name, causes=2).predict(X)
    assert prediction.causes == 2
    assert prediction.risk is None
    assert np.allclose(prediction.survival + prediction.incidence.sum(1), 1)
    if name != "kaplan_meier":
        driver = X.toarray()
        for cause in (0, 1):
            high, low = driver[:, cause] > 0.5, driver[:, cause] < -0.5
            soon = prediction.incidence[:, cause, 9]
            assert soon[high].mean() > soon[low].mean() + 0.2


@pytest.mark.parametrize("name", SURVIVAL_BASELINES)
@pytest.mark.parametrize("absent", ["everywhere", "tuning"])
def test_a_further_cause_without_events_has_no_hazard_and_one_without_them_on_tuning_has(name, absent):
    X, y = cohort(causes=2)
    train, tuning = y[:300].copy(), y[300:].copy()
    for rows in (train, tuning) if absent == "everywhere" else (tuning,):
        rows[rows[:, 1] == 2, 1] = 0
    options = {"days": DAYS, "causes": 2, "budget": 4, "threads": 1}
    prediction = fit_survival_baseline(name, X[:300], train, X[300:], tuning, **options).predict(X)
    assert prediction.incidence[:, 0, -1].mean() > 0.1
    assert (prediction.incidence[:, 1] == 0).all() == (absent == "everywhere")


def test_survival_from_hazards_shares_what_is_lost_by_the_growth_of_each():
    prediction = from_hazards([1, 2], [[[0.1, 0.1], [0.3, 0.5]]])
    assert prediction.survival[0] == pytest.approx(np.exp([-0.4, -0.6]))
    lost = 1 - np.exp(-0.4)
    assert prediction.incidence[0, :, 0] == pytest.approx([lost / 4, 3 * lost / 4])
    assert prediction.incidence[0, 0, 1] == prediction.incidence[0, 0, 0]


def test_results_repeat_and_do_not_depend_on_threads():
    X, _ = cohort(n=50, seed=2)
    for name in ("survival_forest", "xgboost_cox"):
        one, two = (fit(name, threads=threads).predict(X) for threads in (1, 2))
        assert (one.survival == two.survival).all()


def test_refusals():
    X, y = cohort()
    with pytest.raises(ConfigError, match="unknown survival baseline; got deep"):
        fit("deep")
    with pytest.raises(ConfigError, match="settings of a baseline; got 5; expected 4 or 8 or 12"):
        fit("cox", budget=5)
    with pytest.raises(LabelError, match="no event of cause 1 in train; got 300 rows"):
        fit_survival_baseline("cox", X[:300], y[:300] * [1, 0], X[300:], y[300:], days=DAYS)
    with pytest.raises(LabelError, match="the tuning labels name another cause; got 3; expected 0 to 1"):
        fit_survival_baseline("cox", X[:300], y[:300], X[300:], y[300:] * [1, 3], days=DAYS)
    with pytest.raises(ShapeError, match=r"the train labels has the wrong shape or range; got \(399, 2\)"):
        fit_survival_baseline("cox", X, y[:399], X, y, days=DAYS)
    with pytest.raises(ShapeError, match=r"the feature matrix has the wrong shape or range; got \(400, 5\)"):
        fit("cox").predict(X[:, :5])
    with pytest.raises(LabelError, match="the follow-up of tuning is too short to judge on; got 5 days"):
        fit_survival_baseline("cox", X, y, X, np.column_stack((np.full(400, 5.0), y[:, 1])), days=DAYS)


def test_the_forest_says_how_to_install_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sksurv.ensemble", None)
    with pytest.raises(ConfigError, match=r"needs scikit-survival.*ehrsequencing\[survival\]"):
        fit("survival_forest")
