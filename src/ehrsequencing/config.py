"""Every run's configuration: pydantic models, TOML in, the resolved TOML beside the outputs.

Precedence, lowest first: defaults, `--config FILE.toml`, `--set key=value`, a flag of the command line. All problems
of a configuration are reported at once, and an unknown key is one of them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ehrsequencing.errors import ConfigError
from ehrsequencing.io import write_text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    def unused(self) -> dict[str, Any]:
        """What the other choices leave without effect, as pydantic excludes it: refused when given and not written."""
        return {}


AnyConfig = TypeVar("AnyConfig", bound=_Strict)


def _with_defaults(table: AnyConfig, defaults: Mapping[str, Any]) -> AnyConfig:
    """A table with other defaults, which stay defaults: a resumption compares what was asked for, not what followed."""
    given = set(table.model_fields_set)
    free = {name: value for name, value in defaults.items() if name not in given}
    return cast(AnyConfig, type(table).model_construct(_fields_set=given, **table.model_dump() | free))


class EmbeddingOptions(_Strict):
    """Vectors of codes from a file, as the model's own: see docs/embeddings.md."""

    file: str | None = None
    codes: str | None = None
    descriptions: str | None = None
    train: bool = True
    unmatched: Literal["normal", "mean", "error"] = "normal"
    dimension: Literal["refuse", "pca", "random"] = "refuse"
    scale: Literal["model", "file"] = "model"

    def used(self) -> set[str]:
        """The name of this table where it has an effect."""
        return {"embeddings"} if self.file is not None else set()

    @model_validator(mode="after")
    def _of_a_file(self) -> EmbeddingOptions:
        if self.file is None and self.model_fields_set - {"file"}:
            raise ValueError("options of embeddings without a file have no effect; name it with --embeddings")
        if self.codes is not None and self.descriptions is not None:
            raise ValueError("codes are of a .npy file and descriptions of a sentence transformer; name one of them")
        return self


class ModelOptions(_Strict):
    """Architecture of a BEHRT; `None` keeps the size's own value."""

    size: Literal["small", "medium", "large"] = "small"
    max_length: int = Field(512, ge=8, le=512)
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    attention: Literal["auto", "bidirectional", "visit_causal"] = "auto"
    position: Literal["learned", "sinusoidal", "rotary", "none"] = "rotary"
    age: Literal["years", "continuous", "none"] = "years"
    kinds: bool = True
    times: bool | None = None
    gaps: bool | None = None
    calendar: bool = False
    values: bool = False
    separators: bool = False
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    norm: Literal["pre", "post"] = "pre"
    pooling: Literal["cls", "mean", "attention", "last_visit"] = "attention"

    @model_validator(mode="after")
    def _no_glance_ahead(self) -> ModelOptions:
        if self.attention == "visit_causal" and self.times:
            raise ValueError("times are days before the prediction time, which visit-causal attention must not know")
        return self

    def resolved(self, *, causal: bool) -> ModelOptions:
        """With what is left open decided: attention by the objective, `times` unless it is visit-causal, else `gaps`.

        Args:
            causal: Whether the objective predicts from every visit in one pass.
        """
        attention = ("visit_causal" if causal else "bidirectional") if self.attention == "auto" else self.attention
        forward = attention == "visit_causal"
        decided = {
            "attention": attention,
            "times": (not forward) if self.times is None else self.times,
            "gaps": forward if self.gaps is None else self.gaps,
        }
        # What was given stays what was given: a resumption compares that.
        return ModelOptions.model_construct(_fields_set=set(self.model_fields_set), **self.model_dump() | decided)


class OptimOptions(_Strict):
    """AdamW with linear warm-up and cosine decay; weight decay on matrices only."""

    lr: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=10)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    min_lr_share: float = Field(0.05, ge=0, le=1)
    clip: float = Field(1.0, gt=0)


class LoopOptions(_Strict):
    """Length, batches, device and durability of a training."""

    epochs: int = Field(10, ge=1, le=100_000)
    patience: int = Field(3, ge=1, le=100_000)
    token_budget: int = Field(4096, ge=64, le=10_000_000)
    max_examples: int = Field(256, ge=1, le=1_000_000)
    checkpoint_seconds: float = Field(60.0, ge=0, le=1e9)
    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    threads: int = Field(0, ge=0, le=1024)
    mirrors: list[str] = Field(default_factory=list, description="copies of the figures: mlflow, tensorboard")


