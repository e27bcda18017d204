"""Trainings of a benchmark: which are done, and which another process has in hand."""

from __future__ import annotations

import os
from pathlib import Path

from ehrsequencing.errors import RunError
from ehrsequencing.io import lock_file, read_json


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
