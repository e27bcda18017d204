"""How sure an AUROC over several categories is, from one set of predictions."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata

FEWEST = 2
"""Rows of a class below which its spread is not seen: such a category counts as if its ranks were chance."""


def macro_auroc_error(score: np.ndarray, truth: np.ndarray, subject_id: np.ndarray) -> float:
    """Standard error of the mean AUROC of categories that are judged on the same rows.

    Categories of one row and rows of one subject may go together: what each row adds to the mean is summed per subject.

    Args:
        score: Float [rows, categories].
        truth: Bool [rows, categories]; every category with both classes.
        subject_id: Int [rows].

    Source: DeLong et al. 1988, Biometrics 44:837-845; for rows of one subject Obuchowski 1997, Biometrics 53:567-578.

    >>> score = np.array([[0.1], [0.4], [0.35], [0.8]])
    >>> round(macro_auroc_error(score, np.array([[False], [False], [True], [True]]), np.arange(4)), 4)
    0.3536
    """
    added, unseen = np.zeros(len(score)), 0.0
    for column, actual in zip(score.T, truth.astype(bool).T, strict=True):
        m, n = int(actual.sum()), int((~actual).sum())
        if min(m, n) < FEWEST:
            # Variance of the rank sum statistic where ranks are chance.
            unseen += (m + n + 1) / (12 * m * n)
            continue
        ranks = rankdata(column)
        won = (ranks[actual] - rankdata(column[actual])) / n
        lost = 1 - (ranks[~actual] - rankdata(column[~actual])) / m
        added[actual] += (won - won.mean()) / math.sqrt(m * (m - 1))
        added[~actual] += (lost - lost.mean()) / math.sqrt(n * (n - 1))
    _, owner = np.unique(subject_id, return_inverse=True)
    variance = float((np.bincount(owner, weights=added) ** 2).sum()) + unseen
    return math.sqrt(variance) / max(score.shape[1], 1)
