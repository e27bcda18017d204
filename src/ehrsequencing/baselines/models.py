"""One door to the baselines."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from ehrsequencing.baselines.fitted import BUDGETS, FittedBaseline, Progress, Search
from ehrsequencing.errors import ConfigError

BASELINES = ("prevalence", "logistic_regression", "random_forest", "xgboost")
BUDGET, EQUAL_BUDGET, SHORT_BUDGET = BUDGETS
"""Settings that each model tries: by default, beside models that are trained as often, per category of a task."""


def fit_baseline(
    name: str,
    X_train: sparse.csr_matrix,
    y_train: ArrayLike,
    X_tuning: sparse.csr_matrix,
    y_tuning: ArrayLike,
    *,
    seed: int = 0,
    threads: int = 2,
    progress: Progress | None = None,
    budget: int = BUDGET,
) -> FittedBaseline:
    """Fit a baseline on train, settings chosen by log loss on tuning.

    Every model is given the same number of settings, class weights among them from 8 upwards; probabilities
    learned with weights are brought back to the odds of train before they are judged.

    Args:
        name: One of `BASELINES`.
        X_train, X_tuning: Float [rows, features] from one `CountFeatures`.
        y_train, y_tuning: Bool [rows].
        progress: Called as `progress(settings done, settings in all)`.
        budget: Settings to try, one of `BUDGETS`.

    Raises:
        ConfigError: unknown name or budget.
        LabelError: a split has one class.
        ShapeError: rows and labels, or the columns of the splits, differ.
    """
    if name not in BASELINES:
        raise ConfigError("unknown baseline", got=name, expected=", ".join(BASELINES))
    search = Search(X_train, y_train, X_tuning, y_tuning, seed=seed, threads=threads, progress=progress, budget=budget)
    # scikit-learn and xgboost take a second to import, and prevalence needs neither.
    if name == "logistic_regression":
        from ehrsequencing.baselines.linear import fit_logistic_regression

        return fit_logistic_regression(search)
    if name == "random_forest":
        from ehrsequencing.baselines.trees import fit_random_forest

        return fit_random_forest(search)
    if name == "xgboost":
        from ehrsequencing.baselines.trees import fit_xgboost

        return fit_xgboost(search)
    share = float(search.y_train.mean())
    search.offer(
        {"prevalence": share}, lambda X: np.full(X.shape[0], share), np.full(len(search.y_tuning), share), 1, 0.0
    )
    return search.finish("prevalence")
