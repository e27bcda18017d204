"""Models side by side: table, best model, performance against size, and a Markdown report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ehrsequencing.errors import ConfigError, MetricError, RunError
from ehrsequencing.io import read_json, write_json, write_text
from ehrsequencing.tracking.summary import check_metrics, direction, format_estimate, format_number
from ehrsequencing.tracking.values import number
from ehrsequencing.tracking.words import best_model, metric_name, title_case


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
        """{model: {"metrics": ..., "parameters": ..., "seconds": ..., "seeds": ...}} in order of arrival."""
        return self._results

    def add_result(
        self,
        model_name: str,
        metrics: Mapping[str, Any],
        *,
        parameters: int | None = None,
        seconds: float | None = None,
        seeds: int | Sequence[int] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Add one model.

        Args:
            model_name: Name of the model, unique in the benchmark.
            metrics: Name -> number, or {value, low, high, n, higher_is_better}; the direction of a metric that the
                package does not know must be given.
            parameters: Number of trained parameters.
            seconds: Wall time of the training.
            seeds: Number of trainings behind the figures, or the seeds.
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
        }
        self._results = {**self._results, model_name: result}
        write_json(self._path, {"name": self.name, "results": self._results})

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
        """One row per model: `model`, each metric's value (None where it was not computed), `parameters`, `seconds`.

        Rows are ordered by the first metric, best first; models without it come last.
        """
        names = self.metric_names()
        rows = [
            {"model": model}
            | {key: result["metrics"].get(key, {}).get("value") for key in names}
            | {"parameters": result["parameters"], "seconds": result["seconds"]}
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
        from ehrsequencing.tracking.plots import size_plot

        points = {
            model: (self._results[model]["parameters"], entry)
            for model, entry in self._column(metric).items()
            if self._results[model]["parameters"]
        }
        if not points:
            raise MetricError(f"no model has both {metric!r} and a number of parameters")
        higher = direction(metric, next(iter(points.values()))[1])
        path = self.directory / "plots" / "performance_vs_size.png"
        size_plot(path, points, f"{metric_name(metric)} ({'higher' if higher else 'lower'} is better)", self.name)
        return path

    def save_report(self, metric: str | None = None) -> Path:
        """Write `REPORT.md`: table with intervals, best model of each metric, and the plot where sizes are known.

        Args:
            metric: Metric of the plot; the first by default.

        Raises:
            MetricError: the benchmark has no results, or no model has `metric`.
        """
        names = self.metric_names()
        if not names:
            raise MetricError("the benchmark has no results", remedy="add_result first")
        metric = metric or names[0]
        heads = [f"{metric_name(key)} ({'higher' if self._higher(key) else 'lower'} is better)" for key in names]
        lines = [
            f"# {_cell(title_case(self.name))}",
            "",
            "| Model | " + " | ".join(map(_cell, heads)) + " | Parameters | Seconds |",
        ]
        lines.append("|---|" + "---:|" * (len(names) + 2))
        best = {key: self.best_model(key) for key in names}
        for row in self.comparison_table():
            result = self._results[row["model"]]
            cells = [_cell(row["model"])]
            for key in names:
                entry = result["metrics"].get(key)
                text = "n/a" if entry is None else format_estimate(entry)
                cells.append(f"**{text}**" if best[key] == row["model"] and len(self._column(key)) > 1 else text)
            cells += [format_number(result["parameters"]), format_number(result["seconds"], 1)]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "Brackets hold 95% intervals. The best value of a column is bold.", "", "## Best model", ""]
        lines += [self._best_line(key, best[key]) for key in names]
        if any(self._results[model]["parameters"] for model in self._column(metric)):
            self.plot_performance_vs_size(metric)
            lines += [
                "",
                "## Performance against size",
                "",
                "![Performance against size](plots/performance_vs_size.png)",
            ]
        path = self.directory / "REPORT.md"
        write_text(path, "\n".join(lines) + "\n")
        return path

    def _best_line(self, key: str, best: str) -> str:
        column = self._column(key)
        line = f"- {_cell(metric_name(key))}: {_cell(best)}, {format_estimate(column[best])}"
        if len(column) == 1:
            return line + "; the only model with it."
        rivals = [model for model, entry in column.items() if model != best and _overlap(entry, column[best])]
        if rivals:
            line += (
                f". The intervals of {', '.join(map(_cell, rivals))} overlap with its own; "
                "only a paired difference on the same subjects tells them apart"
            )
        return line + "."

    def _higher(self, key: str) -> bool:
        return direction(key, next(iter(self._column(key).values())))

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


def _cell(text: str) -> str:
    # A bar or a line break would end a cell of the table.
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
