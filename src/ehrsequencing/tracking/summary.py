"""What a `summary.json` may hold, which way each metric points, and how a figure with its interval is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ehrsequencing.errors import MetricError

HIGHER_IS_BETTER: dict[str, bool] = {
    "auroc": True,
    "auprc": True,
    "f1": True,
    "auroc_micro": True,
    "auroc_macro": True,
    "auprc_micro": True,
    "auprc_macro": True,
    "f1_micro": True,
    "f1_macro": True,
    "recall_at_10": True,
    "recall_at_30": True,
    "accuracy": True,
    "top10": True,
    "mlm_accuracy": True,
    "mlm_top10": True,
    "c_harrell": True,
    "c_uno": True,
    "c_wolbers": True,
    "c_antolini": True,
    "auc": True,
    "brier": False,
    "ece": False,
    "ibs": False,
    "ici": False,
    "ce": False,
    "nll": False,
    "log_loss": False,
    "loss": False,
    "mse": False,
    "mlm_loss": False,
}
"""Direction of every metric that the package computes, by the last part of its key."""

METRIC_FIELDS = (
    "value", "low", "high", "n", "positives", "subjects", "categories", "seeds", "redrawn", "subject_sd", "seed_sd",
    "higher_is_better", "until_days",
)  # fmt: skip

ORACLE = "oracle: "
"""Names that begin so are no models: they stand for what could be reached on synthetic records."""


def split_key(key: str) -> tuple[str, str, str]:
    """Task, metric and horizon of a key such as `heart_failure/auroc@365`; the parts that are absent are empty.

    >>> split_key("heart_failure/auroc@365")
    ('heart_failure', 'auroc', '365')
    >>> split_key("mlm_loss")
    ('', 'mlm_loss', '')
    """
    task, _, rest = key.rpartition("/")
    metric, _, horizon = rest.partition("@")
    return task, metric, horizon


def subgroup_key(task: str, by: str, group: str, metric: str) -> str:
    """Key of a metric on one group of a task's rows.

    >>> subgroup_key("heart_failure", "sex", "Female", "auroc")
    'heart_failure[sex=Female]/auroc'
    """
    return f"{task}[{by}={group}]/{metric}"


def subgroup_of(task: str) -> tuple[str, str, str] | None:
    """Task, grouping and group of the task part of a `subgroup_key`; None for a whole task.

    >>> subgroup_of("heart_failure[sex=Female]"), subgroup_of("heart_failure")
    (('heart_failure', 'sex', 'Female'), None)
    """
    match = re.fullmatch(r"(.*?)\[([^=]+)=(.*)\]", task, re.DOTALL)
    return None if match is None else (match[1], match[2], match[3])


def direction(key: str, entry: Mapping[str, Any] | None = None) -> bool:
    """Whether more is better for the metric `key`.

    Raises:
        MetricError: the entry does not say and the name is not known, or the entry contradicts the known name.
    """
    known = HIGHER_IS_BETTER.get(split_key(key)[1])
    stated = None if entry is None else entry.get("higher_is_better")
    if stated is not None and not isinstance(stated, bool):
        raise MetricError(f"the direction of metric {key!r} is malformed", got=repr(stated), expected="true or false")
    if known is not None and stated is not None and known != stated:
        raise MetricError(f"the direction of metric {key!r} is contradicted", got=stated, expected=known)
    if stated is None and known is None:
        raise MetricError(
            f"the direction of metric {key!r} is unknown",
            remedy='give it as {"value": ..., "higher_is_better": true or false}',
        )
    return bool(known if stated is None else stated)


def check_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """A plain copy of `{model: {"task/metric": {value, low, high, n, ...}}}` in which every direction is stated.

    Raises:
        MetricError: a value or a bound is missing, NaN or infinite, a bound is on the wrong side, a field is unknown,
            or a direction is unknown.
    """
    checked: dict[str, dict[str, dict[str, Any]]] = {}
    for model, entries in metrics.items():
        checked[str(model)] = {
            str(key): _check_entry(f"{model}, {key}", str(key), entry) for key, entry in entries.items()
        }
    return checked


def _check_entry(name: str, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or "value" not in entry:
        raise MetricError(f"the metric {name} has no value", got=repr(entry), expected='{"value": ..., "low": ...}')
    unknown = sorted(set(entry) - set(METRIC_FIELDS))
    if unknown:
        raise MetricError(f"the metric {name} has unknown fields", got=unknown, expected=", ".join(METRIC_FIELDS))
    plain: dict[str, Any] = {}
    for field in METRIC_FIELDS:
        value = entry.get(field)
        if value is None:
            continue
        value = value.item() if hasattr(value, "item") else value
        if field in ("value", "low", "high", "subject_sd", "seed_sd") and not _is_finite(value):
            raise MetricError(
                f"the {field} of metric {name} is not a finite number",
                got=value,
                remedy="leave out a metric that is undefined for these data and say so in the notes",
            )
        plain[field] = list(value) if field == "seeds" and isinstance(value, tuple) else value
    if "value" not in plain:
        raise MetricError(f"the metric {name} has no value", got=None)
    if "low" in plain and "high" in plain and plain["low"] > plain["high"]:
        raise MetricError(f"the interval of metric {name} is reversed", got=f"[{plain['low']}, {plain['high']}]")
    plain["higher_is_better"] = direction(key, plain)
    return plain


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: float | int | None, digits: int = 3) -> str:
    """A number for people: thousands separated, `digits` decimals below 100, and 'n/a' for a missing one.

    >>> format_number(0.69612), format_number(101766), format_number(1234.5), format_number(None), format_number(-0.0)
    ('0.696', '101,766', '1,234', 'n/a', '0.000')
    """
    if value is None:
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "n/a"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value + 0.0:.{digits}f}"


def format_estimate(entry: Mapping[str, Any], digits: int = 3) -> str:
    """Value with its interval where there is one.

    >>> format_estimate({"value": 0.696, "low": 0.68, "high": 0.71})
    '0.696 [0.680, 0.710]'
    """
    text = format_number(entry["value"], digits)
    if entry.get("low") is not None and entry.get("high") is not None:
        text += f" [{format_number(entry['low'], digits)}, {format_number(entry['high'], digits)}]"
    return text
