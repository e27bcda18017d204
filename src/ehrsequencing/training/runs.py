"""What pretraining and fine-tuning share: opening or resuming a run, building the model, saving what was trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel

from ehrsequencing.config import FinetuneConfig, LoopOptions, ModelOptions, PretrainConfig, read_config, write_config
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import hash_bytes, read_json, versions
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM, BEHRTForSequenceClassification
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.training.callbacks import Observer
from ehrsequencing.training.device import resolve_loop

Model = TypeVar("Model", BEHRTForMLM, BEHRTForSequenceClassification)
RunConfig = TypeVar("RunConfig", PretrainConfig, FinetuneConfig)


def model_config(options: ModelOptions, vocab_size: int) -> BEHRTConfig:
    """Architecture from the run's options."""
    preset = {"small": BEHRTConfig.small, "medium": BEHRTConfig.medium, "large": BEHRTConfig.large}[options.size]
    return preset(
        vocab_size=vocab_size,
        max_length=options.max_length,
        dropout=options.dropout,
        attention_dropout=options.attention_dropout,
        position=options.position,
        num_kinds=len(KINDS) if options.kinds else 0,
        time_embedding=options.times,
        use_values=options.values,
        pooling=options.pooling,
    )


def open_run(out: Path, requested: RunConfig, *, resume: bool, overwrite: bool) -> tuple[ExperimentTracker, RunConfig]:
    """Start a run directory, or take one up again with the configuration it was started with.

    Returns:
        The tracker and the resolved configuration; on resumption it is the one on disk.

    Raises:
        ConfigError: a resumption asks for other options than the run has.
        RunError: the directory holds a run and neither `resume` nor `overwrite` was asked for.
    """
    stored = out / "config.toml"
    taken_up = resume and stored.exists()
    tracker = ExperimentTracker(out.name, out.parent, resume=taken_up, exist_ok=overwrite)
    if taken_up:
        earlier = type(requested).model_validate(read_json(out / "metadata.json")["requested"])
        differing = _differences(earlier.model_dump(), requested.model_dump())
        if differing and requested != type(requested)():
            raise ConfigError(
                f"--resume of {out} with other options: {', '.join(differing)}",
                remedy="resume with the run's own options or with none, or start a new run",
            )
        return tracker, read_config(type(requested), stored)
    resolved = requested.model_copy(update={"loop": resolve_loop(requested.loop)})
    tracker.log_metadata({"requested": requested.model_dump(mode="json"), "versions": versions()})
    write_config(stored, resolved)
    return tracker, resolved


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in a:
        if isinstance(a[key], Mapping):
            found += _differences(a[key], b[key], f"{prefix}{key}.")
        elif a[key] != b[key]:
            found.append(f"{prefix}{key} ({a[key]} -> {b[key]})")
    return found


def config_hash(config: BaseModel) -> str:
    """Identity of a resolved configuration, leaving out what cannot change the result."""
    return hash_bytes(config.model_dump_json(exclude={"loop": {"checkpoint_seconds"}}).encode())


def batch_source(store: TokenStore, split: str, examples: Examples, loop: LoopOptions, max_length: int) -> BatchSource:
    """Batches of one split."""
    return BatchSource(
        store.split(split),
        examples,
        store.values,
        max_length=max_length,
        token_budget=loop.token_budget,
        seed=loop.seed,
        max_examples=loop.max_examples,
    )


def store_files(store: TokenStore) -> dict[str, bytes]:
    """Files that travel with a model: the vocabulary and value statistics it was trained with."""
    return {name: (store.path / name).read_bytes() for name in ("vocabulary.json", "values.json")}


def describe_store(store: TokenStore) -> dict[str, Any]:
    """Facts about the data for the report."""
    facts: dict[str, Any] = {"vocabulary": len(store.vocabulary), "store fingerprint": store.fingerprint[:16]}
    for name in ("train", "tuning", "held_out"):
        split = store.split(name)
        lengths = np.diff(np.asarray(split.offsets))
        median = float(np.median(lengths)) if len(lengths) else 0.0
        facts[f"{name} subjects"] = len(split)
        facts[f"{name} events, median per subject"] = median
    return facts


def parameter_section(report: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What is pretrained, learned from scratch, frozen and received a gradient, in numbers per part of the model."""
    named = {
        "pretrained": "pretrained",
        "from_scratch": "scratch",
        "frozen": "frozen",
        "received_gradient": "gradient",
    }
    return {
        title: {group: counts[key] for group, counts in report["groups"].items() if counts[key]}
        for title, key in named.items()
    }


def flow_section(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cohort's flow as the report wants it."""
    if not manifest.get("flow"):
        return None
    return {
        "unit": "histories",
        "flow": [{"step": row["step"], "count": row["rows"]} for row in manifest["flow"]],
    }


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, z: float = 1.96) -> dict[str, float]:
    """Ratio of sums with a 95 % interval over subjects, by linearisation.

    Args:
        numerator: Float [subjects], for example correct predictions.
        denominator: Float [subjects], for example predictions.

    Source: Cochran, Sampling Techniques, 3rd ed. 1977, section 2.11.
    """
    ratio = numerator.sum() / denominator.sum()
    residual = numerator - ratio * denominator
    error = math.sqrt((residual**2).sum()) / denominator.sum()
    return {"value": float(ratio), "low": float(ratio - z * error), "high": float(ratio + z * error)}


@contextmanager
def warnings_to(observer: Observer, notes: list[str]):  # type: ignore[no-untyped-def]
    """Collect our own warnings into the run's notes and tell the observer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            notes.append(str(warning.message))
            observer.say(f"warning: {warning.message}")


def require_run(run: Path) -> Path:
    """The model folder of a finished run.

    Raises:
        RunError: there is none.
    """
    folder = run / "model"
    if not folder.is_dir():
        raise RunError(
            f"{run} holds no trained model",
            expected=f"{folder}",
            remedy="name the folder that `ehrseq pretrain --out` or `ehrseq finetune --out` finished",
        )
    return folder


def load_base(kind: type[Model], folder: Path, store: TokenStore, **overrides: Any) -> Model:
    """A pretrained model for a store: of the same vocabulary, or grown to the store's where that only adds codes.

    Raises:
        VocabularyMismatchError: the store's vocabulary is neither the model's nor an extension of it.
    """
    own = folder / "vocabulary.json"
    if own.is_file():
        base = Vocabulary.load(own)
        if base.hash != store.vocabulary.hash and base.tokens == store.vocabulary.tokens[: len(base)]:
            model = kind.from_pretrained(folder, vocabulary_hash=base.hash, **overrides)
            model.extend_vocabulary(len(store.vocabulary), vocabulary_hash=store.vocabulary.hash)
            warnings.warn(
                f"{len(store.vocabulary) - len(base)} codes of {store.path} are new to {folder}: their embeddings "
                "start at the mean of the known ones; train embeddings (--method full, "
                "or lora.train_embeddings=true) to learn them",
                UserWarning,
                stacklevel=2,
            )
            return model
    return kind.from_pretrained(folder, vocabulary_hash=store.vocabulary.hash, **overrides)


def seed_everything(seed: int) -> None:
    """Seed the generator that initialisation and dropout draw from."""
    torch.manual_seed(seed)
