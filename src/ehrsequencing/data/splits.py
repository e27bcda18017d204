"""Which split a subject belongs to: a pure function of the identifier, so growing a dataset moves nobody."""

from __future__ import annotations

import hashlib

import numpy as np

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.errors import DataError

TRAIN_SHARE, TUNING_SHARE = 0.8, 0.1


def split_of(subject_ids: np.ndarray) -> np.ndarray:
    """Split of each subject: 80 % train, 10 % tuning, 10 % held_out, by BLAKE2b of the decimal identifier.

    Args:
        subject_ids: int64 [n].

    Returns:
        Strings [n], each one of `SPLITS`.

    Raises:
        DataError: the identifiers are not integers.

    >>> split_of(np.array([1, 2, 3, 2])).tolist()
    ['held_out', 'train', 'train', 'train']
    """
    subject_ids = np.asarray(subject_ids)
    if subject_ids.dtype.kind not in "iu":
        raise DataError("subject identifiers must be integers", got=subject_ids.dtype, expected="int64")
    digests = b"".join(hashlib.blake2b(b"%d" % i, digest_size=8).digest() for i in subject_ids.tolist())
    uniform = np.frombuffer(digests, dtype=">u8") / 2.0**64
    return np.array(SPLITS)[np.searchsorted([TRAIN_SHARE, TRAIN_SHARE + TUNING_SHARE], uniform, side="right")]
