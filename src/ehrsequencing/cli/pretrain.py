"""`ehrseq pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.common import ConfigFile, MirrorNames, Overwrite, Resume, Sets, observed, percent, say


def pretrain(
    store: Annotated[Path, typer.Argument(help="Token store.")],
    out: Annotated[Path, typer.Option("--out", help="Run directory.")],
    model_size: Annotated[str | None, typer.Option("--model-size", help="small, medium or large.")] = None,
    objective: Annotated[str | None, typer.Option("--objective", help="mlm, nvp, joint, contrastive or tte.")] = None,
    from_run: Annotated[Path | None, typer.Option("--from", help="Run to start from.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Most epochs.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cuda, mps or cpu.")] = None,
    mirrors: MirrorNames = None,
    config: ConfigFile = None,
    set_: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain a model on a token store without labels."""
    from ehrsequencing.config import PretrainConfig, load_config

    options = load_config(
        PretrainConfig,
        config,
        set_ or [],
        {
            "model.size": model_size,
            "objective": objective,
            "loop.epochs": epochs,
            "optim.lr": lr,
            "loop.seed": seed,
            "loop.device": device,
            "loop.mirrors": mirrors,
        },
    )
    from ehrsequencing.tracking.report import write_report
    from ehrsequencing.training.pretrain import pretrain as run

    with observed("pretrain") as observer:
        summary = run(store, out, options, from_run=from_run, resume=resume, overwrite=overwrite, observer=observer)
    for name, metrics in summary["metrics"].items():
        figures = (
            f"{key} {entry['value']:.3f} nats"
            if key.endswith(("loss", "/ce", "/nll"))
            else f"{key} {percent(entry['value'])}"
            for key, entry in metrics.items()
        )
        say(f"{name:36} {'   '.join(figures)}")
    say(f"report: {write_report(out)}")
