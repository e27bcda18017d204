"""Classical survival models on the features that every baseline sees; one door, as `fit_baseline` is to the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ehrsequencing.baselines.cox import CoxFit, PartialLikelihood, fit_cox, strongest_penalty
from ehrsequencing.baselines.fitted import BUDGETS, Progress
from ehrsequencing.baselines.linear import inverse_deviation
from ehrsequencing.errors import ConfigError, LabelError, MetricError, ShapeError
from ehrsequencing.evaluation.survival import concordance_index
from ehrsequencing.evaluation.survival_curves import censoring_curve
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.evaluation.survival_scores import integrated_brier

SURVIVAL_BASELINES = ("kaplan_meier", "cox", "survival_forest", "xgboost_cox", "xgboost_aft")
Floats = NDArray[np.float64]
Hazards = Callable[[sparse.csr_matrix], tuple[Floats, Floats | None]]
"""Features -> cumulative hazards, float [rows, causes, days], and log hazards, float [rows] of one cause."""


@dataclass(frozen=True)
class FittedSurvival:
    """A fitted survival baseline with the settings that did best on tuning.

    Attributes:
        name: As given to `fit_survival_baseline`.
        days: Float [days]; where it predicts.
        chosen: The row of `tuning` that won, by integrated Brier score.
        tuning: One row per setting tried: its options, `ibs` and `c_harrell` of the first cause, `seconds`.
        seconds: Wall time of all of it.
    """

    name: str
    features: int
    days: Floats
    chosen: dict[str, Any]
    tuning: list[dict[str, Any]]
    seconds: float
    hazards: Hazards = field(repr=False)

    def predict(self, X: sparse.csr_matrix) -> SurvivalPrediction:
        """Curves of each row of X.

        Raises:
            ShapeError: X has other columns than the baseline was fitted on.
        """
        if X.shape[1] != self.features:
            raise ShapeError("the feature matrix", X.shape, f"{self.features} columns")
        return from_hazards(self.days, *self.hazards(sparse.csr_matrix(X)))


def from_hazards(days: ArrayLike, cumulative: ArrayLike, risk: ArrayLike | None = None) -> SurvivalPrediction:
    """Curves from cause-specific cumulative hazards.

    Survival is exp(-sum of the hazards); what an interval between two days loses is shared among the causes as their
    hazards grow in it.

    Args:
        days: Float [days].
        cumulative: Float [n, causes, days], rising from 0 at day 0.
        risk: Float [n], of one cause.
    """
    rising = np.asarray(cumulative, dtype=np.float64)
    grown = np.diff(rising, axis=2, prepend=0.0)
    survival = np.exp(-rising.sum(1))
    lost = -np.diff(survival, axis=1, prepend=1.0)
    total = grown.sum(1, keepdims=True)
    share = np.divide(grown, total, out=np.zeros_like(grown), where=total > 0)
    incidence = np.cumsum(share * lost[:, None], axis=2)
    return SurvivalPrediction(np.asarray(days, dtype=np.float64), survival, incidence,
                              None if risk is None else np.asarray(risk))  # fmt: skip


class SurvivalSearch:
    """Tries settings one by one, judges each on tuning, keeps the best.

    Args:
        X_train, X_tuning: Float [rows, features], sparse.
        train, tuning: Float [rows, 2], duration in days and cause (0 censored), as `Examples.target`.
        causes: Number of causes.
        days: Float [days]; where curves are predicted. The integrated Brier score goes up to the last at which somebody
            of tuning is still followed.
        seed, threads, progress, budget: As `fit_survival_baseline`.

    Raises:
        ConfigError: another budget than `BUDGETS`.
        ShapeError: rows and labels, or the columns of the splits, differ.
        LabelError: no event of the first cause in train, a cause beyond `causes`, or a follow-up of tuning that ends
            before the second day.
    """

    def __init__(
        self,
        X_train: sparse.csr_matrix,
        train: ArrayLike,
        X_tuning: sparse.csr_matrix,
        tuning: ArrayLike,
        *,
        causes: int,
        days: ArrayLike,
        seed: int,
        threads: int,
        progress: Progress | None,
        budget: int,
    ) -> None:
        self.X_train, self.X_tuning = sparse.csr_matrix(X_train), sparse.csr_matrix(X_tuning)
        self.train, self.held = np.asarray(train, dtype=np.float64), np.asarray(tuning, dtype=np.float64)
        self.causes, self.days = causes, np.asarray(days, dtype=np.float64)
        if self.X_train.shape[1] != self.X_tuning.shape[1]:
            raise ShapeError("the tuning features", self.X_tuning.shape, f"{self.X_train.shape[1]} columns")
        for split, X, rows in (("train", self.X_train, self.train), ("tuning", self.X_tuning, self.held)):
            if rows.shape != (X.shape[0], 2):
                raise ShapeError(f"the {split} labels", rows.shape, f"({X.shape[0]}, 2)")
            if not ((rows[:, 1] >= 0) & (rows[:, 1] <= causes)).all():
                raise LabelError(
                    f"the {split} labels name another cause", got=f"{rows[:, 1].max():g}", expected=f"0 to {causes}"
                )
        if not (self.train[:, 1] == 1).any():
            raise LabelError(
                "no event of cause 1 in train", got=f"{len(self.train)} rows", expected="one or more",
                remedy="use more subjects",
            )  # fmt: skip
        if budget not in BUDGETS:
            raise ConfigError("settings of a baseline", got=budget, expected=" or ".join(map(str, sorted(BUDGETS))))
        uncensored = censoring_curve(self.held[:, 0], self.held[:, 1] > 0).at(self.days) > 0
        self._judged = self.days[uncensored & (self.days <= self.held[:, 0].max())]
        if len(self._judged) < 2:
            raise LabelError(
                "the follow-up of tuning is too short to judge on", got=f"{self.held[:, 0].max():g} days",
                expected=f"{self.days[min(1, len(self.days) - 1)]:g} days or more",
            )  # fmt: skip
        self.seed, self.threads, self.progress, self.budget = seed, threads, progress, budget
        self.rows: list[dict[str, Any]] = []
        self._best: tuple[float, dict[str, Any], Hazards] | None = None
        self._started = time.perf_counter()

    def likelihood(self, cause: int) -> PartialLikelihood | None:
        """Partial likelihood of a cause in train; None where it has no event there, and so no hazard."""
        events = self.events(cause)
        return PartialLikelihood(self.train[:, 0], events) if events.any() else None

    def events(self, cause: int) -> NDArray[np.bool_]:
        """Whether each row of train had an event of a cause; other causes censor it."""
        found: NDArray[np.bool_] = self.train[:, 1] == cause
        return found

    def offer(self, options: dict[str, Any], hazards: Hazards, total: int, seconds: float) -> None:
        """Judge one setting, fitted in `seconds`, by its curves on tuning, and report progress."""
        score, concordance = self.judge(from_hazards(self.days, *hazards(self.X_tuning)))
        row = {**options, "ibs": score, "c_harrell": concordance, "seconds": round(seconds, 3)}
        self.rows.append(row)
        if self._best is None or score < self._best[0]:
            self._best = (score, row, hazards)
        if self.progress is not None:
            self.progress(len(self.rows), total)

    def judge(self, prediction: SurvivalPrediction) -> tuple[float, float | None]:
        """Integrated Brier score on tuning, the mean over causes, and Harrell's C of the first cause."""
        duration, cause = self.held[:, 0], self.held[:, 1].astype(np.int64)
        within = prediction.at(self._judged)
        scores = [
            integrated_brier(duration, cause, within.incidence[:, number - 1], self._judged, of_cause=number)
            for number in range(1, self.causes + 1)
        ]
        risk = prediction.incidence[:, 0].mean(1) if prediction.risk is None else prediction.risk
        try:
            concordance = concordance_index(duration, cause == 1, risk)
        except MetricError:
            concordance = None
        return float(np.mean(scores)), concordance

    @property
    def leader(self) -> dict[str, Any]:
        """Options and figures of the best setting so far.

        Raises:
            LabelError: no setting was tried.
        """
        if self._best is None:
            raise LabelError("no setting was tried")
        return self._best[1]

    def replace(self, hazards: Hazards) -> None:
        """Predict with the best setting fitted anew, at greater expense, and state what it scores."""
        score, concordance = self.judge(from_hazards(self.days, *hazards(self.X_tuning)))
        self._best = (score, {**self.leader, "ibs": score, "c_harrell": concordance}, hazards)

    def finish(self, name: str) -> FittedSurvival:
        """The best setting offered."""
        if self._best is None:
            raise LabelError(f"{name} tried no setting")
        _, chosen, hazards = self._best
        seconds = time.perf_counter() - self._started
        return FittedSurvival(name, self.X_train.shape[1], self.days, chosen, self.rows, seconds, hazards)


