"""The run's PNG files. Figures are made through matplotlib's object interface, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.errors import MetricError
from ehrsequencing.io import atomic_path

COLOURS = ("#2f5d8c", "#c4662f", "#3f8a6b", "#8a5a9e", "#b8912e", "#5f6b76")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


def _plain_text(text: str) -> str:
    # A dollar sign in a name would otherwise start a formula.
    return text.replace("$", r"\$")


def curve_plot(
    path: Path,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    label: str,
    title: str,
    best_epoch: int | None = None,
) -> None:
    """Draw each curve over its epochs; null values leave a gap, `best_epoch` is marked."""
    figure, axes = _figure(7, 4.2)
    for index, (name, items) in enumerate(sorted(curves.items())):
        epochs = [item["epoch"] for item in items]
        values = [np.nan if item["value"] is None else item["value"] for item in items]
        marker = "o" if len(items) < 40 else None
        axes.plot(epochs, values, label=_plain_text(name), color=COLOURS[index % len(COLOURS)], marker=marker, ms=3)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="#5f6b76", lw=1, ls=":", label=f"best epoch ({best_epoch})")
    axes.set(xlabel="Epoch", ylabel=label)
    axes.set_title(_plain_text(title), loc="left", fontsize=11)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def confusion_counts(y_true: Sequence[int], y_pred: Sequence[int], classes: int) -> np.ndarray:
    """Count int64 [classes, classes], true class by row.

    Raises:
        MetricError: no rows, lengths that differ, or an index outside 0..classes-1.
    """
    true, predicted = np.asarray(y_true), np.asarray(y_pred)
    if true.ndim != 1 or true.shape != predicted.shape or not len(true):
        raise MetricError(
            "the confusion matrix needs one prediction per row",
            got=f"shapes {list(true.shape)} and {list(predicted.shape)}",
            expected="[n] and [n] with n > 0",
        )
    both = np.stack([true, predicted])
    if both.dtype.kind not in "biu" or both.min() < 0 or both.max() >= classes:
        raise MetricError(
            "a class of the confusion matrix has no name",
            got=f"{both.dtype} from {both.min()} to {both.max()}",
            expected=f"integers from 0 to {classes - 1}",
        )
    flat = both[0].astype(np.int64) * classes + both[1].astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def confusion_plot(path: Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw counts with the share of each true class; a class without rows shows no share."""
    classes = len(class_names)
    figure, axes = _figure(max(4.0, 1.1 * classes + 2.2), max(3.4, 0.9 * classes + 1.6))
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        text = f"{counts[row, column]:,}"
        if totals[row, 0]:
            text += f"\n{share[row, column]:.1%}"
        colour = "white" if share[row, column] > 0.55 else "#1d2329"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    names = [_plain_text(str(name)) for name in class_names]
    axes.set_xticks(range(classes), names, rotation=30 if classes > 3 else 0, ha="right" if classes > 3 else "center")
    axes.set_yticks(range(classes), names)
    axes.set(xlabel="Predicted class", ylabel="True class")
    _save(figure, path)


def against_plot(
    path: Path, points: Mapping[str, tuple[float, Mapping[str, Any]]], axis: str, label: str, title: str
) -> None:
    """Draw each model's metric with its interval against its size or time on a logarithmic axis."""
    figure, axes = _figure(7, 4.2)
    for index, (name, (size, entry)) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        if entry.get("low") is not None and entry.get("high") is not None:
            axes.vlines(size, entry["low"], entry["high"], color=colour, lw=1.5)
        axes.plot([size], [entry["value"]], "o", color=colour)
        axes.annotate(_plain_text(name), (size, entry["value"]), xytext=(7, 5), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.15)
    axes.set(xlabel=axis, ylabel=_plain_text(label))
    axes.set_title(_plain_text(title), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    _save(figure, path)


def efficiency_plot(
    path: Path, curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], label: str, title: str
) -> None:
    """Draw each model's metric with its interval against the share of labels, on a logarithmic axis."""
    figure, axes = _figure(7.5, 4.6)
    shares = sorted({share for points in curves.values() for share, _ in points})
    for index, (name, points) in enumerate((name, points) for name, points in curves.items() if points):
        colour, dashed = COLOURS[index % len(COLOURS)], "-" if index < len(COLOURS) else "--"
        # Side by side, so that intervals at one share can be told apart.
        places = [share * 1.03 ** (index - len(curves) / 2) for share, _ in points]
        values = [entry["value"] for _, entry in points]
        axes.plot(places, values, dashed, color=colour, marker="o", ms=3, lw=1.2, label=_plain_text(name))
        lows = [entry.get("low", entry["value"]) for _, entry in points]
        highs = [entry.get("high", entry["value"]) for _, entry in points]
        axes.vlines(places, lows, highs, color=colour, lw=0.8, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
    axes.minorticks_off()
    axes.set(xlabel="Labelled train subjects (logarithmic)", ylabel=_plain_text(label))
    axes.set_title(_plain_text(title), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    _save(figure, path)
