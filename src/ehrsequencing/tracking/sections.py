"""The sections of a report: each takes plain data and gives a piece of the page, or None when there is nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ehrsequencing.tracking.figures import Metrics, Names, in_order
from ehrsequencing.tracking.html import Html, element, join, table
from ehrsequencing.tracking.report_data import (
    AuditRow,
    Baseline,
    Cohort,
    Confusion,
    Difference,
    Floor,
    ModelRow,
)
from ehrsequencing.tracking.summary import direction, format_estimate, format_number, split_key
from ehrsequencing.tracking.svg import bar, scale, strip
from ehrsequencing.tracking.words import (
    METRIC_NAMES,
    best_model,
    by_task,
    is_masked_code_metric,
    masked_code_floors,
    metric_name,
    primary_key,
    title_case,
)

_MASKED = ("loss", "accuracy", "top10")
_LONG = 30
_ALARMING = ("error", "accepted", "warning")
_PARAMETER_GROUPS = {
    "pretrained": "Pretrained",
    "from_scratch": "Learned from scratch",
    "frozen": "Frozen",
    "received_gradient": "Received a gradient",
}


def results(metrics: Metrics, names: Names) -> Html | None:
    """Table of models by metrics with intervals, and the primary metrics drawn, for every task."""
    parts: list[Html] = []
    for task, columns in by_task(metrics).items():
        order = in_order({model for column in columns.values() for model in column}, names, metrics)
        if task:
            parts.append(element("h3", title_case(task)))
        parts.append(_metric_table(columns, order, names))
        lead = primary_key(list(columns))
        drawn = [key for key in (lead, *columns) if split_key(key)[1] in ("auroc", "auprc", "c_uno", "c_harrell")]
        parts += [_strips(key, columns[key], order, names) for key in dict.fromkeys(drawn)][:2]
    if not parts:
        return None
    note = (
        "95% intervals in brackets. The best value of each column is bold; a bold value is not proof of a difference."
    )
    return join([*parts, element("p", note, class_="note")])


def _metric_table(columns: Any, models: Sequence[str], names: Names) -> Html:
    best = {key: best_model(column, key) for key, column in columns.items()}
    head = ["Model"]
    for key, column in columns.items():
        arrow = "higher is better" if direction(key, next(iter(column.values()))) else "lower is better"
        head.append(join([metric_name(key), element("span", arrow, class_="sub")]))
    body = []
    for model in models:
        cells: list[str] = [names.get(model, model)]
        for key, column in columns.items():
            cells.append(_cell(column.get(model), best[key] == model and len(column) > 1))
        body.append(cells)
    return table(_population(columns), head, body)


def models(rows: Sequence[ModelRow]) -> Html | None:
    """What each model is, how much of it trained and for how long."""
    if not rows:
        return None
    body = []
    for row in rows:
        share = None
        if row.trainable_parameters is not None and row.total_parameters:
            share = f"{row.trainable_parameters / row.total_parameters:.1%}"
        seconds = None if row.seconds is None else format_number(float(row.seconds), 1)
        counts = [None if count is None else f"{count:,}" for count in (row.trainable_parameters, row.total_parameters)]
        body.append([row.name or row.model, row.kind, *counts, share, seconds, row.notes])
    head = ["Model", "Kind", "Trainable parameters", "All parameters", "Share", "Seconds to train", "Notes"]
    kept = [index for index in range(len(head)) if index == 0 or any(line[index] is not None for line in body)]
    text = tuple(place for place, index in enumerate(kept) if head[index] in ("Model", "Kind", "Notes"))
    shown = [[line[index] if line[index] is not None else "–" for index in kept] for line in body]
    return table("In order of display", [head[index] for index in kept], shown, text_columns=text)


def _cell(entry: Mapping[str, Any] | None, best: bool) -> Html:
    if entry is None:
        return element("span", "–")
    parts: list[Html | str] = [format_number(float(entry["value"]))]
    if entry.get("low") is not None and entry.get("high") is not None:
        interval = f"[{format_number(float(entry['low']))}, {format_number(float(entry['high']))}]"
        parts.append(element("span", interval, class_="ci"))
    return element("span", *parts, class_="best" if best else None)


def _population(columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    entry = next(iter(columns[primary_key(list(columns))].values()))
    parts = []
    for field, word in (("n", "predictions"), ("subjects", "subjects"), ("positives", "positives")):
        if entry.get(field) is not None:
            parts.append(f"{entry[field]:,} {word}")
    return ", ".join(parts) or "Metrics"


def _strips(key: str, column: Mapping[str, Mapping[str, Any]], order: Sequence[str], names: Names) -> Html:
    entries = {model: column[model] for model in order if model in column}
    reference = 0.5
    if split_key(key)[1] == "auprc":
        first = next(iter(entries.values()))
        known = first.get("positives") is not None and first.get("n")
        reference = first["positives"] / first["n"] if known else float("nan")
    low_end, high_end = _range(entries.values(), [reference])
    body = []
    for model, entry in entries.items():
        drawn = strip(low_end, high_end, entry["value"], entry.get("low"), entry.get("high"), reference=reference)
        body.append([names.get(model, model), drawn, format_estimate(entry)])
    caption = f"{metric_name(key)} with 95% intervals"
    if reference == reference:
        caption += f"; the dashed line marks guessing ({format_number(reference)})"
    return table(caption, ["Model", scale(low_end, high_end), "Value"], body, text_columns=(0, 1), class_="strips")


def _range(entries: Any, references: Sequence[float]) -> tuple[float, float]:
    values = [entry[field] for entry in entries for field in ("value", "low", "high") if entry.get(field) is not None]
    values += [value for value in references if value == value]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def differences(pairs: Sequence[Difference], names: Names) -> Html | None:
    """Paired differences, one table per metric, with the line of no difference."""
    if not pairs:
        return None
    parts: list[Html] = []
    for key in dict.fromkeys(pair.metric for pair in pairs):
        group = [pair for pair in pairs if pair.metric == key]
        stated = {"higher_is_better": group[0].higher_is_better} if group[0].higher_is_better is not None else {}
        higher = direction(key, stated)
        bounds = [{"value": pair.value, "low": pair.low, "high": pair.high} for pair in group]
        low_end, high_end = _range(bounds, [0.0])
        body = []
        for pair in group:
            apart = not pair.low <= 0 <= pair.high
            better = pair.a if (pair.value > 0) == higher else pair.b
            verdict = f"{names.get(better, better)} better" if apart else "not told apart"
            interval = f"[{pair.low:+.3f}, {pair.high:+.3f}]"
            label = f"{names.get(pair.a, pair.a)} minus {names.get(pair.b, pair.b)}"
            size = f"n = {pair.n:,}" if pair.n is not None else None
            body.append(
                [
                    join([label, element("span", size, class_="sub") if size else None]),
                    strip(low_end, high_end, pair.value, pair.low, pair.high, reference=0.0, colour=0 if apart else 5),
                    join([f"{pair.value:+.3f}", element("span", interval, class_="ci")]),
                    element("span", verdict, class_="best" if apart else None),
                ]
            )
        task = title_case(split_key(key)[0])
        arrow = "above zero the first is better" if higher else "below zero the first is better"
        caption = f"{task + ', ' if task else ''}{metric_name(key)}: {arrow}"
        head = ["Pair", scale(low_end, high_end), "Difference", "Verdict"]
        parts.append(table(caption, head, body, text_columns=(0, 1, 3), class_="strips"))
    note = (
        "Each difference is taken on the same subjects, resampled together. An interval that includes zero does not "
        "tell the two apart."
    )
    return join([*parts, element("p", note, class_="note")])


def masked_codes(metrics: Metrics, floors: Sequence[Floor], names: Names, baselines: Collection[str]) -> Html | None:
    """The model's masked-code figures beside the floors that need no model."""
    floors, judged = masked_code_floors(metrics, floors, baselines)
    rows: list[tuple[str, bool, dict[str, Mapping[str, Any] | None]]] = []
    for model, entries in judged.items():
        own = {split_key(key)[1]: entry for key, entry in entries.items() if is_masked_code_metric(key)}
        if own:
            rows.append((names.get(model, model), True, {name: own.get(f"mlm_{name}") for name in _MASKED}))
    for floor in floors:
        figures = {name: getattr(floor, name) for name in _MASKED}
        entered: dict[str, Mapping[str, Any] | None] = {
            name: None if value is None else {"value": value} for name, value in figures.items()
        }
        rows.append((names.get(floor.name, floor.name), False, entered))
    shown = [name for name in _MASKED if any(figures[name] is not None for *_, figures in rows)]
    if not shown:
        return None
    largest = max((figures["loss"]["value"] for *_, figures in rows if figures["loss"]), default=0.0)
    head: list[str] = ["Predictor"]
    for name in shown:
        arrow = "lower is better" if name == "loss" else "higher is better"
        head.append(join([METRIC_NAMES[f"mlm_{name}"], element("span", arrow, class_="sub")]))
    body = []
    for label, is_model, figures in rows:
        kind = element("span", "trained" if is_model else "floor, needs no model", class_="sub")
        cells: list[str] = [join([element("strong", label) if is_model else label, kind])]
        for name in shown:
            entry = figures[name]
            if entry is None:
                cells.append("–")
                continue
            share = entry["value"] / largest if name == "loss" and largest else entry["value"]
            drawn = bar(share, 0 if is_model else 5, thin=True)
            cells.append(join([_masked_cell(entry, percent=name != "loss"), drawn]))
        body.append(cells)
    return table("All on the same masked positions", head, body)