class MlmOptions(_Strict):
    """Masked language modelling: what is hidden together, and how much."""

    strategy: Literal["token", "visit", "kind"] = "token"
    rate: float = Field(0.15, gt=0, lt=1)


class NvpOptions(_Strict):
    """Next-visit prediction: from every visit in one pass, or from one prefix of each history."""

    mode: Literal["auto", "causal", "prefix"] = "auto"
    loss: Literal["bce", "focal"] = "bce"
    gamma: float = Field(2.0, ge=0, le=10)
    balance: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _exponent_of_focal(self) -> NvpOptions:
        # Not whether it was given: a resolved configuration gives everything.
        if self.loss != "focal" and self.gamma != NvpOptions.model_fields["gamma"].default:
            raise ValueError("gamma is the exponent of the focal loss, so with loss=bce it would have no effect")
        return self


class JointOptions(_Strict):
    """Masked language modelling and next-visit prediction over one encoder."""

    mode: Literal["sum", "alternate"] = "sum"
    lambda_mlm: float = Field(1.0, gt=0, le=1e4)
    lambda_nvp: float = Field(1.0, gt=0, le=1e4)


class ContrastiveOptions(_Strict):
    """Two segments of one history recognise each other among those of a batch."""

    temperature: float = Field(0.1, gt=0, le=10)
    projection_dim: int = Field(64, ge=2, le=4096)
    hide_ages: bool = True


class TteOptions(_Strict):
    """Time to the next occurrence of many codes, with piecewise-constant hazards."""

    codes: int = Field(256, ge=1, le=100_000)
    pieces: int = Field(8, ge=1, le=64)
    rank: int = Field(32, ge=1, le=1024)


class Med2VecOptions(_Strict):
    """Med2Vec: widths of code and visit vectors, neighbours, and how pairs of codes are weighed."""

    code_dim: int = Field(200, ge=1, le=4096)
    visit_dim: int = Field(200, ge=1, le=4096)
    window: int = Field(1, ge=1, le=100)
    code_term: Literal["sum", "mean"] = "sum"
    max_length: int = Field(512, ge=8, le=1_000_000)


class SkipGramOptions(_Strict):
    """Skip-gram: width of code vectors, and neighbouring visits that count as context."""

    code_dim: int = Field(200, ge=1, le=4096)
    window: int = Field(0, ge=0, le=100)
    max_length: int = Field(512, ge=8, le=1_000_000)


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


class PretrainConfig(_Strict):
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
            if not isinstance(table, _Strict) or table.model_fields_set:
                raise ValueError(f"model {self.architecture} does not read {name}, so it would have no effect")
        if self.architecture != "behrt":
            self.loop = _with_defaults(self.loop, CODE_VECTOR_LOOP)
            self.optim = _with_defaults(self.optim, {"lr": CODE_VECTOR_LR[self.architecture]})
        return self

    @field_validator("mlm", "nvp", "joint", "contrastive", "tte")
    @classmethod
    def _only_with_its_objective(cls, given: _Strict, info: ValidationInfo) -> _Strict:
        objective = info.data.get("objective", "mlm")
        if info.field_name not in OBJECTIVE_TABLES[objective] and given.model_fields_set:
            raise ValueError(f"objective {objective} does not read this table, so it would have no effect")
        return given


class LoraOptions(_Strict):
    """Adapters of `--method lora`."""

    rank: int = Field(8, ge=1, le=4096)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    attention: bool = True
    feedforward: bool = False
    train_embeddings: bool = False

    @model_validator(mode="after")
    def _adapts_something(self) -> LoraOptions:
        if not (self.attention or self.feedforward):
            raise ValueError("attention and feedforward are both off, so LoRA would adapt nothing")
        return self


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


class FinetuneConfig(_Strict):
    """`ehrseq finetune`; `optim.lr` defaults to `METHOD_LR` of the method."""

    architecture: Literal["behrt", "lstm", "bilstm", "retain"] = "behrt"
    method: Literal["lora", "full", "probe", "scratch"] = "lora"
    lora: LoraOptions = Field(default_factory=LoraOptions)
    embeddings: EmbeddingOptions = Field(default_factory=EmbeddingOptions)
    model: ModelOptions = Field(default_factory=ModelOptions)
    optim: OptimOptions = Field(default_factory=OptimOptions)
    loop: LoopOptions = Field(default_factory=LoopOptions)
    accept: list[str] = Field(default_factory=list, description="checks of the audit whose errors are accepted")

    def unused(self) -> dict[str, Any]:
        tables: dict[str, Any] = dict.fromkeys({"lora", "embeddings"} - {self.method} - self.embeddings.used(), True)
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

    @model_validator(mode="after")
    def _learning_rate_of_method(self) -> FinetuneConfig:
        if self.method in METHOD_LR:
            self.optim = _with_defaults(self.optim, {"lr": METHOD_LR[self.method]})
        return self


