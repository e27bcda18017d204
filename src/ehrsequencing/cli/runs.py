"""`ehrseq runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ehrsequencing.cli.common import say, show_table

if TYPE_CHECKING:
    from ehrsequencing.tracking.runs import RunRecord
    from ehrsequencing.tracking.tables import Table

app = typer.Typer(help="Runs that are there, one of them, or several beside each other.", no_args_is_help=True)

Form = Annotated[
    str | None, typer.Option("--form", help="markdown, html, csv or latex, in place of a table for the terminal.")
]
Out = Annotated[Path | None, typer.Option("--out", help="File to write the table into.")]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of runs.")],
    arms: Annotated[
        bool, typer.Option("--arms", help="Also the runs inside runs: seeds, cells of benchmarks.")
    ] = False,
    form: Form = None,
    out: Out = None,
) -> None:
    """Every run under a folder: what it is, how it ended, and its first figure."""
    from ehrsequencing.tracking.runs import find_runs
    from ehrsequencing.tracking.tables import Table

    runs = find_runs(folder, arms=arms)
    if not runs:
        say(f"no run under {folder}")
        return
    head = ["Run", "Kind", "Task", "Status", "Created", "Model", "Figure", "Trained parameters", "Epochs", "Seconds"]
    rows = [_row(run, folder) for run in runs]
    _show(Table(f"Runs of {folder}", head, rows, texts=7), form, out)


@app.command("show")
def show(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
) -> None:
    """One run: its summary, its files and their sizes."""
    from ehrsequencing.tracking.runs import read_run

    found = read_run(run)
    text = run / "SUMMARY.txt"
    say(text.read_text().rstrip() if text.is_file() else f"{run}: {found.status}, without a summary")
    say("")
    sizes: dict[str, int] = {}
    for file in sorted(run.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            place = file.relative_to(run)
            name = place.parts[0] + ("/" if len(place.parts) > 1 else "")
            sizes[name] = sizes.get(name, 0) + file.stat().st_size
    show_table(("File", "Bytes"), [(name, f"{size:,}") for name, size in sizes.items()], numbers=1)


@app.command("compare")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Fine-tuned runs that `ehrseq evaluate` has judged.")],
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the bootstrap.")] = 0,
    form: Form = None,
    out: Out = None,
) -> None:
    """Runs on the subjects that all of them held out; refused where one was trained on what another judges."""
    from ehrsequencing.benchmarks.run_comparison import METRICS, compare_runs
    from ehrsequencing.tracking.runs import read_run
    from ehrsequencing.tracking.summary import direction, format_estimate, format_number
    from ehrsequencing.tracking.tables import Strong, Table
    from ehrsequencing.tracking.words import best_model, metric_name

    found = compare_runs(runs, resamples=resamples, seed=seed)
    columns = {metric: {name: found.metrics[name][metric] for name in found.names} for metric in METRICS}
    best = {metric: best_model(columns[metric], metric) for metric in METRICS}
    records = {name: read_run(name) for name in found.names}
    rows = []
    for name in found.names:
        texts = [format_estimate(columns[metric][name]) for metric in METRICS]
        cells = [Strong(text) if best[metric] == name else text for metric, text in zip(METRICS, texts, strict=True)]
        record = records[name]
        facts = (record.trainable, record.trained_bytes, record.best_epoch, record.seconds)
        rows.append([name, record.model or "", *cells, *(format_number(fact, 0) for fact in facts)])
    headings = [f"{metric_name(key)} ({'higher' if direction(key) else 'lower'} is better)" for key in METRICS]
    head = ["Run", "Model", *headings, "Trained parameters", "Bytes trained", "Best epoch", "Seconds"]
    each = ", ".join(f"{number:,}" for number in found.of_each)
    say(
        f"{found.task}: {found.rows:,} histories of {found.subjects:,} subjects that all held out, "
        f"{found.positives:,} positive; subjects held out by each: {each}"
    )
    _show(Table(f"Runs on {found.task}", head, rows, texts=2), form, out)
    for row in found.differences:
        clear = row["low"] > 0 or row["high"] < 0
        say(
            f"{metric_name(row['metric'])} of {row['a']} minus {row['b']}: {row['value']:+.3f} "
            f"[{row['low']:+.3f}, {row['high']:+.3f}]{'' if clear else ', which may be chance'}"
        )


def _row(run: RunRecord, folder: Path) -> list[str]:
    from ehrsequencing.tracking.summary import format_estimate, format_number
    from ehrsequencing.tracking.words import metric_name

    figure = ""
    if run.metrics:
        key, entry = next(iter(run.metrics.items()))
        figure = f"{metric_name(key)} {format_estimate(entry)}" + (", tuning" if key.startswith("tuning:") else "")
    inside = run.path.relative_to(folder)
    epochs = str(run.epochs) if run.best_epoch is None else f"{run.epochs} (best {run.best_epoch})"
    return [
        str(inside) if inside.parts else run.path.resolve().name,
        run.kind + (f" {run.what}" if run.what else ""),
        run.task or "",
        run.status,
        (run.created or "")[:16].replace("T", " "),
        (run.model or "") + (f", {run.seeds} seeds" if run.seeds > 1 else ""),
        figure,
        format_number(run.trainable),
        epochs,
        format_number(run.seconds, 0),
    ]


def _show(table: Table, form: str | None, out: Path | None) -> None:
    """Print a table, in the form asked for, or write it into a file, whose ending then names the form."""
    from ehrsequencing.io import write_text
    from ehrsequencing.tracking.tables import ENDINGS

    if out is not None:
        write_text(out, table.written(form or ENDINGS.get(out.suffix.lower(), "markdown")))
        say(f"table: {out}")
    elif form is not None:
        say(table.written(form).rstrip())
    else:
        show_table(table.head, table.rows, numbers=len(table.head) - table.texts)