def fit_survival_baseline(
    name: str,
    X_train: sparse.csr_matrix,
    train: ArrayLike,
    X_tuning: sparse.csr_matrix,
    tuning: ArrayLike,
    *,
    days: ArrayLike,
    causes: int = 1,
    seed: int = 0,
    threads: int = 2,
    progress: Progress | None = None,
    budget: int = BUDGETS[0],
) -> FittedSurvival:
    """Fit a survival baseline on train, settings chosen by integrated Brier score on tuning.

    With competing causes each cause has a model of its own, for which the others censor (cause-specific hazards), and
    all causes share one setting. A further cause without an event in train has no hazard.

    Args:
        name: One of `SURVIVAL_BASELINES`; "kaplan_meier" looks at no feature (Nelson-Aalen per cause).
        X_train, X_tuning: Float [rows, features].
        train, tuning: Float [rows, 2], duration in days and cause (0 censored, 1 to `causes`).
        days: Float [days], rising; where curves are predicted.
        causes: Number of causes.
        progress: Called as `progress(settings done, settings in all)`.
        budget: Settings to try, one of `BUDGETS`.

    Raises:
        ConfigError: unknown name or budget, or scikit-survival is not installed (the forest).
        LabelError, ShapeError: see `SurvivalSearch`.
    """
    if name not in SURVIVAL_BASELINES:
        raise ConfigError("unknown survival baseline", got=name, expected=", ".join(SURVIVAL_BASELINES))
    search = SurvivalSearch(
        X_train, train, X_tuning, tuning, causes=causes, days=days, seed=seed, threads=threads, progress=progress,
        budget=budget,
    )  # fmt: skip
    if name == "cox":
        return _fit_cox(search)
    if name == "kaplan_meier":
        return _fit_marginal(search)
    from ehrsequencing.baselines import survival_trees

    return getattr(survival_trees, f"fit_{name}")(search)


