import numpy as np
import pytest
from scipy import sparse

from ehrsequencing.baselines import linear, trees
from ehrsequencing.baselines.models import BASELINES, BUDGET, EQUAL_BUDGET, SHORT_BUDGET, fit_baseline
from ehrsequencing.errors import ConfigError, LabelError, ShapeError
from ehrsequencing.evaluation.metrics import auroc, log_loss

MODELS = [name for name in BASELINES if name != "prevalence"]


@pytest.fixture(scope="module", autouse=True)
def fewer_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "FOREST_TREES", 20)
        patch.setattr(trees, "BOOSTING_ROUNDS", 100)
        yield


@pytest.fixture(scope="module")
def problem():
    """Sparse counts of which a tenth matters: (X, y) of train, tuning and held-out."""
    rng = np.random.default_rng(0)
    X = sparse.random(2400, 60, density=0.2, format="csr", dtype=np.float32, rng=rng)
    weights = np.where(np.arange(60) < 6, 6.0, 0.0)
    y = rng.random(2400) < 1 / (1 + np.exp(3 - X @ weights))
    return [(X[part], y[part]) for part in (slice(1200), slice(1200, 1800), slice(1800, None))]


@pytest.fixture(scope="module")
def fitted(problem):
    (X, y), (X_tuning, y_tuning), _ = problem
    found = {}
    for name in BASELINES:
        steps = []
        model = fit_baseline(
            name, X, y, X_tuning, y_tuning, threads=2, progress=lambda *s, steps=steps: steps.append(s)
        )
        found[name] = (model, steps)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_models_beat_the_prevalence(problem, fitted, name):
    (X, y), model = problem[2], fitted[name][0]
    p = model.predict(X)
    assert p.dtype == np.float64
    assert auroc(y, p) > 0.75
    assert log_loss(y, p) < 0.95 * log_loss(y, fitted["prevalence"][0].predict(X))


