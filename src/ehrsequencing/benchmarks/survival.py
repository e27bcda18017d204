"""Survival runs beside Cox, forests, boosting and the length of the history, judged on the same held-out subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from ehrsequencing.baselines.features import CountFeatures
from ehrsequencing.baselines.length import length_features
from ehrsequencing.baselines.survival import FittedSurvival, fit_survival_baseline
from ehrsequencing.benchmarks.arms import Arm, Judged, best_of_each
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, LabelError, MetricError
from ehrsequencing.evaluation.predict import example_keys
from ehrsequencing.evaluation.prediction_table import day_name
from ehrsequencing.evaluation.survival_bootstrap import evaluate_survival, survival_difference
from ehrsequencing.evaluation.survival_calibration import calibration_groups, d_calibration
from ehrsequencing.evaluation.survival_curves import aalen_johansen, censoring_curve, kaplan_meier
from ehrsequencing.evaluation.survival_prediction import SurvivalPrediction

SURVIVAL_ARMS = ("cox", "survival_forest", "xgboost_cox", "xgboost_aft")
LENGTH = "length_only"
NOBODY_KNOWN = "kaplan_meier"
HORIZON_QUANTILES = (0.25, 0.5, 0.75)
FEWEST_UNCENSORED = 0.1
"""Figures go up to the last event of train by which at least this share is not yet censored."""
CURVE_DAYS = 60
PAIRED = ("c_antolini", "ibs")


def judge_survival(
    arms: Sequence[Arm],
    store: TokenStore,
    examples: dict[str, Examples],
    task: str,
    *,
    baselines: Sequence[str],
    budget: int,
    horizons: Sequence[float],
    oracles: Callable[[Sequence[float]], list[Arm]] | None,
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
        arms: Trained runs with their curves.
        baselines: Names from `SURVIVAL_ARMS`; Kaplan-Meier and the length of the history come with any of them.
        budget: Settings that each baseline tries.
        horizons: Days; by default quartiles of the times of events in train.
        oracles: Given days, what could be known on held-out rows; judged beside the arms and never the best.
        max_rows: Rows of a history that the baselines see; None for all.
        reference: Name of the arm to which the others are compared; the first by default.

    Raises:
        ConfigError: a horizon beyond what can be judged.
        LabelError: too few events in train.
    """
    unknown = [name for name in baselines if name not in SURVIVAL_ARMS]
    if unknown:
        raise ConfigError(f"unknown survival baseline {unknown[0]}", expected=", ".join(SURVIVAL_ARMS) + " or none")
    notes: list[str] = []
    last = judged_until(arms, examples)
    asked = checked_days(horizons, examples["train"], last)
    train, held = (np.asarray(examples[split].target) for split in ("train", "held_out"))
    arms = list(arms)
    if baselines:
        fitted = _Baselines(store, examples, curve_days(train, asked, last), budget, seed, threads, progress)
        say("count features for the baselines")
        fitted.count(max_rows)
        for name in (*baselines, LENGTH, NOBODY_KNOWN):
            say(f"fitting {name}")
            arms.append(fitted.arm(name))
    beside = [] if oracles is None else oracles([*asked, last] if last > asked[-1] else asked)
    subjects = examples["held_out"].subject_id
    say(f"bootstrap over {len(np.unique(subjects))} held-out subjects")
    metrics: dict[str, dict[str, dict[str, Any]]] = {arm.name: {} for arm in (*arms, *beside)}
    differences: list[dict[str, Any]] = []
    against = next((arm for arm in arms if arm.name == reference), arms[0])
    duration, cause = held[:, 0], held[:, 1].astype(np.int64)
    causes = examples["held_out"].causes
    for number, name in enumerate(causes, start=1):
        key = task if number == 1 else f"{task}:{name}"
        if not ((cause == number) & (duration < last)).any():
            notes.append(f"{key} has no held-out event before day {last:g} and is left out.")
            continue
        options: dict[str, Any] = {"of_cause": number, "resamples": resamples, "seed": seed}
        judged = arms if number > 1 else [*arms, *beside]
        for done, arm in enumerate(judged):
            for metric in metric_names(len(causes), asked):
                try:
                    found = evaluate_survival(
                        duration, cause, arm.held_out, subjects, last, metrics=[metric], tau=last, **options
                    )
                except MetricError as problem:
                    # Few events by an early day: that figure is missing, and the others stand.
                    notes.append(f"{key}/{metric} is left out: {problem}")
                    continue
                entry = {k: v for k, v in found[metric].to_dict().items() if k != "redrawn"}
                if "@" not in metric:
                    entry["until_days"] = last
                metrics[arm.name][f"{key}/{metric}"] = entry
            progress(f"bootstrap {key}", done + 1, len(judged))
        for metric in (leading(len(causes)), *PAIRED):
            if f"{key}/{metric}" not in metrics[against.name]:
                continue
            pairs = [(against, arm) for arm in arms if arm is not against]
            best = best_of_each(arms, metrics, f"{key}/{metric}")
            if best and against not in best:
                pairs.append(best)
            if number == 1:
                pairs += [(oracle, arm) for oracle in beside for arm in (best or (against,))]
            for a, b in pairs:
                pair = survival_difference(
                    duration, cause, a.held_out, b.held_out, subjects, last, metric, tau=last, **options
                )
                entry = {k: v for k, v in pair.to_dict().items() if k not in ("seeds", "redrawn")}
                differences.append({"a": a.name, "b": b.name, "metric": f"{key}/{metric}", **entry})
    notes = list(dict.fromkeys([*_explain(task, held, causes, last), *notes]))
    report = {"survival": sections([*arms, *beside], held, causes, asked, last)}
    return Judged(arms, metrics, differences, report, notes, oracles=beside, days=[*asked, last])


