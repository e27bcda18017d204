"""What a clinician asks beyond ranking: calibration, decisions, subgroups, precision; added to a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ehrsequencing.data.calendar import dates_note
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, MetricError
from ehrsequencing.evaluation.bootstrap import summarise_seeds
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.evaluation.decision import decision_curve
from ehrsequencing.evaluation.recalibration import METHODS, calibration_fit, fit_recalibration
from ehrsequencing.evaluation.sample_size import guidance, split_guidance
from ehrsequencing.evaluation.subgroups import available, check_grouping, groups_of, subgroup_metrics
from ehrsequencing.io import atomic_path
from ehrsequencing.tracking.summary import subgroup_key

if TYPE_CHECKING:
    from ehrsequencing.benchmarks.arms import Arm
    from ehrsequencing.benchmarks.compare import Comparison

RECALIBRATED_METRICS = ("brier", "ece")
"""Recalibration changes risks, not (or hardly) their order."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class ValidationOptions:
    """What to add to a comparison.

    Attributes:
        recalibrate: "platt", "isotonic" or "none".
        by: Groupings (see `subgroups.groups_of`); None takes those of sex, age, race and ethnicity that the data
            have, () none.
    """

    recalibrate: str = "none"
    by: tuple[str, ...] | None = None

    def check(self, store: TokenStore) -> None:
        """Refuse, before anything is computed, what could not be done.

        Raises:
            ConfigError: an unknown recalibration, a grouping twice or without a code, or years where dates are none.
        """
        if self.recalibrate not in (*METHODS, "none"):
            raise ConfigError("--recalibrate", got=self.recalibrate, expected=", ".join((*METHODS, "none")))
        for index, by in enumerate(self.by or ()):
            if by in (self.by or ())[:index]:
                raise ConfigError(f"--by names {by} twice", remedy="name each grouping once")
            check_grouping(by, store.vocabulary)
            if by == "year" and (note := dates_note(store.manifest)) is not None:
                raise ConfigError(
                    "--by year: the dates of this dataset are no calendar dates", got=f"the note '{note}'"
                )


@dataclass
class Validation:
    """What was added: `summary` joins `summary.json`, `groups` the flat files.

    Attributes:
        groups: {split: {grouping: name of the group of each example}}.
    """

    groups: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def add_validation(
    comparison: Comparison,
    store: TokenStore,
    options: ValidationOptions,
    *,
    resamples: int,
    seed: int,
    say: Say = lambda message: None,
) -> Validation:
    """Add calibration, decision curves, subgroups and recalibrated models to a comparison of a binary task.

    Metrics of subgroups and of recalibrated models join `comparison.metrics`, sections join `comparison.report`,
    recalibrated models join `comparison.arms`. A comparison of another kind of task is left as it is.

    Raises:
        ConfigError: recalibration or groups were asked for, and the task is multi-label.
    """
    found = Validation()
    held = comparison.examples["held_out"]
    truth = np.asarray(held.target)
    if truth.ndim != 1:
        if options.recalibrate != "none" or options.by:
            raise ConfigError(
                "recalibration and subgroups are of binary tasks", got=f"the multi-label task {comparison.task}",
                remedy="leave out --recalibrate and --by",
            )  # fmt: skip
        return found
    truth = truth > 0.5
    raw = list(comparison.arms)
    bootstrap: dict[str, Any] = {"resamples": resamples, "seed": seed}
    by = tuple(available(store.vocabulary)) if options.by is None else options.by
    found.groups = {
        split: {name: groups_of(name, store.split(split), examples, store.vocabulary) for name in by}
        for split, examples in comparison.examples.items()
    }
    if options.recalibrate != "none":
        say(f"recalibration by {options.recalibrate}, fitted on tuning")
        _recalibrate(comparison, options.recalibrate, truth, bootstrap, found.notes)
    say("calibration and decision curves")
    _calibration(comparison, truth, bootstrap, found)
    _decisions(comparison, raw, truth, bootstrap)
    if by:
        say(f"subgroups by {', '.join(by)}")
        _subgroups(comparison, raw, truth, found.groups["held_out"], bootstrap)
    else:
        comparison.report["subgroups"] = []
    comparison.report["data"]["expected precision"] = guidance(int(truth.sum()), int((~truth).sum()))
    return found


def _recalibrate(
    comparison: Comparison, method: str, truth: np.ndarray, bootstrap: Mapping[str, Any], notes: list[str]
) -> None:
    held = comparison.examples["held_out"]
    tuning = np.asarray(comparison.examples["tuning"].target) > 0.5
    rows = {row["model"]: row for row in comparison.report["models"]}
    for arm in list(comparison.arms):
        try:
            fitted = [fit_recalibration(method, tuning, p) for p in arm.tuning]
        except MetricError as problem:
            notes.append(f"{arm.name} was not recalibrated: {problem.what}.")
            continue
        name = f"{arm.name} + {method}"
        made = type(arm)(
            name=name, kind=arm.kind, seconds=arm.seconds, trainable_parameters=arm.trainable_parameters,
            notes=_told(method, fitted),
            tuning=[one.apply(p) for one, p in zip(fitted, arm.tuning, strict=True)],
            held_out=[one.apply(p) for one, p in zip(fitted, arm.held_out, strict=True)],
        )  # fmt: skip
        estimates = summarise_seeds(truth, made.held_out, held.subject_id, metrics=RECALIBRATED_METRICS, **bootstrap)
        comparison.metrics[name] = {
            f"{comparison.task}/{metric}": estimate.to_dict() for metric, estimate in estimates.items()
        }
        for entry in comparison.metrics[name].values():
            entry.pop("redrawn")
        comparison.report["models"].append({**rows[arm.name], "model": name, "notes": made.notes})
        comparison.report["calibration"][name] = calibration_curve(truth, made.held_out[0], bins=10)
        comparison.arms.append(made)


