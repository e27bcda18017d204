"""Writing artefacts so that a crash never leaves something a later run would take for whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ehrsequencing.errors import RunError


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it onto `path`.

    Readers see the old file or the new one, never a part: the rename is atomic and follows an fsync. On any
    error, a full disk included, the temporary file is removed and the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`, on any error remove it.

    Raises:
        RunError: `path` exists and is not empty, and `overwrite` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} exists already", remedy="choose another folder or pass --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        retired = None
        if path.exists():
            retired = path.with_name(f".{path.name}.retired-{uuid.uuid4().hex[:8]}")
            path.rename(retired)
        temporary.rename(path)
        _sync_directory(path.parent)
        if retired is not None:
            shutil.rmtree(retired)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has no word for them."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def read_json(path: str | Path, error: Callable[..., Exception] = RunError, remedy: str | None = None) -> Any:
    """Read JSON; a missing or malformed file raises `error` with the file's name."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise error(f"{path} is missing", remedy=remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise error(f"{path} is not readable JSON", got=str(problem), remedy=remedy) from None


def hash_bytes(*parts: bytes) -> str:
    """Hex BLAKE2b-256 digest of the parts in order."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_file(path: str | Path) -> str:
    """Hex BLAKE2b-256 digest of a file's content, read in pieces."""
    digest = hashlib.blake2b(digest_size=32)
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of Python, for manifests."""
    import platform

    from ehrsequencing import __version__

    return {"ehrsequencing": __version__, "python": platform.python_version()}
