"""`ehrseq task build` and `ehrseq task list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import Overwrite, progress_bars, say

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
    history_days: Annotated[
        int, typer.Option("--history-days", help="Days from the first event to the first prediction, at least.")
    ] = 365,
    spacing_days: Annotated[
        int, typer.Option("--spacing-days", help="Days between two predictions of a subject, at least.")
    ] = 365,
    minimum_age_years: Annotated[
        float, typer.Option("--minimum-age-years", help="Age at prediction, at least; 0 keeps unknown ages.")
    ] = 18.0,
    overwrite: Overwrite = False,
) -> None:
    """Make labels from a MEDS dataset and print the cohort's flow."""
    from ehrsequencing.data.artefacts import refuse_labels_in_data
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.labels import manifest_path, write_labels
    from ehrsequencing.errors import ConfigError, RunError
    from ehrsequencing.tasks.cohorts import CohortRules, build_labels, parse_task

    if out.is_dir():
        raise ConfigError("--out", got=f"the folder {out}", expected=f"a file, for example {out / 'labels.parquet'}")
    if out.suffix != ".parquet":
        raise ConfigError("--out", got=out, expected="a name that ends in .parquet")
    refuse_labels_in_data(out, meds)
    there = [path for path in (out, manifest_path(out)) if path.exists()]
    if there and not overwrite:
        raise RunError(f"{there[0]} exists already", remedy="choose another file or pass --overwrite")
    rules = CohortRules(history_days, spacing_days, minimum_age_years)
    parsed = parse_task(task)
    with progress_bars() as update:
        frame, manifest = build_labels(
            MedsDataset.open(meds), parsed, rules, progress=lambda done, total: update("labels", done, total)
        )
    write_labels(out, frame, manifest)
    for row in manifest["flow"]:
        say(f"{row['rows']:>10,} rows  {row['subjects']:>9,} subjects  {row['step']}")
    say(f"labels written to {out}")
