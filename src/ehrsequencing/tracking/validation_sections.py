"""The sections of a report that go beyond ranking: calibration lines, decisions, subgroups, seeds, unknown codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ehrsequencing.tracking.figures import Metrics, Names, in_order
from ehrsequencing.tracking.html import Html, element, join, table
from ehrsequencing.tracking.report_data import Bounded, CalibrationLine, Decision, SubgroupRow, Unknown
from ehrsequencing.tracking.summary import direction, format_estimate, format_number, split_key, subgroup_of
from ehrsequencing.tracking.svg import Series, line_chart
from ehrsequencing.tracking.words import TUNING, metric_name, title_case

_ROWS = 6


def calibration_lines(fits: Mapping[str, CalibrationLine], names: Names) -> Html | None:
    """Slope and intercept per model."""
    if not fits:
        return None
    body = [
        [names.get(model, model), _bounded(fits[model].slope), _bounded(fits[model].intercept)]
        for model in in_order(set(fits), names, fits)
    ]
    note = (
        "Slope 1 is right: below 1 risks are too extreme, above 1 too timid. Intercept 0 is right: below 0 risks are "
        "too high on average, above 0 too low. Brackets hold 95% intervals over subjects."
    )
    head = ["Model", "Calibration slope", "Calibration intercept"]
    return join([table("Logistic recalibration on held-out rows", head, body), element("p", note, class_="note")])


def _bounded(figure: Bounded) -> Html:
    interval = f"[{format_number(figure.low)}, {format_number(figure.high)}]"
    return element("span", format_number(figure.value), element("span", interval, class_="ci"))


def decisions(curves: Decision | None, names: Names) -> Html | None:
    """Net benefit over thresholds, drawn and for some thresholds in figures."""
    if curves is None:
        return None
    order = in_order(set(curves.models), names, curves.models)
    series = [
        Series(
            names.get(model, model),
            [(x, point.value) for x, point in zip(curves.thresholds, curves.models[model].net_benefit, strict=True)],
        )
        for model in order
    ]
    top = max([point.value for model in curves.models.values() for point in model.net_benefit] + curves.treat_all)
    # Treating everyone falls without end where thresholds are high, and what lies below no treatment needs little room.
    floor = -0.25 * top
    everyone = [(x, y if y >= floor else None) for x, y in zip(curves.thresholds, curves.treat_all, strict=True)]
    series.append(Series("Treat all", everyone))
    chart = line_chart(
        "Decision curve", series, "Risk from which one would act", "Net benefit per prediction",
        x_range=(0.0, curves.thresholds[-1]), y_range=(floor, 1.05 * top) if top > 0 else None, level=0.0,
    )  # fmt: skip
    last = len(curves.thresholds) - 1
    shown = sorted({round(index * last / (_ROWS - 1)) for index in range(_ROWS)})
    body = []
    for index in shown:
        cells: list[str] = [f"{curves.thresholds[index]:.0%}", format_number(curves.treat_all[index])]
        for model in order:
            point, gain = curves.models[model].net_benefit[index], curves.models[model].gain[index]
            cells.append(element("span", _bounded(point), class_="best" if gain.low > 0 else None))
        body.append(cells)
    head = ["Acting from", "Treat all", *(names.get(model, model) for model in order)]
    note = (
        "Net benefit counts a hit as 1 and a false alarm as threshold / (1 - threshold). Dashed grey: treating no one, "
        "worth 0. Intervals are pointwise and resample subjects; bold where the interval of the gain over the better "
        "of treating everyone and no one lies above zero."
    )
    figures = element("div", chart, class_="charts")
    return join([figures, table("Net benefit at some thresholds", head, body), element("p", note, class_="note")])


def subgroups(rows: Sequence[SubgroupRow], metrics: Metrics, names: Names) -> Html | None:
    """A table per grouping: size of every group, and each model's metrics in it."""
    if not rows:
        return None
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for model, entries in metrics.items():
        for key, entry in entries.items():
            task, metric, _ = split_key(key)
            group = subgroup_of(task)
            if group is not None:
                found.setdefault((group[1], group[2], metric), {})[model] = entry
    parts: list[Html] = []
    shown = list(dict.fromkeys(metric for *_, metric in found))
    for by in dict.fromkeys(row.by for row in rows):
        groups = [row for row in rows if row.by == by]
        parts.append(element("h3", f"By {by.removesuffix('//').replace('_', ' ')}"))
        tables = [_group_table(by, groups, metric, found, names, metrics) for metric in shown] or [
            _group_table(by, groups, None, found, names, metrics)
        ]
        parts.append(tables[0])
        if tables[1:]:
            parts.append(element("details", element("summary", "Other metrics"), *tables[1:]))
    scored = sum(row.too_small is None for row in rows)
    note = (
        f"95% intervals over subjects, each group on its own; {scored} groups are scored. Groups differ in their share "
        "of positives and in how hard they are, and of many intervals some miss the truth: a difference here is a "
        "question, not a finding."
    )
    return join([*parts, element("p", note, class_="note")])


