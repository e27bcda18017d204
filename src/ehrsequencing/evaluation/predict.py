"""Predictions of a trained run on labelled histories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.labels import trained_categories
from ehrsequencing.data.rules import refuse_other_rules
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.models.architectures import classifier_class
from ehrsequencing.models.classification import SequenceClassifier


def load_classifier(run: str | Path, store: TokenStore) -> SequenceClassifier:
    """The trained classifier of a fine-tuning run, in eval mode.

    Raises:
        RunError: the run has no model, or it is not a classifier.
        VocabularyMismatchError: it was trained with another vocabulary or other rules than the store's.
    """
    folder = Path(run) / "model"
    if not folder.is_dir():
        raise RunError(f"{run} holds no trained model", expected=str(folder), remedy="finish `ehrseq finetune` first")
    refuse_other_rules(store.path, folder)
    architecture = str(read_json(folder / "config.json", CheckpointError).get("architecture"))
    kind = classifier_class(architecture)
    if kind is None:
        raise RunError(
            f"{run} is not a classifier", got=architecture, remedy="name a folder that `ehrseq finetune` wrote"
        )
    return kind.from_pretrained(folder, vocabulary_hash=store.vocabulary.hash).eval()


def check_categories(run: str | Path, categories: Sequence[str]) -> None:
    """The categories of a multi-label run must be those asked for; none of a binary one.

    Raises:
        RunError: they are not.
    """
    own = trained_categories(Path(run) / "model")
    if own != list(categories):
        raise RunError(
            f"{run} decides another set of categories",
            got=f"{len(categories)} categories" if categories else "a binary label",
            expected=f"{len(own)} categories" if own else "a binary label",
            remedy="evaluate on the labels that the run was trained with",
        )


@torch.inference_mode()
def predict(
    model: SequenceClassifier,
    store: TokenStore,
    split: str,
    examples: Examples,
    *,
    token_budget: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Probabilities in the order of `examples`: float64 [examples], of several labels float32 [examples, labels]."""
    source = BatchSource(
        store.split(split),
        examples,
        store.values,
        max_length=model.config.max_length,
        token_budget=token_budget,
        seed=0,
        separators=model.config.separators,
    )
    several = model.problem_type != "binary"
    probabilities = np.full(
        (len(examples), model.num_labels) if several else len(examples), np.nan, np.float32 if several else np.float64
    )
    done = 0
    for batch in source.fixed():
        logits = model(**batch.inputs(model.config.input_names)).logits
        probabilities[batch.example_ids.numpy()] = logits.double().sigmoid().numpy()
        done += len(batch.example_ids)
        if progress is not None:
            progress(done, len(probabilities))
    return probabilities


def prediction_frame(examples: Examples, probabilities: dict[str, np.ndarray]) -> pl.DataFrame:
    """Table of subject, prediction time, label and one column of probabilities per model.

    Of a multi-label task it has a row per example and category, with a column `category` beside.
    """
    target = np.asarray(examples.target)
    keys = {
        "subject_id": pl.Series(examples.subject_id),
        "prediction_time": pl.Series(examples.until).cast(pl.Datetime("us")),
    }
    if target.ndim == 1:
        return pl.DataFrame({**keys, "label": target > 0.5, **probabilities})
    rows, categories = target.shape
    row, column = np.repeat(np.arange(rows), categories), np.tile(np.arange(categories), rows)
    return pl.DataFrame(
        {
            **{name: values[row] for name, values in keys.items()},
            "category": pl.Series(examples.categories, dtype=pl.Enum(examples.categories))[column],
            "label": target.ravel(),
            **{name: values.ravel() for name, values in probabilities.items()},
        }
    )
