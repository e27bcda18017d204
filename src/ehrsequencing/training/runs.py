"""What pretraining and fine-tuning share: opening or resuming a run, building the model, saving what was trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from ehrsequencing.config import FinetuneConfig, PretrainConfig, read_config, write_config
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.rules import RULES_FILE, refuse_other_rules
from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.diagnostics.doctor import write_diagnosis
from ehrsequencing.errors import CheckpointError, ConfigError, RunError
from ehrsequencing.io import hash_bytes, read_json
from ehrsequencing.models.architectures import ARCHITECTURES
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTHead
from ehrsequencing.models.classification import SequenceClassifier
from ehrsequencing.models.configuration import SequenceConfig
from ehrsequencing.models.folder import PretrainedModel, tensors_hash
from ehrsequencing.models.survival import SurvivalModel
from ehrsequencing.options import LoopOptions, ModelOptions
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.rundir import refuse_existing
from ehrsequencing.training.callbacks import Observer
from ehrsequencing.training.device import resolve_loop

Model = TypeVar("Model", bound=BEHRTHead)
CHANGEABLE = {"dropout", "attention_dropout"}
"""Options of the architecture that change no weight, so that they may differ from the base's."""
AS_NAMED = {
    "max_length", "dropout", "attention_dropout", "attention", "position", "age", "separators", "activation", "norm",
    "pooling",
}  # fmt: skip
"""Options of the architecture that a built model has under the same name, where it has them at all."""
RunConfig = TypeVar("RunConfig", PretrainConfig, FinetuneConfig)


def model_config(options: ModelOptions, vocab_size: int, *, causal: bool = False) -> BEHRTConfig:
    """Architecture from the run's options.

    Args:
        causal: Whether the objective predicts from every visit in one pass.
    """
    preset = {"small": BEHRTConfig.small, "medium": BEHRTConfig.medium, "large": BEHRTConfig.large}[options.size]
    return preset(vocab_size=vocab_size, **_architecture_options(options, causal=causal))


def _architecture_options(options: ModelOptions, *, causal: bool) -> dict[str, Any]:
    decided = options.resolved(causal=causal)
    return {
        "max_length": options.max_length,
        "dropout": options.dropout,
        "attention_dropout": options.attention_dropout,
        "position": options.position,
        "age": options.age,
        "num_kinds": len(KINDS) if options.kinds else 0,
        "calendar_embedding": options.calendar,
        "use_values": options.values,
        "separators": options.separators,
        "activation": options.activation,
        "norm": options.norm,
        "pooling": options.pooling,
        "attention": decided.attention,
        "time_embedding": bool(decided.times),
        "gap_embedding": bool(decided.gaps),
    }


def new_classifier(config: FinetuneConfig, vocab_size: int, **head: Any) -> SequenceClassifier:
    """A classifier of the run's architecture with fresh weights.

    Args:
        head: Options of its head.
    """
    chosen = ARCHITECTURES[config.architecture]
    return chosen.model(_configuration(config, vocab_size, causal=False), **head)


def new_survival_model(config: FinetuneConfig, vocab_size: int, **head: Any) -> SurvivalModel:
    """A survival model of the run's architecture with fresh weights; visit-causal where it reads visits.

    Raises:
        ConfigError: the architecture has none.
    """
    kind = ARCHITECTURES[config.architecture].survival
    if kind is None:
        known = ", ".join(name for name, other in ARCHITECTURES.items() if other.survival is not None)
        raise ConfigError("architecture for survival labels", got=config.architecture, expected=f"one of {known}")
    return kind(_configuration(config, vocab_size, causal=config.survival.reading == "visits"), **head)


def _configuration(config: FinetuneConfig, vocab_size: int, *, causal: bool) -> SequenceConfig:
    options = _architecture_options(config.model, causal=causal)
    return ARCHITECTURES[config.architecture].configuration(config.model.size, vocab_size, **options)


@dataclass(frozen=True)
class Start(Generic[RunConfig]):
    """How a run begins: its folder, its resolved configuration, and whether it takes up an earlier process's work."""

    out: Path
    requested: RunConfig
    config: RunConfig
    taken_up: bool
    overwrite: bool


