"""What benchmarks have in common: which trainings are done, which another process has in hand, what they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ehrsequencing.benchmarks.configuration import EmbeddingsConfig, ModelsConfig, ObjectivesConfig
from ehrsequencing.config import write_config
from ehrsequencing.data.labels import labels_hash
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import lock_file, read_json, write_json, write_text
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.report import write_report
from ehrsequencing.tracking.report_data import write_report_data

Observed = Callable[[str], AbstractContextManager[Any]]
"""Makes a context, by the name of a training, that gives its observer."""


def is_done(run: Path) -> bool:
    """Whether a training ended."""
    file = run / "metadata.json"
    return file.exists() and read_json(file).get("status") in ("completed", "early_stopped")


def left_over(runs: Sequence[Path], say: Callable[[str], None]) -> bool:
    """Whether trainings are left, which another process has in hand; then says so."""
    left = [run for run in runs if not is_done(run)]
    if left:
        say(f"{len(left)} of {len(runs)} trainings are with another process, which will judge; or run this again")
    return bool(left)


class Claim:
    """Holds a lock for as long as the block runs; True where it is ours."""

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, -1

    def __enter__(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.descriptor = lock_file(self.path, "another process works here", "wait for it")
        except RunError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def settle(out: Path, shared: Mapping[str, Any], seeds: int, store: TokenStore, labels: Sequence[Path]) -> None:
    """Write what every training of a benchmark has in common, or see that it is what is there.

    Args:
        out: Folder of the benchmark; `benchmark.json` in it holds what was begun.
        shared: Options that no training may have otherwise.
        seeds: May grow, but not shrink.
        labels: Label files; tasks may be added, those that are there must stay what they were.

    Raises:
        ConfigError: the benchmark was begun otherwise; nothing was written.
    """
    path = out / "benchmark.json"
    fixed = {**shared, "store": store.fingerprint}
    hashes = {file.stem: labels_hash(file) for file in labels}
    stored = read_json(path) if path.exists() else {**fixed, "seeds": seeds, "labels": hashes}
    before = stored.get("labels", {})
    # What an earlier version had no word for is settled now.
    differing = sorted(key for key, value in fixed.items() if value != stored.get(key, value))
    differing += [f"labels of {name}" for name, own in hashes.items() if before.get(name, own) != own]
    if differing:
        raise ConfigError(
            f"{out} was begun with another configuration: {', '.join(differing)} differ",
            remedy="go on with the same one (seeds, arms and tasks may grow), or choose another --out",
        )
    if seeds < stored.get("seeds", 0):
        # Models are judged with all their seeds, so that some would be judged with more than others.
        raise ConfigError(
            f"{out} was begun with more seeds", got=seeds, expected=f"{stored['seeds']} or more",
            remedy="go on with them, or choose another --out",
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**fixed, "seeds": seeds, "labels": before | hashes})


def dataset_name(store: TokenStore) -> str:
    """A dataset by the hash of its content, as tables and reports name it; empty where the store knows none."""
    return str(store.manifest.get("dataset_fingerprint", ""))[:16]


def write_comparison(
    out: Path,
    store: TokenStore,
    config: ObjectivesConfig | ModelsConfig | EmbeddingsConfig,
    metrics: Mapping[str, Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    words: Sequence[str],
    sections: Mapping[str, Any],
    tables: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `out/comparison`: summary, tables and report of a benchmark, in place of those of an earlier call.

    Args:
        config: Of the benchmark.
        metrics: {model: {"task/metric": entry}}.
        differences: Paired differences, as `difference` gives them.
        words: Sentences that answer the question.
        sections: Title and further sections of the report.
        tables: {file name: content}.
        facts: What else the summary holds.

    Returns:
        The summary.
    """
    run = out / "comparison"
    with ExperimentTracker(run.name, out, exist_ok=True) as tracker:
        tracker.log_hyperparameters(config.model_dump(mode="json"))
        tracker.log_metadata(
            {
                "kind": "benchmark", "store": str(store.path), "store_fingerprint": store.fingerprint,
                "dataset": dataset_name(store),
            }
        )  # fmt: skip
        write_config(run / "config.toml", config)
        tracker.save_summary(metrics, best={}, notes=words)
        summary = read_json(run / "summary.json") | {"differences": list(differences)} | dict(facts or {})
        write_json(run / "summary.json", summary)
        write_report_data(run, {"plain_words": list(words), "differences": list(differences), **sections})
        tracker.set_status("completed")
    for name, content in tables.items():
        write_text(run / name, content)
    write_report(run)
    return summary
