"""Random numbers that depend on a key alone, never on what was drawn before or beside.

Every number is the finaliser of splitmix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195) applied to a
counter: subject, then step, then stream. So a subject is the same whatever the number of subjects, shards or
workers, and a future can be drawn again under another key. All arithmetic is exact in integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_LOW16 = np.uint64(0xFFFF)


def _mix(state: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64, in place."""
    shifted = state >> np.uint64(30)
    state ^= shifted
    state *= _MIX[0]
    np.right_shift(state, np.uint64(27), out=shifted)
    state ^= shifted
    state *= _MIX[1]
    np.right_shift(state, np.uint64(31), out=shifted)
    state ^= shifted
    return state


def derive(keys: np.ndarray, counter: int | np.ndarray) -> np.ndarray:
    """Keys one level down: uint64, of the broadcast shape of `keys` and `counter`, at least 1-d.

    >>> int(derive(np.array([0], dtype=np.uint64), 0)[0])
    16294208416658607535
    """
    step = np.atleast_1d(np.asarray(counter, dtype=np.uint64)) + np.uint64(1)
    return _mix(np.asarray(keys, dtype=np.uint64) + GAMMA * step)


def subject_keys(seed: int, subjects: np.ndarray) -> np.ndarray:
    """uint64 [n]: one key per subject number (0-based); different seeds share none of their streams."""
    root = derive(np.zeros(1, dtype=np.uint64), seed)
    return derive(root, np.asarray(subjects, dtype=np.uint64))


def uniform32(keys: np.ndarray, streams: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Uniform uint32; [n] for one stream, [len(streams), n] for several."""
    if np.ndim(streams):
        keys = np.asarray(keys)[None, :]
        counters = np.asarray(streams, dtype=np.uint64)[:, None]
    else:
        counters = np.asarray(streams, dtype=np.uint64)
    return (derive(keys, counters) >> np.uint64(32)).astype(np.uint32)


def uniform(keys: np.ndarray, streams: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), shaped as `uniform32`."""
    return uniform32(keys, streams) * 2.0**-32


def integers(keys: np.ndarray, stream: int, bound: int) -> np.ndarray:
    """Uniform int64 in [0, bound), bound below 2^31."""
    return ((uniform32(keys, stream).astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def normal(keys: np.ndarray, stream: int | np.ndarray) -> np.ndarray:
    """Nearly standard normal float64: the scaled sum of four 16-bit uniforms, exact on every machine.

    The sum of four has kurtosis 2.7 and ends at 3.46 standard deviations; laboratory noise needs no further tail.
    """
    bits = derive(keys, stream)
    total = np.zeros(bits.shape, dtype=np.uint64)
    for shift in (0, 16, 32, 48):
        total += (bits >> np.uint64(shift)) & _LOW16
    return (total.astype(np.float64) - 2 * 65535.0) * (np.sqrt(3.0) / 65536.0)
