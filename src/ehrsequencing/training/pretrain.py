"""Pretraining: a token store in, a run directory with a model folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ehrsequencing.config import PretrainConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.io import read_json
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.lora import count_parameters, parameter_report
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.training.callbacks import Observer
from ehrsequencing.training.code_vectors import code_vector_model
from ehrsequencing.training.facts import base_overlap, data_facts
from ehrsequencing.training.loop import FitResult, Trainer
from ehrsequencing.training.objectives import OBJECTIVES, decided, refuse_other_head
from ehrsequencing.training.plans import PretrainPlan
from ehrsequencing.training.runs import (
    CHANGEABLE,
    as_built,
    base_hash,
    batch_source,
    check_identity,
    config_hash,
    describe_store,
    diagnosed,
    finished_summary,
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
from ehrsequencing.training.third_party import place_embeddings


def pretrain(
    store_path: str | Path,
    out: str | Path,
    config: PretrainConfig,
    *,
    from_run: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Pretrain a BEHRT, Med2Vec or skip-gram without labels.

    Args:
        store_path: Token store.
        out: Run directory.
        config: Options; what is `auto` is resolved once and written to `config.toml`.
        from_run: Earlier run whose weights are the starting point; its vocabulary must be the store's.
        resume: Take up a killed run at its last checkpoint; starts anew where there is none.
        overwrite: Replace an existing run.
        observer: Shown progress.

    Returns:
        The summary that is also written to `summary.json`.

    Raises:
        ConfigError: `out` overlaps the store, or lies in another one or a dataset; the base does not fit the objective,
            or the model takes none.
        DataError: train or tuning has no subject, or none with what the objective predicts.
        VocabularyMismatchError: `from_run` was trained with another vocabulary.
    """
    observer = observer or Observer()
    if config.architecture != "behrt" and from_run is not None:
        raise ConfigError(
            f"--model {config.architecture} starts from nothing", got=f"--from {from_run}", remedy="leave out --from"
        )
    refuse_in_data(out, store_path)
    store = TokenStore.open(store_path).verify()
    for split in ("train", "tuning"):
        if len(store.split(split)) == 0:
            raise DataError(
                f"{store.path}: split {split} has no subject", remedy="prepare more subjects or other splits"
            )
    base_folder = require_run(Path(from_run)) if from_run is not None else None
    start = plan_start(
        Path(out), config, resume=resume, overwrite=overwrite, from_run=Path(from_run) if from_run else None
    )
    config = start.config
    notes: list[str] = []
    seed_everything(config.loop.seed)
    of_codes = config.architecture != "behrt"
    objective = OBJECTIVES[config.architecture if of_codes else config.objective]
    head = objective.head(config, store.vocabulary)
    model: PretrainedModel
    if of_codes:
        model = code_vector_model(config, store.vocabulary)
    elif base_folder is None:
        built = model_config(config.model, len(store.vocabulary), causal=objective.causal(config))
        model = objective.model(built, **head)
    else:
        options = config.model.model_dump(include=config.model.model_fields_set & CHANGEABLE)
        refuse_other_head(base_folder, config, objective.model, head)
        with warnings_to(observer, notes):
            model = load_base(objective.model, base_folder, store, **options, **head)
    if not of_codes:
        start = as_built(start, model.config)
        start = replace(start, config=decided(start.config, model.config))
    config = start.config
    identity = {
        "store": store.fingerprint,
        "base": base_hash(model) if base_folder is not None else "none",
        "configuration": config_hash(config),
    }
    placed = place_embeddings(model, store, config.embeddings, seed=config.loop.seed, notes=notes)
    if placed is not None:
        identity["embeddings"] = placed.applied.file_hash
        placed.freeze(model)
    check_identity(start, identity)
    if (done := finished_summary(start)) is not None:
        return done
    sources = {
        split: batch_source(store, split, objective.examples(store.split(split), notes), config.loop, model.config)
        for split in ("train", "tuning")
    }
    plan = objective.plan(model, sources["train"], sources["tuning"], store.vocabulary, config)
    floors = plan.floors()
    facts = {
        "kind": "pretrain",
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint,
        "vocabulary_hash": store.vocabulary.hash,
        "from_run": str(Path(from_run).resolve()) if from_run is not None else None,
        "parameters": count_parameters(model),
        "padding_share": sources["train"].padding_share(0),
        **({"embeddings": placed.applied.to_dict()} if placed is not None else {}),
        "floors": floors,
        **data_facts(store),
        **({"base_overlap": base_overlap(store, Path(from_run))} if from_run is not None else {}),
    }
    with diagnosed(start, observer), open_run(start, identity, facts) as tracker:
        for note in (*notes, *plan.notes):
            observer.say(note)
        observer.say(_floor_line(floors))
        trainer = Trainer(model, plan, config.optim, config.loop, tracker, identity=identity, observer=observer)
        result = trainer.fit(resume=start.taken_up)
        judged = plan.judge(trainer.model, trainer.fabric.device)
        model.to("cpu")
        model.save_pretrained(
            tracker.run_dir / "model", vocabulary_hash=store.vocabulary.hash, extra_files=store_files(store)
        )
        name = config.architecture if of_codes else f"behrt-{size_name(model.config)}"
        metrics = {name: judged} | {
            f"floor: {FLOOR_NAMES.get(floor, floor)}": plan.floor_entries(value) for floor, value in floors.items()
        }
        data = describe_store(store) | (placed.applied.rows() if placed is not None else {})
        _write_report_data(tracker.run_dir, data, plan, model, result, metrics, floors, name)
        tracker.plot_training_curves()
        tracker.save_summary(metrics, notes=[*notes, *plan.notes])
        tracker.set_status("early_stopped" if result.early_stopped else "completed")
        return read_json(tracker.run_dir / "summary.json")


