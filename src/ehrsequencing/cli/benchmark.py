"""`ehrseq benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import ConfigFile, Sets, observed, progress_bars, say

app = typer.Typer(help="Whole comparisons, each in one command.", no_args_is_help=True)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@app.command("objectives")
def objectives(
    store: Annotated[Path, typer.Argument(help="Token store.")],
    labels: Annotated[list[Path], typer.Argument(help="Label files of binary tasks.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the benchmark; what is done there is kept.")],
    names: Annotated[str | None, typer.Option("--objectives", help="Comma-separated; all by default.")] = None,
    methods: Annotated[str | None, typer.Option("--methods", help="Of probe, lora, full; all by default.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds per cell, from 0 upwards.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens that each pretraining reads.")] = None,
    labelled: Annotated[
        int | None, typer.Option("--labelled", help="Subjects of train and tuning whose labels are used; 0: all.")
    ] = None,
    oracle: Annotated[Path | None, typer.Option("--oracle", help="Synthetic dataset of the store.")] = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """What each objective of pretraining adds, on the same tokens and labels; run it again, or twice, to go on."""
    from ehrsequencing.config import ObjectivesConfig, load_config

    options = load_config(
        ObjectivesConfig,
        config,
        set_ or [],
        {
            "objectives": _listed(names),
            "methods": _listed(methods),
            "seeds": seeds,
            "tokens": tokens,
            "labelled": labelled,
        },
    )
    from ehrsequencing.benchmarks.objectives import benchmark_objectives

    summary = benchmark_objectives(
        store, labels, out, options, oracle=oracle, say=say, bars=progress_bars, observed=observed
    )
    if summary is not None:
        for sentence in summary["notes"]:
            say(sentence)
        say(f"table: {out / 'comparison' / 'objectives.md'}")
        say(f"report: {out / 'comparison' / 'report.html'}")
