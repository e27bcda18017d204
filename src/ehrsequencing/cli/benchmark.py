"""`ehrseq benchmark`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ehrsequencing.cli.common import ConfigFile, Sets, observed, progress_bars, say
from ehrsequencing.errors import ConfigError

app = typer.Typer(help="Whole comparisons, each in one command.", no_args_is_help=True)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _tell(summary: Mapping[str, Any] | None, comparison: Path, table: str) -> None:
    """What came out, where it is judged already."""
    if summary is not None:
        for sentence in summary["notes"]:
            say(sentence)
        say(f"table: {comparison / table}")
        say(f"report: {comparison / 'report.html'}")


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
    from ehrsequencing.benchmarks.configuration import ObjectivesConfig
    from ehrsequencing.config import load_config

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
    _tell(summary, out / "comparison", "objectives.md")


@app.command("models")
def models(
    store: Annotated[Path, typer.Argument(help="Token store.")],
    labels: Annotated[list[Path], typer.Argument(help="Label files of binary tasks.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the benchmark; what is done there is kept.")],
    from_run: Annotated[
        Path | None, typer.Option("--from", help="Pretrained run for probe, LoRA and full fine-tuning.")
    ] = None,
    arms: Annotated[str | None, typer.Option("--arms", help="Comma-separated; see docs/benchmarks.md.")] = None,
    fractions: Annotated[str | None, typer.Option("--fractions", help="Shares of the labels, such as 0.1,1.")] = None,
    settings: Annotated[int | None, typer.Option("--settings", help="Settings that each arm tries: 1, 4 or 8.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds of the best setting, from 0 upwards.")] = None,
    oracle: Annotated[Path | None, typer.Option("--oracle", help="Synthetic dataset of the store.")] = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Every kind of model by the number of labels, each with the same number of settings; run it again to go on."""
    from ehrsequencing.benchmarks.configuration import ModelsConfig
    from ehrsequencing.config import load_config

    try:
        shares = None if fractions is None else [float(share) for share in _listed(fractions) or []]
    except ValueError:
        raise ConfigError("--fractions", got=fractions, expected="numbers such as 0.1,1") from None
    options = load_config(
        ModelsConfig,
        config,
        set_ or [],
        {"arms": _listed(arms), "fractions": shares, "settings": settings, "seeds": seeds},
    )
    from ehrsequencing.benchmarks.models import benchmark_models

    summary = benchmark_models(
        store, labels, out, options, from_run=from_run, oracle=oracle, say=say, bars=progress_bars, observed=observed
    )
    _tell(summary, out / "comparison", "models.md")


@app.command("embeddings")
def embeddings(
    store: Annotated[Path, typer.Argument(help="Token store.")],
    labels: Annotated[Path, typer.Argument(help="Label file of a binary task.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the benchmark; what is done there is kept.")],
    others: Annotated[
        Path | None, typer.Option("--others", help="Token store of other subjects, for the third party's Med2Vec.")
    ] = None,
    third_party: Annotated[
        Path | None, typer.Option("--third-party", help="File of code vectors, in place of --others.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds per arm, from 0 upwards.")] = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Own, a third party's and random code vectors, frozen and trained, in the same model; run it again to go on."""
    from ehrsequencing.benchmarks.configuration import EmbeddingsConfig
    from ehrsequencing.config import load_config

    options = load_config(EmbeddingsConfig, config, set_ or [], {"seeds": seeds})
    from ehrsequencing.benchmarks.embeddings import benchmark_embeddings

    summary = benchmark_embeddings(
        store, labels, out, options,
        others=others, third_party=third_party, say=say, bars=progress_bars, observed=observed,
    )  # fmt: skip
    _tell(summary, out / "comparison", "embeddings.md")
