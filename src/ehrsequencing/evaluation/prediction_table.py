"""What a trained run predicts of histories, as a table with the model's version on every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing import __version__
from ehrsequencing.data.labels import trained_categories, trained_causes
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.evaluation.predict import example_keys, load_trained, predict, predict_survival
from ehrsequencing.io import hash_bytes, hash_file
from ehrsequencing.models.classification import SequenceClassifier
from ehrsequencing.models.survival import SurvivalModel

Progress = Callable[[str, int, int], None]


def folder_hash(folder: Path) -> str:
    """Hex BLAKE2b-256 over the names and contents of a folder's files: the version of a model."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hash_bytes(
        *(part.encode() for file in files for part in (file.relative_to(folder).as_posix(), hash_file(file)))
    )


def day_name(days: float) -> str:
    """A number of days as keys and columns name it: no digit is lost.

    >>> day_name(365.0), day_name(1000.001)
    ('365', '1000.001')
    """
    return str(int(days)) if days == int(days) else repr(float(days))


def parse_days(text: str) -> list[float]:
    """Days of `--at`, ascending.

    Raises:
        ConfigError: not a list of numbers above 0, each once.

    >>> parse_days("1825, 365")
    [365.0, 1825.0]
    """
    try:
        days = sorted(float(part) for part in text.split(","))
    except ValueError:
        days = []
    if not days or not all(math.isfinite(day) and day > 0 for day in days) or len(set(days)) < len(days):
        raise ConfigError("--at", got=repr(text), expected="days above 0, separated by commas, each once: 365,1825")
    return days


def asked_examples(store: TokenStore, labels: pl.DataFrame | None, split: str) -> dict[str, Examples]:
    """Histories to predict from, by split: at the labels' prediction times, else whole ones.

    Args:
        store: The token store.
        labels: Subjects and prediction times; what came is not looked at.
        split: "train", "tuning", "held_out", or "all".

    Raises:
        ConfigError: no such split.
        LabelError: none of the labels is of the split, or see `Examples.from_labels`.
    """
    if split not in (*SPLITS, "all"):
        raise ConfigError("--split", got=split, expected=", ".join((*SPLITS, "all")))
    asked = SPLITS if split == "all" else (split,)
    if labels is None:
        found = {name: Examples.whole_histories(store.split(name)) for name in asked}
        found = {name: rows for name, rows in found.items() if len(rows)}
        if not found:
            raise LabelError(f"{store.path}: split {split} has no subject", remedy="choose another --split")
        return found
    ids = labels["subject_id"].to_numpy()
    here = {name: store.split(name).index_of(ids) >= 0 for name in asked}
    if not any(rows.any() for rows in here.values()):
        raise LabelError(
            f"no label belongs to split {split} of {store.path}", got=f"{len(labels)} labels",
            remedy="choose another --split, or labels of subjects that the store holds",
        )  # fmt: skip
    return {name: Examples.asked(store.split(name), labels) for name, rows in here.items() if rows.any()}


def prediction_table(
    run: Path,
    store: TokenStore,
    examples: dict[str, Examples],
    days: Sequence[float] | None = None,
    progress: Progress = lambda name, done, total: None,
) -> pl.DataFrame:
    """Predictions of a fine-tuning run.

    Args:
        run: Its directory.
        store: Token store with the run's vocabulary.
        examples: Histories by split.
        days: Days after the prediction time, of a survival run.
        progress: Told (split, done, total).

    Returns:
        `subject_id`, `prediction_time`, then of a survival run `survival@D` and `CAUSE@D` (cumulative incidence) for
        each day D, of a binary run `probability`, of a multi-label run a row per category with `category` and
        `probability`; then `model_hash` and `package_version`.

    Raises:
        ConfigError: days beyond the run's grid, days of a run that is no survival run, or none of one that is.
        RunError, VocabularyMismatchError: see `load_trained` and `predict_survival`.
    """
    model = load_trained(run, store)
    folder = run / "model"
    if isinstance(model, SurvivalModel):
        last = float(model.edges[-1])
        if not days:
            raise ConfigError(f"{run} predicts times to an event", got="no --at", expected=f"days, up to {last:g}")
        if max(days) > last:
            raise ConfigError(
                f"--at lies beyond the grid of {run}", got=f"{max(days):g} days", expected=f"at most {last:g}",
                remedy="ask for earlier days, or train with a longer survival.horizon_days",
            )  # fmt: skip
    elif days:
        raise ConfigError(f"{run} predicts no times, so --at has no effect", remedy="leave out --at")
    parts = []
    for split, rows in examples.items():
        told = _progress_of(progress, split)
        if isinstance(model, SurvivalModel):
            parts.append(_curves(model, store, split, rows, trained_causes(folder), days or (), told))
        else:
            parts.append(_probabilities(model, store, split, rows, trained_categories(folder), told))
    return pl.concat(parts).with_columns(model_hash=pl.lit(folder_hash(folder)), package_version=pl.lit(__version__))


def _progress_of(progress: Progress, split: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(split, done, total)


def _curves(
    model: SurvivalModel,
    store: TokenStore,
    split: str,
    examples: Examples,
    causes: Sequence[str],
    days: Sequence[float],
    progress: Callable[[int, int], None],
) -> pl.DataFrame:
    found = predict_survival(model, store, split, examples, progress=progress).at(days)
    columns: dict[str, np.ndarray] = {}
    for place, day in enumerate(days):
        columns[f"survival@{day_name(day)}"] = found.survival[:, place]
        columns |= {f"{name}@{day_name(day)}": found.incidence[:, cause, place] for cause, name in enumerate(causes)}
    return pl.DataFrame({**example_keys(examples), **columns})


def _probabilities(
    model: SequenceClassifier,
    store: TokenStore,
    split: str,
    examples: Examples,
    categories: Sequence[str],
    progress: Callable[[int, int], None],
) -> pl.DataFrame:
    found = predict(model, store, split, examples, progress=progress)
    frame = pl.DataFrame(example_keys(examples))
    if found.ndim == 1:
        return frame.with_columns(probability=pl.Series(found))
    names = categories or [str(label) for label in range(found.shape[1])]
    row, column = np.repeat(np.arange(len(found)), len(names)), np.tile(np.arange(len(names)), len(found))
    return frame[row].with_columns(
        category=pl.Series(names, dtype=pl.Enum(names))[column], probability=pl.Series(found.ravel())
    )
