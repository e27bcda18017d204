"""Every run's configuration: pydantic models, TOML in, the resolved TOML beside the outputs.

Precedence, lowest first: defaults, `--config FILE.toml`, `--set key=value`, a flag of the command line. All problems
of a configuration are reported at once, and an unknown key is one of them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ehrsequencing.errors import ConfigError
from ehrsequencing.io import write_text
from ehrsequencing.options import (
    AnyConfig,
    ContrastiveOptions,
    EmbeddingOptions,
    JointOptions,
    LoopOptions,
    LoraOptions,
    Med2VecOptions,
    MlmOptions,
    ModelOptions,
    NvpOptions,
    OptimOptions,
    SkipGramOptions,
    Strict,
    SurvivalOptions,
    TteOptions,
    with_defaults,
)

CODE_VECTOR_LOOP = {"token_budget": 16384, "max_examples": 2048}
"""Batches of models of code vectors, where none are given: about a thousand visits, as in the paper of Med2Vec."""
CODE_VECTOR_LR = {"med2vec": 3e-3, "skipgram": 1e-2}
"""Peak learning rates of theirs. At 1e-2 two thirds of Med2Vec's visit units end up silent (docs/embeddings.md)."""
OBJECTIVE_TABLES = {
    "mlm": ("mlm",),
    "nvp": ("nvp",),
    "joint": ("mlm", "nvp", "joint"),
    "contrastive": ("contrastive",),
    "tte": ("tte",),
}
"""Tables of options that each objective reads."""


class PretrainConfig(Strict):
    """`ehrseq pretrain`; models of code vectors have an objective of their own, and larger batches by default."""

    architecture: Literal["behrt", "med2vec", "skipgram"] = "behrt"
    objective: Literal["mlm", "nvp", "joint", "contrastive", "tte"] = "mlm"
    mlm: MlmOptions = Field(default_factory=MlmOptions)
    nvp: NvpOptions = Field(default_factory=NvpOptions)
    joint: JointOptions = Field(default_factory=JointOptions)
    contrastive: ContrastiveOptions = Field(default_factory=ContrastiveOptions)
    tte: TteOptions = Field(default_factory=TteOptions)
    med2vec: Med2VecOptions = Field(default_factory=Med2VecOptions)
    skipgram: SkipGramOptions = Field(default_factory=SkipGramOptions)
    embeddings: EmbeddingOptions = Field(default_factory=EmbeddingOptions)
    model: ModelOptions = Field(default_factory=ModelOptions)
    optim: OptimOptions = Field(default_factory=OptimOptions)
    loop: LoopOptions = Field(default_factory=LoopOptions)

    def unused(self) -> dict[str, Any]:
        of_behrt = {name for names in OBJECTIVE_TABLES.values() for name in names}
        if self.architecture != "behrt":
            of_others = of_behrt | {"objective", "model", "med2vec", "skipgram", "embeddings"}
            return dict.fromkeys(of_others - {self.architecture}, True)
        own = {*OBJECTIVE_TABLES[self.objective], *self.embeddings.used()}
        return dict.fromkeys((of_behrt | {"med2vec", "skipgram", "embeddings"}) - own, True)

    @model_validator(mode="after")
    def _only_with_its_architecture(self) -> PretrainConfig:
        for name in sorted(set(self.unused()) & self.model_fields_set):
            table = getattr(self, name)
            if not isinstance(table, Strict) or table.model_fields_set:
                raise ValueError(f"model {self.architecture} does not read {name}, so it would have no effect")
        if self.architecture != "behrt":
            self.loop = with_defaults(self.loop, CODE_VECTOR_LOOP)
            self.optim = with_defaults(self.optim, {"lr": CODE_VECTOR_LR[self.architecture]})
        return self

    @field_validator("mlm", "nvp", "joint", "contrastive", "tte")
    @classmethod
    def _only_with_its_objective(cls, given: Strict, info: ValidationInfo) -> Strict:
        objective = info.data.get("objective", "mlm")
        if info.field_name not in OBJECTIVE_TABLES[objective] and given.model_fields_set:
            raise ValueError(f"objective {objective} does not read this table, so it would have no effect")
        return given


TRANSFORMER_OPTIONS = {"attention", "attention_dropout", "position", "activation", "norm", "separators"}
"""Options of the model that say how a transformer reads tokens; a model over visits has none of them."""
UNUSED_OPTIONS = {
    "behrt": set[str](),
    "lstm": TRANSFORMER_OPTIONS,
    "bilstm": TRANSFORMER_OPTIONS,
    "retain": TRANSFORMER_OPTIONS | {"pooling"},
}
"""Options of the model that each architecture does not have."""
METHOD_LR = {"full": 5e-4}
"""Peak learning rate where none is given and `OptimOptions` has another: pretrained weights bear less."""


