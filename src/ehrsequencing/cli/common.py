"""Options and progress shared by the verbs."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ehrsequencing.errors import CohortError, EhrseqError

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of options.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="One option as key=value, for example optim.lr=3e-4; repeatable.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at the output path.")]
Resume = Annotated[bool, typer.Option("--resume", help="Take up a killed run at its last checkpoint.")]
MirrorNames = Annotated[
    list[str] | None,
    typer.Option("--mirror", help="Copy figures to mlflow (mlflow=FILE: that database) or tensorboard; repeatable."),
]

Accept = Annotated[
    list[str] | None,
    typer.Option("--accept", help="Check of the audit whose error is accepted and written into the run; repeatable."),
]
PIPED_WIDTH = 200
"""Columns of a table that goes into a pipe or file, where no terminal sets them."""


def say(message: str) -> None:
    """Print one line for the user, above any progress bar."""
    if _bars:
        _bars[-1].console.print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        typer.echo(message)


def show_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: int = 0,
    lines: bool = False,
    of_error: bool = False,
) -> None:
    """Print a table; the last `numbers` columns align right. Piped output is as wide as the text asks, up to 200."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = (sys.stderr if of_error else sys.stdout).isatty()
    table = Table(box=box.ROUNDED if terminal else box.ASCII2, show_lines=lines)
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position >= len(header) - numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if terminal else PIPED_WIDTH, stderr=of_error).print(table)


def show_flow(flow: Iterable[Mapping[str, Any]], *, of_error: bool = False) -> None:
    """Print rows and subjects after each step of a cohort."""
    rows = [(row["step"], f"{row['rows']:,}", f"{row['subjects']:,}") for row in flow]
    show_table(("Step", "Rows", "Subjects"), rows, numbers=2, of_error=of_error)


_bars: list[Any] = []


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (name, done, total) that draws one bar per name."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
    tasks: dict[str, Any] = {}

    def update(name: str, done: int, total: int, note: str = "") -> None:
        if not tasks:
            # Started late, so that a command that fails before its first step prints one line and no empty bar.
            bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total, note=note)
        bars.update(tasks[name], completed=done, total=total)
        if note:
            bars.update(tasks[name], note=note)

    _bars.append(bars)
    try:
        yield update
    finally:
        _bars.pop()
        if tasks:
            bars.stop()


@contextmanager
def observed(label: str) -> Iterator[Any]:
    """Yield an observer that draws a training's progress."""
    from ehrsequencing.training.callbacks import Observer

    with progress_bars() as update:

        class Bar(Observer):
            def start(self, name: str, epochs: int) -> None:
                self.epochs = epochs

            def step(self, epoch: int, batch: int, batches: int, loss: float) -> None:
                update(label, epoch * batches + batch + 1, self.epochs * batches, f"loss {loss:.3f}")  # type: ignore[call-arg]

            def epoch(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
                shown = "  ".join(
                    f"{name} {metrics[name]:.4f}"
                    for name in ("train_loss", "val_loss", "val_accuracy", "val_auroc")
                    if name in metrics
                )
                say(f"{label}  epoch {epoch}  {shown}{'  best' if best else ''}")

            def say(self, message: str) -> None:
                say(message)

        yield Bar()


_OS_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free space or choose another --out; nothing half-written was left behind"),
    errno.EDQUOT: ("the disk quota is used up", "free space or choose another --out"),
    errno.EACCES: ("permission denied", "check the permissions of the path"),
    errno.EROFS: ("the file system is read-only", "choose another --out"),
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.ENOTDIR: ("not a folder", "check the path"),
    errno.EISDIR: ("a folder, where a file was expected", "check the path"),
}


@contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Turn errors into one line and an exit code: 2 where a user can mend it, 130 on Ctrl-C; a defect of ours passes.

    Args:
        debug: Show the traceback, too.
    """
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except EhrseqError as problem:
        _fail(str(problem), debug, problem.flow if isinstance(problem, CohortError) else ())
    except OSError as problem:
        what, remedy = _OS_ERRORS.get(problem.errno or 0, (problem.strerror or str(problem), "check the path"))
        _fail(f"{problem.filename or 'input or output'}: {what}. Remedy: {remedy}", debug)


def _fail(message: str, debug: bool, flow: Sequence[Mapping[str, Any]] = ()) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    if flow:
        show_flow(flow, of_error=True)
    sys.exit(2)


def percent(value: float) -> str:
    """`0.154` as `15.4 %`."""
    return f"{100 * value:.1f} %"
