"""`ehrseq evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import progress_bars, say


def evaluate(
    run: Annotated[Path, typer.Argument(help="Fine-tuning run; the report is written here.")],
    store: Annotated[Path, typer.Argument(help="Token store it was trained on.")],
    labels: Annotated[Path | None, typer.Argument(help="Labels; the run's own by default.")] = None,
    others: Annotated[list[Path] | None, typer.Option("--with", help="Another run to judge beside it.")] = None,
    baselines: Annotated[
        str, typer.Option("--baselines", help="Comma-separated, or none.")
    ] = "logistic_regression,random_forest,xgboost",
    history: Annotated[
        str, typer.Option("--baseline-history", help="What baselines see: model (cut as its histories are) or whole.")
    ] = "model",
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of bootstrap and baselines.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="For the baselines.")] = 2,
) -> None:
    """Judge runs and baselines on held-out subjects, with 95 % intervals."""
    from ehrsequencing.benchmarks.compare import evaluate_run

    names = [] if baselines == "none" else [name.strip() for name in baselines.split(",") if name.strip()]
    with progress_bars() as update:
        summary = evaluate_run(
            run,
            store,
            labels,
            others=others or [],
            baselines=names,
            history=history,
            resamples=resamples,
            seed=seed,
            threads=threads,
            say=say,
            progress=update,
        )
    print_table(summary["metrics"])
    say(f"report: {run / 'report.html'}")


SHOWN = (
    "auroc",
    "auprc",
    "brier",
    "ece",
    "auroc_macro",
    "auprc_macro",
    "f1_macro",
    "recall_at_10",
    "new: recall_at_10",
    "seen: recall_at_10",
)


def _heading(key: str) -> str:
    """Metric of a key, after the population of codes that its task may name.

    >>> _heading("next_visit_codes:new/recall_at_10"), _heading("onset:ICD10CM//I50@365/auroc")
    ('new: recall_at_10', 'auroc')
    """
    task, _, metric = key.rpartition("/")
    population = task.rpartition(":")[2]
    return f"{population}: {metric}" if population in ("new", "seen") else metric


def print_table(metrics: dict) -> None:
    """Models by metrics, each with its interval."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for values in metrics.values() for name in values))
    shown = [name for name in columns if _heading(name) in SHOWN]
    table = Table("model", *(_heading(name) for name in shown))
    for model, values in metrics.items():
        if not any(name in values for name in shown):
            continue
        cells = []
        for name in shown:
            entry = values.get(name)
            cells.append("" if entry is None else f"{entry['value']:.3f}\n[{entry['low']:.3f}, {entry['high']:.3f}]")
        table.add_row(model, *cells)
    Console().print(table)