def metric_names(causes: int, horizons: Sequence[float]) -> list[str]:
    """Figures of a task: concordances, the integrated Brier score, and AUC, Brier score and ICI at each horizon."""
    over_time = [*(("c_harrell", "c_uno") if causes == 1 else ("c_wolbers",)), "c_antolini", "ibs"]
    return over_time + [f"{name}@{day_name(days)}" for name in ("auc", "brier", "ici") for days in horizons]


def leading(causes: int) -> str:
    """The concordance that a task is ranked by."""
    return "c_uno" if causes == 1 else "c_wolbers"


def judged_until(arms: Sequence[Arm], examples: Mapping[str, Examples]) -> float:
    """Last day of all figures, a whole one where it can be: within every run's grid and the follow-up of all splits.

    Raises:
        LabelError: train has no event until then.
    """
    ends = [float(prediction.days[-1]) for arm in arms for prediction in arm.held_out]
    for split in SPLITS:
        rows = np.asarray(examples[split].target)
        curve = censoring_curve(rows[:, 0], rows[:, 1] > 0)
        few = curve.value <= (FEWEST_UNCENSORED if split == "train" else 0.0)
        # On the day itself too many have left; until the day before they are there.
        ends.append(float(np.nextafter(curve.days[few][0], 0)) if few.any() else float(rows[:, 0].max()))
    last = float(np.floor(min(ends))) or min(ends)
    train = np.asarray(examples["train"].target)
    if not ((train[:, 1] > 0) & (train[:, 0] <= last)).any():
        raise LabelError(
            "no event of train lies where everybody could be judged", got=f"{last:g} days",
            remedy="use more subjects, a longer follow-up or a longer grid",
        )  # fmt: skip
    return last


def checked_days(horizons: Sequence[float], train: Examples, last: float) -> list[float]:
    """The horizons asked for, or quartiles of the times of the first cause's events up to `last`, in whole days.

    Raises:
        ConfigError: one lies beyond `last`, or is not above 0.
    """
    if horizons:
        asked = sorted({float(days) for days in horizons})
        if not (asked[0] > 0 and asked[-1] <= last):
            raise ConfigError(
                "horizons to judge at", got=", ".join(day_name(days) for days in asked),
                expected=f"days above 0 and at most {day_name(last)}, by which enough are still followed and the runs' "
                "grids reach",
            )  # fmt: skip
        return asked
    rows = np.asarray(train.target)
    times = rows[(rows[:, 1] == 1) & (rows[:, 0] <= last), 0]
    if not len(times):
        return [last]
    found = {max(1.0, float(np.round(days))) for days in np.quantile(times, HORIZON_QUANTILES)}
    return sorted(days for days in found if days <= last) or [last]


def curve_days(train: np.ndarray, horizons: Sequence[float], last: float) -> np.ndarray:
    """Where baselines predict: quantiles of the times of events in train, the horizons and the last day."""
    times = train[(train[:, 1] > 0) & (train[:, 0] <= last), 0]
    return np.unique(np.concatenate((np.quantile(times, np.linspace(0, 1, CURVE_DAYS)), horizons, [last])))


