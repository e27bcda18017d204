"""`ehrseq report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import say


def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write a run's report.html again from the files of the run."""
    from ehrsequencing.tracking.report import write_report

    say(f"report: {write_report(run)}")