def _group_table(
    by: str,
    groups: Sequence[SubgroupRow],
    metric: str | None,
    found: Mapping[tuple[str, str, str], Mapping[str, Mapping[str, Any]]],
    names: Names,
    metrics: Metrics,
) -> Html:
    models = {model for row in groups for model in found.get((by, row.group, metric or ""), {})}
    order = in_order(models, names, metrics)
    body = []
    for row in groups:
        size = f"{row.n:,} rows, {row.positives:,} positive"
        cells: list[str] = [join([row.group, element("span", size, class_="sub")])]
        entries = found.get((by, row.group, metric or ""), {})
        for model in order:
            cells.append(_estimate(entries[model]) if model in entries else "–")
        if row.too_small is not None:
            cells[0] = join([cells[0], element("span", f"not scored: {row.too_small}", class_="sub")])
        body.append(cells)
    caption = "Sizes"
    if metric is not None:
        stated = next((entry for key in found if key[2] == metric for entry in found[key].values()), None)
        caption = f"{metric_name(metric)}, {'higher' if direction(metric, stated) else 'lower'} is better"
    return table(caption, ["Group", *(names.get(model, model) for model in order)], body)


def _estimate(entry: Mapping[str, Any]) -> Html:
    interval = f"[{format_number(float(entry['low']))}, {format_number(float(entry['high']))}]"
    return element("span", format_number(float(entry["value"])), element("span", interval, class_="ci"))


def variance(metrics: Metrics, names: Names) -> Html | None:
    """What the draw of subjects and the luck of the training each add to the error of a figure."""
    body = []
    for model in in_order(set(metrics), names, metrics):
        for key, entry in metrics[model].items():
            task = split_key(key)[0]
            if entry.get("seed_sd") is None or subgroup_of(task) is not None or task.startswith(TUNING):
                continue
            seeds = entry["seeds"] if isinstance(entry["seeds"], int) else len(entry["seeds"])
            of_mean = entry["seed_sd"] / math.sqrt(seeds)
            body.append(
                [
                    join(
                        [
                            names.get(model, model),
                            element("span", f"{title_case(task)}, {metric_name(key)}", class_="sub"),
                        ]
                    ),
                    f"{seeds}",
                    format_estimate(entry),
                    *(format_number(float(sd), 4) for sd in (entry["seed_sd"], of_mean, entry["subject_sd"])),
                ]
            )
    if not body:
        return None
    head = ["Model", "Trainings", "Mean", "SD between trainings", "SD of their mean", "SD over subjects"]
    note = (
        "Two sources of error, apart: other seeds of the same training on the same subjects, and other subjects for "
        "the same trainings. The intervals in the tables hold both: the SD of the trainings' mean and that over "
        "subjects."
    )
    return join([table("Trainings and subjects", head, body), element("p", note, class_="note")])


def unknown_codes(found: Unknown | None) -> Html | None:
    """What a vocabulary does not know of another dataset."""
    if found is None:
        return None
    body = [["All", *_shares(found)]]
    body += [[kind.kind.capitalize(), *_shares(kind)] for kind in found.kinds]
    head = ["Kind", "Events judged", "Unknown", "Distinct codes", "Unknown"]
    parts = [table("Events and codes that the vocabulary does not know", head, body)]
    if found.most_frequent:
        lost = [[code.code, code.kind, f"{code.events:,}"] for code in found.most_frequent]
        made = table("Most frequent first", ["Code", "Kind", "Events in the dataset"], lost, text_columns=(0, 1))
        parts.append(element("details", element("summary", "Codes that were lost"), made))
    note = (
        "An unknown event reads as [UNK]: the model sees that something was recorded and not what. Distinct codes are "
        "those of the whole dataset."
    )
    return join([*parts, element("p", note, class_="note")])


def _shares(counts: Any) -> list[str]:
    cells = [f"{counts.events:,}", _share(counts.unknown_events, counts.events)]
    if counts.codes is None or counts.unknown_codes is None:
        return [*cells, "–", "–"]
    return [*cells, f"{counts.codes:,}", _share(counts.unknown_codes, counts.codes)]


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "0"