@pytest.mark.parametrize("name", BASELINES)
def test_the_choice_is_the_best_on_tuning_and_is_what_predicts(problem, fitted, name):
    (X, y), (model, _) = problem[1], fitted[name]
    best, judged = min(model.tuning, key=lambda row: row["log_loss"]), ("log_loss", "auroc")
    assert {k: v for k, v in model.chosen.items() if k not in judged} == {
        k: v for k, v in best.items() if k not in judged
    }
    # A forest is grown anew, larger, with the best setting.
    assert name == "random_forest" or model.chosen == best
    assert log_loss(y, model.predict(X)) == pytest.approx(model.chosen["log_loss"], rel=1e-5)
    assert auroc(y, model.predict(X)) == pytest.approx(model.chosen["auroc"], rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_given_the_same_number_of_settings(problem, fitted, name):
    (X, y), (X_tuning, y_tuning), _ = problem
    options = [
        {k: v for k, v in row.items() if k not in ("log_loss", "auroc", "seconds", "trees", "converged")}
        for row in fitted[name][0].tuning
    ]
    assert len(options) == len({str(row) for row in options}) == BUDGET
    assert {row["class_weight"] for row in options} == {None, "balanced"}
    for budget in (EQUAL_BUDGET, SHORT_BUDGET):
        tried = fit_baseline(name, X, y, X_tuning, y_tuning, budget=budget).tuning
        assert len(tried) == len({str({k: row.get(k) for k in options[0]}) for row in tried}) == budget
    with pytest.raises(ConfigError, match="settings of a baseline; got 7; expected 4 or 8 or 12"):
        fit_baseline(name, X, y, X_tuning, y_tuning, budget=7)


@pytest.mark.parametrize("name", MODELS)
def test_class_weights_leave_the_mean_probability_at_the_share_of_positives(problem, fitted, name, monkeypatch):
    """Learned on classes of equal weight, and brought back to the odds of train."""
    (X, y), (X_tuning, y_tuning), (held_out, truth) = problem
    monkeypatch.setattr(linear, "LINEAR_GRIDS", {12: tuple(row for row in linear.LINEAR_GRIDS[12] if row[1])})
    for kind in ("FOREST", "BOOSTING"):
        places = [place for place, row in enumerate(getattr(trees, f"{kind}_GRID")) if "class_weight" in row]
        monkeypatch.setattr(trees, f"{kind}_PLACES", {12: places})
    weighted = fit_baseline(name, X, y, X_tuning, y_tuning)
    assert weighted.chosen["class_weight"] == "balanced"
    p = weighted.predict(held_out)
    assert p.mean() == pytest.approx(truth.mean(), abs=0.06)
    assert log_loss(truth, p) < log_loss(truth, fitted["prevalence"][0].predict(held_out))


@pytest.mark.parametrize("name", BASELINES)
def test_progress_rises_to_its_end(fitted, name):
    steps = fitted[name][1]
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len({total for _, total in steps}) == 1


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_and_threads_do_not(problem, fitted, name):
    (X, y), (X_tuning, y_tuning), (held_out, _) = problem
    again = fit_baseline(name, X, y, X_tuning, y_tuning, threads=1)
    np.testing.assert_array_equal(again.predict(held_out), fitted[name][0].predict(held_out))


def test_the_prevalence_is_that_of_train(problem, fitted):
    (_, y), _, (X, _) = problem
    np.testing.assert_array_equal(fitted["prevalence"][0].predict(X), np.full(600, y.mean()))


def test_trees_tell_a_stored_zero_from_a_missing_cell():
    """Half of the positives lie at a measured zero, which a dense reading would take for the missing cells."""
    rng = np.random.default_rng(0)
    measured = rng.random(1200) < 0.5
    rows = np.flatnonzero(measured)
    X = sparse.csr_matrix((np.zeros(len(rows), np.float32), (rows, np.zeros(len(rows), int))), (1200, 1))
    y = rng.random(1200) < np.where(measured, 0.8, 0.2)
    model = fit_baseline("xgboost", X[:800], y[:800], X[800:], y[800:])
    p = model.predict(X)
    assert p[measured].min() > 0.7
    assert p[~measured].max() < 0.3


def test_a_logistic_fit_at_its_limit_says_so(problem, monkeypatch):
    (X, y), (X_tuning, y_tuning), _ = problem
    monkeypatch.setattr(linear, "_MAX_ITERATIONS", 1)
    model = fit_baseline("logistic_regression", X, y, X_tuning, y_tuning)
    assert not model.chosen["converged"]


def test_constant_columns_carry_no_weight():
    rng = np.random.default_rng(1)
    X = sparse.csr_matrix(np.column_stack([np.full(400, 1e3), rng.normal(size=400)]).astype(np.float32))
    y = rng.random(400) < 1 / (1 + np.exp(-2 * X[:, [1]].toarray().ravel()))
    model = fit_baseline("logistic_regression", X[:200], y[:200], X[200:], y[200:])
    moved = X.copy()
    moved[:, 0] = 0
    np.testing.assert_array_equal(model.predict(X), model.predict(moved))


def test_what_cannot_be_fitted_is_an_error(problem, fitted):
    (X, y), (X_tuning, y_tuning), _ = problem
    with pytest.raises(ConfigError, match="unknown baseline; got svm"):
        fit_baseline("svm", X, y, X_tuning, y_tuning)
    with pytest.raises(LabelError, match="labels of tuning have one class; got 0 positives in 600 rows"):
        fit_baseline("xgboost", X, y, X_tuning, np.zeros(600))
    with pytest.raises(ShapeError, match="train labels"):
        fit_baseline("xgboost", X, y[:-1], X_tuning, y_tuning)
    with pytest.raises(ShapeError, match="tuning features"):
        fit_baseline("xgboost", X, y, X_tuning[:, :-1], y_tuning)
    with pytest.raises(ShapeError, match="60 columns"):
        fitted["xgboost"][0].predict(X[:, :-1])
