"""The same fine-tuning under several seeds, as one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.benchmarks.cells import Observed
from ehrsequencing.config import FinetuneConfig, write_config
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.errors import RunError
from ehrsequencing.io import read_json
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.training.finetune import finetune


def finetune_seeds(
    store: Path,
    labels: Path,
    out: Path,
    config: FinetuneConfig,
    seeds: int,
    *,
    from_run: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observed: Observed,
) -> dict[str, Any]:
    """Fine-tune `seeds` times, from `config.loop.seed` upwards, into `out/arms/seed-*`.

    A resumption skips the seeds that are done and takes up the one that was killed.

    Returns:
        The summary of `out`: tuning metrics averaged over seeds.
    """
    refuse_in_data(out, store, labels)
    taken_up = resume and (out / "metadata.json").exists()
    if taken_up and "seeds" not in read_json(out / "metadata.json"):
        raise RunError(f"{out} is a single training", remedy="resume it without --seeds, or choose another --out")
    with ExperimentTracker(out.name, out.parent, resume=taken_up, exist_ok=overwrite) as tracker:
        if not taken_up:
            tracker.log_metadata({"seeds": seeds})
        summaries = []
        for seed in range(config.loop.seed, config.loop.seed + seeds):
            arm = out / "arms" / f"seed-{seed:04d}"
            loop = config.loop.model_copy(update={"seed": seed})
            with observed(f"{config.method} seed {seed}") as observer:
                summaries.append(
                    finetune(
                        store,
                        labels,
                        arm,
                        config.model_copy(update={"loop": loop}),
                        from_run=from_run,
                        resume=resume,
                        observer=observer,
                    )
                )
        member = read_json(arm / "metadata.json")
        shared = (
            "kind",
            "task",
            "method",
            "architecture",
            "store",
            "store_fingerprint",
            "labels",
            "labels_hash",
            "parameters",
            "audit",
        )
        tracker.log_metadata({key: member[key] for key in shared})
        tracker.log_hyperparameters(config.model_dump(mode="json", exclude=config.unused()))
        write_config(out / "config.toml", config)
        tracker.save_summary(average(summaries), best={}, notes=summaries[0]["notes"])
        write_report_data(out, read_json(arm / "report_data.json"))
    return read_json(out / "summary.json")


def average(summaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean of each metric over summaries of the same model; `low` and `high` are the range over seeds."""
    first = summaries[0]["metrics"]
    found: dict[str, dict[str, Any]] = {}
    for model, metrics in first.items():
        found[model] = {}
        for metric, entry in metrics.items():
            values = [summary["metrics"][model][metric]["value"] for summary in summaries]
            found[model][metric] = entry | {
                "value": float(np.mean(values)),
                "low": min(values),
                "high": max(values),
                "seeds": len(values),
            }
    return found
