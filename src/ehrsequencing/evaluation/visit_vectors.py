"""Histories as vectors: what Med2Vec makes of their visits, pooled up to the prediction time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.rules import refuse_other_rules
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.models.med2vec import Med2Vec

VISIT_POOLINGS = ("mean", "last", "max")


def load_med2vec(run: str | Path, store: TokenStore) -> Med2Vec:
    """The Med2Vec of a pretraining run, in eval mode.

    Raises:
        RunError: no Med2Vec run, or one of another store, whose subjects may be judged here.
        VocabularyMismatchError: another vocabulary or other rules than the store's.
    """
    metadata = read_json(Path(run) / "metadata.json", remedy="name a folder that `ehrseq pretrain` wrote")
    folder = Path(run) / "model"
    found = read_json(folder / "config.json", remedy="finish `ehrseq pretrain --model med2vec` first")["architecture"]
    if found != "Med2Vec":
        raise RunError(f"{run} is no Med2Vec", got=found, remedy="name a run of `ehrseq pretrain --model med2vec`")
    if metadata.get("store_fingerprint") != store.fingerprint:
        raise RunError(
            f"{run} was trained with another store",
            got=store.fingerprint[:16],
            expected=str(metadata.get("store_fingerprint"))[:16],
            remedy="train it on this store, so that held-out subjects stay unseen",
        )
    refuse_other_rules(store.path, folder)
    return Med2Vec.from_pretrained(folder, vocabulary_hash=store.vocabulary.hash).eval()


@torch.inference_mode()
def history_vectors(
    model: Med2Vec,
    store: TokenStore,
    split: str,
    examples: Examples,
    *,
    pooling: str = "mean",
    token_budget: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The visits of each history until its prediction time, pooled.

    Args:
        pooling: "mean", "last" (the most recent visit) or "max" (by coordinate).

    Returns:
        Float32 [examples, visit_dim], in the order of `examples`; NaN where a history holds no visit with a code.

    Raises:
        ConfigError: unknown pooling.
    """
    if pooling not in VISIT_POOLINGS:
        raise ConfigError("pooling of visits", got=pooling, expected=", ".join(VISIT_POOLINGS))
    source = BatchSource(
        store.split(split),
        examples,
        store.values,
        max_length=model.config.max_length,
        token_budget=max(token_budget, model.config.max_length),
    )
    found = np.full((len(examples), model.config.visit_dim), np.nan, dtype=np.float32)
    done = 0
    for batch in source.fixed():
        inputs = batch.inputs(model.config.input_names)
        visits = model.visits_of(inputs["codes"], inputs["visit_ids"], inputs["mask"])
        vectors = model.visit_vectors(**inputs, visits=visits)
        number = torch.bincount(visits.row, minlength=len(batch))
        filled = number > 0
        if pooling == "last":
            pooled = vectors[(number.cumsum(0) - 1)[filled]]
        else:
            reduce = "mean" if pooling == "mean" else "amax"
            empty = vectors.new_zeros(len(batch), vectors.shape[1])
            index = visits.row[:, None].expand_as(vectors)
            pooled = empty.scatter_reduce(0, index, vectors, reduce, include_self=False)[filled]
        found[batch.example_ids[filled].numpy()] = pooled.numpy()
        done += len(batch)
        if progress is not None:
            progress(done, len(examples))
    return found
