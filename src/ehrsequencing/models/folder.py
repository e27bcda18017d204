"""Model folders: `model.safetensors`, `config.json` and whatever the caller puts beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ehrsequencing.errors import AdapterError, CheckpointError, ConfigError, VocabularyMismatchError
from ehrsequencing.io import Mark, atomic_directory, hash_bytes, hash_file, read_json, versions

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
MARK = Mark(CONFIG_FILE, "weights_hash", "a model folder")
BASE_PREFIX = "behrt."
UNREAD = ("pooling.score.weight", "pooling.score.bias")
"""Weights that some heads carried before they had no use for them; where a model has none, a folder's are left out."""


def plain_name(name: str) -> str:
    """Name that a parameter has, or had, before adapters wrapped its layer.

    >>> plain_name("behrt.encoder.layers.0.linear1.base_layer.weight")
    'behrt.encoder.layers.0.linear1.weight'
    """
    return name.replace(".base_layer.", ".")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hex BLAKE2b-256 of names, types, shapes and bytes, independent of order and device."""
    parts = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.append(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hash_bytes(*parts)


def state_hash(model: nn.Module) -> str:
    """Hash of all weights of a model; equal weights, equal hash."""
    return tensors_hash(model.state_dict())


class PretrainedModel(nn.Module):
    """A model with a configuration that is saved to and loaded from a folder.

    Attributes:
        config: The architecture.
        pretrained_parameters: Names of parameters that came from a folder or were marked with `mark_pretrained`.
        gradient_parameters: Names of parameters that have received a gradient other than zero.
        vocabulary_hash: Hash of the vocabulary that the token ids belong to; None where unknown.
        adaptation: What `models.lora` remembers of an adapted model; None for a plain one.
    """

    architectures: ClassVar[dict[str, type[PretrainedModel]]] = {}
    config_class: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.pretrained_parameters: set[str] = set()
        self.gradient_parameters: set[str] = set()
        self.vocabulary_hash: str | None = None
        self.adaptation: object | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        PretrainedModel.architectures[cls.__name__] = cls

    def head_options(self) -> dict[str, Any]:
        """Constructor arguments besides the configuration."""
        return {}

    def count_parameters(self) -> int:
        """Number of parameters; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def mark_pretrained(self, names: Iterable[str] | None = None) -> None:
        """State that parameters (all by default) carry what a pretraining learned."""
        known = {plain_name(name) for name, _ in self.named_parameters()}
        self.pretrained_parameters |= known if names is None else known & set(names)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        vocabulary_hash: str | None = None,
        extra_files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write the model folder, whole or not at all; an existing one is replaced.

        Args:
            folder: Where to.
            vocabulary_hash: Hash of the vocabulary; by default the one the model was loaded with.
            extra_files: File name -> content, for example vocabulary and value statistics.

        Raises:
            AdapterError: the model carries adapters.
            ConfigError: an extra file would replace the weights or the configuration.
            RunError: `folder` holds something other than a model.
        """
        if self.adaptation is not None:
            raise AdapterError(
                "the model carries LoRA adapters", remedy="save them with save_lora_weights, or merge_lora first"
            )
        extra_files = dict(extra_files or {})
        reserved = {WEIGHTS_FILE, CONFIG_FILE} & set(extra_files)
        if reserved:
            raise ConfigError("extra_files of a model folder", got=", ".join(sorted(reserved)), expected="other names")
        with atomic_directory(folder, overwrite=True, mark=MARK) as temporary:
            weights = temporary / WEIGHTS_FILE
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, weights)
            for name, content in extra_files.items():
                (temporary / name).write_bytes(content)
            manifest = {
                "architecture": type(self).__name__,
                "config": self.config.to_dict(),
                "head": self.head_options(),
                "vocabulary_hash": vocabulary_hash or self.vocabulary_hash,
                "weights_hash": hash_file(weights),
                "versions": {**versions(), "torch": torch.__version__},
            }
            (temporary / CONFIG_FILE).write_text(json.dumps(manifest, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, vocabulary_hash: str | None = None, **overrides: Any) -> Self:
        """Load a model folder.

        The class that wrote the folder gets all of it back. Another class takes the encoder with its embeddings
        and starts with a fresh head; `pretrained_parameters` lists what came from the folder.

        Args:
            folder: What `save_pretrained` wrote.
            vocabulary_hash: Hash of the vocabulary in use; None skips the check.
            overrides: Options of the head (`num_labels`, ...), or of the configuration where they change no
                shape (`dropout`, `pooling`, ...).

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the architecture, or is of another family.
            VocabularyMismatchError: the folder was written with another vocabulary.
            ConfigError: an override is unknown.
        """
        folder = Path(folder)
        manifest, weights = _read_folder(folder)
        if vocabulary_hash is not None and manifest["vocabulary_hash"] != vocabulary_hash:
            raise VocabularyMismatchError(
                f"{folder} was trained with another vocabulary",
                got=vocabulary_hash,
                expected=manifest["vocabulary_hash"],
                remedy="prepare the store with --vocabulary this model",
            )
        family = PretrainedModel.architectures[manifest["architecture"]].config_class
        if family is not cls.config_class:
            raise CheckpointError(
                f"{folder} holds a model of another family",
                got=manifest["architecture"],
                expected=f"one of the {cls.config_class.family} family",
                remedy="name the folder of such a model; vectors of codes are taken over with --embeddings",
            )
        same = manifest["architecture"] == cls.__name__
        options = dict(manifest["head"]) if same else {}
        config_options = {name: value for name, value in overrides.items() if name in manifest["config"]}
        options.update({name: value for name, value in overrides.items() if name not in config_options})
        config = cls.config_class.from_dict({**manifest["config"], **config_options})
        try:
            model = cls(config, **options)
        except TypeError:
            raise ConfigError(f"unknown option of {cls.__name__}", got=", ".join(sorted(options))) from None
        _load_weights(model, weights, same=same, folder=folder)
        model.vocabulary_hash = manifest["vocabulary_hash"]
        return model


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    remedy = "save the model again, or name another folder"
    manifest = read_json(folder / CONFIG_FILE, CheckpointError, remedy)
    expected = {"architecture", "config", "head", "vocabulary_hash", "weights_hash"}
    if not isinstance(manifest, dict) or not expected <= set(manifest):
        raise CheckpointError(f"{folder / CONFIG_FILE} is no model configuration", expected=sorted(expected))
    if manifest["architecture"] not in PretrainedModel.architectures:
        known = ", ".join(sorted(PretrainedModel.architectures))
        raise CheckpointError(f"architecture in {folder}", got=manifest["architecture"], expected=f"one of {known}")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", remedy=remedy)
    found = hash_file(path)
    if found != manifest["weights_hash"]:
        raise CheckpointError(f"{path} is damaged", got=found, expected=manifest["weights_hash"], remedy=remedy)
    try:
        return manifest, load_file(path)
    except SafetensorError as problem:
        raise CheckpointError(f"{path} is not readable", got=str(problem), remedy=remedy) from None


def _load_weights(model: PretrainedModel, weights: dict[str, Tensor], *, same: bool, folder: Path) -> None:
    """Copy weights by name; between classes only the encoder, whose names differ by a prefix at most."""
    if not same:
        from_head = any(name.startswith(BASE_PREFIX) for name in weights)
        to_head = any(name.startswith(BASE_PREFIX) for name in model.state_dict())
        if from_head:
            weights = {
                name.removeprefix(BASE_PREFIX): tensor
                for name, tensor in weights.items()
                if name.startswith(BASE_PREFIX)
            }
        if to_head:
            weights = {BASE_PREFIX + name: tensor for name, tensor in weights.items()}
    own = model.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name in own or name not in UNREAD}
    wanted = set(own) if same else {name for name in own if not _has_base(model) or name.startswith(BASE_PREFIX)}
    if set(weights) != wanted:
        odd = sorted(set(weights) ^ wanted)
        raise CheckpointError(f"weights in {folder} do not fit {type(model).__name__}", got=f"differing {odd[:3]}")
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} in {folder}",
                got=tuple(tensor.shape),
                expected=tuple(own[name].shape),
                remedy="load with the configuration it was trained with",
            )
    model.load_state_dict(weights, strict=False)
    model.pretrained_parameters = set(weights) & {name for name, _ in model.named_parameters()}


def _has_base(model: PretrainedModel) -> bool:
    return any(name.startswith(BASE_PREFIX) for name in model.state_dict())