class FinetuneConfig(Strict):
    """`ehrseq finetune`; `optim.lr` defaults to `METHOD_LR` of the method."""

    architecture: Literal["behrt", "lstm", "bilstm", "retain"] = "behrt"
    method: Literal["lora", "full", "probe", "scratch"] = "lora"
    lora: LoraOptions = Field(default_factory=LoraOptions)
    embeddings: EmbeddingOptions = Field(default_factory=EmbeddingOptions)
    model: ModelOptions = Field(default_factory=ModelOptions)
    optim: OptimOptions = Field(default_factory=OptimOptions)
    loop: LoopOptions = Field(default_factory=LoopOptions)
    accept: list[str] = Field(default_factory=list, description="checks of the audit whose errors are accepted")
    survival: SurvivalOptions = Field(default_factory=SurvivalOptions)

    def unused(self) -> dict[str, Any]:
        # Of other labels nothing of survival may be given; of theirs everything is, once the run is resolved.
        used = {self.method, *self.embeddings.used(), *(["survival"] if self.survival.model_fields_set else [])}
        tables: dict[str, Any] = dict.fromkeys({"lora", "embeddings", "survival"} - used, True)
        options = UNUSED_OPTIONS[self.architecture]
        return tables | ({"model": options} if options else {})

    @model_validator(mode="before")
    @classmethod
    def _method_of_architecture(cls, given: Any) -> Any:
        """Only a BEHRT is adapted to a task; anything else is trained from scratch."""
        if isinstance(given, dict) and given.get("architecture", "behrt") != "behrt":
            return {"method": "scratch", **given}
        return given

    @field_validator("method")
    @classmethod
    def _only_a_behrt_is_adapted(cls, method: str, info: ValidationInfo) -> str:
        architecture = info.data.get("architecture", "behrt")
        if architecture != "behrt" and method != "scratch":
            raise ValueError(f"{method} adapts a pretrained behrt; {architecture} is trained with method scratch")
        return method

    @field_validator("model")
    @classmethod
    def _only_with_its_architecture(cls, given: ModelOptions, info: ValidationInfo) -> ModelOptions:
        architecture = info.data.get("architecture", "behrt")
        without = sorted(given.model_fields_set & UNUSED_OPTIONS[architecture])
        if without:
            raise ValueError(f"architecture {architecture} has no {', '.join(without)}; leave it out")
        if architecture in ("lstm", "bilstm") and given.pooling == "cls":
            raise ValueError("a model over visits has no state of CLS; pooling is attention, mean or last_visit")
        return given

    @field_validator("lora")
    @classmethod
    def _only_with_its_method(cls, given: LoraOptions, info: ValidationInfo) -> LoraOptions:
        method = info.data.get("method", "lora")
        if method != "lora" and given.model_fields_set:
            raise ValueError(f"method {method} has no adapters, so this would have no effect")
        return given

    @field_validator("survival")
    @classmethod
    def _survival_of_architecture(cls, given: SurvivalOptions, info: ValidationInfo) -> SurvivalOptions:
        architecture, method = info.data.get("architecture", "behrt"), info.data.get("method", "lora")
        if architecture != "behrt" and (given.nvp or given.reading == "visits"):
            raise ValueError(f"architecture {architecture} has no head of next visits and reads no single visits")
        if given.nvp and method == "probe":
            raise ValueError("method probe freezes what the auxiliary loss of next visits would train")
        return given

    @model_validator(mode="after")
    def _learning_rate_of_method(self) -> FinetuneConfig:
        if self.method in METHOD_LR:
            self.optim = with_defaults(self.optim, {"lr": METHOD_LR[self.method]})
        return self


def _parse(value: str) -> Any:
    """Read a `--set` value as TOML would, and as a plain string where TOML would not.

    >>> _parse("3"), _parse("1e-4"), _parse("true"), _parse("small")
    (3, 0.0001, True, 'small')
    """
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except (ValueError, RecursionError):
        return value


def _insert(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: '{part}' is a value and has no keys of its own")
        tree = child
    tree[last] = value


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _keys(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def load_config(
    kind: type[AnyConfig],
    file: str | Path | None = None,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> AnyConfig:
    """Assemble a configuration.

    Args:
        kind: The pydantic model of the run.
        file: TOML file, or None.
        sets: Strings `key=value` with dotted keys, for example `optim.lr=3e-4`.
        overrides: Dotted keys to values from flags; None values are flags that were not given.
        base: Values that stand below the file, for example an earlier run's choices.

    Raises:
        ConfigError: the file is missing or not TOML, or any value is wrong: all problems in one message.
    """
    tree: dict[str, Any] = {}
    for key, value in (base or {}).items():
        _insert(tree, key, value)
    if file is not None:
        for key, value in _flatten(_read_toml(Path(file))).items():
            _insert(tree, key, value)
    for item in sets:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {item!r} is not of the form key=value", remedy="for example --set optim.lr=3e-4")
        _insert(tree, key.strip(), _parse(value.strip()))
    for key, value in (overrides or {}).items():
        if value is not None:
            _insert(tree, key, value)
    try:
        return kind.model_validate(tree)
    except ValidationError as problem:
        known = _keys(kind)
        found = []
        for error in problem.errors():
            key = ".".join(str(part) for part in error["loc"])
            if error["type"] == "extra_forbidden":
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                found.append(f"unknown key '{key}'" + (f" (did you mean '{close[0]}'?)" if close else ""))
            else:
                found.append(f"{key or kind.__name__}: {error['msg']}, got {error['input']!r}")
        raise ConfigError(
            f"{len(found)} problem{'s' if len(found) > 1 else ''} in the configuration: " + " | ".join(found),
            remedy="see docs/configuration.md for every key",
        ) from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} is missing", remedy="check the path of --config") from None
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"configuration file {path} is not valid TOML", got=str(problem)) from None


def write_config(path: str | Path, config: Strict) -> None:
    """Write the resolved configuration as TOML, atomically, without the tables that have no effect in it."""
    write_text(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude=config.unused())))


def read_config(kind: type[AnyConfig], path: str | Path) -> AnyConfig:
    """Read a resolved configuration back."""
    return load_config(kind, path)
