"""Checkpoints that are whole or absent: written aside, flushed, then renamed; read with `weights_only=True`."""

from __future__ import annotations

import errno
import io as memory
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ehrsequencing.errors import CheckpointError, RunError
from ehrsequencing.io import atomic_path

# Exact types: numpy.float64 is a subclass of float, is pickled as numpy and then refused by weights_only.
_PLAIN = (bool, int, float, str, bytes, type(None))


class _ChecksumError(Exception):
    pass


# What torch, pickle and zipfile raise for bytes that are not what was written.
_DAMAGE = (
    _ChecksumError,
    RuntimeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    struct.error,
    OSError,
)


def save_together(states: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write several checkpoints so that all of them advance or none does.

    Every file is written and flushed under a temporary name before the first is renamed, so a full disk leaves the
    earlier files as they were. The renames follow the order of `states`; a process killed between two of them has
    renamed the first ones only, hence the file that a resumed run reads belongs last.

    Raises:
        CheckpointError: a state holds something that `torch.load(weights_only=True)` would refuse.
        RunError: the disk is full or cannot be written.
    """
    contents: dict[int, bytes] = {}
    for path, state in states.items():
        _refuse_unloadable(state, path.stem)
        if id(state) not in contents:
            contents[id(state)] = _serialise(state)
    try:
        with ExitStack() as stack:
            # ExitStack renames in reverse order of entry.
            for path, state in reversed(list(states.items())):
                temporary = stack.enter_context(atomic_path(path))
                with temporary.open("wb") as stream:
                    stream.write(contents[id(state)])
                    stream.flush()
                    os.fsync(stream.fileno())
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        names = ", ".join(path.name for path in states)
        raise RunError(
            f"cannot write {names} in {next(iter(states)).parent}",
            got="a full disk" if full else problem.strerror or str(problem),
            remedy="the earlier checkpoints are whole: free some space, then continue with --resume",
        ) from problem


def load_checkpoint(path: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        path: A `.pt` file.
        map_location: Device for the tensors.
        mmap: Leave the tensors on disk until they are used; damage inside them then goes unnoticed.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} is missing", remedy="check the path, or start without --resume")
    try:
        # torch does not compare the checksums of the tensors it reads.
        if not mmap and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    raise _ChecksumError(f"a wrong checksum in {broken}")
        state = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except _DAMAGE as problem:
        raise CheckpointError(
            f"the checkpoint {path} is damaged or not a checkpoint",
            got=str(problem).split("\n")[0][:200],
            expected="a file that torch.load(weights_only=True) reads",
            remedy="use another checkpoint of the run, or train again",
        ) from problem
    if not isinstance(state, dict):
        raise CheckpointError(f"the checkpoint {path} holds no state", got=type(state).__name__, expected="a dict")
    return state


def checkpoint_epoch(path: Path) -> int | None:
    """Epoch of a checkpoint, or None where there is no file; the tensors stay on disk.

    Raises:
        CheckpointError: as `load_checkpoint`, or the state names no epoch.
    """
    if not path.exists():
        return None
    epoch = load_checkpoint(path, mmap=True).get("epoch")
    if type(epoch) is not int:
        raise CheckpointError(f"the checkpoint {path} names no epoch", got=repr(epoch), expected='int at "epoch"')
    return epoch


def _serialise(state: Mapping[str, Any]) -> bytes:
    # Through memory, so that a full disk is an OSError of a plain write and not a failure inside torch's archive
    # writer, whose exception type and clean-up differ between versions.
    import torch

    stream = memory.BytesIO()
    torch.save(dict(state), stream)
    return stream.getvalue()


def _refuse_unloadable(value: Any, where: str) -> None:
    import torch

    if type(value) in _PLAIN or isinstance(value, torch.Tensor | torch.Size | torch.dtype | torch.device):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in _PLAIN:
                raise _unloadable(f"a key of {where}", key)
            _refuse_unloadable(item, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _refuse_unloadable(item, f"{where}[{index}]")
    else:
        raise _unloadable(where, value)


def _unloadable(where: str, value: object) -> CheckpointError:
    kind = type(value)
    return CheckpointError(
        f"{where} cannot be kept in a checkpoint",
        got=f"{kind.__module__}.{kind.__qualname__}",
        expected="tensors, numbers, strings, dicts, lists and tuples",
        remedy="convert it (numpy scalars with .item(), arrays with torch.from_numpy, paths with str)",
    )
