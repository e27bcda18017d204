"""Random forest and gradient boosting."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier

from ehrsequencing.baselines.fitted import FittedBaseline, Predict, Search

FOREST_LEAVES, FOREST_TREES = (10, 30, 100), 100
BOOSTING_GRID: tuple[dict[str, Any], ...] = (
    {"max_depth": 4, "learning_rate": 0.1, "min_child_weight": 10},
    {"max_depth": 6, "learning_rate": 0.1, "min_child_weight": 10},
    {"max_depth": 3, "learning_rate": 0.1, "min_child_weight": 1},
    {"max_depth": 6, "learning_rate": 0.05, "min_child_weight": 10},
    {"max_depth": 4, "learning_rate": 0.05, "min_child_weight": 50},
    {"max_depth": 8, "learning_rate": 0.05, "min_child_weight": 20},
)
BOOSTING_ROUNDS, BOOSTING_PATIENCE, BOOSTING_BINS = 1000, 40, 64


def fit_random_forest(search: Search) -> FittedBaseline:
    """Random forest over a grid of smallest leaf sizes."""
    train, tuning = search.X_train.tocsc(), search.X_tuning
    for leaf in FOREST_LEAVES:
        model = RandomForestClassifier(
            FOREST_TREES, min_samples_leaf=leaf, max_features="sqrt", max_samples=0.5,
            n_jobs=search.threads, random_state=search.seed,
        )  # fmt: skip
        started = time.perf_counter()
        model.fit(train, search.y_train)
        # Threads add up the trees in whichever order they finish, which changes last bits and hence ties.
        model.set_params(n_jobs=1)
        seconds = time.perf_counter() - started
        predictor = _forest_predictor(model)
        used = {"min_samples_leaf": leaf, "trees": FOREST_TREES}
        search.offer(used, predictor, predictor(tuning), len(FOREST_LEAVES), seconds)
    return search.finish("random_forest")


def _forest_predictor(model: RandomForestClassifier) -> Predict:
    return lambda X: model.predict_proba(X)[:, 1]


def fit_xgboost(search: Search) -> FittedBaseline:
    """Gradient boosting by histograms, the number of trees by early stopping on tuning, over a small grid.

    Cells that the sparse matrix does not hold are missing, not zero: a laboratory value never measured has its own
    branch, and an explicit zero stays a zero. Settings run side by side on one thread each, so that the result does
    not depend on `threads`.
    """

    def boost(options: dict[str, Any]) -> tuple[xgb.Booster, float]:
        started = time.perf_counter()
        train = xgb.QuantileDMatrix(search.X_train, label=search.y_train, max_bin=BOOSTING_BINS, nthread=1)
        # Predicting on a QuantileDMatrix searches every column of every row: 20 times slower than on this one.
        tuning = xgb.DMatrix(search.X_tuning, label=search.y_tuning, nthread=1)
        booster = xgb.train(
            {
                **options, "objective": "binary:logistic", "eval_metric": "logloss", "tree_method": "hist",
                "max_bin": BOOSTING_BINS, "subsample": 0.8, "colsample_bytree": 0.5, "nthread": 1, "seed": search.seed,
            },
            train, BOOSTING_ROUNDS, evals=[(tuning, "tuning")],
            early_stopping_rounds=BOOSTING_PATIENCE, verbose_eval=False,
        )  # fmt: skip
        return booster, time.perf_counter() - started

    with ThreadPoolExecutor(max(1, search.threads)) as pool:
        for options, (booster, seconds) in zip(BOOSTING_GRID, pool.map(boost, BOOSTING_GRID), strict=True):
            predictor = _booster_predictor(booster)
            used = {**options, "trees": booster.best_iteration + 1}
            search.offer(used, predictor, predictor(search.X_tuning), len(BOOSTING_GRID), seconds)
    return search.finish("xgboost")


def _booster_predictor(booster: xgb.Booster) -> Predict:
    def predict(X: sparse.csr_matrix) -> NDArray[np.float64]:
        return booster.predict(xgb.DMatrix(X, nthread=1), iteration_range=(0, booster.best_iteration + 1))

    return predict