def _masked_cell(entry: Mapping[str, Any], *, percent: bool) -> Html:
    def written(value: float) -> str:
        return f"{value:.1%}" if percent else format_number(float(value))

    interval = None
    if entry.get("low") is not None and entry.get("high") is not None:
        interval = element("span", f"[{written(entry['low'])}, {written(entry['high'])}]", class_="ci")
    return join([written(entry["value"]), interval])


def confusion(matrix: Confusion | None, names: Names) -> Html | None:
    """Counts with shares of each true class."""
    if matrix is None:
        return None
    body = []
    for name, counts in zip(matrix.classes, matrix.counts, strict=True):
        total = sum(counts)
        cells: list[str] = [name]
        for count in counts:
            share = count / total if total else 0.0
            text = element("span", f"{share:.1%}", class_="ci") if total else None
            cells.append(
                element("div", f"{count:,}", text, class_="heat", style=f"--h:{share:.3f};padding:.3rem .5rem")
            )
        body.append(cells)
    caption = "True class by row, predicted class by column"
    if matrix.model:
        caption += f"; {names.get(matrix.model, matrix.model)}"
    if matrix.threshold is not None:
        caption += f", threshold {format_number(matrix.threshold)}"
    return table(caption, ["True class", *matrix.classes], body)


def parameters(report: Mapping[str, Mapping[str, Mapping[str, int] | Sequence[str]]], names: Names) -> Html | None:
    """Which parts of each model are pretrained, new, frozen, and which a gradient reached."""
    if not report:
        return None
    parts = []
    for model, kinds in report.items():
        groups = [group for group in _PARAMETER_GROUPS if group in kinds]
        groups += [group for group in kinds if group not in _PARAMETER_GROUPS]
        labels = [_PARAMETER_GROUPS.get(group, group.replace("_", " ").capitalize()) for group in groups]
        members = list(dict.fromkeys(name for kind in kinds.values() for name in kind))
        body = [["All parts", *(_parameter_total(kinds[group]) for group in groups)]] if len(members) > 1 else []
        body += [[name, *(_parameter_cell(kinds[group], name) for group in groups)] for name in members]
        made = table(f"{names.get(model, model)}: numbers of parameters", ["Part", *labels], body)
        if len(members) > _LONG:
            made = element("details", element("summary", f"{names.get(model, model)}: {len(members)} parts"), made)
        parts.append(made)
    note = (
        "Every parameter is either pretrained or learned from scratch; whether it is frozen and whether a gradient "
        "reached it are separate questions."
    )
    return join([*parts, element("p", note, class_="note")])


