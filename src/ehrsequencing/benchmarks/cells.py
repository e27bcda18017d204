"""Trainings of a benchmark: which are done, and which another process has in hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ehrsequencing.data.labels import labels_hash
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import lock_file, read_json, write_json


def is_done(run: Path) -> bool:
    """Whether a training ended."""
    file = run / "metadata.json"
    return file.exists() and read_json(file).get("status") in ("completed", "early_stopped")


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
