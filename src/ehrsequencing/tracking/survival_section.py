"""The survival part of a report: curves beside what was observed, calibration at horizons, figures by horizon."""

from __future__ import annotations

from ehrsequencing.tracking.figures import Metrics, Names, calibration, in_order
from ehrsequencing.tracking.html import Html, element, join, table
from ehrsequencing.tracking.report_data import Survival
from ehrsequencing.tracking.summary import format_number, split_key
from ehrsequencing.tracking.svg import Series, line_chart
from ehrsequencing.tracking.words import metric_name

_BY_HORIZON = ("auc", "brier", "ici")
OBSERVED = "observed"


def survival(found: Survival | None, metrics: Metrics, names: Names) -> Html | None:
    """All of it, or None where a run is of another kind."""
    if found is None:
        return None
    parts = [
        _incidence(found, names),
        _by_horizon(metrics, names),
        _calibration(found, names),
        _d_calibration(found, names),
    ]
    return join([part for part in parts if part is not None])


def _incidence(found: Survival, names: Names) -> Html | None:
    charts = []
    for cause, curves in found.incidence.items():
        order = in_order(set(curves.models), names, curves.models)
        series = [Series(OBSERVED, list(zip(curves.observed.x, curves.observed.y, strict=True)))]
        series += [
            Series(names.get(model, model), list(zip(curves.models[model].x, curves.models[model].y, strict=True)))
            for model in order
        ]
        charts.append(line_chart(f"Cumulative incidence: {cause}", series, "Days", "Incidence"))
    if not charts:
        return None
    note = "Observed: Kaplan-Meier, or Aalen-Johansen where causes compete; models: the mean over held-out rows."
    return join([element("div", *charts, class_="charts"), element("p", note, class_="note")])


def _by_horizon(metrics: Metrics, names: Names) -> Html | None:
    charts = []
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for model, entries in metrics.items():
        for key, entry in entries.items():
            task, bare, days = split_key(key)
            if bare in _BY_HORIZON and days:
                found.setdefault((task, bare), {}).setdefault(model, []).append((float(days), float(entry["value"])))
    for (task, bare), lines in found.items():
        if max(len(points) for points in lines.values()) < 2:
            continue
        series = [
            Series(names.get(model, model), sorted(lines[model]), dots=True)
            for model in in_order(set(lines), names, lines)
        ]
        charts.append(line_chart(f"{metric_name(bare)} by horizon: {task}", series, "Days", metric_name(bare)))
    return element("div", *charts, class_="charts") if charts else None


def _calibration(found: Survival, names: Names) -> Html | None:
    parts: list[Html] = []
    for days, bins in found.calibration.items():
        charts = calibration(bins, names, f"Predicted by day {days}")
        parts += [] if charts is None else [element("h3", f"Calibration at {days} days"), charts]
    return join(parts) if parts else None


def _d_calibration(found: Survival, names: Names) -> Html | None:
    if not found.d_calibration:
        return None
    rows = {row.model: row for row in found.d_calibration}
    body = [
        [names.get(model, model), format_number(rows[model].statistic, 1), format_number(rows[model].p)]
        for model in in_order(set(rows), names, rows)
    ]
    made = table("D-calibration until the last day judged", ["Model", "Chi-square", "p"], body)
    note = "A small p says that the predicted survival at the events is not spread evenly: the curves are off."
    return join([made, element("p", note, class_="note")])