def _parameter_total(members: Mapping[str, int] | Sequence[str]) -> str:
    return f"{sum(members.values()):,}" if isinstance(members, Mapping) else f"{len(members):,} parts"


def _parameter_cell(members: Mapping[str, int] | Sequence[str], name: str) -> str:
    if name not in members:
        return "–"
    return f"{members[name]:,}" if isinstance(members, Mapping) else "yes"


def cohort(flow: Cohort | None) -> Html | None:
    """How many each line of the cohort's flow counts.

    The lines are those of the manifest: some say what is left after a rule, some what a rule excluded, so no
    difference between two of them is shown.
    """
    if flow is None or not flow.flow:
        return None
    start = max(step.count for step in flow.flow) or 1
    body = []
    for step in flow.flow:
        # Before there are rows to count, a line counts subjects alone.
        count = "" if step.step.startswith("subjects") else f"{step.count:,}"
        body.append([step.step, bar(step.count / start), count, "" if step.subjects is None else f"{step.subjects:,}"])
    made = table(
        "The cohort, rule by rule",
        ["Rule", "", flow.unit.capitalize(), "Subjects"],
        body,
        text_columns=(0, 1),
        class_="strips",
    )
    return join([made, element("p", flow.note, class_="note") if flow.note else None])


def audit(rows: Sequence[AuditRow]) -> Html | None:
    """What the leakage audit checked, found, and was told to accept."""
    if not rows:
        return None
    body = [
        [row.check, element("strong", row.result) if row.result in _ALARMING else row.result, "; ".join(row.found)]
        for row in rows
    ]
    made = table("Checked beforehand", ["Check", "Result", "Found"], body, text_columns=(0, 1, 2))
    accepted = [row.check for row in rows if row.result == "accepted"]
    note = f"Accepted with --accept in spite of the error: {', '.join(accepted)}." if accepted else None
    return join([made, element("p", note, class_="note") if note else None])


