"""`report.html`: one self-contained page made of a run's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrsequencing.errors import RunError
from ehrsequencing.io import read_json, write_text
from ehrsequencing.tracking import doctor_section, figures, html, sections, survival_section, validation_sections
from ehrsequencing.tracking.html import Html, element, join, page
from ehrsequencing.tracking.report_data import ReportData, read_report_data
from ehrsequencing.tracking.summary import check_metrics, format_number
from ehrsequencing.tracking.text import flatten
from ehrsequencing.tracking.words import plain_words

_STATUS = {
    "running": ("running, or killed", True),
    "completed": ("completed", False),
    "failed": ("failed", True),
    "interrupted": ("interrupted", True),
    "early_stopped": ("stopped early", False),
}


def write_report(run: str | Path) -> Path:
    """Write `report.html` of a run directory and return its path.

    Reads `metadata.json`, `summary.json`, `hyperparameters.json`, `logs/metrics_history.json` and
    `report_data.json` and `doctor.json`; each may be missing, and what it would show is left out. The page needs no
    network and runs no script; every string in it is escaped.

    Raises:
        RunError: `run` is no folder, holds none of these files, or one of them is malformed.
        MetricError: a figure of `summary.json` is malformed.
    """
    run = Path(run)
    if not run.is_dir():
        raise RunError(f"{run} is no run directory", remedy="give the folder that a run wrote to")
    names = ("metadata.json", "summary.json", "hyperparameters.json", "logs/metrics_history.json", "report_data.json")
    if not any((run / name).exists() for name in names):
        raise RunError(f"{run} holds no run", expected=f"one of {', '.join(names)}")
    metadata, summary, settings, history = (_read(run / name) for name in names[:4])
    data = read_report_data(run)
    doctor = _read(run / "doctor.json")
    title = data.title or str(metadata.get("experiment_name") or run.resolve().name)
    path = run / "report.html"
    write_text(path, page(title, _body(title, metadata, summary, settings, history, data, doctor)))
    return path


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise RunError(f"{path} is malformed", got=type(content).__name__, expected="a JSON object")
    return content


def _body(
    title: str,
    metadata: Mapping[str, Any],
    summary: dict[str, Any],
    settings: Mapping[str, Any],
    history: Mapping[str, Any],
    data: ReportData,
    doctor: Mapping[str, Any],
) -> Html:
    metrics = check_metrics(summary.get("metrics") or {})
    summary = {**summary, "metrics": metrics}
    _check_differences(data, metrics)
    names = data.names()
    simple = {row.model for row in data.models if row.kind == "baseline"}
    words = data.plain_words
    if words is None:
        words = plain_words(summary, differences=data.differences, floors=data.floors, models=data.models)
    drawn = {name: dict(curves) for name, curves in data.curves.items()} or _history_curves(metadata, history)
    caveats = list(dict.fromkeys([*data.caveats, *summary.get("notes", []), *_incidents(metadata)]))
    found: list[tuple[str, str, Html | None]] = [
        ("words", "In plain words", join(element("p", text) for text in words) if words else None),
        ("results", "Results", sections.results(metrics, names)),
        ("differences", "Paired differences", sections.differences(data.differences, names)),
        ("masked-codes", "Masked-code prediction", sections.masked_codes(metrics, data.floors, names, simple)),
        ("models", "Models", sections.models(data.models)),
        ("curves", "Learning curves", figures.curves(drawn, names)),
        ("ranking", "Ranking", figures.ranking(data.roc, data.pr, metrics, names)),
        ("calibration", "Calibration", figures.calibration(data.calibration, names)),
        ("survival", "Survival", survival_section.survival(data.survival, metrics, names)),
        (
            "calibration-lines",
            "Calibration slope and intercept",
            validation_sections.calibration_lines(data.calibration_fit, names),
        ),
        ("decisions", "Decisions", validation_sections.decisions(data.decision, names)),
        ("subgroups", "Subgroups", validation_sections.subgroups(data.subgroups, metrics, names)),
        ("variance", "Trainings and subjects", validation_sections.variance(metrics, names)),
        ("unknown", "Unknown codes", validation_sections.unknown_codes(data.unknown)),
        ("confusion", "Confusion matrix", sections.confusion(data.confusion, names)),
        ("doctor", "Doctor", doctor_section.doctor(doctor)),
        ("parameters", "What was trained", sections.parameters(data.parameters, names)),
        ("cohort", "Cohort", sections.cohort(data.cohort)),
        ("data", "Data", sections.pairs(data.data)),
        ("audit", "Leakage audit", sections.audit(data.audit)),
        ("baselines", "Baselines", sections.baselines(data.baselines, names)),
        ("caveats", "Caveats", sections.listing(caveats)),
        ("settings", "Settings", sections.pairs(flatten(settings))),
        ("commands", "How this was made", sections.commands(data.commands)),
    ]
    links, main = html.sections(found, lead="words")
    header = element("header", element("h1", title), _meta(metadata), links)
    version = (metadata.get("versions") or {}).get("ehrsequencing")
    made = f"Made by ehrsequencing {version}" if version else "Made by ehrsequencing"
    footer = element("footer", f"{made} from the files of the run directory.")
    return join([header, main, footer])


def _check_differences(data: ReportData, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    # A pair under another name would leave the words saying that nothing was compared.
    for pair in data.differences:
        for model in (pair.a, pair.b):
            if pair.metric not in metrics.get(model, {}):
                raise RunError(
                    "a paired difference names a figure that the summary does not have",
                    got=f"{model}, {pair.metric}",
                    expected="a model and a task/metric of summary.json",
                )


def _meta(metadata: Mapping[str, Any]) -> Html | None:
    items = []
    if metadata.get("experiment_name"):
        items.append(element("li", f"Run {metadata['experiment_name']}"))
    if metadata.get("status"):
        text, alarming = _STATUS.get(metadata["status"], (str(metadata["status"]), True))
        items.append(element("li", element("span", text, class_="status warn" if alarming else "status")))
    if metadata.get("created"):
        items.append(element("li", f"Started {str(metadata['created'])[:16].replace('T', ' ')} UTC"))
    if isinstance(metadata.get("seconds"), int | float):
        items.append(element("li", f"Wall time {_duration(metadata['seconds'])}"))
    for key in ("device", "fingerprint"):
        if isinstance(metadata.get(key), str):
            items.append(element("li", f"{key.capitalize()} {metadata[key][:24]}"))
    return element("ul", *items, class_="meta") if items else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{format_number(float(seconds), 1)} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _history_curves(metadata: Mapping[str, Any], history: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    if not history:
        return {}
    points = {name: [(item["epoch"], item["value"]) for item in items] for name, items in history.items()}
    return {str(metadata.get("experiment_name", "Run")): points}


def _incidents(metadata: Mapping[str, Any]) -> list[str]:
    lines = []
    strange = metadata.get("non_finite") or []
    if strange:
        first = strange[0]
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        lines.append(f"{first['metric']} was {first['value']} at epoch {first['epoch']}{more}; curves have gaps there.")
    if metadata.get("resumed"):
        times = len(metadata["resumed"])
        killed = sum(item.get("previous_status") == "running" for item in metadata["resumed"])
        lines.append(f"The run was resumed {times} times, {killed} of them after its process had been killed.")
    if metadata.get("error"):
        lines.append(f"The run ended with {metadata['error']}.")
    return lines
