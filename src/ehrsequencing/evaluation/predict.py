"""Predictions of a trained run on labelled histories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.labels import trained_categories
from ehrsequencing.data.rules import refuse_other_rules
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, RunError
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction
from ehrsequencing.io import read_json
from ehrsequencing.models.architectures import classifier_class, survival_class
from ehrsequencing.models.classification import SequenceClassifier
from ehrsequencing.models.survival import BEHRTForSurvival, SurvivalModel


def load_trained(run: str | Path, store: TokenStore) -> SequenceClassifier | SurvivalModel:
    """The trained model of a fine-tuning run, in eval mode.

    Raises:
        RunError: the run has no model, or one that decides nothing about a history.
        VocabularyMismatchError: it was trained with another vocabulary or other rules than the store's.
    """
    folder = Path(run) / "model"
    if not folder.is_dir():
        several = (Path(run) / "arms").is_dir()
        raise RunError(
            f"{run} holds no trained model",
            expected=str(folder),
            remedy="name one of its trainings under arms/" if several else "finish `ehrseq finetune` first",
        )
    refuse_other_rules(store.path, folder)
    architecture = str(read_json(folder / "config.json", CheckpointError).get("architecture"))
    kind = classifier_class(architecture) or survival_class(architecture)
    if kind is None:
        raise RunError(
            f"{run} is not a classifier", got=architecture, remedy="name a folder that `ehrseq finetune` wrote"
        )
    return kind.from_pretrained(folder, vocabulary_hash=store.vocabulary.hash).eval()


def load_classifier(run: str | Path, store: TokenStore) -> SequenceClassifier:
    """`load_trained` of a classifier.

    Raises:
        RunError: it is none, too.
    """
    model = load_trained(run, store)
    if not isinstance(model, SequenceClassifier):
        raise RunError(
            f"{run} is not a classifier", got=type(model).__name__,
            remedy="`ehrseq predict RUN STORE LABELS --at DAYS` writes a survival run's curves",
        )  # fmt: skip
    return model


def load_survival(run: str | Path, store: TokenStore, causes: int) -> SurvivalModel:
    """`load_trained` of a survival model of as many causes.

    Raises:
        RunError: it is none, or of another number of causes, too.
    """
    model = load_trained(run, store)
    if not isinstance(model, SurvivalModel) or model.causes != causes:
        raise RunError(
            f"{run} does not answer what these labels ask",
            got=f"{model.causes} causes" if isinstance(model, SurvivalModel) else type(model).__name__,
            expected=f"a survival model of {causes} {'cause' if causes == 1 else 'causes'}",
            remedy="evaluate on the labels that the run was trained with",
        )
    return model


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


def _answers(
    model: SequenceClassifier | SurvivalModel,
    store: TokenStore,
    split: str,
    examples: Examples,
    token_budget: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Of each batch: positions of its examples, int64, and the logits, float64."""
    source = BatchSource(
        store.split(split),
        examples,
        store.values,
        max_length=model.config.max_length,
        token_budget=token_budget,
        seed=0,
        separators=model.config.separators,
    )
    done = 0
    for batch in source.fixed():
        yield batch.example_ids.numpy(), model(**batch.inputs(model.config.input_names)).logits.double()
        done += len(batch.example_ids)
        if progress is not None:
            progress(done, len(examples))


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
    several = model.problem_type != "binary"
    probabilities = np.full(
        (len(examples), model.num_labels) if several else len(examples), np.nan, np.float32 if several else np.float64
    )
    for position, logits in _answers(model, store, split, examples, token_budget, progress):
        probabilities[position] = logits.sigmoid().numpy()
    return probabilities


@torch.inference_mode()
def predict_survival(
    model: SurvivalModel,
    store: TokenStore,
    split: str,
    examples: Examples,
    *,
    token_budget: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> SurvivalPrediction:
    """Curves at the edges of the model's grid, in the order of `examples`; `at` gives them at any day of the grid.

    There is a risk of a Cox model of one cause alone, its log hazard: curves of the others may cross.

    Raises:
        RunError: the model reads visits: figures at horizons come from the landmark reading alone.
        ConfigError: a Cox model without a baseline.
    """
    if isinstance(model, BEHRTForSurvival) and model.reading == "visits":
        raise RunError(
            "a model that reads visits has no curves from the prediction time on", got="survival.reading=visits",
            expected="landmark", remedy="train with survival.reading=landmark",
        )  # fmt: skip
    times = len(model.edges) - 1
    survival = np.full((len(examples), times), np.nan)
    risk = np.full(len(examples), np.nan) if model.loss_name == "cox" and model.causes == 1 else None
    incidence = np.full((len(examples), model.causes, times), np.nan)
    for position, logits in _answers(model, store, split, examples, token_budget, progress):
        found = model.curves(logits)
        survival[position], incidence[position] = found.survival[:, 1:].numpy(), found.incidence[:, :, 1:].numpy()
        if risk is not None:
            risk[position] = logits[:, 0].numpy()
    return SurvivalPrediction(model.edges[1:].double().numpy(), survival, incidence, risk)


def example_keys(examples: Examples) -> dict[str, pl.Series]:
    """Subject and prediction time of each example; no time where a subject has no dated event."""
    time = pl.Series(examples.until)
    return {
        "subject_id": pl.Series(examples.subject_id),
        "prediction_time": time.set(time == STATIC_TIME, None).cast(pl.Datetime("us")),
    }


def prediction_frame(examples: Examples, probabilities: dict[str, np.ndarray]) -> pl.DataFrame:
    """Table of subject, prediction time, label and one column of probabilities per model.

    Of a multi-label task it has a row per example and category, with a column `category` beside.
    """
    target = np.asarray(examples.target)
    keys = example_keys(examples)
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