def plan_start(
    out: Path, requested: RunConfig, *, resume: bool, overwrite: bool, from_run: Path | None = None
) -> Start[RunConfig]:
    """Decide how a run begins; nothing is written.

    On resumption the configuration is the one on disk, and options given now must agree with it.

    Raises:
        ConfigError: a resumption asks for other options than the run has, `out` is also the base, or the device is
            not there.
        RunError: `out` holds a run and neither `resume` nor `overwrite` was asked for, or a run of another kind.
    """
    out = out.resolve()
    if from_run is not None:
        _refuse_own_base(out, from_run.resolve())
        fixed = sorted(requested.model.model_fields_set - CHANGEABLE - {"pooling"})
        if fixed:
            raise ConfigError(
                f"with --from the architecture is the base's, so {', '.join('model.' + name for name in fixed)} "
                "would have no effect",
                remedy="leave them out, or train from scratch",
            )
    metadata = read_json(out / "metadata.json") if resume and (out / "metadata.json").is_file() else {}
    kind = "pretrain" if isinstance(requested, PretrainConfig) else "finetune"
    if metadata.get("kind", kind) != kind:
        raise RunError(
            f"{out} holds a run of another kind", got=metadata["kind"], expected=kind, remedy="choose another --out"
        )
    stored = metadata.get("requested")
    if metadata and stored is None and (out / "arms").is_dir():
        raise RunError(f"{out} holds several trainings", remedy="resume it with the --seeds it was started with")
    if stored is None:
        # Also a run that was killed while its folder was being made: there is nothing to take up.
        overwrite = overwrite or bool(metadata)
        if not overwrite:
            refuse_existing(out)
        config = requested.model_copy(update={"loop": resolve_loop(requested.loop)})
        return Start(out, requested, config, False, overwrite)
    try:
        earlier = type(requested).model_validate(stored)
    except ValidationError:
        raise RunError(f"{out} holds a run of another kind", remedy="choose another --out") from None
    differing = _differences(requested.model_dump(exclude_unset=True), earlier.model_dump())
    if differing:
        raise ConfigError(
            f"--resume of {out} with other options: {', '.join(differing)}",
            remedy="resume with the run's own options or with none, or start a new run",
        )
    return Start(out, requested, read_config(type(requested), out / "config.toml"), True, False)


def as_built(start: Start[RunConfig], built: SequenceConfig) -> Start[RunConfig]:
    """The run with the architecture that its model has in place of what the options left open or its base decided."""
    presets = get_args(ModelOptions.model_fields["size"].annotation)
    options = start.config.model.model_dump() | {
        **{name: getattr(built, name) for name in AS_NAMED if hasattr(built, name)},
        "kinds": built.num_kinds > 0,
        "times": built.time_embedding,
        "gaps": built.gap_embedding,
        "calendar": built.calendar_embedding,
        "values": built.use_values,
    }
    if (name := size_name(built, getattr(start.config, "architecture", "behrt"))) in presets:
        options["size"] = name
    return replace(start, config=start.config.model_copy(update={"model": ModelOptions(**options)}))


def _refuse_own_base(out: Path, base: Path) -> None:
    if out in (base, *base.parents):
        raise ConfigError(f"--out {out} is or holds the run of --from", remedy="choose another --out")


def check_identity(start: Start[RunConfig], identity: Mapping[str, str]) -> None:
    """On resumption: the run must have been started with the same data, base and configuration.

    Raises:
        CheckpointError: it was not; names what differs. Nothing was written.
    """
    if not start.taken_up:
        return
    stored = read_json(start.out / "metadata.json").get("identity", {})
    differing = [name for name, value in identity.items() if stored.get(name) != value]
    if differing:
        raise CheckpointError(
            f"{start.out} was started with another {' and '.join(differing)}",
            got=", ".join(identity[name][:16] for name in differing),
            expected=", ".join(str(stored.get(name))[:16] for name in differing),
            remedy="resume with the store, labels and base that the run was started with",
        )


