"""Survival forest and gradient boosting of survival times."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from scipy import sparse, special, stats

from ehrsequencing.baselines.survival import FittedSurvival, Floats, Hazards, SurvivalSearch, scored_hazards
from ehrsequencing.baselines.trees import BOOSTING_BINS, BOOSTING_PATIENCE, BOOSTING_ROUNDS
from ehrsequencing.errors import ConfigError

Options = dict[str, Any]

FOREST_TREES, FOREST_SEARCH_TREES, FOREST_ROWS, FOREST_COLUMNS = 200, 40, 5_000, 500
FOREST_GRID: tuple[Options, ...] = tuple(
    {"min_samples_leaf": leaf, "max_features": share} for share in ("sqrt", 0.2, 0.4) for leaf in (5, 10, 20, 40)
)
FOREST_PLACES = {12: range(12), 8: range(8), 4: (0, 2, 4, 6)}
BOOSTING_GRID: tuple[Options, ...] = (
    {"max_depth": 2, "learning_rate": 0.05, "min_child_weight": 1},
    {"max_depth": 3, "learning_rate": 0.05, "min_child_weight": 1},
    {"max_depth": 4, "learning_rate": 0.05, "min_child_weight": 5},
    {"max_depth": 6, "learning_rate": 0.05, "min_child_weight": 20},
    {"max_depth": 1, "learning_rate": 0.1, "min_child_weight": 1},
    {"max_depth": 2, "learning_rate": 0.02, "min_child_weight": 5},
    {"max_depth": 3, "learning_rate": 0.02, "min_child_weight": 10},
    {"max_depth": 4, "learning_rate": 0.02, "min_child_weight": 20},
    {"max_depth": 3, "learning_rate": 0.1, "min_child_weight": 10},
    {"max_depth": 5, "learning_rate": 0.02, "min_child_weight": 10},
    {"max_depth": 6, "learning_rate": 0.02, "min_child_weight": 50},
    {"max_depth": 8, "learning_rate": 0.05, "min_child_weight": 50},
)
BOOSTING_PLACES = {12: range(12), 8: range(8), 4: range(4)}
UNWATCHED_ROUNDS = 50
AFT_SCALES = (1.0, 1.6, 2.4)
AFT_DISTRIBUTIONS = ("normal", "logistic", "extreme")


def fit_survival_forest(search: SurvivalSearch) -> FittedSurvival:
    """Random survival forest, one per cause, over smallest leaf sizes and columns per split.

    Durations are rounded up to the days that are predicted, which bounds what a leaf stores. A tree sees `FOREST_ROWS`
    rows at most, the forest the `FOREST_COLUMNS` columns that most rows fill. Settings are compared with
    `FOREST_SEARCH_TREES` trees, and the best is fitted anew with `FOREST_TREES`.

    Raises:
        ConfigError: scikit-survival is not installed.

    Source: Ishwaran et al. 2008, doi:10.1214/08-AOAS169.
    """
    try:
        from sksurv.ensemble import RandomSurvivalForest
    except ModuleNotFoundError:
        raise ConfigError(
            "the survival forest needs scikit-survival", remedy="pip install 'ehrsequencing[survival]', or leave it out"
        ) from None
    columns = _dense_columns(search.X_train)
    train = search.X_train[:, columns].toarray()
    # A duration counts as the first predicted day that is not before it; later ones are censored on the last.
    place = np.searchsorted(search.days, search.train[:, 0])
    beyond = place == len(search.days)
    time_days = search.days[np.minimum(place, len(search.days) - 1)]
    share = min(1.0, FOREST_ROWS / len(train))

    def grow(options: Options, trees: int) -> Hazards:
        forests: list[Any] = []
        for cause in range(1, search.causes + 1):
            if not (search.events(cause) & ~beyond).any():
                forests.append(None)
                continue
            outcome = np.zeros(len(train), dtype=[("event", bool), ("time", float)])
            outcome["event"], outcome["time"] = search.events(cause) & ~beyond, time_days
            forest = RandomSurvivalForest(
                trees, **options, max_samples=share if share < 1 else None, n_jobs=search.threads,
                random_state=search.seed,
            ).fit(train, outcome)  # fmt: skip
            # Threads add up the trees in whichever order they finish, which changes last bits and hence ties.
            forest.set_params(n_jobs=1)
            forests.append(forest)
        return _forest_hazards(forests, columns, search.days)

    grid = [FOREST_GRID[place] for place in FOREST_PLACES[search.budget]]
    for options in grid:
        started = time.perf_counter()
        hazards = grow(options, FOREST_SEARCH_TREES)
        search.offer(options, hazards, len(grid), time.perf_counter() - started)
    best = {name: search.leader[name] for name in ("min_samples_leaf", "max_features")}
    search.replace(grow(best, FOREST_TREES))
    return search.finish("survival_forest")


def _dense_columns(X: sparse.csr_matrix) -> NDArray[np.int64]:
    """Columns a dense forest sees: all, or those that most rows fill."""
    if X.shape[1] <= FOREST_COLUMNS:
        return np.arange(X.shape[1])
    filled = np.bincount(X.indices, minlength=X.shape[1])
    return np.sort(np.argsort(-filled, kind="stable")[:FOREST_COLUMNS])


def _forest_hazards(forests: list[Any], columns: NDArray[np.int64], days: Floats) -> Hazards:
    def hazards(X: sparse.csr_matrix) -> tuple[Floats, Floats | None]:
        rows = X[:, columns].toarray()
        found = np.zeros((X.shape[0], len(forests), len(days)))
        for cause, forest in enumerate(forests):
            if forest is None:
                continue
            steps = forest.predict_cumulative_hazard_function(rows, return_array=True)
            rising = np.concatenate((np.zeros((len(rows), 1)), steps), axis=1)
            found[:, cause] = rising[:, np.searchsorted(forest.unique_times_, days, side="right")]
        return found, None  # curves of a forest cross, so that no score holds for all days

    return hazards


def fit_xgboost_cox(search: SurvivalSearch) -> FittedSurvival:
    """Gradient boosting of the Cox partial likelihood, one model per cause, trees by early stopping on tuning."""

    def boost(options: Options) -> tuple[Hazards, list[int], float]:
        started = time.perf_counter()
        boosters, bases = [], []
        for cause in range(1, search.causes + 1):
            signed = [np.where(rows[:, 1] == cause, rows[:, 0], -rows[:, 0]) for rows in (search.train, search.held)]
            booster = _train(search, options | {"objective": "survival:cox", "eval_metric": "cox-nloglik"}, *signed)
            score = _margin(booster, search.X_train)
            likelihood = search.likelihood(cause)
            never = np.zeros(len(search.days))
            bases.append(never if likelihood is None else likelihood.cumulative_hazard(score, search.days))
            boosters.append(booster)

        def hazards(X: sparse.csr_matrix) -> tuple[Floats, Floats | None]:
            scores = [_margin(booster, X) for booster in boosters]
            return scored_hazards(scores, bases), scores[0] if len(scores) == 1 else None

        return hazards, [booster.best_iteration + 1 for booster in boosters], time.perf_counter() - started

    grid = [BOOSTING_GRID[place] for place in BOOSTING_PLACES[search.budget]]
    return _boosted(search, grid, boost, "xgboost_cox")


def fit_xgboost_aft(search: SurvivalSearch) -> FittedSurvival:
    """Gradient boosting of accelerated failure times; distribution and scale go round along the grid of trees.

    Competing causes are taken as independent times whose hazards add up.
    """

    def boost(options: Options) -> tuple[Hazards, list[int], float]:
        started = time.perf_counter()
        name, scale = options["aft_loss_distribution"], options["aft_loss_distribution_scale"]
        boosters = []
        for cause in range(1, search.causes + 1):
            bounds = [
                (rows[:, 0], np.where(rows[:, 1] == cause, rows[:, 0], np.inf)) for rows in (search.train, search.held)
            ]
            boosters.append(
                _train(search, options | {"objective": "survival:aft", "eval_metric": "aft-nloglik"}, *bounds)
            )

        def hazards(X: sparse.csr_matrix) -> tuple[Floats, Floats | None]:
            margins = [_margin(booster, X) for booster in boosters]
            found = np.stack([_aft_hazard(name, scale, margin, search.days) for margin in margins], axis=1)
            found[:, [not search.events(cause).any() for cause in range(1, search.causes + 1)]] = 0
            return found, -margins[0] if len(margins) == 1 else None

        return hazards, [booster.best_iteration + 1 for booster in boosters], time.perf_counter() - started

    grid = [
        BOOSTING_GRID[place] | {
            "aft_loss_distribution": AFT_DISTRIBUTIONS[number % 3],
            "aft_loss_distribution_scale": AFT_SCALES[number // 3 % 3],
        }
        for number, place in enumerate(BOOSTING_PLACES[search.budget])
    ]  # fmt: skip
    return _boosted(search, grid, boost, "xgboost_aft")


def _aft_hazard(name: str, scale: float, margin: Floats, days: Floats) -> Floats:
    """Cumulative hazard, float [n, days], of log T = margin + scale * Z."""
    z = (np.log(days)[None, :] - margin[:, None]) / scale
    if name == "extreme":
        # Z is the smallest extreme value: the hazard of a Weibull time.
        return np.exp(np.minimum(z, 6.5))
    log_survival = special.log_ndtr(-z) if name == "normal" else stats.logistic.logsf(z)
    return np.minimum(-log_survival, 700.0)


def _boosted(search: SurvivalSearch, grid: list[Options], boost: Any, name: str) -> FittedSurvival:
    with ThreadPoolExecutor(max(1, search.threads)) as pool:
        for options, (hazards, trees, seconds) in zip(grid, pool.map(boost, grid), strict=True):
            search.offer({**options, "trees": trees}, hazards, len(grid), seconds)
    return search.finish(name)


def _train(search: SurvivalSearch, options: Options, train: Any, tuning: Any) -> xgb.Booster:
    """Boost until tuning no longer improves; labels are signed durations, or pairs of bounds.

    Without an event of the cause in tuning nothing says when to stop: then for `UNWATCHED_ROUNDS`.
    """
    watched = bool((np.isfinite(tuning[1]) if isinstance(tuning, tuple) else tuning > 0).any())
    matrices = []
    for X, label in ((search.X_train, train), (search.X_tuning, tuning)):
        matrix = xgb.DMatrix(X, nthread=1)
        if isinstance(label, tuple):
            matrix.set_float_info("label_lower_bound", label[0])
            matrix.set_float_info("label_upper_bound", label[1])
        else:
            matrix.set_label(label)
        matrices.append(matrix)
    booster = xgb.train(
        {
            **options, "tree_method": "hist", "max_bin": BOOSTING_BINS, "subsample": 0.8, "colsample_bytree": 0.5,
            "nthread": 1, "seed": search.seed,
        },
        matrices[0], BOOSTING_ROUNDS if watched else UNWATCHED_ROUNDS, evals=[(matrices[1], "tuning")],
        early_stopping_rounds=BOOSTING_PATIENCE if watched else None, verbose_eval=False,
    )  # fmt: skip
    if not watched:
        booster.set_attr(best_iteration=str(UNWATCHED_ROUNDS - 1))
    return booster


def _margin(booster: xgb.Booster, X: sparse.csr_matrix) -> Floats:
    """Raw scores: log hazards of Cox, expected log days of accelerated failure times."""
    margin = booster.predict(
        xgb.DMatrix(X, nthread=1), output_margin=True, iteration_range=(0, booster.best_iteration + 1)
    )
    return np.asarray(margin, dtype=np.float64)
