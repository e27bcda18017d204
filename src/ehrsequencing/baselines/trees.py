"""Random forest and gradient boosting."""

from __future__ import annotations

from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier

from ehrsequencing.baselines.fitted import FittedBaseline, Predict, Search

FOREST_LEAVES = (5, 20, 80)
FOREST_TREES = 200
BOOSTING_GRID: tuple[dict[str, Any], ...] = (
    {"max_depth": 4, "learning_rate": 0.1, "min_child_weight": 5},
    {"max_depth": 6, "learning_rate": 0.1, "min_child_weight": 5},
    {"max_depth": 3, "learning_rate": 0.1, "min_child_weight": 1},
    {"max_depth": 4, "learning_rate": 0.05, "min_child_weight": 20},
    {"max_depth": 6, "learning_rate": 0.05, "min_child_weight": 20},
)
BOOSTING_ROUNDS, BOOSTING_PATIENCE = 1000, 40


def fit_random_forest(search: Search) -> FittedBaseline:
    """Random forest over a grid of smallest leaf sizes."""
    train, tuning = search.X_train.tocsc(), search.X_tuning
    for leaf in FOREST_LEAVES:
        model = RandomForestClassifier(
            FOREST_TREES, min_samples_leaf=leaf, max_features="sqrt", max_samples=0.5,
            n_jobs=search.threads, random_state=search.seed,
        )  # fmt: skip
        model.fit(train, search.y_train)
        predictor = _forest_predictor(model)
        search.offer(
            {"min_samples_leaf": leaf, "trees": FOREST_TREES}, predictor, predictor(tuning), len(FOREST_LEAVES)
        )
    return search.finish("random_forest")


def _forest_predictor(model: RandomForestClassifier) -> Predict:
    return lambda X: model.predict_proba(X)[:, 1]


def fit_xgboost(search: Search) -> FittedBaseline:
    """Gradient boosting by histograms, the number of trees by early stopping on tuning, over a small grid.

    Cells that the sparse matrix does not hold are missing, not zero: a laboratory value never measured has its own
    branch, and an explicit zero stays a zero.
    """
    train = xgb.QuantileDMatrix(search.X_train, label=search.y_train, nthread=search.threads)
    tuning = xgb.QuantileDMatrix(search.X_tuning, label=search.y_tuning, ref=train, nthread=search.threads)
    for options in BOOSTING_GRID:
        booster = xgb.train(
            {
                **options, "objective": "binary:logistic", "eval_metric": "logloss", "tree_method": "hist",
                "subsample": 0.8, "colsample_bytree": 0.5, "reg_lambda": 1.0,
                "nthread": search.threads, "seed": search.seed,
            },
            train, BOOSTING_ROUNDS, evals=[(tuning, "tuning")],
            early_stopping_rounds=BOOSTING_PATIENCE, verbose_eval=False,
        )  # fmt: skip
        predictor = _booster_predictor(booster, search.threads)
        used = {**options, "trees": booster.best_iteration + 1}
        search.offer(used, predictor, predictor(search.X_tuning), len(BOOSTING_GRID))
    return search.finish("xgboost")


def _booster_predictor(booster: xgb.Booster, threads: int) -> Predict:
    def predict(X: sparse.csr_matrix) -> NDArray[np.float64]:
        matrix = xgb.DMatrix(X, nthread=threads)
        return booster.predict(matrix, iteration_range=(0, booster.best_iteration + 1))

    return predict