class _Baselines:
    """Fits baselines on one cohort, as arms."""

    def __init__(
        self,
        store: TokenStore,
        examples: dict[str, Examples],
        days: np.ndarray,
        budget: int,
        seed: int,
        threads: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.store, self.examples, self.days = store, examples, days
        self.budget, self.seed, self.threads, self.progress = budget, seed, threads, progress
        self.counts: dict[str, sparse.csr_matrix] = {}

    def count(self, max_rows: int | None) -> None:
        """Count features, fitted on train."""
        store, examples = self.store, self.examples
        features = CountFeatures.fit(
            store.split("train"), examples["train"], store.vocabulary, store.values, max_rows=max_rows
        )
        self.counts = {split: features.transform(store.split(split), examples[split]) for split in SPLITS}

    def arm(self, name: str) -> Arm:
        """Fit one; `LENGTH` is a Cox regression on the length of the history alone."""
        X = self.counts
        if name == LENGTH:
            X = {
                split: sparse.csr_matrix(length_features(self.store.split(split), self.examples[split]))
                for split in SPLITS
            }
        targets = {split: np.asarray(self.examples[split].target) for split in SPLITS}
        fitted: FittedSurvival = fit_survival_baseline(
            "cox" if name == LENGTH else name, X["train"], targets["train"], X["tuning"], targets["tuning"],
            days=self.days, causes=len(self.examples["train"].causes), seed=self.seed, threads=self.threads,
            budget=self.budget, progress=partial(self.progress, name),
        )  # fmt: skip
        fitted = replace(fitted, name=name)
        return Arm(
            name=name, kind="baseline", tuning=[fitted.predict(X["tuning"])], held_out=[fitted.predict(X["held_out"])],
            seconds=fitted.seconds, features=fitted.features, grid=fitted.tuning, chosen=fitted.chosen,
        )  # fmt: skip


def sections(
    arms: Sequence[Arm], held: np.ndarray, causes: Sequence[str], horizons: Sequence[float], last: float
) -> dict[str, Any]:
    """What the report draws: mean curves beside the observed ones, calibration, and figures by horizon (first seed)."""
    duration, cause = held[:, 0], held[:, 1].astype(np.int64)
    grid = np.linspace(last / CURVE_DAYS, last, CURVE_DAYS)
    incidences = {}
    for number, name in enumerate(causes, start=1):
        curve = aalen_johansen(duration, cause, number) if len(causes) > 1 else kaplan_meier(duration, cause > 0)
        observed = curve.at(grid) if len(causes) > 1 else 1 - curve.at(grid)
        incidences[name] = {
            "observed": {"x": grid.tolist(), "y": observed.tolist()},
            "models": {
                arm.name: {"x": grid.tolist(), "y": arm.held_out[0].at(grid).incidence[:, number - 1].mean(0).tolist()}
                for arm in arms
                if arm.held_out[0].causes >= number and arm.held_out[0].days[0] <= grid[0] * 5
            },
        }
    calibration = {
        day_name(days): {
            arm.name: [
                {key: point[key] for key in ("predicted", "observed", "low", "high")} | {"n": int(point["n"] or 0)}
                for point in calibration_groups(
                    duration, cause, arm.held_out[0].at([days]).incidence[:, 0, 0], days,
                    groups=max(2, min(10, int((cause == 1).sum()) // 10)),
                )
                if point["observed"] is not None
            ]
            for arm in arms
        }
        for days in horizons
    }  # fmt: skip
    tests = []
    for arm in arms:
        if arm.held_out[0].causes == len(causes):
            # A curve that answers for longer has more to be wrong about: all of them until the same day.
            until = arm.held_out[0].at([*arm.held_out[0].days[arm.held_out[0].days < last], last])
            found = d_calibration(duration, cause > 0, until)
            tests.append({"model": arm.name, "statistic": found.statistic, "p": found.p})
    return {"incidence": incidences, "calibration": calibration, "d_calibration": tests}


def survival_frame(arms: Sequence[Arm], split: str, examples: Examples, days: Sequence[float]) -> pl.DataFrame:
    """Table of subject, prediction time, outcome, and per model survival and incidence at some days."""
    target = np.asarray(examples.target)
    columns: dict[str, Any] = {
        **example_keys(examples),
        "duration_days": target[:, 0],
        "cause": target[:, 1].astype(np.int64),
    }
    for arm in arms:
        for index, prediction in enumerate(getattr(arm, split)):
            name = arm.name if len(getattr(arm, split)) == 1 else f"{arm.name}/seed-{index}"
            columns |= curve_columns(prediction, days, examples.causes, prefix=f"{name}/")
    return pl.DataFrame(columns)


def curve_columns(
    prediction: SurvivalPrediction, days: Sequence[float], causes: Sequence[str], prefix: str = ""
) -> dict[str, np.ndarray]:
    """Survival and cumulative incidence at some days, float [n], by `survival@DAYS` and `CAUSE@DAYS`."""
    at = prediction.at(days)
    found = {f"{prefix}survival@{day_name(day)}": at.survival[:, place] for place, day in enumerate(days)}
    for number, cause in enumerate(causes[: prediction.causes]):
        found |= {f"{prefix}{cause}@{day_name(day)}": at.incidence[:, number, place] for place, day in enumerate(days)}
    return found


def _explain(task: str, held: np.ndarray, causes: Sequence[str], last: float) -> list[str]:
    happened = ", ".join(f"{int((held[:, 1] == number).sum()):,} {name}" for number, name in enumerate(causes, start=1))
    notes = [
        f"{task}: {len(held):,} held-out rows, {happened}, {int((held[:, 1] == 0).sum()):,} censored. All figures go "
        f"up to day {last:g}: later events count for no concordance and no Brier score.",
        "Brier scores, AUC and Uno's C are weighted by the inverse probability of censoring, estimated on the rows "
        "judged. Concordance of a model without a score of its own ranks by the area under its incidence.",
        f"{LENGTH} is a Cox regression on the number of visits and events and the span of the history: what a model "
        "must beat to have read anything in it.",
    ]
    if len(causes) > 1:
        notes.append(
            f"{causes[0]} is judged in competition with {', '.join(causes[1:])}: who had another event counts as never "
            "having this one (Wolbers' C)."
        )
    return notes
