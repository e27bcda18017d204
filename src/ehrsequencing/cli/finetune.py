"""`ehrseq finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import Accept, ConfigFile, MirrorNames, Overwrite, Resume, Sets, observed, say


def finetune(
    store: Annotated[Path, typer.Argument(help="Token store.")],
    labels: Annotated[Path, typer.Argument(help="Labels (parquet, MEDS label schema).")],
    out: Annotated[Path, typer.Option("--out", help="Run directory.")],
    from_run: Annotated[Path | None, typer.Option("--from", help="Pretrained run.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="behrt, lstm, bilstm or retain.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, full, probe or scratch.")] = None,
    lora_rank: Annotated[int | None, typer.Option("--lora-rank", help="Rank of the adapters.")] = None,
    model_size: Annotated[str | None, typer.Option("--model-size", help="Size for scratch.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Most epochs.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings that differ by seed.")] = 1,
    device: Annotated[str | None, typer.Option("--device", help="auto, cuda, mps or cpu.")] = None,
    accept: Accept = None,
    mirrors: MirrorNames = None,
    config: ConfigFile = None,
    set_: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune on labels; held-out subjects are left to `ehrseq evaluate`."""
    from ehrsequencing.config import FinetuneConfig, load_config

    options = load_config(
        FinetuneConfig,
        config,
        set_ or [],
        {
            "architecture": model,
            "method": method,
            "lora.rank": lora_rank,
            "model.size": model_size,
            "loop.epochs": epochs,
            "optim.lr": lr,
            "loop.seed": seed,
            "loop.device": device,
            "loop.mirrors": mirrors,
            "accept": accept,
        },
    )
    from ehrsequencing.benchmarks.validation import labels_guidance
    from ehrsequencing.data.store import TokenStore
    from ehrsequencing.tracking.report import write_report

    for line in labels_guidance(TokenStore.open(store), labels):
        say(line)

    if seeds == 1:
        from ehrsequencing.training.finetune import finetune as run

        with observed(f"finetune {options.architecture} {options.method}") as observer:
            summary = run(
                store, labels, out, options, from_run=from_run, resume=resume, overwrite=overwrite, observer=observer
            )
    else:
        from ehrsequencing.benchmarks.seeds import finetune_seeds

        summary = finetune_seeds(
            store, labels, out, options, seeds,
            from_run=from_run, resume=resume, overwrite=overwrite, observed=observed,
        )  # fmt: skip
    for name, metrics in summary["metrics"].items():
        for metric, entry in metrics.items():
            say(f"{name:36} {metric}  {entry['value']:.3f}")
    say(f"report: {write_report(out)}")
