"""`ehrseq evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ehrsequencing.cli.common import Accept, progress_bars, say, show_table


def evaluate(
    run: Annotated[Path, typer.Argument(help="Fine-tuning run, or pretraining of next visits.")],
    store: Annotated[
        Path, typer.Argument(help="Token store it was trained on, or another dataset's with its vocabulary.")
    ],
    labels: Annotated[
        Path | None, typer.Argument(help="Labels; the run's own by default, those of the other dataset else.")
    ] = None,
    others: Annotated[list[Path] | None, typer.Option("--with", help="Another run to judge beside it.")] = None,
    baselines: Annotated[
        str | None, typer.Option("--baselines", help="Comma-separated, or none; all that fit the labels by default.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="Days to judge survival at, as 365,1825; quartiles by default.")
    ] = None,
    recalibrate: Annotated[
        str, typer.Option("--recalibrate", help="platt or isotonic, fitted on tuning and shown beside; or none.")
    ] = "none",
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help="Subgroups: sex, age, race, ethnicity, year, CODE, SYSTEM//; none. What is there by default."
        ),
    ] = None,
    training_store: Annotated[
        Path | None, typer.Option("--training-store", help="Where the store of the training lies now.")
    ] = None,
    oracle: Annotated[
        Path | None,
        typer.Option("--oracle", help="Synthetic dataset of the store: adds its ceiling and attainable optimum."),
    ] = None,
    med2vec: Annotated[
        Path | None, typer.Option("--med2vec", help="Run of Med2Vec: adds logistic regression on its visit vectors.")
    ] = None,
    accept: Accept = None,
    history: Annotated[
        str, typer.Option("--baseline-history", help="What baselines see: model (cut as its histories are) or whole.")
    ] = "model",
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of bootstrap and baselines.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="For the baselines.")] = 2,
) -> None:
    """Judge runs and baselines on held-out subjects, or on another dataset, with 95 % intervals."""
    from ehrsequencing.benchmarks.evaluate import evaluate_run, result_folder, untuned_folder
    from ehrsequencing.benchmarks.validation import ValidationOptions
    from ehrsequencing.evaluation.prediction_table import parse_days
    from ehrsequencing.io import read_json

    names = None if baselines is None else [name.strip() for name in baselines.split(",") if name.strip()]
    names = [] if baselines == "none" else names
    groups = None if by is None else () if by == "none" else tuple(name.strip() for name in by.split(","))
    with progress_bars() as update:
        summary = evaluate_run(
            run,
            store,
            labels,
            others=others or [],
            baselines=names,
            horizons=[] if at is None else parse_days(at),
            validation=ValidationOptions(recalibrate, groups),
            training_store=training_store,
            oracle=oracle,
            med2vec=med2vec,
            accept=accept or [],
            history=history,
            resamples=resamples,
            seed=seed,
            threads=threads,
            say=say,
            progress=update,
        )
    print_table(summary["metrics"])
    out = result_folder(run, store) if "unknown" in summary else run
    if labels is not None and read_json(run / "metadata.json").get("kind") == "pretrain":
        out = untuned_folder(run, labels)
    say(f"report: {out / 'report.html'}")


SHOWN = (
    "c_harrell",
    "c_uno",
    "c_wolbers",
    "c_antolini",
    "ibs",
    "auroc",
    "auprc",
    "brier",
    "ece",
    "auroc_macro",
    "auprc_macro",
    "f1_macro",
    "recall_at_10",
)


def _heading(key: str, keys: Collection[str]) -> str:
    """Metric of a key, after the population of codes or the further cause that its task names.

    >>> keys = ["next_visit_codes/recall_at_10", "next_visit_codes:new/recall_at_10", "time_to:death/c_uno"]
    >>> [_heading(key, keys) for key in keys]
    ['recall_at_10', 'new: recall_at_10', 'c_uno']
    """
    task, _, metric = key.rpartition("/")
    whole, _, part = task.rpartition(":")
    return f"{part}: {metric}" if any(other.startswith(f"{whole}/") for other in keys) else metric


def print_table(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Models by metrics, each with its interval."""
    columns = list(dict.fromkeys(name for values in metrics.values() for name in values if not _of_subgroup(name)))
    shown = [name for name in columns if name.rpartition("/")[2] in SHOWN]
    if any(name.endswith("/recall_at_10") for name in shown):
        # Of new and seen codes the recall alone: their areas are in the summary.
        shown = [name for name in shown if ": " not in _heading(name, columns) or name.endswith("/recall_at_10")]
    rows = []
    for model, values in metrics.items():
        if not any(name in values for name in shown):
            continue
        cells = []
        for name in shown:
            entry = values.get(name)
            cells.append("" if entry is None else f"{entry['value']:.3f}\n[{entry['low']:.3f}, {entry['high']:.3f}]")
        rows.append((model, *cells))
    show_table(("model", *(_heading(name, columns) for name in shown)), rows)


def _of_subgroup(key: str) -> bool:
    from ehrsequencing.tracking.summary import split_key, subgroup_of

    return subgroup_of(split_key(key)[0]) is not None
