"""`ehrseq demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import Overwrite, say


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demonstration.")] = Path("runs/demo"),
    subjects: Annotated[int, typer.Option("--subjects", min=200, help="Synthetic subjects.")] = 7500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """The whole path on synthetic records, ending in a report."""
    from ehrsequencing.benchmarks.demo import run_demo
    from ehrsequencing.cli.common import observed, progress_bars
    from ehrsequencing.cli.evaluate import print_table
    from ehrsequencing.data.artefacts import refuse_in_data

    refuse_in_data(out)
    summary = run_demo(
        out, subjects=subjects, seed=seed, overwrite=overwrite, say=say, bars=progress_bars, observed=observed
    )
    print_table(summary["metrics"])
    say(f"report: {out / 'report.html'}")
