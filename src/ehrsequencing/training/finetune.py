"""Fine-tuning: a token store, labels and (usually) a pretrained run in; an adapted model out.

Held-out subjects are audited here and never trained or tuned on; `ehrseq evaluate` judges on them.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ehrsequencing.config import FinetuneConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.labels import labels_hash, read_labels
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError
from ehrsequencing.io import read_json
from ehrsequencing.models.folder import PretrainedModel
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
from ehrsequencing.training.examples import check_origin, labelled_examples
from ehrsequencing.training.facts import base_overlap, data_facts
from ehrsequencing.training.goals import ClassificationGoal, Goal
from ehrsequencing.training.loop import Trainer
from ehrsequencing.training.runs import (
    as_built,
    base_hash,
    batch_source,
    check_identity,
    config_hash,
    describe_store,
    diagnosed,
    finished_summary,
    flow_section,
    open_run,
    parameter_section,
    plan_start,
    require_run,
    seed_everything,
    size_name,
    store_files,
    warnings_to,
)
from ehrsequencing.training.survival import SurvivalGoal
from ehrsequencing.training.third_party import code_parameter, place_embeddings


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
    """Fine-tune a BEHRT, or train another architecture from scratch, on a binary, multi-label or survival task.

    Args:
        store_path: Token store.
        labels_path: Parquet in the MEDS label schema: `boolean_value`, `categorical_value` with a row per positive
            category, or `integer_value` and `float_value` with causes and days.
        out: Run directory.
        config: `method` lora (frozen base, adapters and head), full, probe (head alone) or scratch (no base).
        from_run: Pretrained run; needed by full and probe.
        resume: Take up a killed run at its last checkpoint.
        overwrite: Replace an existing run.
        observer: Shown progress.

    Returns:
        The summary that is also written to `summary.json` (tuning metrics only).

    Raises:
        ConfigError: the method and `from_run` do not fit, `from_run` was fine-tuned on labels of another kind, options
            have no effect on these labels, or `out` overlaps store or labels or lies in a dataset.
        LabelError: no label in train or tuning, a single class, or nobody to compare an event with.
        AuditError: the leakage audit found an error that `config.accept` does not name.
        VocabularyMismatchError: `from_run` was trained with another vocabulary.
    """
    observer = observer or Observer()
    _check_base(config, from_run)
    refuse_in_data(out, store_path, labels_path)
    store = TokenStore.open(store_path).verify()
    labels, manifest = read_labels(labels_path)
    check_origin(store, manifest, str(labels_path))
    examples, notes = labelled_examples(store, labels, manifest, str(labels_path), ("train", "tuning"))
    base_folder = require_run(Path(from_run)) if from_run is not None else None
    start = plan_start(
        Path(out), config, resume=resume, overwrite=overwrite, from_run=Path(from_run) if from_run else None
    )
    config = start.config
    _check_base(config, from_run)
    audited = audit(store, labels, manifest, accept=config.accept)
    audited.raise_errors()
    goal = _goal(config, examples, manifest, str(labels_path))
    notes += [*audited.notes(), *goal.notes]
    for note in notes:
        observer.say(note)
    start = replace(start, config=goal.config)
    seed_everything(config.loop.seed)
    with warnings_to(observer, notes):
        model = goal.build(base_folder, store)
    start = as_built(start, model.config)
    config = start.config
    identity = {
        "store": store.fingerprint,
        "labels": labels_hash(labels_path),
        "base": base_hash(model) if base_folder is not None else "none",
        "configuration": config_hash(config),
    }
    placed = place_embeddings(model, store, config.embeddings, seed=config.loop.seed, notes=notes)
    if placed is not None:
        identity["embeddings"] = placed.applied.file_hash
        observer.say(placed.applied.note())
    identity |= goal.identity()
    check_identity(start, identity)
    if (done := finished_summary(start)) is not None:
        return done
    goal.begin(model)
    with warnings_to(observer, notes):
        model = _adapt(model, config)
    if placed is not None:
        placed.freeze(model)
    sources = {
        split: batch_source(store, split, examples[split], config.loop, model.config) for split in ("train", "tuning")
    }
    plan = goal.plan(model, sources, store)
    parameters = count_parameters(model)
    task = str(manifest.get("task", Path(labels_path).stem))
    facts = {
        "kind": "finetune",
        "task": task,
        "method": config.method,
        "architecture": config.architecture,
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint,
        "labels": str(Path(labels_path).resolve()),
        "labels_hash": identity["labels"],
        "vocabulary_hash": store.vocabulary.hash,
        "from_run": str(Path(from_run).resolve()) if from_run is not None else None,
        "parameters": parameters,
        "audit": audited.rows(),
        "examples": {split: len(examples[split].index) for split in examples},
        **goal.facts(),
        **({"embeddings": placed.applied.to_dict()} if placed is not None else {}),
        **data_facts(store),
        **({"base_overlap": base_overlap(store, Path(from_run))} if from_run is not None else {}),
    }
    with diagnosed(start, observer), open_run(start, identity, facts) as tracker:
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
        goal.finish(trainer, plan, tracker)
        model.to("cpu")
        report = parameter_report(model)
        for name in report["no_gradient"]:
            notes.append(f"{name} was to train and received no gradient")
        if adapted:
            save_lora_weights(model, tracker.run_dir / "adapter")
        plain = merge_lora(model) if adapted else model
        files = store_files(store) | goal.files()
        plain.save_pretrained(tracker.run_dir / "model", vocabulary_hash=store.vocabulary.hash, extra_files=files)
        name = f"{config.architecture}-{size_name(model.config, config.architecture)}-{config.method}"
        metrics = {
            name: {
                f"tuning:{task}/{metric}": {"n": len(examples["tuning"].index), "seeds": 1, **entry}
                for metric, entry in goal.entries(plan, result.best).items()
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
                "data": describe_store(store) | (placed.applied.rows() if placed is not None else {}),
                "audit": audited.rows(),
                "caveats": [
                    f"These figures are on tuning subjects, which also chose the best epoch; {goal.held_out}.",
                    *notes,
                ],
            },
        )
        tracker.plot_training_curves()
        tracker.save_summary(metrics, notes=notes)
        tracker.set_status("early_stopped" if result.early_stopped else "completed")
        return read_json(tracker.run_dir / "summary.json")


def _goal(config: FinetuneConfig, examples: dict[str, Examples], manifest: dict[str, Any], source: str) -> Goal:
    if examples["train"].causes:
        return SurvivalGoal(config, examples, manifest)
    return ClassificationGoal(config, examples, source)


def _check_base(config: FinetuneConfig, from_run: str | Path | None) -> None:
    """The method starts from a base or from nothing, and the base must be there or not accordingly."""
    if config.method in ("full", "probe") and from_run is None:
        raise ConfigError(
            f"--method {config.method} starts from a pretrained run",
            got="no --from",
            remedy="pass --from RUN, or --method scratch",
        )
    if config.method == "scratch" and from_run is not None:
        other = "--method full" if config.architecture == "behrt" else "--model behrt"
        raise ConfigError(
            f"--model {config.architecture} --method scratch starts from nothing",
            got=f"--from {from_run}",
            remedy=f"leave out --from, or {other}",
        )


def _adapt(model: PretrainedModel, config: FinetuneConfig) -> PretrainedModel:
    if config.method == "probe":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(group_of(name) == "head")
        return model
    if config.method != "lora":
        return model
    options = config.lora
    # Vectors of codes alone are no pretraining of the encoder, nor of the embeddings beside them.
    fresh = model.pretrained_parameters <= {code_parameter(model)}
    if fresh:
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
        train_embeddings=options.train_embeddings or fresh,
    )
    return model
