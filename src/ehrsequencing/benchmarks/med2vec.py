"""Med2Vec + LR: visit vectors of a Med2Vec run as features of a logistic regression, among the baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from ehrsequencing.baselines.models import fit_baseline
from ehrsequencing.benchmarks.arms import Arm
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError
from ehrsequencing.evaluation.visit_vectors import history_vectors, load_med2vec

NAME = "med2vec_lr"


def med2vec_arm(
    run: str | Path,
    store: TokenStore,
    examples: Mapping[str, Examples],
    *,
    pooling: str = "mean",
    seed: int = 0,
    threads: int = 2,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Arm:
    """Fit on train and choose on tuning as the other baselines are, from a history's pooled visit vectors.

    Coordinates are centred and scaled by train. A history without a visit has the mean of train and a column that
    says so.

    Args:
        run: Run of `ehrseq pretrain --model med2vec` on this store.
        examples: Labelled histories of every split, of a binary task.
        pooling: See `history_vectors`.

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
    model = load_med2vec(run, store)
    vectors = {
        split: history_vectors(
            model, store, split, examples[split], pooling=pooling, progress=partial(progress, f"{NAME} {split}")
        )
        for split in SPLITS
    }
    matrices = standardised(vectors)
    targets = {split: np.asarray(examples[split].target) > 0.5 for split in SPLITS}
    fitted = fit_baseline(
        "logistic_regression", matrices["train"], targets["train"], matrices["tuning"], targets["tuning"],
        seed=seed, threads=threads, progress=partial(progress, NAME),
    )  # fmt: skip
    return Arm(
        name=NAME,
        kind="baseline",
        tuning=[fitted.predict(matrices["tuning"])],
        held_out=[fitted.predict(matrices["held_out"])],
        seconds=time.perf_counter() - started,
        features=fitted.features,
        grid=fitted.tuning,
        chosen=fitted.chosen,
        notes=f"{pooling} of the visit vectors of {Path(run).name}",
    )


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
