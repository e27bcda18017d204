"""The demonstration: the whole path on synthetic records, ending in one report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ehrsequencing.benchmarks.cells import Observed
from ehrsequencing.benchmarks.compare import compare
from ehrsequencing.benchmarks.evaluate import comparison_caveats, finish_comparison, learning_curve
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.io import read_json
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain

TASK = "heart_failure_1y"


def run_demo(
    out: str | Path,
    *,
    subjects: int = 7500,
    seed: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Any]],
    observed: Observed,
) -> dict[str, Any]:
    """Synthesise, prepare, pretrain, fine-tune with LoRA and from scratch, fit baselines, judge, report.

    Args:
        out: Run directory of the demonstration; its parts lie in `data`, `store`, `labels` and `arms`.
        subjects: Synthetic subjects.
        seed: Seed of everything random.
        overwrite: Replace an earlier demonstration.
        say: Told what happens.
        bars: Makes a context with a progress function (name, done, total).
        observed: Makes a context with a training observer.

    Returns:
        The summary written to `summary.json`.
    """
    out = Path(out)
    started = time.monotonic()
    with ExperimentTracker(out.name, out.parent, exist_ok=overwrite) as tracker:
        say(f"1/5  {subjects:,} synthetic subjects, seed {seed}")
        with bars() as update:
            synthesise(
                out / "data",
                subjects=subjects,
                seed=seed,
                overwrite=overwrite,
                progress=lambda done, total: update("synthetic subjects", done, total),
            )
            dataset = MedsDataset.open(out / "data")
            say("2/5  token store, and labels: first heart failure within one year")
            prepare(
                out / "data",
                out / "store",
                overwrite=overwrite,
                progress=lambda done, total: update("prepare", done, total),
            )
        frame, manifest = build_labels(dataset, parse_task(TASK))
        labels = out / "labels" / f"{TASK}.parquet"
        write_labels(labels, frame, manifest)
        for row in manifest["flow"]:
            say(f"     {row['rows']:>9,} histories of {row['subjects']:>7,} subjects  {row['step']}")
        arms = out / "arms"
        say("3/5  pretraining without labels")
        with observed("pretrain") as observer:
            pretrained = pretrain(
                out / "store",
                arms / "pretrain",
                load_config(PretrainConfig, overrides={"loop.seed": seed, **PRETRAIN}),
                observer=observer,
            )
        say("4/5  fine-tuning: LoRA on the pretrained model, and the same model from scratch")
        for method in ("lora", "scratch"):
            with observed(method) as observer:
                finetune(
                    out / "store",
                    labels,
                    arms / method,
                    load_config(FinetuneConfig, overrides={"loop.seed": seed, "method": method, **FINETUNE[method]}),
                    from_run=arms / "pretrain" if method == "lora" else None,
                    observer=observer,
                )
        say("5/5  baselines, and everyone judged on held-out subjects")
        with bars() as update:
            comparison = compare(
                [arms / "lora", arms / "scratch"],
                out / "store",
                labels,
                baselines=("logistic_regression", "xgboost"),
                oracle=out / "data",
                seed=seed,
                say=say,
                progress=update,
            )
        tracker.log_hyperparameters({"subjects": subjects, "seed": seed, "pretrain": PRETRAIN, "finetune": FINETUNE})
        tracker.log_metadata({"kind": "demo", "compute_seconds": time.monotonic() - started})
        pretraining, adapted = (read_json(arms / name / "report_data.json") for name in ("pretrain", "lora"))
        sections = comparison.report | {
            "title": "EHR Sequencing demonstration: one-year onset of heart failure",
            "floors": pretraining["floors"],
            **{name: adapted[name] for name in ("parameters", "audit")},
            "curves": {
                "pretraining (MLM)": learning_curve(arms / "pretrain"),
                **{arm.name: learning_curve(arms / arm.kind) for arm in comparison.arms if arm.kind != "baseline"},
            },
            "data": {**pretraining["data"], **comparison.report["data"]},
            "commands": [f"ehrseq demo --out {out} --subjects {subjects} --seed {seed}"],
            "caveats": [
                "The records are synthetic: the figures show that the path works and what it can tell apart, "
                "and say nothing about any real population.",
                *comparison_caveats(comparison),
            ],
        }
        tracker.save_summary(comparison.metrics, best=pretrained["best"])
        # The floors have a section of their own; as metrics they would read like models.
        trained = {row["model"] for row in pretraining["models"] if row["kind"] != "baseline"}
        sections["models"] = [*sections["models"], *(row for row in pretraining["models"] if row["model"] in trained)]
        tracker.set_status("completed")
        return finish_comparison(
            out, comparison, sections, more={name: pretrained["metrics"][name] for name in sorted(trained)}
        )


# Choices that fit the demonstration into minutes on two cores; docs/lab-notes.md says what was measured.
PRETRAIN: dict[str, Any] = {
    "model.max_length": 64,
    "model.dropout": 0.0,
    "mlm.rate": 0.3,
    "loop.epochs": 3,
    "loop.token_budget": 2048,
    "optim.lr": 3e-3,
}
FINETUNE: dict[str, dict[str, Any]] = {
    "lora": {"loop.epochs": 2, "loop.token_budget": 2048, "optim.lr": 3e-3},
    "scratch": {"model.max_length": 64, "loop.epochs": 2, "loop.token_budget": 2048, "optim.lr": 1e-3},
}
