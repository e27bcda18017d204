import numpy as np

from ehrsequencing.data.synthetic_random import derive, integers, normal, subject_keys, uniform, uniform32


def test_first_value_is_that_of_splitmix64():
    # First output of splitmix64 seeded with 0, as published with the reference implementation.
    assert int(derive(np.array([0], dtype=np.uint64), 0)[0]) == 0xE220A8397B1DCDAF


def test_a_key_is_the_same_alone_and_in_company():
    together = subject_keys(7, np.arange(1_000))
    assert (subject_keys(7, np.array([417])) == together[417]).all()
    assert len(np.unique(together)) == 1_000
    assert not np.intersect1d(together, subject_keys(8, np.arange(1_000))).size


def test_streams_are_rows():
    keys = subject_keys(0, np.arange(50))
    both = uniform32(keys, [3, 9])
    assert both.shape == (2, 50)
    assert (both[1] == uniform32(keys, 9)).all()


def test_distributions():
    keys = subject_keys(1, np.arange(200_000))
    drawn = uniform(keys, 5)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.003 and abs(drawn.var() - 1 / 12) < 0.001
    deviates = normal(keys, 6)
    assert abs(deviates.mean()) < 0.01 and abs(deviates.std() - 1) < 0.01
    assert abs(np.corrcoef(drawn, deviates)[0, 1]) < 0.01
    counts = np.bincount(integers(keys, 7, 5), minlength=5)
    assert len(counts) == 5 and abs(counts / len(keys) - 0.2).max() < 0.005
