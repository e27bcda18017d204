"""Multi-label runs beside copy-history, prevalence and count models: all codes, new ones and ones seen before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.baselines.copying import Past, columns_of_codes, past_of
from ehrsequencing.baselines.features import CountFeatures
from ehrsequencing.baselines.multilabel import MultiLabelData, fit_multilabel_baseline
from ehrsequencing.benchmarks.arms import Arm, Judged, best_of_each
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.evaluation.metrics import precision_recall_points, roc_points, thinned
from ehrsequencing.evaluation.multilabel import (
    MultiLabelEstimate,
    MultiLabelResult,
    affordable_resamples,
    category_areas,
    choose_thresholds,
    evaluate_multilabel,
    multilabel_difference,
)

ONE_PER_CATEGORY = 40
"""With more categories, one linear model for all stands in for a model per category."""
RECALL_AT = (10, 30)
COMPARED = ("auroc_macro", "auprc_macro", "auprc_micro", "recall_at_10")
NEXT_VISIT = "next_visit_codes"


def judge_multilabel(
    arms: Sequence[Arm],
    store: TokenStore,
    examples: dict[str, Examples],
    manifest: Mapping[str, Any],
    task: str,
    *,
    baselines: Sequence[str],
    max_rows: int | None,
    reference: str | None,
    resamples: int,
    seed: int,
    threads: int,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Judged:
    """Fit the baselines and judge everyone on held-out subjects.

    Args:
        arms: Trained runs with their predictions.
        max_rows: Rows of a history that the baselines see; None for all.
        reference: Name of the arm to which the others are compared; the first by default.
    """
    notes: list[str] = []
    pairs = columns_of_codes(store.vocabulary, examples["train"].categories, manifest.get("definitions"))
    arms = list(arms)
    if baselines:
        arms += _baseline_arms(store, examples, pairs, baselines, max_rows, seed, threads, notes, say, progress)
    held = examples["held_out"]
    truth = np.asarray(held.target)
    next_visit = task.startswith(NEXT_VISIT)
    populations: dict[str, np.ndarray | None] = {task: None}
    if next_visit and pairs:
        # By the whole history: what was cut off before the model saw it is not new to the subject.
        seen = past_of(store.split("held_out"), held, store.vocabulary, pairs).seen
        populations |= {f"{task}:new": ~seen, f"{task}:seen": seen}
        notes.append(
            f"{task}:new ranks and judges the codes that a subject has never had, {task}:seen those in the history: "
            f"{int((truth & ~seen).sum()):,} and {int((truth & seen).sum()):,} positives."
        )
    say(f"bootstrap over {len(np.unique(held.subject_id))} held-out subjects, {truth.shape[1]} categories")
    drawn = affordable_resamples(truth.size, resamples)
    if drawn < resamples:
        notes.append(f"{drawn} resamples instead of {resamples}: {truth.size:,} predictions are judged.")
    notes += _explain(truth)
    metrics: dict[str, dict[str, dict[str, Any]]] = {arm.name: {} for arm in arms}
    differences = []
    against = next((arm for arm in arms if arm.name == reference), arms[0])
    for name, cells in populations.items():
        if cells is not None and not _judgeable(truth, cells):
            notes.append(f"{name} has no category with both classes and is left out.")
            continue
        found: dict[str, MultiLabelResult] = {}
        for done, arm in enumerate(arms):
            found[arm.name] = evaluate_multilabel(
                truth,
                arm.held_out,
                held.subject_id,
                thresholds=[choose_thresholds(np.asarray(examples["tuning"].target), p) for p in arm.tuning]
                if cells is None else [],
                at=[k for k in RECALL_AT if next_visit and k < truth.shape[1]],
                cells=cells,
                resamples=drawn,
                seed=seed,
            )  # fmt: skip
            metrics[arm.name] |= {f"{name}/{key}": _entry(e) for key, e in found[arm.name].estimates.items()}
            progress(f"bootstrap {name}", done + 1, len(arms))
        for key in COMPARED:
            if key not in found[against.name].estimates:
                continue
            pairs_of_arms = [(against, arm) for arm in arms if arm is not against]
            best = best_of_each(arms, metrics, f"{name}/{key}")
            if best and against not in best:
                pairs_of_arms.append(best)
            for a, b in pairs_of_arms:
                pair = multilabel_difference(found[a.name], found[b.name], key, seed=seed)
                entry = {k: v for k, v in _entry(pair).items() if k not in ("seeds", "categories")}
                differences.append({"a": a.name, "b": b.name, "metric": f"{name}/{key}", **entry})
    report = _curves(arms, truth)
    return Judged(arms, metrics, differences, report, notes)


def category_table(arms: Sequence[Arm], examples: Examples) -> pl.DataFrame:
    """AUROC and AUPRC of each category and model (first seed), nulls where a class is missing."""
    truth = np.asarray(examples.target)
    columns: dict[str, Any] = {"category": examples.categories, "positives": truth.sum(0)}
    for arm in arms:
        for name, values in zip(("auroc", "auprc"), category_areas(truth, arm.held_out[0]), strict=True):
            columns[f"{arm.name}/{name}"] = values
    return pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))


def _baseline_arms(
    store: TokenStore,
    examples: dict[str, Examples],
    pairs: Sequence[tuple[int, int]],
    asked: Sequence[str],
    max_rows: int | None,
    seed: int,
    threads: int,
    notes: list[str],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> list[Arm]:
    categories = len(examples["train"].categories)
    names = ["prevalence"]
    if pairs:
        names.append("copy_history")
    else:
        notes.append("No code of the store is a case of a category, so there is no copy-history baseline.")
    few = categories <= ONE_PER_CATEGORY
    own = ("logistic_regression", "xgboost") if few else ("logistic_regression",)
    fitted_names = [name for name in asked if name in own]
    names += fitted_names if few else ["linear"] * len(fitted_names)
    if left := [name for name in asked if name not in own]:
        notes.append(
            f"Not fitted to {categories} categories: {', '.join(left)} (logistic regression and XGBoost get a model "
            f"per category up to {ONE_PER_CATEGORY} of them; beyond, one linear model stands in)."
        )
    say("count features for the baselines")
    features = CountFeatures.fit(
        store.split("train"), examples["train"], store.vocabulary, store.values, max_rows=max_rows
    )
    past: dict[str, Past] | None = None
    if pairs:
        past = {s: past_of(store.split(s), examples[s], store.vocabulary, pairs, max_rows=max_rows) for s in SPLITS}
    data = MultiLabelData(
        train=np.asarray(examples["train"].target),
        tuning=np.asarray(examples["tuning"].target),
        features={split: features.transform(store.split(split), examples[split]) for split in SPLITS},
        past=past,
    )
    arms = []
    for name in names:
        say(f"fitting {name} to {categories} categories")
        fitted = fit_multilabel_baseline(name, data, seed=seed, threads=threads, progress=partial(progress, name))
        arms.append(
            Arm(
                name=name,
                kind="baseline",
                tuning=[fitted.predict("tuning")],
                held_out=[fitted.predict("held_out")],
                seconds=fitted.seconds,
                features=fitted.features,
                grid=fitted.tuning,
                chosen=fitted.chosen,
            )
        )
    return arms


def _judgeable(truth: np.ndarray, cells: np.ndarray) -> bool:
    positives = (truth & cells).sum(0)
    return bool(((positives > 0) & (positives < cells.sum(0))).any())


def _entry(estimate: MultiLabelEstimate) -> dict[str, Any]:
    return {key: value for key, value in estimate.to_dict().items() if key != "redrawn"}


def _explain(truth: np.ndarray) -> list[str]:
    judged = int((truth.any(0) & ~truth.all(0)).sum())
    return [
        f"Judged are the {judged} of {truth.shape[1]} categories that held-out subjects have and lack; micro pools "
        "their predictions, macro is the mean over categories.",
        "Curves and calibration pool all categories. F1 macro has a threshold per category, F1 micro one for all.",
    ]


def _curves(arms: Sequence[Arm], truth: np.ndarray) -> dict[str, Any]:
    both = truth.any(0) & ~truth.all(0)
    flat = truth[:, both].ravel()
    pooled = {arm.name: arm.held_out[0][:, both].ravel() for arm in arms}
    return {
        "roc": {name: thinned(roc_points(flat, p)) for name, p in pooled.items()},
        "pr": {name: thinned(precision_recall_points(flat, p)) for name, p in pooled.items()},
        "calibration": {name: calibration_curve(flat, p, bins=10) for name, p in pooled.items()},
        "confusion": None,
    }