def finished_summary(start: Start[RunConfig]) -> dict[str, Any] | None:
    """The summary of a run that was taken up after it had ended; None where there is something left to do."""
    if not start.taken_up:
        return None
    status = read_json(start.out / "metadata.json").get("status")
    done = status in ("completed", "early_stopped") and (start.out / "model").is_dir()
    return read_json(start.out / "summary.json") if done else None


def open_run(start: Start[RunConfig], identity: Mapping[str, str], facts: Mapping[str, Any]) -> ExperimentTracker:
    """Make or reopen the run directory and write what the run is."""
    out = start.out
    tracker = ExperimentTracker(
        out.name, out.parent, resume=start.taken_up, exist_ok=start.overwrite, mirrors=start.config.loop.mirrors
    )
    if not start.taken_up:
        requested = start.requested.model_dump(mode="json", exclude_unset=True)
        # The metadata last: where it names what was requested, the configuration is there.
        write_config(out / "config.toml", start.config)
        tracker.log_hyperparameters(start.config.model_dump(mode="json", exclude=start.config.unused()))
        tracker.log_metadata({"requested": requested, "identity": dict(identity), **facts})
    return tracker


@contextmanager
def diagnosed(start: Start[RunConfig], observer: Observer) -> Iterator[None]:
    """Around a run: the doctor looks at it when it has ended, well or badly, and says what it found."""
    try:
        yield
    except RunError:
        _diagnose(start.out, observer)
        raise
    _diagnose(start.out, observer)


def _diagnose(run: Path, observer: Observer) -> None:
    if (run / "metadata.json").is_file():
        for finding in write_diagnosis(run).findings or ("no findings",):
            observer.say(f"doctor: {finding}")


def _differences(asked: Mapping[str, Any], earlier: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in asked.items():
        if isinstance(value, Mapping):
            found += _differences(value, earlier[key], f"{prefix}{key}.")
        elif value != earlier[key]:
            found.append(f"{prefix}{key} ({earlier[key]} -> {value})")
    return found


def size_name(config: SequenceConfig, architecture: str = "behrt") -> str:
    """Name of the preset that a model has, or its layers and width."""
    return ARCHITECTURES[architecture].size_name(config)


def config_hash(config: BaseModel) -> str:
    """Identity of a resolved configuration, leaving out what cannot change the result."""
    left_out: dict[str, Any] = {"accept": True, "loop": {"checkpoint_seconds", "mirrors"}}
    if isinstance(config, FinetuneConfig) and "survival" in config.unused():
        left_out["survival"] = True
    return hash_bytes(config.model_dump_json(exclude=left_out).encode())


def batch_source(
    store: TokenStore, split: str, examples: Examples, loop: LoopOptions, built: SequenceConfig
) -> BatchSource:
    """Batches of one split, for a model of this architecture."""
    return BatchSource(
        store.split(split),
        examples,
        store.values,
        max_length=built.max_length,
        token_budget=loop.token_budget,
        seed=loop.seed,
        max_examples=loop.max_examples,
        separators=built.separators,
    )


def store_files(store: TokenStore) -> dict[str, bytes]:
    """Files that travel with a model: the vocabulary, value statistics and, unless default, rules of its store."""
    names = ("vocabulary.json", "values.json", *([RULES_FILE] if (store.path / RULES_FILE).exists() else []))
    return {name: (store.path / name).read_bytes() for name in names}


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
        "flow": [
            {"step": row["step"], "count": row["rows"], "subjects": row.get("subjects")} for row in manifest["flow"]
        ],
    }


@contextmanager
def warnings_to(observer: Observer, notes: list[str]) -> Iterator[None]:
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
        VocabularyMismatchError: the store's vocabulary is neither the model's nor an extension of it, or its rules
            are others.
    """
    refuse_other_rules(store.path, folder)
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


def base_hash(model: PretrainedModel) -> str:
    """Hash of what came from the base; a fresh head is drawn from the seed and is no part of it."""
    return tensors_hash({name: model.state_dict()[name] for name in model.pretrained_parameters})


def seed_everything(seed: int) -> None:
    """Seed the generator that initialisation and dropout draw from."""
    torch.manual_seed(seed)
