"""The objectives of pretraining: which model, which subjects, which plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ehrsequencing.config import PretrainConfig
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import SplitStore
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import CheckpointError, ConfigError, DataError
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import (
    BEHRTConfig,
    BEHRTForMLM,
    BEHRTForNextVisitPrediction,
    BEHRTHead,
)
from ehrsequencing.models.med2vec import CodeVectorModel, Med2Vec, SkipGram
from ehrsequencing.models.pretraining import BEHRTForContrastive, BEHRTForJointPretraining, BEHRTForTimeToEvent
from ehrsequencing.training.code_vectors import CodeVectorPlan
from ehrsequencing.training.contrastive import ContrastivePlan
from ehrsequencing.training.next_visit import JointPlan, NextVisitPlan
from ehrsequencing.training.plans import MLMPlan, PretrainPlan
from ehrsequencing.training.time_to_event import TimeToEventPlan, timed_codes

START_GAIN = 0.5
"""Of the layer norm before the decoder of next visits: random scores would be noise on what the bias knows."""
MakePlan = Callable[[Any, BatchSource, BatchSource, Vocabulary, PretrainConfig], PretrainPlan]


def _no_options(config: PretrainConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Objective:
    """One way to pretrain.

    Attributes:
        model: Class of the model.
        plan: Makes the plan from model, train, tuning, vocabulary and options.
        head: Constructor arguments of the model besides its configuration.
        two_visits: Whether a subject with one visit has nothing to teach and is left out.
        from_visits: Whether visit-causal attention is what it is trained with unless asked otherwise.
    """

    model: type[Any]
    plan: MakePlan
    head: Callable[[PretrainConfig, Vocabulary], dict[str, Any]] = _no_options
    two_visits: bool = False
    from_visits: bool = False

    def causal(self, config: PretrainConfig) -> bool:
        """Whether a model from scratch has visit-causal attention."""
        return self.from_visits and (config.objective == "tte" or config.nvp.mode != "prefix")

    def examples(self, split: SplitStore, notes: list[str]) -> Examples:
        """Histories to learn from.

        Raises:
            DataError: no subject of the split has two visits, where they are needed.
        """
        examples = Examples.whole_histories(split)
        if not self.two_visits:
            return examples
        several = np.flatnonzero(visits_of(split) > 1)
        if not len(several):
            raise DataError(
                f"no subject of {split.name} has two visits",
                got=f"{len(split)} subjects with one visit or none",
                expected="at least one with a visit after another",
                remedy="use --objective mlm, or another rule of visits in `ehrseq prepare`",
            )
        if len(several) < len(split):
            notes.append(
                f"{len(split) - len(several):,} of {len(split):,} subjects of {split.name} have fewer than two visits "
                "and take no part"
            )
        return replace(
            examples,
            index=examples.index[several],
            until=examples.until[several],
            subject_id=examples.subject_id[several],
        )


def visits_of(split: SplitStore) -> np.ndarray:
    """Number of visits of each subject, int64 [N]."""
    found = np.zeros(len(split), dtype=np.int64)
    filled = np.flatnonzero(split.lengths > 0)
    if len(filled):
        found[filled] = np.maximum.reduceat(np.asarray(split.visit), split.offsets[:-1][filled]).astype(np.int64) + 1
    return found


def refuse_other_head(folder: Path, config: PretrainConfig, model: type[Any], head: dict[str, Any]) -> None:
    """A base of the same objective brings its head along, whose shape is not asked for anew.

    Args:
        folder: Model folder of the base.
        model: Class of the model.
        head: Constructor arguments of its head, as asked for.

    Raises:
        ConfigError: the base's head was made with others.
        CheckpointError: the folder has no configuration.
    """
    manifest = read_json(folder / "config.json", CheckpointError)
    own = manifest.get("head") or {}
    if manifest.get("architecture") != model.__name__:
        return
    if odd := [name for name, value in head.items() if own.get(name, value) != value]:
        raise ConfigError(
            f"{folder.parent} was pretrained with other options of {config.objective}",
            got=", ".join(f"{config.objective}.{name}={head[name]}" for name in odd),
            expected=", ".join(f"{config.objective}.{name}={own[name]}" for name in odd),
            remedy="ask for those of the base with --set, or start from a base of another objective or from none",
        )


def decided(config: PretrainConfig, built: BEHRTConfig) -> PretrainConfig:
    """The configuration with the mode of next-visit prediction that fits the model.

    Raises:
        ConfigError: causal mode under bidirectional attention.
    """
    if config.objective not in ("nvp", "joint"):
        return config
    causal, mode = built.attention == "visit_causal", config.nvp.mode
    if mode == "causal" and not causal:
        raise ConfigError(
            "nvp.mode=causal needs a model with visit-causal attention",
            got=f"one whose attention is {built.attention}",
            remedy="leave nvp.mode out, or pretrain the base with model.attention=visit_causal",
        )
    if mode == "auto":
        mode = "causal" if causal else "prefix"
    options = type(config.nvp).model_construct(
        _fields_set=set(config.nvp.model_fields_set), **config.nvp.model_dump() | {"mode": mode}
    )
    return config.model_copy(update={"nvp": options})


def _mlm(
    model: BEHRTHead, train: BatchSource, tuning: BatchSource, vocabulary: Vocabulary, config: PretrainConfig
) -> MLMPlan:
    return MLMPlan(
        model.config,
        train,
        tuning,
        vocabulary,
        rate=config.mlm.rate,
        strategy=config.mlm.strategy,
        seed=config.loop.seed,
    )


def _nvp(
    model: BEHRTHead, train: BatchSource, tuning: BatchSource, vocabulary: Vocabulary, config: PretrainConfig
) -> NextVisitPlan:
    plan = NextVisitPlan(model.config, train, tuning, vocabulary, config.nvp, seed=config.loop.seed)
    if isinstance(model, BEHRTForNextVisitPrediction | BEHRTForJointPretraining):
        head = model.next_head if isinstance(model, BEHRTForJointPretraining) else model.head
        if "seen.table" not in model.pretrained_parameters:
            # A fresh head begins where copy-history stands, with little of its own on top.
            with torch.no_grad():
                model.seen.table.copy_(plan.start_table())
                head.norm.weight.fill_(START_GAIN)
    return plan


def _joint(
    model: BEHRTHead, train: BatchSource, tuning: BatchSource, vocabulary: Vocabulary, config: PretrainConfig
) -> JointPlan:
    return JointPlan(
        _mlm(model, train, tuning, vocabulary, config),
        _nvp(model, train, tuning, vocabulary, config),
        mode=config.joint.mode,
        weights=(config.joint.lambda_mlm, config.joint.lambda_nvp),
    )


def _contrastive(
    model: BEHRTHead, train: BatchSource, tuning: BatchSource, vocabulary: Vocabulary, config: PretrainConfig
) -> ContrastivePlan:
    return ContrastivePlan(model.config, train, tuning, config.contrastive, seed=config.loop.seed)


def _tte(
    model: BEHRTHead, train: BatchSource, tuning: BatchSource, vocabulary: Vocabulary, config: PretrainConfig
) -> TimeToEventPlan:
    if not isinstance(model, BEHRTForTimeToEvent) or model.config.attention != "visit_causal":
        given = "attention" in config.model.model_fields_set
        raise ConfigError(
            "objective tte predicts from every visit",
            got=f"a model whose attention is {model.config.attention}",
            expected="visit_causal",
            remedy="leave model.attention out" if given else "pretrain the base with model.attention=visit_causal",
        )
    codes = timed_codes(vocabulary, config.tte.codes)
    if "tasks.weight" in model.pretrained_parameters and model.asked.tolist() != list(codes):
        # The base's columns would be read as other codes.
        raise ConfigError(
            "the base times other codes than this store's most frequent ones",
            got=f"{len(set(model.asked.tolist()) - set(codes)):,} that are not among these",
            remedy="start from a base of another objective, or from none",
        )
    return TimeToEventPlan(model, train, tuning, codes)


def _tte_head(config: PretrainConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    options = config.tte
    return {"codes": len(timed_codes(vocabulary, options.codes)), "pieces": options.pieces, "rank": options.rank}


def _code_vectors(
    model: CodeVectorModel, train: BatchSource, tuning: BatchSource, vocabulary: Vocabulary, config: PretrainConfig
) -> CodeVectorPlan:
    return CodeVectorPlan(model, train, tuning)


# Models of code vectors have one objective each, which goes by the model's name.
OBJECTIVES: dict[str, Objective] = {
    "mlm": Objective(BEHRTForMLM, _mlm),
    "nvp": Objective(BEHRTForNextVisitPrediction, _nvp, two_visits=True, from_visits=True),
    "joint": Objective(BEHRTForJointPretraining, _joint, two_visits=True, from_visits=True),
    "contrastive": Objective(
        BEHRTForContrastive,
        _contrastive,
        head=lambda config, _: {"projection_dim": config.contrastive.projection_dim},
        two_visits=True,
    ),
    "tte": Objective(BEHRTForTimeToEvent, _tte, head=_tte_head, two_visits=True, from_visits=True),
    "med2vec": Objective(Med2Vec, _code_vectors),
    "skipgram": Objective(SkipGram, _code_vectors),
}
