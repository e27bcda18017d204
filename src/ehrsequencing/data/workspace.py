"""The folder beside a store where its preparation works, so that a killed one continues."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ehrsequencing.data.parallel import WorkerDiedError
from ehrsequencing.errors import RunError
from ehrsequencing.io import hash_bytes, lock_file, write_json

_LOCK, _KEY = "lock", "key.json"


@contextmanager
def workspace(store: Path, key: dict[str, Any], notice: Callable[[str], None]) -> Iterator[Path]:
    """Yield the folder of this preparation, which holds what an earlier, killed one with the same key finished.

    It is `.NAME.preparing` beside the store, and gone afterwards, unless the process is killed, interrupted or loses a
    worker. What a preparation with another key left is removed.

    Args:
        store: The store to be.
        key: What decides its bytes; JSON values.
        notice: Told what is continued or discarded, and why.

    Raises:
        RunError: another process prepares the same store.
    """
    root = store.with_name(f".{store.name}.preparing")
    descriptor = _lock(root, store)
    own = root / hash_bytes(json.dumps(key, sort_keys=True).encode())[:16]
    keep = False
    try:
        for other in sorted(root.iterdir()):
            if other.name not in (_LOCK, own.name):
                reason = _difference(other, key)
                shutil.rmtree(other) if other.is_dir() else other.unlink()
                notice(f"discarded what a killed preparation of {store} left: {reason}")
        if own.exists():
            notice(f"continuing a preparation of {store} that was killed")
        own.mkdir(exist_ok=True)
        write_json(own / _KEY, key)
        yield own
    except (KeyboardInterrupt, MemoryError, WorkerDiedError):
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
        os.close(descriptor)


def _lock(root: Path, store: Path) -> int:
    remedy = "wait for it, stop it, or choose another folder"
    while True:
        root.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = lock_file(root / _LOCK)
        except FileNotFoundError:
            continue
        if descriptor is None:
            raise RunError(f"{store} is being prepared by another process", remedy=remedy)
        # The other process may have finished, and removed the folder, between the two steps.
        if _same(descriptor, root / _LOCK):
            return descriptor
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _difference(folder: Path, key: dict[str, Any]) -> str:
    try:
        old = json.loads((folder / _KEY).read_text())
        names = [name for name in key if old.get(name) != key[name]]
    except (OSError, ValueError, AttributeError):
        return "it does not say of what"
    if "dataset" in names:
        return "it was of another dataset"
    return f"it had other options: {', '.join(names)}"
