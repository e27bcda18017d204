"""What is chosen automatically: device, precision and threads. Chosen once, then written into the run's TOML."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.fabric import Fabric

from ehrsequencing.errors import ConfigError
from ehrsequencing.options import LoopOptions


def resolve_loop(loop: LoopOptions) -> LoopOptions:
    """Replace every `auto` by what this machine gives, so that a resumed run repeats the same arithmetic.

    Raises:
        ConfigError: the device that was asked for is not there.
    """
    device = loop.device
    available: dict[Literal["cuda", "mps", "cpu"], bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    elif not available[device]:
        raise ConfigError(f"device {device} is not available on this machine", remedy="use --device auto or cpu")
    precision = loop.precision
    if precision == "auto":
        # Measured on CPU: autocast to bfloat16 gains nothing for small models and 2x for large ones only.
        precision = "bf16-mixed" if device == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    threads = loop.threads or torch.get_num_threads()
    return loop.model_copy(update={"device": device, "precision": precision, "threads": threads})


def make_fabric(loop: LoopOptions) -> Fabric:
    """Fabric for a resolved configuration on one device."""
    torch.set_num_threads(loop.threads)
    accelerator = {"cuda": "cuda", "mps": "mps", "cpu": "cpu"}[loop.device]
    return Fabric(accelerator=accelerator, devices=1, precision=loop.precision)  # type: ignore[arg-type]
