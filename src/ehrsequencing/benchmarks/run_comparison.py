"""Evaluated runs beside each other on the subjects that all of them held out, also runs of stores of other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import RunError
from ehrsequencing.evaluation.bootstrap import paired_difference, summarise_seeds
from ehrsequencing.tracking.runs import RunRecord, read_run

METRICS = ("auroc", "auprc", "brier")
KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class SharedComparison:
    """Runs on the rows that all of them judged.

    Attributes:
        names: Of the runs, their paths as given.
        rows, subjects, positives: Of what is shared.
        of_each: Subjects that each run held out.
        metrics: {run: {metric: {value, low, high}}}.
        differences: First run minus each other: {a, b, metric, value, low, high}.
    """

    task: str
    names: list[str]
    rows: int
    subjects: int
    positives: int
    of_each: list[int]
    metrics: dict[str, dict[str, dict[str, Any]]]
    differences: list[dict[str, Any]]


def compare_runs(paths: Sequence[str | Path], *, resamples: int = 1000, seed: int = 0) -> SharedComparison:
    """Judge fine-tuned runs again on the held-out rows that all of them have, with paired differences.

    Args:
        paths: Two or more runs of one binary task that `ehrseq evaluate` has judged. Their stores may differ in
            subjects, as long as they are of one source.
        resamples: Bootstrap resamples over subjects.
        seed: Of the bootstrap.

    Raises:
        RunError: fewer than two runs, one named twice, one without held-out predictions, or of another task or
            source; a store that is gone or was changed; a subject that one run held out was trained on by another
            (or by the base of another); no shared row; labels that differ.
        MetricError: the shared rows are of one class.
    """
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise RunError("a comparison of runs", got=", ".join(map(str, paths)), expected="two or more different runs")
    runs = [read_run(path) for path in paths]
    names = [str(path) for path in paths]
    for run in runs:
        _require_judged(run)
    if len({run.task for run in runs}) > 1:
        raise RunError("the runs are of different tasks", got=", ".join(str(run.task) for run in runs))
    stores = [_store(run) for run in runs]
    sources = {str(store.manifest.get("source")) for store in stores}
    if len({store.manifest.get("dataset_fingerprint") for store in stores}) > 1 and len(sources) > 1:
        raise RunError(
            "the runs are of different sources, whose subjects of one number are different people",
            got=", ".join(sorted(sources)),
            remedy="judge one on the other's data: `ehrseq evaluate RUN STORE LABELS`",
        )
    frames = [pl.read_parquet(_predictions(run)) for run in runs]
    held = [frame["subject_id"].unique().to_numpy() for frame in frames]
    trained = [_trained_on(run) for run in runs]
    for a, run in enumerate(runs):
        for b, other in enumerate(runs):
            both = np.intersect1d(held[a], trained[b])
            if a != b and len(both):
                raise RunError(
                    f"{len(both):,} subjects that {run.path} held out trained {other.path} or its base",
                    got=f"subject {both[0]} among them",
                    expected="no subject judged by one and trained on by the other",
                    remedy="train both on splits of one rule, for example on stores of one dataset",
                )
    shared = frames[0].select(KEYS)
    for frame in frames[1:]:
        shared = shared.join(frame.select(KEYS), on=KEYS, how="semi")
    if shared.is_empty():
        raise RunError("no row was held out by all runs", got=" and ".join(f"{len(frame):,} rows" for frame in frames))
    kept = [shared.join(frame, on=KEYS, how="left", maintain_order="left") for frame in frames]
    truth = kept[0]["label"].to_numpy()
    for run, frame in zip(runs[1:], kept[1:], strict=True):
        differing = int((frame["label"].to_numpy() != truth).sum())
        if differing:
            raise RunError(
                f"{runs[0].path} and {run.path} were judged on different labels",
                got=f"{differing:,} of {len(truth):,} shared rows differ",
                remedy="build the labels of both with one task and one dataset",
            )
    ids = shared["subject_id"].to_numpy()
    scores = [_own(run, frame) for run, frame in zip(runs, kept, strict=True)]
    metrics = {
        name: {
            metric: estimate.to_dict()
            for metric, estimate in summarise_seeds(
                truth, own, ids, metrics=METRICS, resamples=resamples, seed=seed
            ).items()
        }
        for name, own in zip(names, scores, strict=True)
    }
    differences = [
        {"a": names[0], "b": name, "metric": metric}
        | paired_difference(truth, scores[0], own, ids, metric, resamples=resamples, seed=seed).to_dict()
        for name, own in zip(names[1:], scores[1:], strict=True)
        for metric in METRICS
    ]
    return SharedComparison(
        task=str(runs[0].task),
        names=names,
        rows=len(truth),
        subjects=len(np.unique(ids)),
        positives=int(truth.sum()),
        of_each=[len(subjects) for subjects in held],
        metrics=metrics,
        differences=differences,
    )


def _predictions(run: RunRecord) -> Path:
    return run.path / "predictions" / "held_out.parquet"


def _require_judged(run: RunRecord) -> None:
    if run.kind != "finetune" or not _predictions(run).is_file():
        remedy = f"run `ehrseq evaluate {run.path} STORE` first"
        if run.kind != "finetune":
            remedy = "name runs of `ehrseq finetune`; `ehrseq runs list` compares the tuning figures of all"
        raise RunError(f"{run.path} has no held-out predictions", got=f"a run of kind {run.kind}", remedy=remedy)
    if "category" in pl.read_parquet_schema(_predictions(run)):
        raise RunError(
            f"{run.path} is of a multi-label task",
            expected="a binary task",
            remedy="compare on one store: `ehrseq evaluate RUN STORE --with OTHER`",
        )


def _store(run: RunRecord) -> TokenStore:
    store = TokenStore.open(run.metadata["store"])
    if store.fingerprint != run.metadata["store_fingerprint"]:
        raise RunError(
            f"the store of {run.path} was made anew since",
            got=store.fingerprint[:16],
            expected=str(run.metadata["store_fingerprint"])[:16],
            remedy="train and evaluate the run on the store as it is now",
        )
    return store


def _trained_on(run: RunRecord) -> np.ndarray:
    """Subjects of train and tuning of a run and of all runs it starts from."""
    subjects = []
    following: RunRecord | None = run
    while following is not None:
        store = _store(following)
        subjects += [np.asarray(store.split(name).subject_id) for name in ("train", "tuning")]
        base = following.metadata.get("from_run")
        following = read_run(base) if base else None
    return np.unique(np.concatenate(subjects))


def _own(run: RunRecord, frame: pl.DataFrame) -> list[np.ndarray]:
    """What the run itself predicts, per seed; other columns are baselines and other runs."""
    columns = [name for name in frame.columns if name == run.model or name.startswith(f"{run.model}/seed-")]
    if not columns:
        raise RunError(f"{_predictions(run)} has no column of {run.model}", remedy="evaluate the run again")
    return [frame[name].to_numpy() for name in columns]
