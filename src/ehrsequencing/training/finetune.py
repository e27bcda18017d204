"""Fine-tuning: a token store, labels and (usually) a pretrained run in; an adapted model out.

Held-out subjects are audited here and never trained or tuned on; `ehrseq evaluate` judges on them.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ehrsequencing.config import FinetuneConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.labels import labels_hash, read_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, ConfigError, LabelError
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRTForSequenceClassification
from ehrsequencing.models.folder import tensors_hash
from ehrsequencing.models.lora import (
    apply_lora_to_behrt,
    count_parameters,
    group_of,
    lora_state,
    merge_lora,
    parameter_report,
    save_lora_weights,
)
from ehrsequencing.tasks.audit import audit
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.training.callbacks import Observer
from ehrsequencing.training.loop import Trainer
from ehrsequencing.training.plans import ClassificationPlan
from ehrsequencing.training.runs import (
    as_built,
    batch_source,
    check_identity,
    config_hash,
    describe_store,
    finished_summary,
    flow_section,
    load_base,
    model_config,
    open_run,
    parameter_section,
    plan_start,
    require_run,
    seed_everything,
    size_name,
    store_files,
    warnings_to,
)


def finetune(
    store_path: str | Path,
    labels_path: str | Path,
    out: str | Path,
    config: FinetuneConfig,
    *,
    from_run: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Fine-tune a BEHRT on a binary label.

    Args:
        store_path: Token store.
        labels_path: Parquet in the MEDS label schema with `boolean_value`.
        out: Run directory.
        config: `method` lora (frozen base, adapters and head), full, probe (head alone) or scratch (no base).
        from_run: Pretrained run; needed by full and probe.
        resume: Take up a killed run at its last checkpoint.
        overwrite: Replace an existing run.
        observer: Shown progress.

    Returns:
        The summary that is also written to `summary.json` (tuning metrics only).

    Raises:
        ConfigError: the method and `from_run` do not fit, or `out` overlaps store or labels or lies in a dataset.
        LabelError: no label in train or tuning, or a single class.
        AuditError: the leakage audit found an error that `config.accept` does not name.
        VocabularyMismatchError: `from_run` was trained with another vocabulary.
    """
    observer = observer or Observer()
    if config.method in ("full", "probe") and from_run is None:
        raise ConfigError(
            f"--method {config.method} starts from a pretrained run",
            got="no --from",
            remedy="pass --from RUN, or --method scratch",
        )
    if config.method == "scratch" and from_run is not None:
        raise ConfigError(
            "--method scratch starts from nothing",
            got=f"--from {from_run}",
            remedy="leave out --from, or --method full",
        )
    refuse_in_data(out, store_path, labels_path)
    store = TokenStore.open(store_path).verify()
    labels, manifest = read_labels(labels_path)
    check_origin(store, manifest, str(labels_path))
    examples = binary_examples(store, labels, str(labels_path), ("train", "tuning"))
    base_folder = require_run(Path(from_run)) if from_run is not None else None
    start = plan_start(
        Path(out), config, resume=resume, overwrite=overwrite, from_run=Path(from_run) if from_run else None
    )
    config = start.config
    notes: list[str] = []
    audited = audit(store, labels, manifest, accept=config.accept)
    audited.raise_errors()
    for note in audited.notes():
        observer.say(note)
    notes += audited.notes()
    seed_everything(config.loop.seed)
    with warnings_to(observer, notes):
        model = _build(config, base_folder, store)
    if base_folder is not None:
        start = as_built(start, model.config)
        config = start.config
    identity = {
        "store": store.fingerprint,
        "labels": labels_hash(labels_path),
        "base": _base_hash(model) if base_folder is not None else "none",
        "configuration": config_hash(config),
    }
    check_identity(start, identity)
    if (done := finished_summary(start)) is not None:
        return done
    prevalence = float(np.mean(_targets(examples["train"])))
    # Predictions start at the prevalence, so no step is spent on learning it.
    torch.nn.init.constant_(model.classifier.bias, math.log(prevalence / (1 - prevalence)))
    with warnings_to(observer, notes):
        model = _adapt(model, config)
    sources = {
        split: batch_source(store, split, examples[split], config.loop, model.config.max_length)
        for split in ("train", "tuning")
    }
    plan = ClassificationPlan(model.config, sources["train"], sources["tuning"])
    parameters = count_parameters(model)
    task = str(manifest.get("task", Path(labels_path).stem))
    facts = {
        "kind": "finetune",
        "task": task,
        "method": config.method,
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint,
        "labels": str(Path(labels_path).resolve()),
        "labels_hash": identity["labels"],
        "vocabulary_hash": store.vocabulary.hash,
        "from_run": str(Path(from_run).resolve()) if from_run is not None else None,
        "parameters": parameters,
        "audit": audited.rows(),
        "examples": {split: len(examples[split].index) for split in examples},
        "positives": {split: int(_targets(examples[split]).sum()) for split in examples},
    }
    with open_run(start, identity, facts) as tracker:
        observer.say(
            f"{config.method}: {parameters['trainable']:,} of {parameters['total']:,} parameters train "
            f"({parameters['trainable_percent']:.1f} %), {parameters['lora']:,} of them in adapters"
        )
        adapted = config.method == "lora"
        trainer = Trainer(
            model,
            plan,
            config.optim,
            config.loop,
            tracker,
            identity=identity,
            lora_state=(lambda: lora_state(model)) if adapted else None,
            observer=observer,
        )
        result = trainer.fit(resume=start.taken_up)
        logits, truth = plan.tuning_logits(trainer.model, trainer.fabric.device)
        # At a rare outcome nothing passes 0.5; called positive is whoever is above the average risk of train.
        called = (logits.sigmoid() > prevalence).long().tolist()
        tracker.plot_confusion_matrix(truth.long().tolist(), called, ["no", "yes"])
        model.to("cpu")
        report = parameter_report(model)
        for name in report["no_gradient"]:
            notes.append(f"{name} was to train and received no gradient")
        if adapted:
            save_lora_weights(model, tracker.run_dir / "adapter")
        plain = merge_lora(model) if adapted else model
        plain.save_pretrained(
            tracker.run_dir / "model", vocabulary_hash=store.vocabulary.hash, extra_files=store_files(store)
        )
        name = f"behrt-{size_name(model.config)}-{config.method}"
        metrics = {
            name: {
                f"tuning:{task}/{metric}": {
                    "value": result.best[f"val_{metric}"],
                    "n": len(examples["tuning"].index),
                    "seeds": 1,
                    "higher_is_better": True,
                }
                for metric in ("auroc", "auprc")
            }
        }
        write_report_data(
            tracker.run_dir,
            {
                "title": f"Fine-tuning ({config.method}) on {task}",
                "models": [
                    {
                        "model": name,
                        "kind": config.method,
                        "trainable_parameters": parameters["trainable"],
                        "total_parameters": parameters["total"],
                        "seconds": result.seconds,
                        "notes": f"best epoch {result.best_epoch} of {result.epochs}",
                    }
                ],
                "parameters": {name: parameter_section(report)},
                "cohort": flow_section(manifest),
                "data": describe_store(store),
                "audit": audited.rows(),
                "caveats": [
                    "These figures are on tuning subjects, which also chose the best epoch; "
                    "run `ehrseq evaluate` for held-out figures with intervals.",
                    *notes,
                ],
            },
        )
        tracker.plot_training_curves()
        tracker.save_summary(metrics, notes=notes)
        tracker.set_status("early_stopped" if result.early_stopped else "completed")
        return read_json(tracker.run_dir / "summary.json")