PENALTIES: dict[int, tuple[tuple[float, tuple[float, ...]], ...]] = {
    12: ((0.0, (10.0, 2.0, 0.4, 0.08)), (0.5, (0.6, 0.2, 0.06, 0.02)), (1.0, (0.3, 0.1, 0.03, 0.01))),
    8: ((0.0, (5.0, 1.0, 0.2)), (0.5, (0.3, 0.1, 0.03)), (1.0, (0.1, 0.03))),
    4: ((0.0, (5.0, 0.5)), (0.5, (0.2, 0.04))),
}
"""By number of settings: share of the lasso, and strengths as multiples of the least that empties the lasso."""


def _fit_cox(search: SurvivalSearch) -> FittedSurvival:
    """Cox regression along paths of an elastic net; columns scaled as for logistic regression."""
    scale = inverse_deviation(search.X_train)
    X = sparse.csr_matrix((search.X_train @ scale).astype(np.float64))
    found = {cause: search.likelihood(cause) for cause in range(1, search.causes + 1)}
    likelihoods = {cause: likelihood for cause, likelihood in found.items() if likelihood is not None}
    strongest = {cause: strongest_penalty(X, likelihood) for cause, likelihood in likelihoods.items()}
    nothing, never = np.zeros(X.shape[1]), np.zeros(len(search.days))
    grid = PENALTIES[search.budget]
    total = sum(len(strengths) for _, strengths in grid)
    for l1_ratio, strengths in grid:
        fits: dict[int, CoxFit] = {}
        for strength in strengths:
            started = time.perf_counter()
            fits = {
                cause: fit_cox(
                    X, likelihood, penalty=strength * strongest[cause], l1_ratio=l1_ratio,
                    start=fits[cause].weights if cause in fits else None,
                )
                for cause, likelihood in likelihoods.items()
            }  # fmt: skip
            weights = [scale @ (fits[cause].weights if cause in fits else nothing) for cause in found]
            bases = [
                likelihoods[cause].cumulative_hazard(X @ fits[cause].weights, search.days) if cause in fits else never
                for cause in found
            ]
            options = {
                "l1_ratio": l1_ratio, "strength": strength,
                "kept": sum(int((fit.weights != 0).sum()) for fit in fits.values()),
                "converged": all(fit.converged for fit in fits.values()),
            }  # fmt: skip
            search.offer(options, proportional(weights, bases), total, time.perf_counter() - started)
    return search.finish("cox")


def proportional(weights: list[Floats], bases: list[Floats]) -> Hazards:
    """Cumulative hazards of proportional hazards: linear scores times the baseline of each cause."""

    def hazards(X: sparse.csr_matrix) -> tuple[Floats, Floats | None]:
        scores = [X @ weight for weight in weights]
        return scored_hazards(scores, bases), scores[0] if len(scores) == 1 else None

    return hazards


def scored_hazards(scores: list[Floats], bases: list[Floats]) -> Floats:
    """Cumulative hazards, float [n, causes, days], of log hazards, float [n], and baselines, float [days], by cause."""
    with np.errstate(over="ignore"):
        product = np.stack([np.exp(score)[:, None] * base for score, base in zip(scores, bases, strict=True)], axis=1)
    # exp(-700) is 0 in every respect, while an infinite hazard times a baseline of 0 would be none.
    return np.nan_to_num(np.minimum(product, 700.0), nan=0.0)


def _fit_marginal(search: SurvivalSearch) -> FittedSurvival:
    """The same curves for everyone: Nelson-Aalen per cause."""
    flat = np.zeros(len(search.train))
    started = time.perf_counter()
    found = [search.likelihood(cause) for cause in range(1, search.causes + 1)]
    never = np.zeros(len(search.days))
    bases = [never if likelihood is None else likelihood.cumulative_hazard(flat, search.days) for likelihood in found]
    nothing = np.zeros(search.X_train.shape[1])
    search.offer({}, proportional([nothing] * search.causes, bases), 1, time.perf_counter() - started)
    return search.finish("kaplan_meier")
