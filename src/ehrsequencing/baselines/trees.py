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

Options = dict[str, Any]

FOREST_TREES, FOREST_SEARCH_TREES, FOREST_ROWS = 100, 25, 10_000
FOREST_GRID: tuple[Options, ...] = (
    *({"min_samples_leaf": leaf, "max_features": "sqrt"} for leaf in (5, 15, 50)),
    *({"min_samples_leaf": leaf, "max_features": 0.05} for leaf in (5, 10, 20, 50)),
    *({"min_samples_leaf": leaf, "max_features": 0.1} for leaf in (10, 30, 100)),
    {"min_samples_leaf": 100, "max_features": 0.1, "class_weight": "balanced"},
    {"min_samples_leaf": 50, "max_features": 0.05, "class_weight": "balanced"},
)
BOOSTING_GRID: tuple[Options, ...] = (
    {"max_depth": 2, "learning_rate": 0.1, "min_child_weight": 1},
    {"max_depth": 3, "learning_rate": 0.1, "min_child_weight": 1},
    {"max_depth": 4, "learning_rate": 0.1, "min_child_weight": 10},
    {"max_depth": 6, "learning_rate": 0.05, "min_child_weight": 20},
    {"max_depth": 4, "learning_rate": 0.05, "min_child_weight": 50},
    {"max_depth": 6, "learning_rate": 0.1, "min_child_weight": 10},
    {"max_depth": 6, "learning_rate": 0.02, "min_child_weight": 20},
    {"max_depth": 8, "learning_rate": 0.05, "min_child_weight": 20},
    {"max_depth": 8, "learning_rate": 0.05, "min_child_weight": 100},
    {"max_depth": 10, "learning_rate": 0.05, "min_child_weight": 20},
    {"max_depth": 12, "learning_rate": 0.05, "min_child_weight": 50},
    {"max_depth": 6, "learning_rate": 0.05, "min_child_weight": 20, "class_weight": "balanced"},
)
FOREST_PLACES = {12: range(12), 8: (0, 1, 2, 4, 5, 8, 9, 10), 4: (0, 1, 4, 8)}
BOOSTING_PLACES = {12: range(12), 8: (0, 1, 2, 3, 4, 6, 7, 11), 4: range(4)}
"""Which settings of the grids are tried, by their number."""
BOOSTING_ROUNDS, BOOSTING_PATIENCE, BOOSTING_BINS = 1000, 40, 64


def fit_random_forest(search: Search) -> FittedBaseline:
    """Random forest over smallest leaf sizes, columns per split and class weights.

    A tree sees half of the rows, `FOREST_ROWS` at most. Settings are compared with `FOREST_SEARCH_TREES` trees, and the
    best is fitted anew with `FOREST_TREES`. More columns per split would cost minutes where they are thousands.
    """
    train, tuning = search.X_train.tocsc(), search.X_tuning
    share = min(0.5, FOREST_ROWS / len(search.y_train))

    def grow(options: Options, trees: int) -> Predict:
        model = RandomForestClassifier(
            trees, **options, max_samples=share, n_jobs=search.threads, random_state=search.seed
        ).fit(train, search.y_train)
        # Threads add up the trees in whichever order they finish, which changes last bits and hence ties.
        model.set_params(n_jobs=1)
        return _forest_predictor(model, search.odds_weight if "class_weight" in options else 1.0)

    grid = [FOREST_GRID[place] for place in FOREST_PLACES[search.budget]]
    for options in grid:
        started = time.perf_counter()
        predictor = grow(options, FOREST_SEARCH_TREES)
        seconds = time.perf_counter() - started
        search.offer({"class_weight": None, **options}, predictor, predictor(tuning), len(grid), seconds)
    best = {name: search.leader[name] for name in ("min_samples_leaf", "max_features")}
    weight = search.leader["class_weight"]
    predictor = grow(best | ({"class_weight": weight} if weight else {}), FOREST_TREES)
    search.replace(predictor, predictor(tuning))
    return search.finish("random_forest")


def _forest_predictor(model: RandomForestClassifier, weight: float) -> Predict:
    return lambda X: unweighted(model.predict_proba(X)[:, 1], weight)


def unweighted(p: NDArray[np.floating], weight: float) -> NDArray[np.float64]:
    """Probabilities whose odds were learned with positives weighted `weight` times as much, without that weight.

    Source: King & Zeng 2001, Political Analysis 9:137-163, section 4.1.

    >>> unweighted(np.array([0.0, 0.5, 1.0]), 4.0).tolist()
    [0.0, 0.2, 1.0]
    """
    p = np.asarray(p, dtype=np.float64)
    return p / (p + weight * (1 - p))


def fit_xgboost(search: Search) -> FittedBaseline:
    """Gradient boosting by histograms, the number of trees by early stopping on tuning, over a small grid.

    Cells that the sparse matrix does not hold are missing, not zero: a laboratory value never measured has its own
    branch, and an explicit zero stays a zero. Settings run side by side on one thread each, so that the result does
    not depend on `threads`.
    """

    def boost(options: Options) -> tuple[xgb.Booster, float]:
        started = time.perf_counter()
        train = xgb.QuantileDMatrix(search.X_train, label=search.y_train, max_bin=BOOSTING_BINS, nthread=1)
        # Predicting on a QuantileDMatrix searches every column of every row: 20 times slower than on this one.
        tuning = xgb.DMatrix(search.X_tuning, label=search.y_tuning, nthread=1)
        weight = _weight(search, options)
        # Both classes weigh as much on tuning as in the fit, or early stopping would watch another loss.
        tuning.set_weight(np.where(search.y_tuning, weight, 1.0))
        used = {name: value for name, value in options.items() if name != "class_weight"}
        booster = xgb.train(
            {
                **used, "objective": "binary:logistic", "eval_metric": "logloss", "tree_method": "hist",
                "max_bin": BOOSTING_BINS, "subsample": 0.8, "colsample_bytree": 0.5, "nthread": 1, "seed": search.seed,
                "scale_pos_weight": weight,
            },
            train, BOOSTING_ROUNDS, evals=[(tuning, "tuning")],
            early_stopping_rounds=BOOSTING_PATIENCE, verbose_eval=False,
        )  # fmt: skip
        return booster, time.perf_counter() - started

    grid = [BOOSTING_GRID[place] for place in BOOSTING_PLACES[search.budget]]
    with ThreadPoolExecutor(max(1, search.threads)) as pool:
        for options, (booster, seconds) in zip(grid, pool.map(boost, grid), strict=True):
            predictor = _booster_predictor(booster, _weight(search, options))
            used = {"class_weight": None, **options, "trees": booster.best_iteration + 1}
            search.offer(used, predictor, predictor(search.X_tuning), len(grid), seconds)
    return search.finish("xgboost")


def _weight(search: Search, options: Options) -> float:
    return search.odds_weight if "class_weight" in options else 1.0


def _booster_predictor(booster: xgb.Booster, weight: float) -> Predict:
    def predict(X: sparse.csr_matrix) -> NDArray[np.float64]:
        p = booster.predict(xgb.DMatrix(X, nthread=1), iteration_range=(0, booster.best_iteration + 1))
        return unweighted(p, weight)

    return predict
