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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrsequencing.errors import ConfigError, RunError

logger = logging.getLogger(__name__)
REQUEST_FILE, LOCK_FILE, CONTENT_FOLDER = "request.json", "lock", "content"


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
        return self.key in self._content(folder)

    def request(self, folder: Path) -> str | None:
        """`request_hash` of what made the folder, as it stands beside the key or in its object; None without one."""
        content = self._content(folder)
        under = content.get(self.key)
        stated = {**content, **(under if isinstance(under, dict) else {})}.get("request")
        return stated if isinstance(stated, str) else None

    def _content(self, folder: Path) -> dict[str, Any]:
        try:
            content = json.loads((folder / self.file).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False, mark: Mark | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`, on any error remove it.

    Names in it that begin with a dot are scratch and do not appear. A replaced folder is renamed aside first. Where a
    kill between the two renames left it there, the next call for the same `path` puts it back before anything else.

    Args:
        path: The folder to write; a symbolic link stands for what it points to.
        overwrite: Replace a folder that carries `mark`; one without it is never replaced unless it is empty.
        mark: What the folder to replace must carry.

    Raises:
        RunError: `path` exists, is no empty folder, and `overwrite` is False or the mark is absent.
    """
    path = _writable(path, overwrite, mark)
    temporary = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        _appear(temporary, path, overwrite, mark)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable_directory(
    path: str | Path,
    request: Mapping[str, Any],
    *,
    overwrite: bool = False,
    mark: Mark | None = None,
    keep_on: tuple[type[BaseException], ...] = (),
) -> Iterator[Path]:
    """Like `atomic_directory`, but what a killed process was writing is found there by the same request.

    The folder yielded lies in `.NAME.unfinished-HASH` beside `path`, HASH being of the request. Files in it may be
    incomplete: the caller must know which ones it finished. Names in it that begin with a dot are scratch and do not
    appear at `path`. An error removes everything; Ctrl-C and a kill leave it.
    What another request left for the same `path` is removed, and a warning says how the two differ.

    Args:
        path: The folder to write.
        request: JSON object: all that decides what will be written.
        overwrite, mark: As in `atomic_directory`.
        keep_on: Further errors that leave what is done, such as a lack of memory.

    Raises:
        RunError: as `atomic_directory`, or another process is writing `path`.
    """
    path = _writable(path, overwrite, mark)
    stated = json.dumps(request, sort_keys=True)
    work = _work(path, request)
    content = work / CONTENT_FOLDER
    with ExitStack() as locks:
        locks.enter_context(_locked(work, path))
        kept = content.is_dir()
        try:
            for other in _unfinished(path):
                if other != work:
                    with _locked(other, path):
                        reason = _difference(other, request)
                        logger.warning("what a killed command left of %s is discarded: %s", path, reason)
                        shutil.rmtree(other)
            if kept and _request(work) == json.loads(stated):
                logger.warning("taking up %s where a killed command left it", path)
                for folder in (content, *(folder for folder in content.rglob("*") if folder.is_dir())):
                    remove_partial(folder)
            else:
                shutil.rmtree(content, ignore_errors=True)
                content.mkdir()
                write_json(work / REQUEST_FILE, request)
            kept = False
            yield content
            # First, so that a kill from here on leaves nothing to take up.
            (work / REQUEST_FILE).unlink()
            _appear(content, path, overwrite, mark)
        except (KeyboardInterrupt, *keep_on):  # type: ignore[misc]
            kept = True
            raise
        finally:
            if not kept:
                shutil.rmtree(work, ignore_errors=True)


def request_hash(request: Mapping[str, Any]) -> str:
    """Hex hash of a request, which the finished artefact's manifest keeps under `request`."""
    return hash_bytes(json.dumps(request, sort_keys=True).encode())


def made_before(path: str | Path, request: Mapping[str, Any], mark: Mark) -> bool:
    """Whether the folder is there and an equal request made it, as after a kill just behind `resumable_directory`.

    What that kill left beside it is removed.
    """
    path = _named(path)
    if mark.request(path) != request_hash(request):
        return False
    work = _work(path, request)
    if work.is_dir():
        with _locked(work, path):
            shutil.rmtree(work)
    return True


def _work(path: Path, request: Mapping[str, Any]) -> Path:
    return path.with_name(f".{path.name}.unfinished-{request_hash(request)[:8]}")


def _named(path: str | Path) -> Path:
    """The folder that a path stands for; what a killed replacement set aside is there again."""
    path = Path(path)
    if path.is_symlink() or path.name in ("", ".."):
        path = path.resolve()
    _put_back(path)
    return path


def _writable(path: str | Path, overwrite: bool, mark: Mark | None) -> Path:
    """The folder to write, after all checks that need no content."""
    path = _named(path)
    _refuse_replacing(path, overwrite, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _appear(content: Path, path: Path, overwrite: bool, mark: Mark | None) -> None:
    """Name the finished content `path`, in place of what is there, without the names that begin with a dot."""
    for scratch in content.glob(".*"):
        _remove(scratch)
    retired = path.with_name(f".{path.name}.retired-{uuid.uuid4().hex[:8]}")
    # Again: something may have come to lie there while the content was made.
    _refuse_replacing(path, overwrite, mark)
    try:
        if path.exists():
            path.rename(retired)
        content.rename(path)
        _sync_directory(path.parent)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        if retired.exists() and not path.exists():
            retired.rename(path)


def _unfinished(path: Path) -> list[Path]:
    name = re.compile(re.escape(f".{path.name}.unfinished-") + "[0-9a-f]{8}")
    return sorted(other for other in path.parent.iterdir() if name.fullmatch(other.name) and other.is_dir())


def _request(work: Path) -> Any:
    try:
        return json.loads((work / REQUEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _difference(work: Path, request: Mapping[str, Any]) -> str:
    """How the request that left a folder differs from this one; the first difference."""
    left = _request(work)
    if not isinstance(left, dict):
        return "it was not to be taken up"
    for key, now in request.items():
        before = left.get(key)
        if isinstance(now, Mapping) and isinstance(before, dict):
            changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
            if changed:
                return f"{key} {changed[0]} was {before.get(changed[0])} and is {now.get(changed[0])}"
        elif before != now:
            return f"{key} was {before} and is {now}"
    return "its request says more than this one"


@contextmanager
def _locked(work: Path, path: Path) -> Iterator[None]:
    """Hold the lock of a folder of unfinished work, which is made where it is missing."""
    descriptor = None
    while descriptor is None:
        descriptor = _lock_of(work, path)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_of(work: Path, path: Path) -> int | None:
    """The lock's descriptor; None where its last holder removed the folder while we took it."""
    work.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        lock = work / LOCK_FILE
        descriptor = lock_file(lock, f"{path} is being written by another process", "wait for it or stop it")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)
    return None


def lock_file(path: Path, what: str, remedy: str) -> int:
    """Lock a file for this process and return the descriptor that holds it.

    Raises:
        RunError: another process holds it; says `what` and the `remedy`.
    """
    # POSIX record locks die with the process and, unlike flock, are not inherited by forked data workers, which may
    # outlive a killed parent by a moment.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise RunError(what, remedy=remedy) from None
        if problem.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            os.close(descriptor)
            raise
        logger.warning("%s: this file system has no locks, so two processes writing here go unnoticed", path.parent)
    return descriptor


def remove_partial(folder: Path) -> None:
    """Remove what a killed process was in the middle of writing in a folder; the caller holds the lock."""
    for path in folder.glob(".*.partial-*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
