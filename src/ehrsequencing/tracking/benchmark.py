"""Models side by side: table, best model, performance against size and time, LoRA against full, and reports."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ehrsequencing.errors import ConfigError, MetricError, RunError
from ehrsequencing.io import read_json, write_json, write_text
from ehrsequencing.tracking.html import element, join, page
from ehrsequencing.tracking.runs import read_run
from ehrsequencing.tracking.summary import check_metrics, direction, format_estimate, format_number
from ehrsequencing.tracking.tables import Strong, Table, html_table, markdown_cell
from ehrsequencing.tracking.values import number
from ehrsequencing.tracking.words import best_model, metric_name, title_case

FACTS = {
    "parameters": ("Parameters", 0),
    "seconds": ("Seconds", 1),
    "bytes": ("Bytes trained", 0),
    "epoch": ("Epoch", 0),
}
"""What is known of a result beside its metrics: heading and decimals."""


class BenchmarkTracker:
    """Collects one result per model in `output_dir/name/benchmark.json`, rewritten atomically after each.

    Opening a benchmark that exists continues it, so a benchmark on a machine that vanishes loses at most the model
    that was being trained.

    Args:
        name: Name of the benchmark's folder.
        output_dir: Folder of the benchmarks.

    Raises:
        ConfigError: the name is no plain folder name.
        RunError: the results of an earlier start are malformed.
    """

    def __init__(self, name: str, output_dir: str | Path = "benchmarks") -> None:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ConfigError("the benchmark's name is no folder name", got=repr(name))
        self.name = name
        self.directory = Path(output_dir) / name
        self._path = self.directory / "benchmark.json"
        self._results: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            content = read_json(self._path, remedy="remove it to start the benchmark anew")
            results = content.get("results") if isinstance(content, dict) else None
            if not isinstance(results, dict):
                raise RunError(f"{self._path} holds no results", remedy="remove it to start the benchmark anew")
            self._results = results

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """{model: {"metrics", "parameters", "seconds", "seeds", "bytes", "epoch", "method"}} in order of arrival."""
        return self._results

    def add_result(
        self,
        model_name: str,
        metrics: Mapping[str, Any],
        *,
        parameters: int | None = None,
        seconds: float | None = None,
        seeds: int | Sequence[int] | None = None,
        trained_bytes: int | None = None,
        epoch: int | None = None,
        method: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Add one model, all metrics of it from one state of its weights.

        Args:
            model_name: Name of the model, unique in the benchmark.
            metrics: Name -> number, or {value, low, high, n, higher_is_better}; the direction of a metric that the
                package does not know must be given.
            parameters: Number of trained parameters.
            seconds: Wall time of the training.
            seeds: Number of trainings behind the figures, or the seeds.
            trained_bytes: Size on disk of what was trained: of adapters and head, or of the whole model.
            epoch: 0-based epoch that the metrics are of.
            method: How it was trained; "lora" and "full" are compared with each other in the report.
            overwrite: Replace an earlier result of this model.

        Raises:
            MetricError: no metrics, a value that is NaN or no number, or a direction that is unknown or differs from
                the one another model gave.
            RunError: the model has a result already.
        """
        if model_name in self._results and not overwrite:
            raise RunError(
                f"the benchmark has a result of {model_name!r} already", remedy="use another name, or overwrite=True"
            )
        if not metrics:
            raise MetricError(f"the result of {model_name!r} has no metrics")
        entries = {
            key: dict(entry) if isinstance(entry, Mapping) else {"value": number(key, entry)}
            for key, entry in metrics.items()
        }
        for key, entry in entries.items():
            # A direction given once holds for every model of the benchmark.
            known = {
                item["metrics"][key]["higher_is_better"] for item in self._results.values() if key in item["metrics"]
            }
            stated = entry.get("higher_is_better")
            if known and stated is not None and stated not in known:
                raise MetricError(f"the direction of metric {key!r} is contradicted", got=stated, expected=known.pop())
            if known and stated is None:
                entry["higher_is_better"] = known.pop()
        result: dict[str, Any] = {"metrics": check_metrics({model_name: entries})[model_name]}
        result |= {
            "parameters": None if parameters is None else int(parameters),
            "seconds": None if seconds is None else float(seconds),
            "seeds": list(seeds) if isinstance(seeds, Sequence) else seeds,
            "bytes": None if trained_bytes is None else int(trained_bytes),
            "epoch": None if epoch is None else int(epoch),
            "method": method,
        }
        self._results = {**self._results, model_name: result}
        write_json(self._path, {"name": self.name, "results": self._results})

    def add_run(self, run: str | Path, *, name: str | None = None, overwrite: bool = False) -> None:
        """Add what a run directory holds: the metrics of its own model, its size, time, storage, epoch and method.

        Args:
            run: Folder that `ExperimentTracker` wrote.
            name: Of the model; that of the run's summary by default.

        Raises:
            RunError: it is no run, or one without metrics; or the model has a result already.
        """
        found = read_run(run)
        if found.model is None:
            raise RunError(f"{run} holds no metrics", got=f"status {found.status}", remedy="let the run end first")
        self.add_result(
            name or found.model,
            found.metrics,
            parameters=found.trainable,
            seconds=found.seconds,
            seeds=found.seeds,
            trained_bytes=found.trained_bytes,
            epoch=found.best_epoch,
            method=found.method,
            overwrite=overwrite,
        )

    def metric_names(self) -> list[str]:
        """Every metric that some model has, in order of first appearance."""
        return list(dict.fromkeys(key for result in self._results.values() for key in result["metrics"]))

    def best_model(self, metric: str) -> str:
        """Name of the model with the best value of `metric`, its direction respected.

        Raises:
            MetricError: no model has it.
        """
        return best_model(self._column(metric), metric)

    def comparison_table(self) -> list[dict[str, Any]]:
        """One row per model: `model`, each metric's value (None where it was not computed), and `FACTS`.

        Rows are ordered by the first metric, best first; models without it come last.
        """
        names = self.metric_names()
        rows = [
            {"model": model}
            | {key: result["metrics"].get(key, {}).get("value") for key in names}
            | {fact: result.get(fact) for fact in FACTS}
            for model, result in self._results.items()
        ]
        if names:
            first = names[0]
            sign = -1 if direction(first, next(iter(self._column(first).values()))) else 1
            rows.sort(key=lambda row: (row[first] is None, sign * (row[first] or 0.0)))
        return rows

    def plot_performance_vs_size(self, metric: str) -> Path:
        """Draw `plots/performance_vs_size.png`: `metric` with intervals against trained parameters.

        Raises:
            MetricError: no model has both the metric and a number of parameters.
        """
        return self._plot(metric, "parameters", "performance_vs_size", "Trained parameters", "number of parameters")

    def plot_performance_vs_time(self, metric: str) -> Path:
        """Draw `plots/performance_vs_time.png`: `metric` with intervals against the seconds of training.

        Raises:
            MetricError: no model has both the metric and a time.
        """
        return self._plot(metric, "seconds", "performance_vs_time", "Seconds of training", "time of training")

    def _plot(self, metric: str, fact: str, file: str, axis: str, missing: str) -> Path:
        from ehrsequencing.tracking.plots import against_plot

        column = self._column(metric)
        points = {model: (value, entry) for model, entry in column.items() if (value := self._results[model].get(fact))}
        if not points:
            raise MetricError(f"no model has both {metric!r} and a {missing}")
        path = self.directory / "plots" / f"{file}.png"
        against_plot(path, points, f"{axis} (logarithmic)", self._heading(metric), self.name)
        return path

    def table(self) -> Table:
        """Models by metrics with intervals, best values standing out, and size, seconds, storage and epoch."""
        names = self.metric_names()
        best = {key: self.best_model(key) for key in names}
        # A column that nobody fills says nothing.
        facts = [fact for fact in FACTS if any(result.get(fact) is not None for result in self._results.values())]
        rows = []
        for row in self.comparison_table():
            cells = [row["model"]]
            for key in names:
                entry = self._results[row["model"]]["metrics"].get(key)
                text = "n/a" if entry is None else format_estimate(entry)
                cells.append(Strong(text) if best[key] == row["model"] and len(self._column(key)) > 1 else text)
            rows.append([*cells, *(format_number(row[fact], FACTS[fact][1]) for fact in facts)])
        head = ["Model", *map(self._heading, names), *(FACTS[fact][0] for fact in facts)]
        return Table(title_case(self.name), head, rows)

    def lora_versus_full(self) -> Table | None:
        """Each "lora" result beside each "full" one: its share of parameters, storage and time, and what it costs.

        None where a method is missing. A difference of metrics has no interval here: only the same resamples of the
        same subjects give one, which `ehrseq runs compare` draws.
        """
        of = {
            method: [model for model, result in self._results.items() if result.get("method") == method]
            for method in ("lora", "full")
        }
        shared = [
            key
            for key in self.metric_names()
            if any(key in self._results[model]["metrics"] for model in of["lora"])
            and any(key in self._results[model]["metrics"] for model in of["full"])
        ]
        pairs = [(adapted, full) for adapted in of["lora"] for full in of["full"]]
        if not pairs or not shared:
            return None
        head = ["LoRA", "Full", "Trained parameters", "Storage", "Seconds", *map(self._heading, shared)]
        rows = []
        for adapted, full in pairs:
            a, b = self._results[adapted], self._results[full]
            shares = [_share(a.get(fact), b.get(fact)) for fact in ("parameters", "bytes", "seconds")]
            gaps = [
                f"{a['metrics'][key]['value'] - b['metrics'][key]['value']:+.3f}"
                if key in a["metrics"] and key in b["metrics"]
                else "n/a"
                for key in shared
            ]
            rows.append([adapted, full, *shares, *gaps])
        return Table("LoRA as a share of full fine-tuning, and metric of LoRA minus that of full", head, rows, texts=2)

    def save_report(self, metric: str | None = None) -> Path:
        """Write `REPORT.md` and `REPORT.html`, and the table as `results.csv` and `results.tex`.

        The reports hold table, best model of each metric, LoRA against full where both are there, and plots against
        size and time where these are known.

        Args:
            metric: Metric of the plots; the first by default.

        Returns:
            The Markdown report.

        Raises:
            MetricError: the benchmark has no results, or no model has `metric`.
        """
        names = self.metric_names()
        if not names:
            raise MetricError("the benchmark has no results", remedy="add_result first")
        metric = metric or names[0]
        shown = self.table()
        parts: list[tuple[str, Table | Path | list[str]]] = [
            ("", shown),
            ("", ["Brackets hold 95% intervals. The best value of a column is bold."]),
            ("Best model", [f"- {self._best_line(key, self.best_model(key))}" for key in names]),
        ]
        if (adapted := self.lora_versus_full()) is not None:
            parts.append(("LoRA against full fine-tuning", adapted))
        for fact, title, draw in (
            ("parameters", "Performance against size", self.plot_performance_vs_size),
            ("seconds", "Performance against time of training", self.plot_performance_vs_time),
        ):
            if any(self._results[model].get(fact) for model in self._column(metric)):
                parts.append((title, draw(metric)))
        path = self.directory / "REPORT.md"
        write_text(path, self._markdown(parts))
        write_text(self.directory / "REPORT.html", self._html(parts))
        write_text(self.directory / "results.csv", self._flat())
        write_text(self.directory / "results.tex", shown.written("latex"))
        return path

    def _markdown(self, parts: Sequence[tuple[str, Table | Path | list[str]]]) -> str:
        lines = [f"# {markdown_cell(title_case(self.name))}", ""]
        for title, part in parts:
            lines += [f"## {title}", ""] if title else []
            if isinstance(part, Table):
                lines += [part.written("markdown")]
            elif isinstance(part, Path):
                lines += [f"![{title}](plots/{part.name})", ""]
            else:
                lines += [*map(markdown_cell, part), ""]
        return "\n".join(lines)

    def _html(self, parts: Sequence[tuple[str, Table | Path | list[str]]]) -> str:
        body = []
        for title, part in parts:
            if isinstance(part, Table):
                inner = html_table(part)
            elif isinstance(part, Path):
                encoded = base64.b64encode(part.read_bytes()).decode()
                inner = element("img", alt=title, src=f"data:image/png;base64,{encoded}", style="max-width:100%")
            else:
                inner = join(element("p", line.removeprefix("- ")) for line in part)
            body.append(element("section", element("h2", title) if title else None, inner))
        return page(title_case(self.name), element("main", element("h1", title_case(self.name)), *body))

    def _flat(self) -> str:
        """A row per model and metric, in full precision."""
        fields = ("value", "low", "high", "n", "higher_is_better")
        rows = [
            [model, key, *(_plain(entry.get(field)) for field in fields), *(_plain(result.get(fact)) for fact in FACTS)]
            for model, result in self._results.items()
            for key, entry in result["metrics"].items()
        ]
        return Table("", ["model", "metric", *fields, *FACTS], rows).written("csv")

    def _best_line(self, key: str, best: str) -> str:
        column = self._column(key)
        line = f"{metric_name(key)}: {best}, {format_estimate(column[best])}"
        if (epoch := self._results[best].get("epoch")) is not None:
            line += f", all its figures of epoch {epoch}"
        if len(column) == 1:
            return line + "; the only model with it."
        rivals = [model for model, entry in column.items() if model != best and _overlap(entry, column[best])]
        if rivals:
            line += (
                f". The intervals of {', '.join(rivals)} overlap with its own; "
                "only a paired difference on the same subjects tells them apart"
            )
        return line + "."

    def _heading(self, key: str) -> str:
        higher = direction(key, next(iter(self._column(key).values())))
        return f"{metric_name(key)} ({'higher' if higher else 'lower'} is better)"

    def _column(self, metric: str) -> dict[str, dict[str, Any]]:
        column = {
            model: result["metrics"][metric] for model, result in self._results.items() if metric in result["metrics"]
        }
        if not column:
            raise MetricError(
                f"no model of the benchmark has the metric {metric!r}", expected=", ".join(self.metric_names()) or None
            )
        return column


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if any(entry.get(bound) is None for entry in (first, second) for bound in ("low", "high")):
        return False
    return first["low"] <= second["high"] and second["low"] <= first["high"]


def _share(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.1f} %" if part is not None and whole else "n/a"


def _plain(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
