"""Rules about the model itself: what trains, what stayed random, what collapsed."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from ehrsequencing.diagnostics.evidence import Evidence
from ehrsequencing.diagnostics.findings import DoesNotApply, Finding, Missing

MOST_TRAINABLE = 0.5
"""LoRA that trains more than this share is no LoRA (the guide: 2 to 10 % is good, above 50 % too many)."""
LEAST_EFFECT = 1e-4
"""Share of a weight matrix below which what an adapter adds is lost: bfloat16 rounds at 4e-3, and a healthy run of two
epochs has 1e-1."""
COLLAPSED_COSINE = 0.9
"""Embeddings of different codes that point one way. Untrained ones have 0.00, healthy ones here 0.0 to 0.2."""
COLLAPSED_RANK = 0.1
"""Effective rank of code embeddings beside the largest possible; healthy runs keep 0.8 of it."""
FLAT_RANK = 3.0
"""Effective rank of the states of histories, which may well be of few kinds: with six diseases and nothing else a
healthy run has 8; a diverged one has 2."""
DEAD_HEAD = 0.01
"""What a head adds beside the mean of its layer. Heads that can be pruned without loss are common (Michel et al. 2019,
arXiv:1905.10650); a head at a hundredth of its neighbours adds nothing at all."""
FEW_VECTORS = 20
"""Vectors without which an effective rank says nothing."""


def _examination(run: Evidence, part: str) -> Any:
    if part not in run.examination:
        raise Missing("the model is examined when the run ends" if not run.ended else "the run kept no examination")
    return run.examination[part]


def _groups(run: Evidence) -> dict[str, dict[str, int]]:
    return _examination(run, "parameters")["groups"]


def trainable_share(run: Evidence) -> Finding | None:
    """What trains is not what the method says."""
    parameters = run.metadata.get("parameters") or (run.examination.get("parameters") or {}).get("counts")
    if not parameters:
        raise Missing("the run does not say how many parameters train")
    total, trainable, lora = (int(parameters[key]) for key in ("total", "trainable", "lora"))
    share = trainable / total
    counts = f"{trainable:,} of {total:,} parameters train ({share:.1%}), {lora:,} of them in adapters"
    groups = (run.examination.get("parameters") or {}).get("groups", {})
    encoder = groups.get("encoder", {}).get("trainable", 0)
    wrong, remedy = "", ""
    if lora and encoder:
        wrong, remedy = (
            "adapters train beside the encoder that they were to spare",
            "freeze_base=True, or --method full",
        )
    elif lora and share > MOST_TRAINABLE:
        wrong = "LoRA trains most of the model"
        rank = run.option("lora.rank")
        remedy = (
            f"--lora-rank {max(1, int(rank) // 4)}"
            if rank and lora > trainable / 2
            else ("--set lora.train_embeddings=false, with --from")
        )
    elif run.method == "probe" and any(
        part["trainable"] for name, part in groups.items() if name in ("encoder", "embeddings")
    ):
        wrong, remedy = "a probe trains more than the head", "--method probe with --from RUN, or --method full"
    elif run.method in ("full", "scratch") and trainable < total:
        wrong, remedy = f"--method {run.method} leaves parameters frozen", "start anew from the run that --from names"
    elif run.kind == "pretrain" and not lora and trainable < total:
        wrong, remedy = "pretraining leaves parameters frozen", "train all of them: nothing has set them yet"
    if not wrong:
        return None
    return Finding("trainable-share", "problem", wrong, counts, remedy)


def adapters(run: Evidence) -> Finding | None:
    """Adapters that received no gradient or add nothing to what they adapt."""
    parameters = run.metadata.get("parameters") or {}
    if not parameters.get("lora") and "adapters" not in run.examination:
        raise DoesNotApply("the run has no adapters")
    effects: dict[str, float] = _examination(run, "adapters")
    silent = [name for name in _examination(run, "parameters")["no_gradient"] if ".lora_" in name]
    weak = [name for name, share in effects.items() if share < LEAST_EFFECT]
    if not weak and not silent:
        return None
    every = len(weak) == len(effects)
    largest = max(effects.values())
    parts = [
        f"{len(weak)} of {len(effects)} adapted layers change their weights by less than {LEAST_EFFECT:.0e} of them"
    ]
    parts.append(f"the largest change is {largest:.1e}")
    if silent:
        parts.append(f"{len(silent)} adapter matrices received no gradient, such as {silent[0]}")
    return Finding(
        "dead-adapter",
        "problem" if every or silent else "warning",
        "adapters have no effect" if every else "some adapters have no effect",
        ", ".join(parts),
        "--set lora.alpha=16 (twice the rank), a higher --lr, or --method full; what has no gradient is not on the way "
        "to the loss",
    )


def frozen_random(run: Evidence) -> Finding | None:
    """Parameters that no training has set and none will."""
    names: list[str] = _examination(run, "parameters")["frozen_at_random"]
    if not names:
        return None
    groups = _groups(run)
    parts = {
        part: sum(1 for name in names if _part(name) == part)
        for part in ("embeddings", "encoder", "head")
        if any(_part(name) == part for name in names)
    }
    size = sum(min(groups[part]["frozen"], groups[part]["scratch"]) for part in parts if part in groups)
    total = run.examination["parameters"]["counts"]["total"]
    return Finding(
        "frozen-random",
        "problem",
        f"frozen at random: {' and '.join(parts)} were set by no pretraining and do not train",
        f"{len(names)} parameters of {size:,} numbers ({size / total:.1%} of the model), such as {names[0]}",
        "--from RUN, a pretrained run, or --method scratch; in code train_embeddings=True, train_head=True",
    )


def _part(name: str) -> str:
    plain = name.removeprefix("behrt.")
    return next((part for part in ("embeddings", "encoder") if plain.startswith(f"{part}.")), "head")


def no_gradient(run: Evidence) -> Finding | None:
    """Parameters that were to train and are on no way to the loss."""
    names = [name for name in _examination(run, "parameters")["no_gradient"] if ".lora_" not in name]
    if not names:
        return None
    return Finding(
        "no-gradient",
        "warning",
        "parts of the model train in name only",
        f"{len(names)} parameters received no gradient in the whole run, such as {names[0]}",
        "train for more steps if these are rare inputs; else the objective does not read them: another --objective or "
        "model option",
    )


def collapse(run: Evidence) -> Finding | None:
    """Embeddings of codes, or pretrained representations of histories, that are all alike."""
    parts = []
    embeddings = _examination(run, "embeddings")
    if embeddings["n"] >= FEW_VECTORS:
        most = min(embeddings["n"] - 1, embeddings["width"])
        if embeddings["mean_cosine"] > COLLAPSED_COSINE:
            parts.append(f"code embeddings have a mean cosine of {embeddings['mean_cosine']:.2f}")
        if embeddings["effective_rank"] < COLLAPSED_RANK * most:
            parts.append(f"{embeddings['n']} code embeddings have an effective rank of {embeddings['effective_rank']} "
                         f"of {most}")  # fmt: skip
    # A classifier may well gather its histories at two points; what pretraining gives away is meant to tell them apart.
    histories = run.examination.get("representations") or {"n": 0}
    enough = run.kind != "finetune" and histories["n"] >= FEW_VECTORS
    if enough and histories["effective_rank"] < FLAT_RANK:
        parts.append(
            f"mean states of {histories['n']} histories have an effective rank of {histories['effective_rank']} in "
            f"{histories['width']} dimensions"
        )
    if not parts and embeddings["n"] < FEW_VECTORS:
        raise Missing(f"tuning holds {embeddings['n']} distinct codes")
    if not parts:
        return None
    return Finding(
        "collapse",
        "problem",
        "embeddings have collapsed: different codes or histories look alike",
        "; ".join(parts),
        "a lower --lr and more --epochs; --objective mlm beside others (joint), a higher contrastive.temperature",
    )


def dead_heads(run: Evidence) -> Finding | None:
    """Attention heads that add the same to every token, or nothing."""
    layers: dict[str, list[float]] = _examination(run, "heads")
    if not layers:
        raise DoesNotApply("the model has no attention heads")
    dead = [
        f"{name.removeprefix('behrt.')} head {head}"
        for name, outputs in layers.items()
        for head, output in enumerate(outputs)
        if output <= DEAD_HEAD * fmean(outputs)
    ]
    if not dead:
        return None
    total = sum(len(outputs) for outputs in layers.values())
    return Finding(
        "dead-heads",
        "warning",
        "attention heads add nothing",
        f"{len(dead)} of {total} heads add less than {DEAD_HEAD:.0%} of the mean of their layer: {', '.join(dead[:4])}",
        "a lower --lr or more warm-up (--set optim.warmup_share=0.2); a smaller --model-size if most are dead",
    )
