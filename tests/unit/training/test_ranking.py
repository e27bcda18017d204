"""The standard error of a mean AUROC against its formula, and what must leave it as it is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.training.ranking import macro_auroc_error


def delong(score, truth):
    """Sum over pairs, as the paper has it."""
    wins = (score[truth][:, None] > score[~truth]) + 0.5 * (score[truth][:, None] == score[~truth])
    m, n = wins.shape
    return math.sqrt(wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n)


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 30), st.integers(2, 50))
@settings(deadline=None, max_examples=25)
def test_of_one_category_it_is_that_of_delong_with_ties(seed, m, n, values):
    generator = np.random.default_rng(seed)
    truth = generator.permutation(np.arange(m + n) < m)
    score = generator.integers(0, values, m + n) / values
    error = macro_auroc_error(score[:, None], truth[:, None], np.arange(m + n))
    assert error == pytest.approx(delong(score, truth), abs=1e-12)


def drawn(rows=40, categories=1):
    generator = np.random.default_rng(3)
    truth = generator.random((rows, categories)) < 0.4
    return generator.normal(size=(rows, categories)) + truth, truth, np.arange(rows)


def test_a_category_or_a_row_said_twice_adds_nothing():
    score, truth, subjects = drawn()
    alone = macro_auroc_error(score, truth, subjects)
    assert macro_auroc_error(np.tile(score, 3), np.tile(truth, 3), subjects) == pytest.approx(alone)
    twice = macro_auroc_error(np.tile(score, (2, 1)), np.tile(truth, (2, 1)), np.tile(subjects, 2))
    assert twice == pytest.approx(alone, rel=0.05)
    apart = macro_auroc_error(np.tile(score, (2, 1)), np.tile(truth, (2, 1)), np.arange(80))
    assert apart == pytest.approx(alone / math.sqrt(2), rel=0.05)


def test_categories_that_go_apart_steady_their_mean():
    """Against the spread of the mean AUROC over many draws of 60 rows and 8 categories."""
    generator = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(200):
        truth = generator.random((60, 8)) < 0.3
        score = generator.normal(size=(60, 8)) + 0.8 * truth
        wins = [(s[t][:, None] > s[~t]).mean() for s, t in zip(score.T, truth.T, strict=True)]
        means.append(np.mean(wins))
        errors.append(macro_auroc_error(score, truth, np.arange(60)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_a_category_with_one_positive_counts_as_chance():
    truth = np.arange(10)[:, None] == 3
    error = macro_auroc_error(np.arange(10.0)[:, None], truth, np.arange(10))
    assert error == pytest.approx(math.sqrt(11 / (12 * 9)))
