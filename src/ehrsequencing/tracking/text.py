"""`SUMMARY.txt`: a run in one screen of plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrsequencing.tracking.summary import format_estimate, format_number

_ENDINGS = {
    "running": "running, or killed before it could say otherwise",
    "completed": "completed",
    "failed": "failed",
    "interrupted": "interrupted by the user",
    "early_stopped": "stopped early: the tuning loss no longer improved",
}


def summary_text(
    metadata: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    summary: Mapping[str, Any],
    best: Mapping[str, Any],
) -> str:
    """The text of `SUMMARY.txt` from the contents of the run's JSON files."""
    name = str(metadata["experiment_name"])
    lines = [name, "=" * len(name), ""]
    facts = {"Status": _ENDINGS[metadata["status"]], "Created": metadata.get("created")}
    facts["Ended"] = metadata.get("ended")
    if metadata.get("seconds") is not None:
        facts["Wall time"] = f"{format_number(metadata['seconds'], 1)} s"
    facts["Error"] = metadata.get("error")
    facts["Resumed"] = f"{len(metadata['resumed'])} times" if metadata.get("resumed") else None
    lines += _pairs({key: value for key, value in facts.items() if value is not None})
    metrics = summary.get("metrics") or {}
    for model, entries in metrics.items():
        lines += ["", f"Metrics of {model} (value [interval]):"]
        lines += _pairs({key: _entry(entry) for key, entry in entries.items()})
    if best:
        lines += ["", f"Best epoch: {best['epoch']} (0-based); all figures of this one epoch:"]
        lines += _pairs({key: format_number(value, 4) for key, value in best["metrics"].items()})
    if metadata.get("non_finite"):
        lines += ["", "Not finite, kept as null in the history:"]
        lines += [f"  {item['metric']} at epoch {item['epoch']}: {item['value']}" for item in metadata["non_finite"]]
    if summary.get("notes"):
        lines += ["", "Notes:", *(f"  - {' '.join(str(note).split())}" for note in summary["notes"])]
    if hyperparameters:
        lines += ["", "Hyperparameters:", *_pairs(flatten(hyperparameters))]
    return "\n".join(lines) + "\n"


def _entry(entry: Mapping[str, Any]) -> str:
    arrow = "higher is better" if entry["higher_is_better"] else "lower is better"
    size = f", n = {entry['n']:,}" if isinstance(entry.get("n"), int) else ""
    return f"{format_estimate(entry)}  ({arrow}{size})"


def _pairs(items: Mapping[str, Any]) -> list[str]:
    width = max((len(str(key)) for key in items), default=0)
    return [f"  {key!s:<{width}}  {value}" for key, value in items.items()]


def flatten(items: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
