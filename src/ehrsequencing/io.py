"""Writing artefacts so that a crash never leaves something a later run would take for whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrsequencing.errors import ConfigError, RunError

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Mark:
    """What shows that a folder is an artefact of one kind: a JSON file in it with a key that only we write.

    Attributes:
        file: Path of the JSON file within the folder.
        key: Key of its object.
        artefact: What the folder is then, for messages.
    """

    file: str | Path
    key: str
    artefact: str

    def on(self, folder: Path) -> bool:
        """Whether the folder carries the mark."""
        try:
            content = json.loads((folder / self.file).read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and self.key in content


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False, mark: Mark | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`, on any error remove it.

    A replaced folder is renamed aside first. Where a kill between the two renames left it there, the next call for
    the same `path` puts it back before anything else.

    Args:
        path: The folder to write; a symbolic link stands for what it points to.
        overwrite: Replace a folder that carries `mark`; one without it is never replaced unless it is empty.
        mark: What the folder to replace must carry.

    Raises:
        RunError: `path` exists, is no empty folder, and `overwrite` is False or the mark is absent.
    """
    path = replaceable(path, overwrite=overwrite, mark=mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        publish_directory(temporary, path, overwrite=overwrite, mark=mark)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replaceable(path: str | Path, *, overwrite: bool = False, mark: Mark | None = None) -> Path:
    """Check, as `atomic_directory` does, that a folder may be written; returns it with symbolic links resolved.

    Raises:
        RunError: as `atomic_directory`.
    """
    path = Path(path)
    if path.is_symlink() or path.name in ("", ".."):
        path = path.resolve()
    _put_back(path)
    _refuse_replacing(path, overwrite, mark)
    return path


def publish_directory(folder: Path, path: Path, *, overwrite: bool = False, mark: Mark | None = None) -> None:
    """Rename a finished folder to `path`, on the same file system, replacing what is there as `atomic_directory` does.

    Raises:
        RunError: as `atomic_directory`; then `folder` stays.
    """
    # Again: something may have come to lie there while the content was made.
    _refuse_replacing(path, overwrite, mark)
    retired = path.with_name(f".{path.name}.retired-{uuid.uuid4().hex[:8]}")
    try:
        if path.exists():
            path.rename(retired)
        folder.rename(path)
        _sync_directory(path.parent)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        if retired.exists() and not path.exists():
            retired.rename(path)


def _put_back(path: Path) -> None:
    """Restore the one folder that a killed replacement left aside; remove such folders where `path` is whole."""
    aside = re.compile(re.escape(f".{path.name}.retired-") + "[0-9a-f]{8}")
    found = [other for other in path.parent.iterdir() if aside.fullmatch(other.name)] if path.parent.is_dir() else []
    if not path.exists():
        # Of several, none is known to be the last: they stay for the user to choose.
        if len(found) == 1:
            found[0].rename(path)
        return
    for other in found:
        shutil.rmtree(other, ignore_errors=True)


def _refuse_replacing(path: Path, overwrite: bool, mark: Mark | None) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    owned = path.is_dir() and mark is not None and mark.on(path)
    if not owned:
        raise RunError(
            f"{path} exists already and is not {mark.artefact if mark else 'ours'}, so it is never replaced",
            got="a file"
            if not path.is_dir()
            else f"no {mark.file} of this program"
            if mark
            else "a folder with content",
            remedy="choose another folder",
        )
    if not overwrite:
        raise RunError(f"{path} exists already", remedy="choose another folder or pass --overwrite")


def lock_file(file: Path) -> int | None:
    """Take a file for this process; the descriptor that holds it until closed, or None where another process does.

    The lock dies with the process and, unlike flock, is not inherited by forked data workers, which may outlive a
    killed parent by a moment.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            return None
        if problem.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            os.close(descriptor)
            raise
        logger.warning("%s: this file system has no locks, so two processes go unnoticed", file.parent)
    return descriptor


def refuse_overlap(source: str | Path, output: str | Path) -> None:
    """Refuse to write a folder over, into or around what it is made from.

    Raises:
        ConfigError: one of the two is, or lies in, the other.
    """
    read, written = Path(source).resolve(), Path(output).resolve()
    if read == written or read in written.parents or written in read.parents:
        raise ConfigError(
            f"the output {output} overlaps the input {source}",
            expected="neither inside the other",
            remedy="choose another folder to write",
        )


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
    """Read a JSON object; a missing or malformed file, or another value, raises `error` with the file's name."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise error(f"{path} is missing", remedy=remedy) from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not readable JSON", got=str(problem), remedy=remedy) from None
    if not isinstance(content, dict):
        raise error(f"{path} holds no JSON object", got=type(content).__name__, remedy=remedy)
    return content


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
