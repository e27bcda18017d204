"""What `ehrseq evaluate` does and writes: a comparison's predictions, summary and report, in the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.benchmarks.arms import members
from ehrsequencing.benchmarks.compare import Comparison, compare
from ehrsequencing.benchmarks.external import is_external, open_external, require_labels
from ehrsequencing.benchmarks.multilabel import category_table
from ehrsequencing.benchmarks.survival import survival_frame
from ehrsequencing.benchmarks.validation import ValidationOptions, write_flat
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.labels import labels_hash
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.evaluation.next_visit import has_next_visit_head
from ehrsequencing.evaluation.predict import prediction_frame
from ehrsequencing.io import atomic_path, read_json, write_json, write_text
from ehrsequencing.tasks.audit import check_names
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.report import write_report
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.tracking.text import summary_text


def evaluate_run(
    run: str | Path,
    store_path: str | Path,
    labels_path: str | Path | None = None,
    *,
    others: Sequence[Path] = (),
    baselines: Sequence[str] | None = None,
    horizons: Sequence[float] = (),
    validation: ValidationOptions | None = None,
    training_store: Path | None = None,
    oracle: Path | None = None,
    med2vec: Path | None = None,
    accept: Collection[str] = (),
    history: str = "model",
    resamples: int = 1000,
    seed: int = 0,
    threads: int = 2,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Judge a run beside others and baselines; write summary, predictions and report into the run.

    With a store of another dataset it is an external validation: its labels are audited, baselines are fitted on the
    training store, all labelled subjects of the other are judged, and the result lies under `arms/` of the run
    (`result_folder`). A pretraining with a head of next visits is judged as it is on labels of next visits; that lies
    under `arms/` by the name of the labels.

    Args:
        run: Fine-tuning run, or a pretraining with objective nvp or joint.
        store_path: The store it was trained on, or one of another dataset with the same vocabulary.
        labels_path: Labels; the run's own by default, needed for another dataset.
        others: Runs to judge beside it, trained on the same store and labels.
        baselines: See `compare`.
        horizons: Days at which a survival task is judged.
        validation: Recalibration and subgroups.
        training_store: Where the training store lies now, for an external validation.
        oracle: The synthetic dataset of the store, for its ceiling and attainable optimum.
        med2vec: Run of Med2Vec on the store, whose visit vectors a logistic regression reads, as one more baseline.
        accept: Checks of the audit of an external validation whose errors are accepted.

    Returns:
        The run's summary with held-out metrics of every model.

    Raises:
        AuditError: the labels of another dataset have an error that `accept` does not name.
        ConfigError: `accept` names no check, or is given where nothing is audited.
    """
    run = Path(run)
    refuse_in_data(run)
    metadata = read_json(run / "metadata.json", remedy="name a folder that `ehrseq finetune` wrote")
    zero_shot = metadata.get("kind") == "pretrain" and has_next_visit_head(run)
    if zero_shot and labels_path is None:
        raise ConfigError(
            f"{run} was trained without labels", remedy="name labels of the task next_visit_codes after the store"
        )
    if metadata.get("kind") != "finetune" and not zero_shot:
        raise RunError(
            f"{run} is not a fine-tuning run", got=metadata.get("kind"), remedy="run `ehrseq finetune` on it first"
        )
    if history not in ("model", "whole"):
        raise ConfigError("what the baselines see", got=history, expected="model or whole")
    check_names(accept)
    store, external = TokenStore.open(store_path), None
    if is_external(metadata, store, training_store):
        if zero_shot:
            raise ConfigError(
                f"{run} was trained without labels, so it is judged on its own store alone", got=str(store.path),
                remedy="fine-tune it, and judge that run on the other dataset",
            )  # fmt: skip
        labels_path = require_labels(labels_path, store)
        external = open_external([run, *others], store_path, labels_path, training_store=training_store, accept=accept)
        for note in external.notes:
            say(note)
        store_path = training_store or metadata["store"]
    elif accept:
        raise ConfigError(
            "--accept is of the labels of another dataset", got=", ".join(accept),
            remedy="leave it out: labels of the run's own dataset are audited when it is fine-tuned",
        )  # fmt: skip
    comparison = compare(
        [run, *others],
        store_path,
        metadata["labels"] if labels_path is None or external is not None else labels_path,
        baselines=baselines,
        horizons=horizons,
        validation=validation,
        external=external,
        oracle=oracle,
        med2vec=med2vec,
        history=history,
        resamples=resamples,
        seed=seed,
        threads=threads,
        say=say,
        progress=progress,
    )
    sections = ({} if zero_shot else read_json(run / "report_data.json")) | comparison.report
    sections["curves"] = {
        arm.name: learning_curve(members(path)[0]) for arm, path in zip(comparison.arms, [run, *others], strict=False)
    }
    sections["caveats"] = comparison_caveats(comparison)
    out = result_folder(run, store.path) if external is not None else run
    if zero_shot:
        out = untuned_folder(run, Path(str(labels_path)))
        with ExperimentTracker(out.name, out.parent, exist_ok=True) as tracker:
            tracker.log_hyperparameters({"run": str(run), "labels": str(labels_path), "resamples": resamples})
            tracker.log_metadata({"kind": "evaluation without fine-tuning", "store_fingerprint": store.fingerprint})
    if external is not None:
        title = f"External validation of {run.name} on {out.name.removeprefix('on-')}"
        sections |= {"title": title, "unknown": external.unknown, "audit": external.audit}
        with ExperimentTracker(out.name, out.parent, exist_ok=True) as tracker:
            tracker.log_hyperparameters({"run": str(run), "store": str(store.path), "resamples": resamples})
            tracker.log_metadata(
                {
                    "kind": "external validation", "store_fingerprint": store.fingerprint,
                    "labels": str(labels_path), "labels_hash": labels_hash(str(labels_path)), "audit": external.audit,
                }
            )  # fmt: skip
    return finish_comparison(out, comparison, sections)


