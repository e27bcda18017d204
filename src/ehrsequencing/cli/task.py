"""`ehrseq task build` and `ehrseq task list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import Overwrite, say

app = typer.Typer(help="Cohorts and labels.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_tasks() -> None:
    """Show the tasks that can be built."""
    from ehrsequencing.tasks.cohorts import TASK_PATTERNS

    for row in TASK_PATTERNS:
        say(f"{row.pattern:28} {row.description}")


@app.command("build")
def build(
    meds: Annotated[Path, typer.Argument(help="MEDS dataset.")],
    task: Annotated[str, typer.Option("--task", help="For example onset:ICD10CM//I50@365.")],
    out: Annotated[Path, typer.Option("--out", help="Parquet file of the labels.")],
    overwrite: Overwrite = False,
) -> None:
    """Make labels from a MEDS dataset and print the cohort's flow."""
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.labels import write_labels
    from ehrsequencing.errors import RunError
    from ehrsequencing.tasks.cohorts import build_labels, parse_task

    if out.exists() and not overwrite:
        raise RunError(f"{out} exists already", remedy="choose another file or pass --overwrite")
    frame, manifest = build_labels(MedsDataset.open(meds), parse_task(task))
    write_labels(out, frame, manifest)
    for row in manifest["flow"]:
        say(f"{row['rows']:>10,} rows  {row['subjects']:>9,} subjects  {row['step']}")
    say(f"labels written to {out}")
