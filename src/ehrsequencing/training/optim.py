"""AdamW with weight decay on matrices only, linear warm-up and cosine decay."""

from __future__ import annotations

import math

import torch

from ehrsequencing.errors import AdapterError
from ehrsequencing.options import OptimOptions


def build_optimizer(model: torch.nn.Module, options: OptimOptions) -> torch.optim.AdamW:
    """Optimizer over the parameters that train; biases and norms (one dimension) are not decayed.

    Raises:
        AdapterError: nothing in the model trains.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise AdapterError("no parameter of the model trains", remedy="leave an adapter, the embeddings or a head on")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
    )


def lr_factor(progress: float, options: OptimOptions) -> float:
    """Factor on the learning rate at `progress` in [0, 1] of the planned steps.

    >>> lr_factor(0.05, OptimOptions(warmup_share=0.1))
    0.5
    >>> lr_factor(1.0, OptimOptions(min_lr_share=0.05))
    0.05
    """
    if progress < options.warmup_share:
        return progress / options.warmup_share
    done = (progress - options.warmup_share) / (1 - options.warmup_share)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return options.min_lr_share + (1 - options.min_lr_share) * cosine
