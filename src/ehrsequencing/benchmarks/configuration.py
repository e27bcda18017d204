"""What each benchmark compares: the configurations of `ehrseq benchmark`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from ehrsequencing.config import FinetuneConfig, PretrainConfig
from ehrsequencing.options import Strict


class ObjectivesConfig(Strict):
    """`ehrseq benchmark objectives`; objective, seed and epochs of `pretrain` and the method of `finetune` are its own.

    `tokens` are those that each pretraining reads, `labelled` the subjects whose labels are used (0: all).
    """

    objectives: list[Literal["mlm", "nvp", "joint", "contrastive", "tte"]] = Field(
        ["mlm", "nvp", "joint", "contrastive", "tte"]
    )
    methods: list[Literal["probe", "lora", "full"]] = Field(["probe", "lora", "full"])
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


class EmbeddingsConfig(Strict):
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


class ModelsConfig(Strict):
    """`ehrseq benchmark models`; seed, method, architecture and rank of `finetune` are its own.

    `fractions` are shares of the labelled train subjects; `settings` is what each arm, baselines included, may try.
    `pretrain` holds the options of the Med2Vec whose visit vectors `med2vec_lr` reads; its seed is the benchmark's.
    """

    arms: list[str] = Field(["lstm", "retain", "scratch", "probe", "lora4", "lora8", "lora16", "lora32", "full"])
    baselines: list[Literal["logistic_regression", "random_forest", "xgboost", "med2vec_lr"]] = Field(
        ["logistic_regression", "random_forest", "xgboost", "med2vec_lr"]
    )
    fractions: list[float] = Field([0.01, 0.03, 0.1, 0.3, 1.0])
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