FLOOR_NAMES = {"uniform": "uniform over used codes", "copy": "copy from own other codes"}
"""Of masked codes; other objectives name theirs in full."""


def _floor_line(floors: dict[str, dict[str, float]]) -> str:
    parts = []
    for name, floor in floors.items():
        others = [
            f"{key.replace('_', ' ')} {value:.1%}"
            for key, value in floor.items()
            if key in ("accuracy", "recall_at_10")
        ]
        parts.append(", ".join([f"{name} {floor['loss']:.2f} nats", *others]))
    return "floors on tuning: " + "; ".join(parts)


def _write_report_data(
    run: Path,
    data: dict[str, Any],
    plan: PretrainPlan,
    model: PretrainedModel,
    result: FitResult,
    metrics: dict[str, Any],
    floors: dict[str, dict[str, float]],
    name: str,
) -> None:
    subjects = max(entry["subjects"] for entry in metrics[name].values())
    report = parameter_report(model)
    masked = "mlm/mlm_loss" in metrics[name]
    write_report_data(
        run,
        {
            "title": f"Pretraining of {name}: {plan.title}",
            "models": [
                {
                    "model": name,
                    "kind": "pretrained",
                    "trainable_parameters": report["counts"]["trainable"],
                    "total_parameters": report["counts"]["total"],
                    "seconds": result.seconds,
                    "notes": f"best epoch {result.best_epoch} of {result.epochs}",
                },
                *({"model": floor, "kind": "baseline"} for floor in metrics if floor != name),
            ],
            # Those of masked codes have a section of their own; the others stand beside the model in its table.
            "floors": [{"name": floor, **value} for floor, value in floors.items() if "accuracy" in value and masked],
            "parameters": {name: parameter_section(report)},
            "data": data,
            "caveats": [
                f"Figures are on {subjects} tuning subjects, which also chose the best epoch.",
                *plan.caveats(),
                *plan.notes,
            ],
        },
    )
