"""Baselines of multi-label tasks: prevalence, copy-history, one model per category, one linear model for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize

from ehrsequencing.baselines.copying import COPY_SETTINGS, CopyHistory, Past
from ehrsequencing.baselines.fitted import Progress
from ehrsequencing.baselines.linear import inverse_deviation
from ehrsequencing.baselines.models import SHORT_BUDGET, fit_baseline
from ehrsequencing.errors import ConfigError, LabelError

Probabilities = NDArray[np.float32]
Bools = NDArray[np.bool_]

MULTILABEL_BASELINES = ("prevalence", "copy_history", "logistic_regression", "xgboost", "linear")
LINEAR_STRENGTHS = (5e-5, 2e-4, 1e-3, 5e-3)
LINEAR_ROWS, LINEAR_ITERATIONS = 20_000, 40
_TINY = 1e-7


@dataclass(frozen=True)
class MultiLabelData:
    """What the baselines of a multi-label task are fitted on; held-out subjects are not among it.

    Attributes:
        train, tuning: Bool [n, categories].
        features: By split; float [n, features].
        past: By split; None where no code of the store is a case of a category.
    """

    train: Bools
    tuning: Bools
    features: Mapping[str, sparse.csr_matrix]
    past: Mapping[str, Past] | None

    def __post_init__(self) -> None:
        for split, y in (("train", self.train), ("tuning", self.tuning)):
            if not y.any():
                raise LabelError(f"the labels of {split} have no positive", got=f"0 positives in {len(y)} rows")


@dataclass(frozen=True)
class FittedMultiLabel:
    """A fitted baseline.

    Attributes:
        name: Of `MULTILABEL_BASELINES`.
        features: Columns it sees; None where it sees none.
        chosen, tuning: As in `FittedBaseline`; the loss is the mean over all cells of tuning.
        seconds: Wall time of all of it.
        predict: From the name of a split to its probabilities, float32 [n, categories].
    """

    name: str
    features: int | None
    chosen: dict[str, Any]
    tuning: list[dict[str, Any]]
    seconds: float
    predict: Callable[[str], Probabilities]


def fit_multilabel_baseline(
    name: str, data: MultiLabelData, *, seed: int = 0, threads: int = 2, progress: Progress | None = None
) -> FittedMultiLabel:
    """Fit a baseline on train, settings chosen by log loss on tuning.

    Args:
        name: One of `MULTILABEL_BASELINES`. `logistic_regression` and `xgboost` fit a model per category, each with
            the settings that do best for it; `linear` fits one multi-output logistic regression.
        progress: Called as `progress(fits done, fits in all)`.

    Raises:
        ConfigError: unknown name.
        LabelError: copy-history, and no code of the store is a case of a category.
    """
    fits = {
        "prevalence": _prevalence,
        "copy_history": _copy_history,
        "linear": _linear,
        "logistic_regression": _one_per_category,
        "xgboost": _one_per_category,
    }
    if name not in fits:
        raise ConfigError("unknown multi-label baseline", got=name, expected=", ".join(MULTILABEL_BASELINES))
    return fits[name](name, data, seed, threads, progress or (lambda done, total: None))


def cell_log_loss(y: Bools, p: NDArray[np.floating]) -> float:
    """Mean cross-entropy over all cells, nats; probabilities are kept 1e-7 away from 0 and 1."""
    p = np.clip(p, _TINY, 1 - _TINY)
    return float(-np.mean(np.log(np.where(y, p, 1 - p)), dtype=np.float64))


def _share(y: Bools) -> NDArray[np.float64]:
    """Share of positives, kept half a row away from none and all."""
    return np.clip(y.sum(0), 0.5, len(y) - 0.5) / len(y)


def _prevalence(name: str, data: MultiLabelData, seed: int, threads: int, progress: Progress) -> FittedMultiLabel:
    share = _share(data.train).astype(np.float32)

    def predict(split: str) -> Probabilities:
        return np.tile(share, (data.features[split].shape[0], 1))

    row = {"log_loss": cell_log_loss(data.tuning, predict("tuning"))}
    return FittedMultiLabel(name, None, row, [row], 0.0, predict)


def _copy_history(name: str, data: MultiLabelData, seed: int, threads: int, progress: Progress) -> FittedMultiLabel:
    past = data.past
    if past is None:
        raise LabelError(
            "copy-history needs categories that are codes of the store",
            remedy="name patterns of codes per category under `definitions` in the labels' manifest",
        )
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    models: list[CopyHistory] = []
    for setting in COPY_SETTINGS:
        begun = time.perf_counter()
        models.append(CopyHistory.fit(setting, past["train"], data.train))
        loss = cell_log_loss(data.tuning, models[-1].predict(past["tuning"]))
        rows.append({"past": setting, "log_loss": loss, "seconds": round(time.perf_counter() - begun, 3)})
        progress(len(rows), len(COPY_SETTINGS))
    best = int(np.argmin([row["log_loss"] for row in rows]))
    return FittedMultiLabel(
        name, None, rows[best], rows, time.perf_counter() - started, lambda split: models[best].predict(past[split])
    )


def _one_per_category(name: str, data: MultiLabelData, seed: int, threads: int, progress: Progress) -> FittedMultiLabel:
    started = time.perf_counter()
    share, categories = _share(data.train), data.train.shape[1]
    fitted = []
    for category in range(categories):
        y, tuning = data.train[:, category], data.tuning[:, category]
        both = 0 < y.sum() < len(y) and 0 < tuning.sum() < len(tuning)
        fitted.append(
            fit_baseline(
                name, data.features["train"], y, data.features["tuning"], tuning,
                seed=seed, threads=threads, budget=SHORT_BUDGET,
            ) if both else None
        )  # fmt: skip
        progress(category + 1, categories)

    def predict(split: str) -> Probabilities:
        X = data.features[split]
        columns = [
            np.full(X.shape[0], share[category]) if model is None else model.predict(X)
            for category, model in enumerate(fitted)
        ]
        return np.column_stack(columns).astype(np.float32)

    loss = cell_log_loss(data.tuning, predict("tuning"))
    made = [model for model in fitted if model is not None]
    options = [{k: v for k, v in model.chosen.items() if k not in _JUDGED} for model in made]
    distinct = list({str(row): row for row in options}.values())
    rows = [{**row, "categories": options.count(row)} for row in distinct]
    rows.sort(key=lambda row: -row["categories"])
    chosen = {"settings per category": len(made[0].tuning) if made else 0, "categories": len(made), "log_loss": loss}
    if len(made) < categories:
        chosen["at their prevalence, for want of positives"] = categories - len(made)
    return FittedMultiLabel(name, data.features["train"].shape[1], chosen, rows, time.perf_counter() - started, predict)


_JUDGED = ("log_loss", "auroc", "seconds", "trees", "converged")


def _linear(name: str, data: MultiLabelData, seed: int, threads: int, progress: Progress) -> FittedMultiLabel:
    """Ridge logistic regression with an output per category, along a path of C.

    It starts from copy-history's log odds where there are any, else from the prevalence, and learns what the features
    add to them. At most `LINEAR_ROWS` rows of train and `LINEAR_ITERATIONS` steps of L-BFGS per C bound its time.
    """
    started = time.perf_counter()
    start = (
        _copy_history(name, data, seed, threads, progress) if data.past else _prevalence(name, data, seed, 1, progress)
    )
    everyone = len(data.train)
    used = np.sort(np.random.default_rng(seed).permutation(everyone)[:LINEAR_ROWS])
    scale = inverse_deviation(data.features["train"])
    X, tuning = (data.features["train"][used] @ scale).tocsr(), (data.features["tuning"] @ scale).tocsr()
    offset, offset_tuning = _log_odds(start.predict("train")[used]), _log_odds(start.predict("tuning"))
    weights = np.zeros((X.shape[1] + 1, data.train.shape[1]))
    rows: list[dict[str, Any]] = []
    best: tuple[float, NDArray[np.float32]] | None = None
    for C in LINEAR_STRENGTHS:
        begun = time.perf_counter()
        weights, converged = _fit_ridge(X, data.train[used], offset, C, weights)
        p = _sigmoid(offset_tuning + _outputs(tuning, weights))
        row: dict[str, Any] = {"C": C, "converged": converged, "log_loss": cell_log_loss(data.tuning, p)}
        row["seconds"] = round(time.perf_counter() - begun, 3)
        rows.append({**row, "rows": len(used)} if len(used) < everyone else row)
        if best is None or row["log_loss"] < best[0]:
            best = (row["log_loss"], np.concatenate([scale @ weights[:-1], weights[-1:]]).astype(np.float32))
        progress(len(rows), len(LINEAR_STRENGTHS))
    if best is None:
        raise LabelError("the linear model tried no setting")
    kept = best[1]

    def predict(split: str) -> Probabilities:
        return _sigmoid(_log_odds(start.predict(split)) + _outputs(data.features[split], kept))

    chosen = {**min(rows, key=lambda row: row["log_loss"]), "start": start.chosen.get("past", "prevalence")}
    return FittedMultiLabel(name, X.shape[1], chosen, rows, time.perf_counter() - started, predict)


def _fit_ridge(
    X: sparse.csr_matrix, y: Bools, offset: Probabilities, C: float, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], bool]:
    """Weights, float [features + 1, categories], the intercepts in the last row, and whether L-BFGS converged."""
    shape = weights.shape
    signs = np.where(y, np.float32(-1), np.float32(1))

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = flat.reshape(shape)
        margin = signs * (offset + _outputs(X, w))
        error = signs * _sigmoid(margin)
        gradient = w.copy()
        gradient[-1] = 0
        gradient[:-1] += C * (X.T @ error)
        gradient[-1] += C * error.sum(0, dtype=np.float64)
        value = C * np.logaddexp(0, margin).sum(dtype=np.float64) + 0.5 * float((w[:-1] ** 2).sum())
        return value, gradient.ravel()

    found = minimize(
        loss, weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": LINEAR_ITERATIONS, "ftol": 1e-6}
    )
    return found.x.reshape(shape), bool(found.success)


def _outputs(X: sparse.csr_matrix, weights: NDArray[np.floating]) -> Probabilities:
    return X @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)


def _log_odds(p: NDArray[np.floating]) -> Probabilities:
    p = np.clip(p, _TINY, 1 - _TINY)
    return np.log(p / (1 - p)).astype(np.float32)


def _sigmoid(logits: NDArray[np.floating]) -> Probabilities:
    return np.exp(-np.logaddexp(0, -logits)).astype(np.float32)
