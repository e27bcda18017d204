"""Logistic regression on scaled sparse features."""

from __future__ import annotations

import time
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ehrsequencing.baselines.fitted import FittedBaseline, Predict, Search

RIDGE, LASSO = "ridge", "lasso"
LINEAR_GRIDS: dict[int, tuple[tuple[str, str | None, tuple[float, ...]], ...]] = {
    12: (
        (RIDGE, None, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        (LASSO, None, (3e-3, 1e-2, 3e-2, 0.1, 0.3)),
        (RIDGE, "balanced", (1e-3,)),
        (LASSO, "balanced", (1e-2,)),
    ),
    8: (
        (RIDGE, None, (3e-4, 1e-3, 3e-3)),
        (LASSO, None, (1e-2, 3e-2, 0.1)),
        (RIDGE, "balanced", (1e-3,)),
        (LASSO, "balanced", (1e-2,)),
    ),
    4: ((RIDGE, None, (3e-4, 3e-3)), (LASSO, None, (1e-2, 5e-2))),
}
"""By number of settings: penalty, class weights, and inverse strengths C, strongest penalty first so that each fit
starts from the last."""
_MAX_ITERATIONS = 300
_LEAST_DEVIATION = 0.3


def fit_logistic_regression(search: Search) -> FittedBaseline:
    """Logistic regression with a ridge or a lasso penalty, along paths of C.

    Columns are divided by their standard deviation in train and not centred, which keeps them sparse; the deviation
    counts as at least 0.3, that of a code present in a tenth of the rows, so that rarer ones are held back more.
    A fit that meets the iteration limit is used and marked `converged: False` in the tuning table.
    """
    scale = inverse_deviation(search.X_train)
    train, tuning = (search.X_train @ scale).tocsr(), search.X_tuning @ scale
    grid = LINEAR_GRIDS[search.budget]
    total = sum(len(strengths) for *_, strengths in grid)
    for penalty, weight, strengths in grid:
        model = _model(penalty, weight, search.seed)
        shift = np.log(search.odds_weight) if weight else 0.0
        for C in strengths:
            started = time.perf_counter()
            model.set_params(C=C)
            with warnings.catch_warnings():
                # Told in the tuning table instead.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(train, search.y_train)
            seconds = time.perf_counter() - started
            weights, intercept = model.coef_[0].astype(np.float64), float(model.intercept_[0]) - shift
            converged = bool(model.n_iter_[0] < _MAX_ITERATIONS)
            options = {"penalty": penalty, "C": C, "class_weight": weight, "converged": converged}
            predictor = _predictor(scale @ weights, intercept)
            search.offer(options, predictor, _predictor(weights, intercept)(tuning), total, seconds)
    return search.finish("logistic_regression")


def _model(penalty: str, weight: str | None, seed: int) -> LogisticRegression:
    if penalty == RIDGE:
        return LogisticRegression(class_weight=weight, max_iter=_MAX_ITERATIONS, tol=1e-4, warm_start=True)
    # liblinear penalises the intercept, too; the scaling makes that a tenth of a weight's penalty.
    return LogisticRegression(
        l1_ratio=1.0, solver="liblinear", class_weight=weight, max_iter=_MAX_ITERATIONS, tol=1e-3,
        intercept_scaling=10.0, random_state=seed,
    )  # fmt: skip


def inverse_deviation(X: sparse.csr_matrix) -> sparse.dia_matrix:
    """Diagonal matrix that divides columns by their standard deviation, counted as at least 0.3; 0 for constants."""
    rows = X.shape[0]
    mean = np.asarray(X.sum(0), dtype=np.float64).ravel() / rows
    square = np.asarray(X.multiply(X).sum(0), dtype=np.float64).ravel() / rows
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    inverse = np.where(deviation > 0, 1 / np.maximum(deviation, _LEAST_DEVIATION), 0.0)
    return sparse.diags(inverse.astype(np.float32))


def _predictor(weights: NDArray[np.float64], intercept: float) -> Predict:
    def predict(X: sparse.csr_matrix) -> NDArray[np.float64]:
        logits = X @ weights + intercept
        return np.exp(-np.logaddexp(0, -logits))

    return predict
