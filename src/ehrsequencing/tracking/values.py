"""Plain values for JSON: what it cannot hold is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrsequencing.errors import ConfigError, MetricError


def number(name: str, value: Any) -> float:
    """A Python float from a number, a numpy scalar or a one-element tensor; NaN and infinity pass.

    Raises:
        MetricError: anything else.
    """
    single = _single(value)
    if isinstance(single, bool) or not isinstance(single, int | float):
        raise MetricError(f"metric {name!r} is no number", got=type(value).__name__, expected="one number")
    return float(single)


def plain(value: Any, where: str) -> Any:
    """A copy of nested dicts, sequences, paths and numpy scalars that JSON can hold.

    Raises:
        ConfigError: NaN, infinity or an object; the message names its place.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    value = _single(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} cannot be written as JSON", got=value, expected="a finite number or null")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{where} cannot be written as JSON", got=type(value).__name__)


def _single(value: Any) -> Any:
    # Numpy scalars and one-element arrays and tensors answer to item() and say their shape.
    if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
        return value.item()
    return value
