"""Med2Vec + LR: visit vectors of a Med2Vec as features of a logistic regression, among the baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from ehrsequencing.baselines.models import BUDGET, fit_baseline
from ehrsequencing.benchmarks.arms import Arm, members
from ehrsequencing.benchmarks.cells import Observed, is_done
from ehrsequencing.config import PretrainConfig
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError
from ehrsequencing.evaluation.visit_vectors import history_vectors, load_med2vec
from ehrsequencing.training.pretrain import pretrain

NAME = "med2vec_lr"


def med2vec_arm(
    run: str | Path,
    store: TokenStore,
    examples: Mapping[str, Examples],
    *,
    pooling: str = "mean",
    budget: int = BUDGET,
    seed: int = 0,
    threads: int = 2,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Arm:
    """Fit on train and choose on tuning as the other baselines are, from a history's pooled visit vectors.

    Coordinates are centred and scaled by train. A history without a visit has the mean of train and a column that
    says so.

    Args:
        run: Run of `ehrseq pretrain --model med2vec` on this store, or a folder of several seeds of one.
        examples: Labelled histories of every split, of a binary task.
        pooling: See `history_vectors`.
        budget: Settings that the regression tries with each seed's vectors, see `fit_baseline`.

    Raises:
        ConfigError: the task is multi-label.
        RunError: the run is no Med2Vec of this store.
    """
    if examples["train"].categories:
        raise ConfigError(
            "Med2Vec + LR is of binary tasks", got=f"{len(examples['train'].categories)} categories",
            remedy="leave out --med2vec",
        )  # fmt: skip
    started = time.perf_counter()
    targets = {split: np.asarray(examples[split].target) > 0.5 for split in SPLITS}
    predicted: dict[str, list[np.ndarray]] = {"tuning": [], "held_out": []}
    for member in members(Path(run)):
        model = load_med2vec(member, store)
        matrices = standardised(
            {
                split: history_vectors(
                    model, store, split, examples[split], pooling=pooling, progress=partial(progress, f"{NAME} {split}")
                )
                for split in SPLITS
            }
        )
        fitted = fit_baseline(
            "logistic_regression", matrices["train"], targets["train"], matrices["tuning"], targets["tuning"],
            seed=seed, threads=threads, budget=budget, progress=partial(progress, NAME),
        )  # fmt: skip
        for split, found in predicted.items():
            found.append(fitted.predict(matrices[split]))
    return Arm(
        name=NAME,
        kind="baseline",
        tuning=predicted["tuning"],
        held_out=predicted["held_out"],
        seconds=time.perf_counter() - started,
        features=fitted.features,
        grid=fitted.tuning,
        chosen=fitted.chosen,
        notes=f"{pooling} of the visit vectors of {Path(run).name}",
    )


def train_med2vec(
    store: Path,
    run: Path,
    config: PretrainConfig,
    name: str,
    observed: Observed,
    *,
    seed: int | None = None,
) -> None:
    """Train a Med2Vec as a cell of a benchmark, or take up one that was killed; nothing where it is done.

    Args:
        store: Token store, whose train subjects it learns from.
        config: Its options.
        name: Of the training, for who observes it.
        seed: In place of that of the options.
    """
    if is_done(run):
        return
    options = config.model_dump(exclude_unset=True) | {"architecture": "med2vec"}
    if seed is not None:
        options["loop"] = {**options.get("loop", {}), "seed": seed}
    resume = (run / "metadata.json").exists()
    with observed(name) as observer:
        pretrain(store, run, PretrainConfig.model_validate(options), resume=resume, observer=observer)


def standardised(vectors: Mapping[str, np.ndarray]) -> dict[str, sparse.csr_matrix]:
    """Vectors with mean 0 and deviation 1 on train, and a column that is 1 where there was none.

    Args:
        vectors: Float [examples, width] per split; NaN rows where a history has no vector.

    >>> made = standardised({"train": np.array([[0.0], [2.0], [np.nan]])})
    >>> made["train"].toarray().tolist()
    [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    train = vectors["train"][~np.isnan(vectors["train"][:, 0])].astype(np.float64)
    mean = train.mean(0) if len(train) else np.zeros(vectors["train"].shape[1])
    deviation = train.std(0) if len(train) else np.ones_like(mean)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0.0)
    found = {}
    for split, rows in vectors.items():
        absent = np.isnan(rows[:, :1])
        columns = np.where(absent, 0.0, (np.nan_to_num(rows) - mean) * scale)
        found[split] = sparse.csr_matrix(np.hstack((columns, absent)).astype(np.float32))
    return found