def pairs(items: Mapping[str, Any]) -> Html | None:
    """Names with values."""
    if not items:
        return None
    parts = []
    for key, value in items.items():
        parts += [element("dt", str(key)), element("dd", _text(value))]
    return element("dl", *parts)


def baselines(fitted: Mapping[str, Baseline], names: Names) -> Html | None:
    """What the baselines see, what was tried and what was chosen."""
    if not fitted:
        return None
    body = [
        [names.get(name, name), _text(item.features), _tried(item.grid), _text(item.chosen)]
        for name, item in fitted.items()
    ]
    head = ["Baseline", "Features", "Tried", "Chosen on tuning"]
    made = table("Fitted on train, chosen on tuning", head, body, text_columns=(0, 1, 2, 3))
    return join([made, *(_grid_table(names.get(name, name), item.grid) for name, item in fitted.items())])


def _is_rows(grid: Any) -> bool:
    return isinstance(grid, list) and bool(grid) and all(isinstance(row, Mapping) and row for row in grid)


def _tried(grid: Any) -> str:
    return f"{len(grid)} settings, below" if _is_rows(grid) else _text(grid)


def _grid_table(label: str, grid: Any) -> Html | None:
    if not _is_rows(grid):
        return None
    columns = list(dict.fromkeys(key for row in grid for key in row))
    body = [[_text(row.get(key)) for key in columns] for row in grid]
    summary = element("summary", f"{label}: settings tried")
    return element("details", summary, table("One row per setting", [str(key) for key in columns], body))


def listing(lines: Sequence[str]) -> Html | None:
    """A list of sentences."""
    return element("ul", *(element("li", line) for line in lines), class_="plain") if lines else None


def commands(lines: Sequence[str]) -> Html | None:
    """Commands, one per line."""
    return element("pre", "\n".join(lines)) if lines else None


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} = {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