def _told(method: str, fitted: Sequence[Any]) -> str:
    if method == "isotonic":
        return "isotonic, fitted on tuning"
    first = fitted[0]
    return f"Platt on tuning: slope {first.slope:.2f}, intercept {first.intercept:+.2f}" + (
        f" (first of {len(fitted)} seeds)" if len(fitted) > 1 else ""
    )


def _calibration(comparison: Comparison, truth: np.ndarray, bootstrap: Mapping[str, Any], found: Validation) -> None:
    held = comparison.examples["held_out"]
    fits = {}
    for arm in comparison.arms:
        try:
            fits[arm.name] = asdict(calibration_fit(truth, arm.held_out, held.subject_id, **bootstrap))
        except MetricError as problem:
            found.notes.append(f"{arm.name} has no calibration slope: {problem.what}.")
    comparison.report["calibration_fit"] = fits
    found.summary["calibration"] = {
        model: {f"{comparison.task}/{name}": interval for name, interval in fit.items()} for model, fit in fits.items()
    }


def _decisions(comparison: Comparison, raw: Sequence[Arm], truth: np.ndarray, bootstrap: Mapping[str, Any]) -> None:
    held = comparison.examples["held_out"]
    curves = {arm.name: decision_curve(truth, arm.held_out, held.subject_id, **bootstrap) for arm in comparison.arms}
    first = curves[raw[0].name]
    comparison.report["decision"] = {
        "thresholds": first.thresholds.tolist(),
        "treat_all": first.treat_all.tolist(),
        "models": {
            name: {
                "net_benefit": [asdict(point) for point in curve.net_benefit],
                "gain": [asdict(point) for point in curve.gain],
            }
            for name, curve in curves.items()
        },
    }


def _subgroups(
    comparison: Comparison,
    raw: Sequence[Arm],
    truth: np.ndarray,
    groups: Mapping[str, np.ndarray],
    bootstrap: Mapping[str, Any],
) -> None:
    held = comparison.examples["held_out"]
    scored = subgroup_metrics(groups, truth, {arm.name: arm.held_out for arm in raw}, held.subject_id, **bootstrap)
    for group in scored:
        for model, estimates in group.metrics.items():
            for metric, estimate in estimates.items():
                entry = estimate.to_dict()
                entry.pop("redrawn")
                comparison.metrics[model][subgroup_key(comparison.task, group.by, group.name, metric)] = entry
    comparison.report["subgroups"] = [
        {"by": group.by, "group": group.name, "n": group.n, "positives": group.positives,
         "subjects": group.subjects, "too_small": group.too_small}
        for group in scored
    ]  # fmt: skip


def write_flat(
    comparison: Comparison, folder: Path, groups: Mapping[str, Mapping[str, np.ndarray]], split_of: Any = None
) -> None:
    """Write `cohort.csv` (every example of every split) and `held_out.csv` (those judged, with a column per model).

    Columns: `subject_id`, `prediction_time` (ISO 8601), `split`, `label` (0 or 1), the models, and one per grouping.

    Args:
        comparison: Of a binary task.
        folder: Where to write.
        groups: As in `Validation`.
        split_of: Split of the rows judged, where they are of another dataset; held_out by default.
    """
    frames = {}
    for split in SPLITS:
        examples = comparison.examples[split]
        names = np.full(len(examples), split) if split != "held_out" or split_of is None else split_of
        columns = {
            "subject_id": examples.subject_id,
            "prediction_time": pl.Series(examples.until).cast(pl.Datetime("us")),
            "split": names.astype(str),
            "label": (np.asarray(examples.target) > 0.5).astype(np.int8),
        }
        models: dict[str, np.ndarray] = {}
        if split == "held_out":
            models = {
                arm.name if len(arm.held_out) == 1 else f"{arm.name}/seed-{index}": p
                for arm in (*comparison.arms, *comparison.oracles)
                for index, p in enumerate(arm.held_out)
            }
        strata = {name: of_rows.astype(str) for name, of_rows in groups.get(split, {}).items()}
        frames[split] = pl.DataFrame({**columns, **models, **strata})
    with atomic_path(folder / "held_out.csv") as temporary:
        frames["held_out"].write_csv(temporary)
    predictions = set(frames["held_out"].columns) - set(frames["train"].columns)
    own = [frames[split] for split in SPLITS if split != "held_out" or split_of is None]
    with atomic_path(folder / "cohort.csv") as temporary:
        pl.concat([frame.drop(predictions, strict=False) for frame in own]).write_csv(temporary)


def labels_guidance(store: TokenStore, labels_path: str | Path) -> list[str]:
    """`split_guidance` of labels of any origin; nothing where they are not binary, and no histories are read."""
    labels, _ = read_labels(labels_path)
    if labels["boolean_value"].null_count():
        return []
    ids, outcome = labels["subject_id"].to_numpy(), labels["boolean_value"].to_numpy()
    counts = {}
    for split in ("held_out", "tuning"):
        here = store.split(split).index_of(ids) >= 0
        counts[split] = {"rows": int(here.sum()), "positives": int(outcome[here].sum())}
    return split_guidance(counts)
