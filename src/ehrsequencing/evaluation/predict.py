"""Predictions of a trained run on labelled histories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import RunError
from ehrsequencing.models.behrt import BEHRTForSequenceClassification


def load_classifier(run: str | Path, store: TokenStore) -> BEHRTForSequenceClassification:
    """The trained classifier of a fine-tuning run, in eval mode.

    Raises:
        RunError: the run has no model, or it is not a classifier.
        VocabularyMismatchError: it was trained with another vocabulary than the store's.
    """
    folder = Path(run) / "model"
    if not folder.is_dir():
        raise RunError(f"{run} holds no trained model", expected=str(folder), remedy="finish `ehrseq finetune` first")
    model = BEHRTForSequenceClassification.from_pretrained(folder, vocabulary_hash=store.vocabulary.hash)
    fresh = set(model.state_dict()) - set(model.pretrained_parameters)
    if fresh:
        raise RunError(
            f"{run} is not a classifier",
            got=f"no trained {sorted(fresh)[0]}",
            remedy="name a folder that `ehrseq finetune` wrote",
        )
    return model.eval()


@torch.inference_mode()
def predict(
    model: BEHRTForSequenceClassification,
    store: TokenStore,
    split: str,
    examples: Examples,
    *,
    token_budget: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Probabilities, float64 [examples], in the order of `examples`."""
    source = BatchSource(
        store.split(split),
        examples,
        store.values,
        max_length=model.config.max_length,
        token_budget=token_budget,
        seed=0,
    )
    probabilities = np.full(len(examples.index), np.nan)
    done = 0
    for batch in source.fixed():
        logits = model(**batch.inputs(model.config.input_names)).logits
        probabilities[batch.example_ids.numpy()] = logits.double().sigmoid().numpy()
        done += len(batch.example_ids)
        if progress is not None:
            progress(done, len(probabilities))
    return probabilities


def prediction_frame(examples: Examples, probabilities: dict[str, np.ndarray]) -> pl.DataFrame:
    """Table of subject, prediction time, label and one column of probabilities per model."""
    return pl.DataFrame(
        {
            "subject_id": examples.subject_id,
            "prediction_time": pl.Series(examples.until).cast(pl.Datetime("us")),
            "label": np.asarray(examples.target) > 0.5,
            **probabilities,
        }
    )
