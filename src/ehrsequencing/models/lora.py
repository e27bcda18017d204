"""Low-rank adapters on the encoder's linear layers: adapt, count, save, load, merge.

PEFT makes the adapted layers; it is injected into the model in place, so that the model keeps its class, its forward
and its configuration. What else is trained (embeddings, head) stays an ordinary parameter of the model: copies of
modules, as `modules_to_save` would make, would break the tie of embedding and decoder in silence.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685.
"""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ehrsequencing.errors import AdapterError, CheckpointError, ConfigError
from ehrsequencing.io import Mark, atomic_directory, atomic_path, read_json, versions
from ehrsequencing.models.folder import BASE_PREFIX, PretrainedModel, plain_name, tensors_hash

ATTENTION_LAYERS = ("query_proj", "key_proj", "value_proj", "out_proj")
FEEDFORWARD_LAYERS = ("linear1", "linear2")
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MARK = Mark(ADAPTER_CONFIG, "tensors_hash", "an adapter folder")
FORMAT = 1
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
)
"""What the readers of PyTorch and safetensors raise on files that are cut short, altered or something else."""


@dataclass(frozen=True)
class LoraOptions:
    """Arguments of `apply_lora_to_behrt`, kept with the adapters."""

    rank: int
    alpha: float
    dropout: float
    lora_attention: bool
    lora_feedforward: bool
    freeze_base: bool
    train_embeddings: bool
    train_head: bool


@dataclass(frozen=True)
class Adaptation:
    """What an adapted model remembers: options, hash of the base before adaptation, and what is trained."""

    options: LoraOptions
    base_hash: str
    trained: frozenset[str]


def apply_lora_to_behrt(
    model: PretrainedModel,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    lora_attention: bool = True,
    lora_feedforward: bool = False,
    freeze_base: bool = True,
    train_embeddings: bool = True,
    train_head: bool = True,
) -> PretrainedModel:
    """Add low-rank adapters, in place.

    Each adapted layer computes W x + b + (alpha / rank) B A x; B starts at 0, so the output is unchanged at first.

    Args:
        model: BEHRT or one of its heads, best with pretrained weights.
        rank: Rank of the adapters.
        alpha: Numerator of their scale; by default twice the rank.
        dropout: On the adapters' input, in training.
        lora_attention: Adapt query, key, value and output projections.
        lora_feedforward: Adapt both feed-forward layers.
        freeze_base: Freeze the encoder's own weights.
        train_embeddings: Train the embeddings (and with them a tied decoder).
        train_head: Train transform and bias of an MLM head. Task heads always train.

    Returns:
        The same object.

    Raises:
        AdapterError: nothing was to be adapted, or the model is adapted already.
        ConfigError: rank, alpha or dropout is out of range.

    Warns:
        UserWarning: parameters are frozen that no pretraining has set; names them.
    """
    options = LoraOptions(
        rank=rank,
        alpha=float(2 * rank if alpha is None else alpha),
        dropout=dropout,
        lora_attention=lora_attention,
        lora_feedforward=lora_feedforward,
        freeze_base=freeze_base,
        train_embeddings=train_embeddings,
        train_head=train_head,
    )
    trained = _trained_names(model, options)
    _inject(model, Adaptation(options, base_hash(model, trained), trained))
    untouched = [
        plain_name(name)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and plain_name(name) not in model.pretrained_parameters
    ]
    if untouched:
        warnings.warn(
            f"freezing {len(untouched)} parameters at their random initial values, since no pretraining has set them: "
            f"{', '.join(_summary(untouched))}. Load pretrained weights with from_pretrained before adapting, or train "
            "them (freeze_base=False, train_embeddings=True)",
            UserWarning,
            stacklevel=2,
        )
    return model


