"""Tables of options that the configurations of runs are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    def unused(self) -> dict[str, Any]:
        """What the other choices leave without effect, as pydantic excludes it: refused when given and not written."""
        return {}


AnyConfig = TypeVar("AnyConfig", bound=Strict)


def with_defaults(table: AnyConfig, defaults: Mapping[str, Any]) -> AnyConfig:
    """A table with other defaults, which stay defaults: a resumption compares what was asked for, not what followed."""
    given = set(table.model_fields_set)
    free = {name: value for name, value in defaults.items() if name not in given}
    return cast(AnyConfig, type(table).model_construct(_fields_set=given, **table.model_dump() | free))


class EmbeddingOptions(Strict):
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


class ModelOptions(Strict):
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


class OptimOptions(Strict):
    """AdamW with linear warm-up and cosine decay; weight decay on matrices only."""

    lr: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=10)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    min_lr_share: float = Field(0.05, ge=0, le=1)
    clip: float = Field(1.0, gt=0)


class LoopOptions(Strict):
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


class MlmOptions(Strict):
    """Masked language modelling: what is hidden together, and how much."""

    strategy: Literal["token", "visit", "kind"] = "token"
    rate: float = Field(0.15, gt=0, lt=1)


class NvpOptions(Strict):
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


class JointOptions(Strict):
    """Masked language modelling and next-visit prediction over one encoder."""

    mode: Literal["sum", "alternate"] = "sum"
    lambda_mlm: float = Field(1.0, gt=0, le=1e4)
    lambda_nvp: float = Field(1.0, gt=0, le=1e4)


class ContrastiveOptions(Strict):
    """Two segments of one history recognise each other among those of a batch."""

    temperature: float = Field(0.1, gt=0, le=10)
    projection_dim: int = Field(64, ge=2, le=4096)
    hide_ages: bool = True


class TteOptions(Strict):
    """Time to the next occurrence of many codes, with piecewise-constant hazards."""

    codes: int = Field(256, ge=1, le=100_000)
    pieces: int = Field(8, ge=1, le=64)
    rank: int = Field(32, ge=1, le=1024)


class Med2VecOptions(Strict):
    """Med2Vec: widths of code and visit vectors, neighbours, and how pairs of codes are weighed."""

    code_dim: int = Field(200, ge=1, le=4096)
    visit_dim: int = Field(200, ge=1, le=4096)
    window: int = Field(1, ge=1, le=100)
    code_term: Literal["sum", "mean"] = "sum"
    max_length: int = Field(512, ge=8, le=1_000_000)


class SkipGramOptions(Strict):
    """Skip-gram: width of code vectors, and neighbouring visits that count as context."""

    code_dim: int = Field(200, ge=1, le=4096)
    window: int = Field(0, ge=0, le=100)
    max_length: int = Field(512, ge=8, le=1_000_000)


class LoraOptions(Strict):
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


class SurvivalOptions(Strict):
    """Survival labels: the grid of intervals after the prediction time, the loss, and what is read; docs/survival.md.

    `horizon_days` is the grid's last edge; by default that of the labels, else the longest follow-up of train.
    """

    intervals: int = Field(20, ge=1, le=1000)
    grid: Literal["quantile", "uniform"] = "quantile"
    horizon_days: float | None = Field(None, gt=0, le=100_000)
    loss: Literal["auto", "discrete", "piecewise", "cox"] = "auto"
    ranking: float = Field(0.0, ge=0, le=1e4)
    sigma: float = Field(0.1, gt=0, le=100)
    nvp: float = Field(0.0, ge=0, le=1e4)
    reading: Literal["landmark", "visits"] = "landmark"
    visit_pooling: Literal["mean", "attention", "last"] = "mean"

    @model_validator(mode="after")
    def _together(self) -> SurvivalOptions:
        # Not what was given: a resolved configuration gives everything.
        defaults = {name: field.default for name, field in SurvivalOptions.model_fields.items()}
        of_visits = self.reading == "visits"
        if of_visits and self.loss not in ("auto", "piecewise"):
            raise ValueError("visits are judged from when they were known to be free of the event: loss=piecewise")
        if self.ranking and (of_visits or self.loss == "cox"):
            raise ValueError("the ranking term is of the landmark's hazards over a grid, so here it has no effect")
        if not self.ranking and self.sigma != defaults["sigma"]:
            raise ValueError("sigma is the scale of the ranking term, so with ranking=0 it has no effect")
        if not of_visits and self.visit_pooling != defaults["visit_pooling"]:
            raise ValueError("visit_pooling is of reading=visits, so here it has no effect")
        return self
