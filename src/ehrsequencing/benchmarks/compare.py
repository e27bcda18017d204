"""Trained runs beside baselines on the same held-out subjects, with intervals and paired differences."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.baselines.features import CountFeatures
from ehrsequencing.baselines.models import BUDGET, fit_baseline
from ehrsequencing.benchmarks.arms import Arm, best_of_each, run_arm
from ehrsequencing.benchmarks.external import External
from ehrsequencing.benchmarks.med2vec import med2vec_arm
from ehrsequencing.benchmarks.multilabel import judge_multilabel
from ehrsequencing.benchmarks.oracle import oracle_arms, survival_oracles
from ehrsequencing.benchmarks.survival import SURVIVAL_ARMS, judge_survival
from ehrsequencing.benchmarks.validation import Validation, ValidationOptions, add_validation
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError
from ehrsequencing.evaluation.bootstrap import Estimate, paired_difference, summarise_seeds
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.evaluation.metrics import f1_threshold, precision_recall_points, roc_points, thinned
from ehrsequencing.training.examples import labelled_examples
from ehrsequencing.training.runs import flow_section

BASELINES = ("logistic_regression", "random_forest", "xgboost")
METRIC_NAMES = ("auroc", "auprc", "f1", "brier", "ece")
ORACLE_METRICS = ("auroc", "auprc", "brier", "ece")
"""F1 needs a threshold from tuning, where the oracle is not asked."""
PAIRED_METRICS = ("auroc", "auprc", "brier")


@dataclass
class Comparison:
    """All arms on the same examples; `oracles` are beside them, not among them: nothing was fitted.

    `days` of a survival task are its horizons and the last day of all figures.
    """

    task: str
    examples: dict[str, Examples]
    arms: list[Arm]
    metrics: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]
    report: dict[str, Any]
    notes: list[str]
    validation: Validation = field(default_factory=Validation)
    external: External | None = None
    oracles: list[Arm] = field(default_factory=list)
    days: list[float] = field(default_factory=list)


def compare(
    runs: Sequence[Path],
    store_path: str | Path,
    labels_path: str | Path,
    *,
    names: Sequence[str] = (),
    baselines: Sequence[str] | None = None,
    budget: int = BUDGET,
    horizons: Sequence[float] = (),
    history: str = "model",
    reference: str | None = None,
    validation: ValidationOptions | None = None,
    external: External | None = None,
    oracle: str | Path | None = None,
    med2vec: str | Path | None = None,
    resamples: int = 1000,
    seed: int = 0,
    threads: int = 2,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Comparison:
    """Judge runs and baselines on held-out subjects.

    Args:
        runs: Fine-tuning runs on this store and these labels.
        store_path: Token store.
        labels_path: Binary, multi-label or survival labels.
        names: Of the runs; by default that of the model, and of the folder where two would be alike.
        baselines: Names from `BASELINES`, or of a survival task from `SURVIVAL_ARMS`; each is fitted on train and
            chosen on tuning. All of them by default.
        budget: Settings that each baseline tries, see `fit_baseline`.
        horizons: Days at which survival is judged; see `judge_survival`.
        history: What the baselines see: "model", the histories as cut for the longest model of `runs`; or "whole".
        reference: Name of the arm to which the others are compared; the first run by default.
        validation: Recalibration and subgroups; defaults of `ValidationOptions`.
        external: Another dataset, judged in place of the held-out subjects.
        oracle: The synthetic dataset of the store; adds its ceiling and attainable optimum.
        med2vec: Run of Med2Vec on this store, or several seeds' folder; adds Med2Vec + LR to the baselines of a binary
            task.
        resamples: Bootstrap resamples over subjects.
        seed: Of bootstrap and baselines.
        threads: For the baselines.
        say: Told what is being done.
        progress: Told (name, done, total).

    Raises:
        RunError: a run was trained on another store or other labels.
        LabelError: a split has no label or one class.
        ConfigError: a run named twice, an unknown baseline, an oracle that does not know the task, or options that are
            of other tasks.
    """
    twice = [str(run) for index, run in enumerate(runs) if run.resolve() in [r.resolve() for r in runs[:index]]]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice", remedy="name each run once")
    store = TokenStore.open(store_path).verify()
    labels, manifest = read_labels(labels_path)
    validation = validation or ValidationOptions()
    validation.check(store)
    examples, notes = labelled_examples(store, labels, manifest, str(labels_path), SPLITS)
    of_time = bool(examples["held_out"].causes)
    baselines = known_baselines(baselines, of_time, notes)
    if med2vec is not None and (external is not None or of_time or examples["held_out"].categories):
        kind = "a survival task" if of_time else "a multi-label task"
        raise ConfigError(
            "Med2Vec + LR is of binary tasks of its own store",
            got="another dataset" if external is not None else kind,
            remedy="leave out --med2vec",
        )
    if of_time and (validation.recalibrate != "none" or validation.by):
        raise ConfigError(
            "recalibration and subgroups are of binary tasks", got="a survival task",
            remedy="leave out --recalibrate and --by",
        )  # fmt: skip
    if horizons and not of_time:
        raise ConfigError("days to judge at are of survival tasks", got="another task", remedy="leave out --at")
    if external is not None:
        store, examples = external.in_place_of_held_out(store, examples)
        manifest = external.manifest
    task = str(manifest.get("task", Path(labels_path).stem))
    oracles: list[Arm] = []
    if oracle is not None:
        if external is not None:
            raise ConfigError("the oracle is of the training dataset", remedy="leave out --oracle")
        if not of_time:
            say("futures of held-out subjects, for the oracle")
            oracles, more = oracle_arms(oracle, store, examples["held_out"], manifest, progress=progress)
            notes += more
    arms = []
    for run in runs:
        say(f"predicting with {run}")
        arms.append(run_arm(run, store, Path(labels_path), examples, progress, manifest.get("definitions")))
    for arm, name in zip(arms, names, strict=False):
        arm.name = name
    for name in {arm.name for arm in arms}:
        same = [(arm, run) for arm, run in zip(arms, runs, strict=True) if arm.name == name]
        for arm, run in same if len(same) > 1 else []:
            arm.name = f"{name} ({run.name})"
    if len({arm.name for arm in arms}) < len(arms):
        raise ConfigError(
            "several runs have one name and one folder name", got=", ".join(map(str, runs)), remedy="rename a folder"
        )
    lengths = [arm.max_length for arm in arms if arm.max_length is not None]
    max_rows = max(lengths) - 1 if history == "model" and lengths else None
    if baselines:
        notes.append(
            "Baselines see whole histories." if max_rows is None
            else f"Baselines see what the models see: the static and the latest events, {max_rows} at most."
        )  # fmt: skip
    if of_time:
        ask = None
        if oracle is not None:
            ask = partial(survival_oracles, oracle, store, examples["held_out"], manifest, notes, progress=progress)
        judged = judge_survival(
            arms, store, examples, task,
            baselines=baselines, budget=budget, horizons=horizons, oracles=ask, max_rows=max_rows,
            reference=reference, resamples=resamples, seed=seed, threads=threads, say=say, progress=progress,
        )  # fmt: skip
        report = _shared_sections(judged.arms, examples, manifest, task, judged.differences) | judged.report
        report["models"] += [_model_row(arm) for arm in judged.oracles]
        notes += judged.notes
        return Comparison(
            task, examples, judged.arms, judged.metrics, judged.differences, report, notes, external=external,
            oracles=judged.oracles, days=judged.days,
        )  # fmt: skip
    if examples["held_out"].categories:
        judged = judge_multilabel(
            arms, store, examples, manifest, task,
            baselines=baselines, max_rows=max_rows, reference=reference, resamples=resamples, seed=seed,
            threads=threads, say=say, progress=progress,
        )  # fmt: skip
        report = _shared_sections(judged.arms, examples, manifest, task, judged.differences) | judged.report
        notes += judged.notes
        return Comparison(task, examples, judged.arms, judged.metrics, judged.differences, report, notes)
    if baselines:
        arms += _baseline_arms(store, examples, baselines, budget, max_rows, seed, threads, say, progress)
    if med2vec is not None:
        say(f"fitting logistic regression on visit vectors of {med2vec}")
        arms.append(med2vec_arm(med2vec, store, examples, budget=budget, seed=seed, threads=threads, progress=progress))
    say(f"bootstrap over {len(np.unique(examples['held_out'].subject_id))} held-out subjects")
    metrics = {arm.name: _judge(arm, examples, task, resamples, seed) for arm in arms}
    against = next((arm for arm in arms if arm.name == reference), arms[0])
    differences = [
        difference(against, arm, metric, examples["held_out"], task, resamples, seed)
        for arm in arms
        if arm is not against
        for metric in PAIRED_METRICS
    ]
    for metric in PAIRED_METRICS:
        pair = best_of_each(arms, metrics, f"{task}/{metric}")
        if pair and against not in pair:
            differences.append(difference(*pair, metric, examples["held_out"], task, resamples, seed))
    report = _report_sections(arms, examples, manifest, task, differences)
    comparison = Comparison(task, examples, arms, metrics, differences, report, notes, external=external)
    comparison.validation = add_validation(comparison, store, validation, resamples=resamples, seed=seed, say=say)
    _add_oracles(comparison, oracles, resamples, seed)
    return comparison


def known_baselines(asked: Sequence[str] | None, of_time: bool, notes: list[str]) -> Sequence[str]:
    """The baselines asked for, or all; a note where an optional one is not installed.

    Raises:
        ConfigError: one is not of such tasks.
    """
    known = SURVIVAL_ARMS if of_time else BASELINES
    if asked is not None:
        if unknown := [name for name in asked if name not in known]:
            kind = "survival baseline" if of_time else "baseline"
            raise ConfigError(f"unknown {kind} {unknown[0]}", expected=", ".join(known) + " or none")
        return asked
    if of_time and importlib.util.find_spec("sksurv") is None:
        notes.append("No survival forest: pip install 'ehrsequencing[survival]' adds it.")
        return [name for name in known if name != "survival_forest"]
    return known


def _add_oracles(comparison: Comparison, oracles: list[Arm], resamples: int, seed: int) -> None:
    """Metrics, a row of the models, and how far the best trained model and baseline are from the last oracle."""
    comparison.oracles = oracles
    if not oracles:
        return
    task, held = comparison.task, comparison.examples["held_out"]
    key = f"{task}/auroc"
    ranked = [arm for arm in comparison.arms if key in comparison.metrics[arm.name]]
    pair = best_of_each(ranked, comparison.metrics, key) or (comparison.arms[0],)
    for arm in oracles:
        comparison.metrics[arm.name] = _judge(arm, comparison.examples, task, resamples, seed)
        comparison.report["models"].append(_model_row(arm))
        comparison.differences += [difference(arm, other, "auroc", held, task, resamples, seed) for other in pair]


def _baseline_arms(
    store: TokenStore,
    examples: dict[str, Examples],
    names: Sequence[str],
    budget: int,
    max_rows: int | None,
    seed: int,
    threads: int,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> list[Arm]:
    say("count features for the baselines")
    features = CountFeatures.fit(
        store.split("train"), examples["train"], store.vocabulary, store.values, max_rows=max_rows
    )
    matrices = {split: features.transform(store.split(split), examples[split]) for split in SPLITS}
    targets = {split: np.asarray(examples[split].target) > 0.5 for split in SPLITS}
    arms = []
    for name in names:
        say(f"fitting {name} on {matrices['train'].shape[1]:,} features")
        fitted = fit_baseline(
            name,
            matrices["train"],
            targets["train"],
            matrices["tuning"],
            targets["tuning"],
            seed=seed,
            threads=threads,
            budget=budget,
            progress=partial(progress, name),
        )
        arms.append(
            Arm(
                name=name,
                kind="baseline",
                tuning=[fitted.predict(matrices["tuning"])],
                held_out=[fitted.predict(matrices["held_out"])],
                seconds=fitted.seconds,
                features=fitted.features,
                grid=fitted.tuning,
                chosen=fitted.chosen,
            )
        )
    return arms


def _judge(arm: Arm, examples: dict[str, Examples], task: str, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    truth = np.asarray(examples["tuning"].target) > 0.5
    held = examples["held_out"]
    found = summarise_seeds(
        np.asarray(held.target) > 0.5,
        arm.held_out,
        held.subject_id,
        metrics=METRIC_NAMES if arm.tuning else ORACLE_METRICS,
        thresholds=[f1_threshold(truth, probabilities) for probabilities in arm.tuning] or 0.5,
        resamples=resamples,
        seed=seed,
    )
    return {f"{task}/{name}": _entry(estimate, "redrawn") for name, estimate in found.items()}


def _entry(estimate: Estimate, *leave_out: str) -> dict[str, Any]:
    return {key: value for key, value in estimate.to_dict().items() if key not in leave_out}


def difference(a: Arm, b: Arm, metric: str, held: Examples, task: str, resamples: int, seed: int) -> dict[str, Any]:
    """Metric of a minus that of b on the same resamples of held-out subjects, as `summary.json` holds it."""
    estimate = paired_difference(
        np.asarray(held.target) > 0.5,
        a.held_out,
        b.held_out,
        held.subject_id,
        metric=metric,
        resamples=resamples,
        seed=seed,
    )
    return {"a": a.name, "b": b.name, "metric": f"{task}/{metric}", **_entry(estimate, "seeds", "redrawn")}


def _report_sections(
    arms: list[Arm],
    examples: dict[str, Examples],
    manifest: dict[str, Any],
    task: str,
    differences: list[dict[str, Any]],
) -> dict[str, Any]:
    truth = np.asarray(examples["held_out"].target) > 0.5
    return _shared_sections(arms, examples, manifest, task, differences) | {
        "roc": {arm.name: thinned(roc_points(truth, arm.held_out[0])) for arm in arms},
        "pr": {arm.name: thinned(precision_recall_points(truth, arm.held_out[0])) for arm in arms},
        "confusion": _confusion(arms[0], examples),
        "calibration": {arm.name: calibration_curve(truth, arm.held_out[0], bins=10) for arm in arms},
    }


def _shared_sections(
    arms: list[Arm],
    examples: dict[str, Examples],
    manifest: dict[str, Any],
    task: str,
    differences: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the reports of binary and multi-label tasks both hold."""
    return {
        "title": f"Held-out evaluation of {task}",
        "models": [_model_row(arm) for arm in arms],
        "differences": differences,
        "cohort": flow_section(manifest),
        "data": {
            f"{split} examples (positives, subjects)": (
                f"{len(rows.index):,} ({_positives(rows):,}, {len(np.unique(rows.subject_id)):,})"
            )
            for split, rows in examples.items()
        },
        "baselines": {
            arm.name: {"features": arm.features, "grid": arm.grid, "chosen": arm.chosen}
            for arm in arms
            if arm.kind == "baseline"
        },
    }


def _positives(rows: Examples) -> int:
    """Positives, of a survival task events of the first cause."""
    target = np.asarray(rows.target)
    return int((target[:, 1] == 1).sum() if rows.causes else target.sum())


def _model_row(arm: Arm) -> dict[str, Any]:
    return {
        "model": arm.name,
        "kind": arm.kind,
        "trainable_parameters": arm.trainable_parameters,
        "seconds": arm.seconds,
        "notes": arm.notes,
    }


def _confusion(arm: Arm, examples: dict[str, Examples]) -> dict[str, Any]:
    """Counts on held-out at the threshold that is best on tuning."""
    threshold = f1_threshold(np.asarray(examples["tuning"].target) > 0.5, arm.tuning[0])
    truth = np.asarray(examples["held_out"].target) > 0.5
    called = arm.held_out[0] >= threshold
    counts = [[int((called[truth == actual] == said).sum()) for said in (False, True)] for actual in (False, True)]
    return {"classes": ["no", "yes"], "counts": counts, "model": arm.name, "threshold": threshold}