class ObjectivesConfig(_Strict):
    """`ehrseq benchmark objectives`; objective, seed and epochs of `pretrain` and the method of `finetune` are its own.

    `tokens` are those that each pretraining reads, `labelled` the subjects whose labels are used (0: all).
    """

    objectives: list[Literal["mlm", "nvp", "joint", "contrastive", "tte"]] = [
        "mlm",
        "nvp",
        "joint",
        "contrastive",
        "tte",
    ]
    methods: list[Literal["probe", "lora", "full"]] = ["probe", "lora", "full"]
    seeds: int = Field(3, ge=1, le=100)
    tokens: int = Field(5_000_000, ge=1)
    labelled: int = Field(0, ge=0)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)

    @field_validator("finetune")
    @classmethod
    def _pretrained_only(cls, given: FinetuneConfig) -> FinetuneConfig:
        if given.architecture != "behrt":
            raise ValueError(f"{given.architecture} is not pretrained; judge it with `ehrseq finetune` and `evaluate`")
        return given


def _of_med2vec(given: Any) -> Any:
    return {"architecture": "med2vec", **given} if isinstance(given, dict) else given


Med2VecTraining = Annotated[PretrainConfig, BeforeValidator(_of_med2vec)]
"""Options of a pretraining whose architecture need not be said."""


class EmbeddingsConfig(_Strict):
    """`ehrseq benchmark embeddings`; seed and method of `finetune`, file and freezing of its `embeddings` are its own.

    `pretrain` holds the options of the third party's Med2Vec.
    """

    seeds: int = Field(3, ge=1, le=100)
    pretrain: Med2VecTraining = Field(default_factory=lambda: PretrainConfig(architecture="med2vec"))
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)

    @field_validator("finetune")
    @classmethod
    def _transformer(cls, given: FinetuneConfig) -> FinetuneConfig:
        if given.architecture != "behrt":
            raise ValueError("the arms are of a behrt, whose encoder LoRA adapts")
        return given


NEURAL_ARMS = ("scratch", "probe", "lora4", "lora8", "lora16", "lora32", "full", "lstm", "bilstm", "retain")


class ModelsConfig(_Strict):
    """`ehrseq benchmark models`; seed, method, architecture and rank of `finetune` are its own.

    `fractions` are shares of the labelled train subjects; `settings` is what each arm, baselines included, may try.
    `pretrain` holds the options of the Med2Vec whose visit vectors `med2vec_lr` reads; its seed is the benchmark's.
    """

    arms: list[str] = ["lstm", "retain", "scratch", "probe", "lora4", "lora8", "lora16", "lora32", "full"]
    baselines: list[Literal["logistic_regression", "random_forest", "xgboost", "med2vec_lr"]] = [
        "logistic_regression",
        "random_forest",
        "xgboost",
        "med2vec_lr",
    ]
    fractions: list[float] = [0.01, 0.03, 0.1, 0.3, 1.0]
    seeds: int = Field(3, ge=1, le=100)
    settings: Literal[1, 4, 8] = 4
    pretrain: Med2VecTraining = Field(default_factory=lambda: PretrainConfig(architecture="med2vec"))
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)

    @field_validator("arms")
    @classmethod
    def _known(cls, given: list[str]) -> list[str]:
        unknown = [name for name in given if name not in NEURAL_ARMS]
        if unknown or len(set(given)) < len(given) or not given:
            raise ValueError(f"arms are one or more of {', '.join(NEURAL_ARMS)}, each once")
        return given

    @field_validator("fractions")
    @classmethod
    def _shares(cls, given: list[float]) -> list[float]:
        if not given or len(set(given)) < len(given) or not all(0 < share <= 1 for share in given):
            raise ValueError("fractions are one or more numbers above 0 and up to 1, each once")
        return sorted(given)


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


def write_config(path: str | Path, config: _Strict) -> None:
    """Write the resolved configuration as TOML, atomically, without the tables that have no effect in it."""
    write_text(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude=config.unused())))


def read_config(kind: type[AnyConfig], path: str | Path) -> AnyConfig:
    """Read a resolved configuration back."""
    return load_config(kind, path)
