"""Who may write into a run directory, and what of it belongs to a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import lock_file, remove_partial

FILES = (
    "metadata.json",
    "hyperparameters.json",
    "config.toml",
    "summary.json",
    "SUMMARY.txt",
    "report_data.json",
    "report.html",
    "doctor.json",
)
FOLDERS = ("checkpoints", "plots", "logs", "model", "adapter", "predictions", "arms", "tensorboard")
LOCK = ".lock"


def refuse_name(name: str) -> None:
    """Refuse a run's name that is no plain folder name.

    Raises:
        ConfigError: it is not.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ConfigError("the experiment name is no folder name", got=repr(name), remedy="put folders in output_dir")


def refuse_existing(folder: Path) -> None:
    """Refuse a folder that holds more than what an attempt without success left.

    Raises:
        RunError: the folder is not empty.
    """
    if folder.exists() and any(not _is_scratch(path) for path in folder.iterdir()):
        raise RunError(
            f"{folder} holds something already",
            remedy="--resume continues it, another name keeps it, --overwrite replaces it",
        )


def refuse_foreign(folder: Path) -> None:
    """Refuse to overwrite a folder that holds something and is no run directory.

    Raises:
        RunError: it is not.
    """
    if not folder.exists() or (folder / "metadata.json").is_file():
        return
    if any(not _is_scratch(path) for path in folder.iterdir()):
        raise RunError(f"{folder} is no run directory, so it is not overwritten", remedy="choose another name")


def discard(folder: Path) -> None:
    """Remove the files of an earlier run and leave all others; the caller holds the lock."""
    # The mark of a run goes last: an interrupted clean-up can be repeated.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "metadata.json"):
        if path.name in FOLDERS and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name in FILES:
            path.unlink()
    remove_partial(folder)


def lock(folder: Path) -> int:
    """Take the folder for this process and return the descriptor that holds it.

    Raises:
        RunError: another process holds it.
    """
    return lock_file(
        folder / LOCK, f"{folder} is being written by another process", "wait for it, stop it, or choose another name"
    )


def _is_scratch(path: Path) -> bool:
    return path.name == LOCK or (path.name.startswith(".") and ".partial-" in path.name)
