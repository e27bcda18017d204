"""What every baseline is given and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ehrsequencing.errors import ConfigError, LabelError, ShapeError
from ehrsequencing.evaluation.metrics import auroc, log_loss

BUDGETS = (12, 8, 4)
"""How many settings a baseline may try."""
Progress = Callable[[int, int], None]
Predict = Callable[[sparse.csr_matrix], NDArray[np.float64]]


@dataclass(frozen=True)
class FittedBaseline:
    """A fitted baseline with the settings that did best on the tuning split.

    Attributes:
        name: As given to `fit_baseline`.
        chosen: The setting of `tuning` that won, by log loss, with the figures of the model that predicts.
        tuning: One row per setting tried: its options, `log_loss` and `auroc` on tuning, `seconds`.
        seconds: Wall time of all of it.
    """

    name: str
    features: int
    chosen: dict[str, Any]
    tuning: list[dict[str, Any]]
    seconds: float
    predictor: Predict = field(repr=False)

    def predict(self, X: sparse.csr_matrix) -> NDArray[np.float64]:
        """Probability of the outcome, float [rows of X].

        Raises:
            ShapeError: X has other columns than the baseline was fitted on.
        """
        if X.shape[1] != self.features:
            raise ShapeError("the feature matrix", X.shape, f"{self.features} columns")
        return np.asarray(self.predictor(X), dtype=np.float64)


class Search:
    """Tries settings one by one, judges each on tuning, keeps the best.

    Args:
        X_train, X_tuning: Float [rows, features], sparse.
        y_train, y_tuning: Bool [rows].
        seed, threads, progress, budget: As `fit_baseline`.

    Attributes:
        odds_weight: Negatives per positive in train: what weighting the classes equally multiplies the odds by.

    Raises:
        ConfigError: another budget than `BUDGETS`.
        LabelError: a split has one class.
        ShapeError: rows and labels, or the columns of the splits, differ.
    """

    def __init__(
        self,
        X_train: sparse.csr_matrix,
        y_train: ArrayLike,
        X_tuning: sparse.csr_matrix,
        y_tuning: ArrayLike,
        *,
        seed: int,
        threads: int,
        progress: Progress | None,
        budget: int = BUDGETS[0],
    ) -> None:
        self.X_train, self.X_tuning = sparse.csr_matrix(X_train), sparse.csr_matrix(X_tuning)
        self.y_train, self.y_tuning = np.asarray(y_train).astype(np.bool_), np.asarray(y_tuning).astype(np.bool_)
        if self.X_train.shape[1] != self.X_tuning.shape[1]:
            raise ShapeError("the tuning features", self.X_tuning.shape, f"{self.X_train.shape[1]} columns")
        for split, X, y in (("train", self.X_train, self.y_train), ("tuning", self.X_tuning, self.y_tuning)):
            if y.shape != (X.shape[0],):
                raise ShapeError(f"the {split} labels", y.shape, f"one for each of {X.shape[0]} rows")
            if (positives := int(y.sum())) in (0, len(y)):
                raise LabelError(
                    f"the labels of {split} have one class",
                    got=f"{positives} positives in {len(y)} rows",
                    expected="both classes",
                    remedy="use more subjects or a more frequent outcome",
                )
        self.seed, self.threads, self.progress, self.budget = seed, threads, progress, budget
        if budget not in BUDGETS:
            raise ConfigError("settings of a baseline", got=budget, expected=" or ".join(map(str, sorted(BUDGETS))))
        self.odds_weight = float((~self.y_train).sum() / self.y_train.sum())
        self.tuning: list[dict[str, Any]] = []
        self._best: tuple[float, dict[str, Any], Predict] | None = None
        self._started = time.perf_counter()

    def offer(
        self, options: dict[str, Any], predictor: Predict, p_tuning: ArrayLike, total: int, seconds: float
    ) -> None:
        """Judge one setting, fitted in `seconds`, by its probabilities on tuning, and report progress."""
        row = {
            **options,
            "log_loss": log_loss(self.y_tuning, p_tuning),
            "auroc": auroc(self.y_tuning, p_tuning),
            "seconds": round(seconds, 3),
        }
        self.tuning.append(row)
        if self._best is None or row["log_loss"] < self._best[0]:
            self._best = (row["log_loss"], row, predictor)
        if self.progress is not None:
            self.progress(len(self.tuning), total)

    @property
    def leader(self) -> dict[str, Any]:
        """Options and figures of the best setting so far.

        Raises:
            LabelError: no setting was tried.
        """
        if self._best is None:
            raise LabelError("no setting was tried")
        return self._best[1]

    def replace(self, predictor: Predict, p_tuning: ArrayLike) -> None:
        """Predict with the best setting fitted anew, at greater expense, and state what it scores."""
        score = log_loss(self.y_tuning, p_tuning)
        self._best = (score, {**self.leader, "log_loss": score, "auroc": auroc(self.y_tuning, p_tuning)}, predictor)

    def finish(self, name: str) -> FittedBaseline:
        """The best setting offered."""
        if self._best is None:
            raise LabelError(f"{name} tried no setting")
        _, chosen, predictor = self._best
        seconds = time.perf_counter() - self._started
        return FittedBaseline(name, self.X_train.shape[1], chosen, self.tuning, seconds, predictor)
