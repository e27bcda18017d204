"""Pretraining: a token store in, a run directory with a model folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ehrsequencing.config import PretrainConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import DataError
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.models.folder import state_hash
from ehrsequencing.models.lora import count_parameters, parameter_report
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.training.callbacks import Observer
from ehrsequencing.training.loop import FitResult, Trainer
from ehrsequencing.training.plans import MLMPlan
from ehrsequencing.training.runs import (
    as_built,
    batch_source,
    check_identity,
    config_hash,
    describe_store,
    finished_summary,
    load_base,
    model_config,
    open_run,
    parameter_section,
    plan_start,
    ratio_interval,
    require_run,
    seed_everything,
    size_name,
    store_files,
    warnings_to,
)

FLOOR_NAMES = {
    "uniform": "floor: uniform over used codes",
    "unigram": "floor: unigram",
    "copy": "floor: copy from own other codes",
}


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
    """Pretrain a BEHRT with masked language modelling.

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
        ConfigError: `out` overlaps the store, or lies in another one or a dataset.
        DataError: train or tuning has no subject.
        VocabularyMismatchError: `from_run` was trained with another vocabulary.
    """
    observer = observer or Observer()
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
    if base_folder is None:
        model = BEHRTForMLM(model_config(config.model, len(store.vocabulary)))
    else:
        options = config.model.model_dump(include=config.model.model_fields_set & {"dropout", "attention_dropout"})
        with warnings_to(observer, notes):
            model = load_base(BEHRTForMLM, base_folder, store, **options)
        start = as_built(start, model.config)
        config = start.config
    identity = {
        "store": store.fingerprint,
        "base": state_hash(model) if base_folder is not None else "none",
        "configuration": config_hash(config),
    }
    check_identity(start, identity)
    if (done := finished_summary(start)) is not None:
        return done
    sources = {
        split: batch_source(
            store, split, Examples.whole_histories(store.split(split)), config.loop, model.config.max_length
        )
        for split in ("train", "tuning")
    }
    plan = MLMPlan(
        model.config,
        sources["train"],
        sources["tuning"],
        store.vocabulary,
        rate=config.mask_rate,
        seed=config.loop.seed,
    )
    facts = {
        "kind": "pretrain",
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint,
        "vocabulary_hash": store.vocabulary.hash,
        "from_run": str(Path(from_run).resolve()) if from_run is not None else None,
        "parameters": count_parameters(model),
        "padding_share": sources["train"].padding_share(0),
    }
    with open_run(start, identity, facts) as tracker:
        floors = plan.floors()
        observer.say(_floor_line(floors))
        trainer = Trainer(model, plan, config.optim, config.loop, tracker, identity=identity, observer=observer)
        result = trainer.fit(resume=start.taken_up)
        statistics = plan.subject_statistics(trainer.model, trainer.fabric.device)
        model.to("cpu")
        model.save_pretrained(
            tracker.run_dir / "model", vocabulary_hash=store.vocabulary.hash, extra_files=store_files(store)
        )
        name = f"behrt-{size_name(model.config)}"
        metrics = {name: _mlm_metrics(statistics)} | {
            FLOOR_NAMES[floor]: {
                "mlm/mlm_loss": {"value": value["loss"], "higher_is_better": False},
                "mlm/mlm_accuracy": {"value": value["accuracy"], "higher_is_better": True},
            }
            for floor, value in floors.items()
        }
        _write_report_data(tracker.run_dir, store, config, model, result, metrics, floors, name)
        tracker.plot_training_curves()
        tracker.save_summary(metrics, notes=notes)
        tracker.set_status("early_stopped" if result.early_stopped else "completed")
        return read_json(tracker.run_dir / "summary.json")


def _floor_line(floors: dict[str, dict[str, float]]) -> str:
    parts = [f"{name} {value['loss']:.2f} nats, {value['accuracy']:.1%}" for name, value in floors.items()]
    return "floors on the tuning masks: " + "; ".join(parts)


def _mlm_metrics(statistics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    population = {"n": int(statistics["count"].sum()), "subjects": int((statistics["count"] > 0).sum())}
    named = {"mlm_loss": ("loss_sum", False), "mlm_accuracy": ("correct", True), "mlm_top10": ("top10", True)}
    return {
        f"mlm/{metric}": ratio_interval(statistics[column], statistics["count"])
        | {**population, "seeds": 1, "higher_is_better": better}
        for metric, (column, better) in named.items()
    }


def _write_report_data(
    run: Path,
    store: TokenStore,
    config: PretrainConfig,
    model: BEHRTForMLM,
    result: FitResult,
    metrics: dict[str, Any],
    floors: dict[str, dict[str, float]],
    name: str,
) -> None:
    own = metrics[name]
    report = parameter_report(model)
    write_report_data(
        run,
        {
            "title": f"Pretraining of {name} with masked language modelling",
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
            "floors": [{"name": floor, **value} for floor, value in floors.items()],
            "parameters": {name: parameter_section(report)},
            "data": describe_store(store),
            "caveats": [
                f"Figures are on {own['mlm/mlm_loss']['subjects']} tuning subjects, which also chose the best epoch.",
                f"{config.mask_rate:.0%} of codes are chosen; tuning masks are fixed, train masks redrawn each epoch. "
                "Figures count the codes hidden behind a mask, not those shown unchanged or replaced.",
            ],
        },
    )
