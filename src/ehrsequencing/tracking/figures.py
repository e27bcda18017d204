"""The charts of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ehrsequencing.tracking.html import Html, element, join
from ehrsequencing.tracking.report_data import CalibrationPoint, Curve
from ehrsequencing.tracking.summary import split_key
from ehrsequencing.tracking.svg import SMALL, Series, line_chart

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]
Names = Mapping[str, str]

_CURVE_LABELS = {"loss": "Loss", "accuracy": "Accuracy", "auroc": "AUROC", "auprc": "AUPRC"}


def in_order(models: set[str], names: Names, fallback: Mapping[str, Any]) -> list[str]:
    """Models in the order of `names`, those without a name after them in the order of `fallback`."""
    known = [model for model in names if model in models]
    return known + [model for model in fallback if model in models and model not in names]


def curves(named: Mapping[str, Mapping[str, Sequence[Sequence[Any]]]], names: Names) -> Html | None:
    """One chart per model and kind of metric; training and tuning share a chart."""
    figures = []
    for name, metrics in named.items():
        kinds: dict[str, list[str]] = {}
        for metric in metrics:
            kinds.setdefault(metric.rsplit("_", 1)[-1], []).append(metric)
        for kind, members in kinds.items():
            if kind not in _CURVE_LABELS:
                continue
            series = []
            for metric in members:
                points = [(float(x), None if y is None else float(y)) for x, y in metrics[metric]]
                series.append(Series(_curve_name(metric, kind), points, dots=len(points) < 25))
            label = _CURVE_LABELS[kind]
            title = f"{names.get(name, name)}: {label if label.isupper() else label.lower()}"
            figures.append(line_chart(title, series, "Epoch", label, integer_x=True))
    return element("div", *figures, class_="charts") if figures else None


def _curve_name(metric: str, kind: str) -> str:
    prefix = metric.removesuffix(kind).rstrip("_")
    known = {"train": "training", "val": "tuning", "": kind}
    return known.get(prefix, prefix.replace("_", " "))


def ranking(roc: Mapping[str, Curve], pr: Mapping[str, Curve], metrics: Metrics, names: Names) -> Html | None:
    """ROC and precision-recall curves of all models."""
    figures = []
    if roc:
        series = _curve_series(roc, names)
        figures.append(
            line_chart(
                "ROC curve",
                series,
                "False positive rate",
                "True positive rate",
                x_range=(0, 1),
                y_range=(0, 1),
                diagonal=True,
            )
        )
    if pr:
        shares = [
            entry["positives"] / entry["n"]
            for entries in metrics.values()
            for key, entry in entries.items()
            if split_key(key)[1] == "auprc" and entry.get("positives") is not None and entry.get("n")
        ]
        # The level of guessing is one line only where all curves share one population.
        level = shares[0] if shares and max(shares) - min(shares) < 1e-9 else None
        series = _curve_series(pr, names)
        figures.append(
            line_chart(
                "Precision-recall curve",
                series,
                "Recall",
                "Precision",
                x_range=(0, 1),
                y_range=(0, 1),
                level=level,
            )
        )
    if not figures:
        return None
    note = element("p", "Dashed grey: guessing.", class_="note")
    return join([element("div", *figures, class_="charts"), note])


def _curve_series(curves_of: Mapping[str, Curve], names: Names) -> list[Series]:
    order = in_order(set(curves_of), names, curves_of)
    return [
        Series(names.get(model, model), list(zip(curves_of[model].x, curves_of[model].y, strict=True)))
        for model in order
    ]


def calibration(
    bins: Mapping[str, Sequence[CalibrationPoint]], names: Names, x_label: str = "Predicted risk"
) -> Html | None:
    """Predicted against observed risk, one chart per model on one scale."""
    bins = {model: points for model, points in bins.items() if points}
    if not bins:
        return None
    top = max(max(point.predicted, point.observed, point.high or 0.0) for points in bins.values() for point in points)
    end = min(1.0, 1.05 * top) or 1.0
    figures = []
    for model in in_order(set(bins), names, bins):
        points = sorted(bins[model], key=lambda point: point.predicted)
        series = Series(
            names.get(model, model),
            [(point.predicted, point.observed) for point in points],
            [(point.low, point.high) for point in points],
            dots=True,
            line=False,
        )
        figures.append(
            line_chart(
                names.get(model, model),
                [series],
                x_label,
                "Observed share",
                x_range=(0, end),
                y_range=(0, end),
                diagonal=True,
                width=SMALL,
            )
        )
    note = (
        "Each point is a group of subjects with similar predicted risk. On the dashed line predicted risk is what "
        "happens; below it the model overstates the risk."
    )
    return join([element("div", *figures, class_="charts small"), element("p", note, class_="note")])