def untuned_folder(run: Path, labels: Path) -> Path:
    """Where the evaluation of a pretraining on labels, without fine-tuning, lies."""
    return run / "arms" / labels.stem


def result_folder(run: Path, store_path: Path) -> Path:
    """Where the external validation of a run on another store lies: a folder per store, whatever the stores' names."""
    path = store_path.resolve()
    names = filter(None, (path.parent.name, path.name, TokenStore.open(path).fingerprint[:8]))
    return run / "arms" / f"on-{'-'.join(names)}"


def finish_comparison(
    run: Path, comparison: Comparison, sections: dict[str, Any], more: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write predictions, `summary.json`, `report_data.json` and `report.html` of a comparison into `run`."""
    save_predictions(comparison, run / "predictions")
    summary = read_json(run / "summary.json") if (run / "summary.json").exists() else {}
    summary["metrics"] = {**comparison.metrics, **(more or {})}
    summary["differences"] = comparison.differences
    summary |= comparison.validation.summary
    if comparison.external is not None:
        summary["unknown"] = comparison.external.unknown
    write_json(run / "summary.json", summary)
    write_report_data(run, sections)
    hyperparameters = read_json(run / "hyperparameters.json")
    write_text(
        run / "SUMMARY.txt",
        summary_text(read_json(run / "metadata.json"), hyperparameters, summary, summary.get("best", {})),
    )
    write_report(run)
    return summary


def learning_curve(run: Path) -> dict[str, list[list[float]]]:
    """Loss curves of a run, as the report wants them."""
    history = read_json(run / "logs" / "metrics_history.json")
    return {
        name: [[row["epoch"], row["value"]] for row in history.get(name, [])]
        for name in ("train_loss", "val_loss", "val_auroc", "val_auroc_macro")
        if name in history
    }


def comparison_caveats(comparison: Comparison) -> list[str]:
    """What a sceptical reader should know of this table."""
    held = comparison.examples["held_out"]
    target = np.asarray(held.target)
    if held.causes:
        positives = f"{int((target[:, 1] == 1).sum()):,} of them with the event"
    elif held.categories:
        positives = f"{int(target.any(1).sum()):,} of them with a positive among {len(held.categories)} categories"
    else:
        positives = f"{int(target.sum()):,} of them positive"
    seen = "Baselines see counts, recency, last values and trends, demographics and utilisation."
    return [
        f"Held-out: {len(held.index):,} histories of {len(np.unique(held.subject_id)):,} subjects, "
        f"{positives}; no model was fitted, tuned or stopped on them.",
        "Intervals resample subjects, not histories; they cover the draw of subjects and not the seed of training, "
        "unless several seeds are stated.",
        seen if held.causes else f"F1 uses thresholds that are best on tuning. {seen}",
        *comparison.notes,
        *(comparison.external.notes if comparison.external else []),
        *comparison.validation.notes,
    ]


def save_predictions(comparison: Comparison, folder: Path) -> None:
    """Write `held_out.parquet` and `tuning.parquet`: a row per example, a column per model."""
    for split in ("tuning", "held_out"):
        if comparison.days:
            arms = [*comparison.arms, *(comparison.oracles if split == "held_out" else [])]
            frame = survival_frame(arms, split, comparison.examples[split], comparison.days)
            with atomic_path(folder / f"{split}.parquet") as temporary:
                frame.write_parquet(temporary)
            with atomic_path(folder / f"{split}.csv") as temporary:
                frame.write_csv(temporary)
            continue
        columns = {
            arm.name if len(arm.held_out) == 1 else f"{arm.name}/seed-{index}": probabilities
            for arm in comparison.arms
            for index, probabilities in enumerate(getattr(arm, split))
        }
        columns |= {arm.name: arm.held_out[0] for arm in comparison.oracles if split == "held_out"}
        frame = prediction_frame(comparison.examples[split], columns)
        with atomic_path(folder / f"{split}.parquet") as temporary:
            frame.write_parquet(temporary)
    if comparison.examples["held_out"].categories:
        with atomic_path(folder / "categories.csv") as temporary:
            category_table(comparison.arms, comparison.examples["held_out"]).write_csv(temporary)
    if comparison.examples["held_out"].categories or comparison.days:
        return
    external = comparison.external
    write_flat(comparison, folder, comparison.validation.groups, external.split_of if external else None)