def binary_examples(store: TokenStore, labels: Any, source: str, splits: tuple[str, ...]) -> dict[str, Examples]:
    """Labelled histories per split.

    Raises:
        LabelError: a split has no labelled history, or (train, tuning) one class.
    """
    if labels["boolean_value"].null_count() == len(labels):
        raise LabelError(f"{source}: boolean_value is empty", expected="a binary task's labels")
    ids = labels["subject_id"].to_numpy()
    known = np.zeros(len(ids), dtype=bool)
    for split in SPLITS:
        known |= store.split(split).index_of(ids) >= 0
    if not known.all():
        raise LabelError(
            f"{source}: {int((~known).sum())} labels are of subjects that {store.path} does not hold",
            got=f"subject {int(ids[~known][0])} for one",
            remedy="build the labels from the dataset the store was prepared from",
        )
    examples = {split: Examples.from_labels(store.split(split), labels) for split in splits}
    for split, rows in examples.items():
        if len(rows.index) == 0:
            raise LabelError(
                f"{source}: no label falls on a subject of split {split}",
                remedy="build the labels from the dataset the store was prepared from, or use more subjects",
            )
        positives = int(_targets(rows).sum())
        if positives in (0, len(rows.index)):
            raise LabelError(
                f"{source}: split {split} has one class only",
                got=f"{positives} positives of {len(rows.index)}",
                expected="both classes",
                remedy="choose a longer window, another task or more subjects",
            )
    return examples


def _targets(examples: Examples) -> np.ndarray:
    if examples.target is None:
        raise LabelError("the examples carry no target")
    return examples.target


def _build(config: FinetuneConfig, base: Path | None, store: TokenStore) -> BEHRTForSequenceClassification:
    if base is None:
        return BEHRTForSequenceClassification(model_config(config.model, len(store.vocabulary)))
    given = config.model.model_fields_set & {"dropout", "attention_dropout", "pooling"}
    options = config.model.model_dump(include=given)
    if "pooling" not in given and not _is_classifier(base):
        options["pooling"] = config.model.pooling
    return load_base(BEHRTForSequenceClassification, base, store, **options)


def _is_classifier(folder: Path) -> bool:
    return read_json(folder / "config.json", CheckpointError).get("architecture") == "BEHRTForSequenceClassification"


def _base_hash(model: BEHRTForSequenceClassification) -> str:
    """Hash of what came from the base; a fresh head is drawn from the seed and is no part of it."""
    return tensors_hash({name: model.state_dict()[name] for name in model.pretrained_parameters})


def check_origin(store: TokenStore, manifest: dict[str, Any], source: str) -> None:
    """Labels and store must come from one dataset, where both say from which.

    Raises:
        LabelError: they do not.
    """
    labelled = manifest.get("dataset", {}).get("fingerprint")
    prepared = store.manifest.get("dataset_fingerprint")
    if labelled and prepared and labelled != prepared:
        raise LabelError(
            f"{source} was built from another dataset than {store.path}",
            got=labelled[:16],
            expected=prepared[:16],
            remedy="build the labels from the dataset the store was prepared from",
        )


def _adapt(model: BEHRTForSequenceClassification, config: FinetuneConfig) -> BEHRTForSequenceClassification:
    if config.method == "probe":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(group_of(name) == "head")
        return model
    if config.method != "lora":
        return model
    options = config.lora
    if not model.pretrained_parameters:
        warnings.warn(
            "LoRA without --from adapts a model with no pretrained weights: its frozen encoder stays random",
            UserWarning,
            stacklevel=2,
        )
    apply_lora_to_behrt(
        model,
        rank=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        lora_attention=options.attention,
        lora_feedforward=options.feedforward,
        train_embeddings=options.train_embeddings or not model.pretrained_parameters,
    )
    return model
