import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError


def test_shares_are_80_10_10():
    splits = split_of(np.arange(50_000))
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        # Four standard deviations of a binomial of this size.
        assert abs((splits == split).mean() - share) < 4 * np.sqrt(share * (1 - share) / 50_000)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_split_is_a_function_of_the_identifier_alone(ids):
    splits = split_of(np.array(ids, dtype=np.int64))
    for subject, split in zip(ids, splits, strict=True):
        digest = hashlib.blake2b(str(subject).encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        assert split == ("train" if share < 0.8 else "tuning" if share < 0.9 else "held_out")


def test_growing_moves_nobody():
    assert (split_of(np.arange(5_000))[:4_718] == split_of(np.arange(4_718))).all()


def test_no_subjects():
    assert len(split_of(np.array([], dtype=np.int64))) == 0


def test_identifiers_must_be_integers():
    with pytest.raises(DataError, match=r"must be integers; got float64; expected int64"):
        split_of(np.array([1.0]))