def base_hash(model: PretrainedModel, trained: Iterable[str]) -> str:
    """Hash of what adapters build on: the encoder with its embeddings, and whatever of the head stays frozen.

    A head that is trained is saved with the adapters, so its value before training is nobody's business; a freshly
    drawn head on the same encoder counts as the same base.
    """
    trained = set(trained)
    has_base = any(name.startswith(BASE_PREFIX) for name, _ in model.named_parameters())
    return tensors_hash(
        {
            plain_name(name): parameter
            for name, parameter in model.named_parameters()
            if not is_adapter(name)
            and (not has_base or name.startswith(BASE_PREFIX) or plain_name(name) not in trained)
        }
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_" in name


def group_of(name: str) -> str:
    """Part of the model that a parameter belongs to: lora, embeddings, encoder or head."""
    if is_adapter(name):
        return "lora"
    name = name.removeprefix(BASE_PREFIX)
    return next((group for group in ("embeddings", "encoder") if name.startswith(f"{group}.")), "head")


def _trained_names(model: PretrainedModel, options: LoraOptions) -> frozenset[str]:
    # An MLM head belongs to pretraining and may stay as it is; every other head is the task's own.
    head = options.train_head or type(model).__name__ != "BEHRTForMLM"
    trains = {"embeddings": options.train_embeddings, "encoder": not options.freeze_base, "head": head, "lora": True}
    return frozenset(plain_name(name) for name, _ in model.named_parameters() if trains[group_of(name)])


def _inject(model: PretrainedModel, adaptation: Adaptation) -> None:
    options = adaptation.options
    if is_adapted(model):
        raise AdapterError(
            "the model carries LoRA adapters already", remedy="merge_lora it first, or adapt a fresh one"
        )
    if options.rank < 1 or not 0 <= options.dropout < 1:
        raise ConfigError(
            "rank and dropout of LoRA", got=(options.rank, options.dropout), expected="1 or more, and within [0, 1)"
        )
    if not (math.isfinite(options.alpha) and options.alpha > 0):
        raise ConfigError(
            "alpha of LoRA, which scales what the adapters add", got=options.alpha, expected="a number above 0"
        )
    wanted = ATTENTION_LAYERS * options.lora_attention + FEEDFORWARD_LAYERS * options.lora_feedforward
    matched = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in wanted]
    if not matched:
        raise AdapterError(
            f"LoRA matched no layer of {type(model).__name__}",
            got=f"lora_attention={options.lora_attention}, lora_feedforward={options.lora_feedforward}",
            remedy="set at least one of them, on a model with encoder layers",
        )
    inject_adapter_in_model(
        # alpha may be fractional, which PEFT computes with and annotates as int.
        LoraConfig(
            r=options.rank,
            lora_alpha=cast(int, options.alpha),
            lora_dropout=options.dropout,
            target_modules=list(wanted),
            bias="none",
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or plain_name(name) in adaptation.trained)
    model.adaptation = adaptation


def _summary(names: Iterable[str]) -> list[str]:
    """Names shortened to the module two levels below embeddings, encoder layer or head, without repetition."""
    return list(dict.fromkeys(".".join(name.split(".")[: 4 if ".layers." in name else 3]) for name in names))


def is_adapted(model: PretrainedModel) -> bool:
    """Whether the model carries LoRA adapters."""
    return model.adaptation is not None


def count_parameters(model: torch.nn.Module) -> dict[str, float]:
    """Numbers of parameters: total, trainable, frozen, lora, and trainable and lora in percent of the total."""
    sizes = [(name, parameter.numel(), parameter.requires_grad) for name, parameter in model.named_parameters()]
    total = sum(size for _, size, _ in sizes)
    trainable = sum(size for _, size, trains in sizes if trains)
    lora = sum(size for name, size, _ in sizes if is_adapter(name))
    return {
        "total": total,
        "trainable": trainable,
        "frozen": total - trainable,
        "lora": lora,
        "trainable_percent": 100 * trainable / total if total else 0.0,
        "lora_percent": 100 * lora / total if total else 0.0,
    }


def note_gradients(model: PretrainedModel) -> None:
    """After a backward pass: remember which parameters have received a gradient other than zero.

    Costs nothing once every trainable parameter has had one.
    """
    for name, parameter in model.named_parameters():
        if parameter.grad is None or plain_name(name) in model.gradient_parameters:
            continue
        if bool(parameter.grad.count_nonzero()):
            model.gradient_parameters.add(plain_name(name))


def parameter_report(model: PretrainedModel) -> dict[str, Any]:
    """State of every parameter.

    Returns:
        counts: as `count_parameters`. groups: for each part of the model, the numbers of parameters pretrained, from
        scratch, trainable, frozen and with a gradient. pretrained, scratch, frozen, frozen_at_random, gradient,
        no_gradient: names; the last lists trainable parameters that `note_gradients` has not seen move.
    """
    names: dict[str, list[str]] = {
        key: [] for key in ("pretrained", "scratch", "frozen", "frozen_at_random", "gradient", "no_gradient")
    }
    groups: dict[str, dict[str, int]] = {}
    for raw_name, parameter in model.named_parameters():
        name, size = plain_name(raw_name), parameter.numel()
        pretrained = name in model.pretrained_parameters
        gradient = name in model.gradient_parameters
        group = groups.setdefault(
            group_of(raw_name), dict.fromkeys(("pretrained", "scratch", "trainable", "frozen", "gradient"), 0)
        )
        group["pretrained" if pretrained else "scratch"] += size
        group["trainable" if parameter.requires_grad else "frozen"] += size
        group["gradient"] += size * gradient
        names["pretrained" if pretrained else "scratch"].append(name)
        if gradient:
            names["gradient"].append(name)
        if not parameter.requires_grad:
            names["frozen"].append(name)
            if not pretrained:
                names["frozen_at_random"].append(name)
        elif not gradient:
            names["no_gradient"].append(name)
    return {"counts": count_parameters(model), "groups": groups, **names}


def lora_state(model: PretrainedModel) -> dict[str, Any]:
    """Everything that was trained, with what is needed to restore it; safe for `torch.load(weights_only=True)`.

    Raises:
        AdapterError: the model carries no adapters.
    """
    adaptation = _adaptation(model)
    tensors = {
        plain_name(name): parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if is_adapter(name) or parameter.requires_grad or plain_name(name) in adaptation.trained
    }
    manifest = {
        "format": FORMAT,
        "peft_type": "LORA",
        "architecture": type(model).__name__,
        "config": model.config.to_dict(),
        "head": model.head_options(),
        "options": asdict(adaptation.options),
        "trained": sorted(adaptation.trained),
        "base_hash": adaptation.base_hash,
        "vocabulary_hash": model.vocabulary_hash,
        "tensors_hash": tensors_hash(tensors),
        "versions": {**versions(), "torch": str(torch.__version__)},
    }
    return {"manifest": manifest, "tensors": tensors}


def save_lora_weights(model: PretrainedModel, path: str | Path) -> None:
    """Save adapters and all else that was trained, with configuration and hash of the base, whole or not at all.

    Args:
        model: An adapted model.
        path: A folder, or one file where it ends in `.pt`.

    Raises:
        AdapterError: the model carries no adapters.
        RunError: a folder is there that holds something other than adapters.
    """
    state, path = lora_state(model), Path(path)
    if path.suffix == ".pt":
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
        return
    with atomic_directory(path, overwrite=True, mark=MARK) as temporary:
        save_file(state["tensors"], temporary / ADAPTER_WEIGHTS)
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(state["manifest"], indent=2) + "\n")


def load_lora_weights(base_model: PretrainedModel, path: str | Path) -> PretrainedModel:
    """Adapt a base as saved and restore the trained weights bit for bit.

    Args:
        base_model: The model that was adapted, before adaptation: same class, same encoder weights.
        path: What `save_lora_weights` wrote.

    Returns:
        `base_model`, adapted in place.

    Raises:
        AdapterError: the adapters belong to another base or class, or the base is adapted already.
        CheckpointError: a file is missing or damaged.
    """
    path = Path(path)
    manifest, tensors = _read_adapter(path)
    if manifest["architecture"] != type(base_model).__name__:
        raise AdapterError(
            f"{path} belongs to another class of model",
            got=type(base_model).__name__,
            expected=manifest["architecture"],
        )
    options, trained = LoraOptions(**manifest["options"]), frozenset(manifest["trained"])
    if is_adapted(base_model):
        raise AdapterError("the model carries LoRA adapters already", remedy="load onto a fresh base")
    found = base_hash(base_model, trained)
    if found != manifest["base_hash"]:
        raise AdapterError(
            f"{path} was trained on another base",
            got=found,
            expected=manifest["base_hash"],
            remedy="load the base model that the adapters were trained on",
        )
    _inject(base_model, Adaptation(options, found, trained))
    own = {plain_name(name): parameter for name, parameter in base_model.named_parameters()}
    missing = {name for name in own if is_adapter(name)} - set(tensors)
    odd = sorted(missing | (set(tensors) - set(own)))
    odd += sorted(name for name in set(tensors) & set(own) if tensors[name].shape != own[name].shape)
    if odd:
        raise CheckpointError(f"adapters in {path} do not fit the model", got=f"differing {odd[:3]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return base_model


def merge_lora(model: PretrainedModel) -> PretrainedModel:
    """Add the adapters' product to the weights they adapt and drop them, in place.

    Returns:
        The same object without adapters, every parameter trainable.

    Raises:
        AdapterError: the model carries no adapters, or holds NaN.
    """
    _adaptation(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            try:
                module.merge(safe_merge=True)
            except ValueError as problem:
                raise AdapterError(f"{name} cannot be merged", got=str(problem)) from None
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config
    model.adaptation = None
    return model.requires_grad_(True)


def _adaptation(model: PretrainedModel) -> Adaptation:
    if not isinstance(model.adaptation, Adaptation):
        raise AdapterError("the model carries no LoRA adapters", remedy="apply_lora_to_behrt it first")
    return model.adaptation


def _read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    remedy = "save the adapters again, or name another path"
    try:
        if path.is_dir():
            manifest = read_json(path / ADAPTER_CONFIG, CheckpointError, remedy)
            tensors = load_file(path / ADAPTER_WEIGHTS)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise TypeError("no dictionary")
            manifest, tensors = state["manifest"], state["tensors"]
        damaged = manifest["tensors_hash"] != tensors_hash(tensors)
    except FileNotFoundError as problem:
        raise CheckpointError(f"{problem.filename or path} is missing", remedy=remedy) from None
    except _UNREADABLE as problem:
        raise CheckpointError(f"{path} holds no readable adapters", got=type(problem).__name__, remedy=remedy) from None
    if damaged:
        raise CheckpointError(f"{path} is damaged", expected=manifest["tensors_hash"], remedy=remedy)
    return manifest, tensors
