"""What the best possible survival predictions would score, from the oracle's own probabilities.

The incidences come from `ehrsequencing.data.oracle.oracle_frame`; no label, and so no censoring, enters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehrsequencing.errors import MetricError

Array = NDArray[np.float64]
_ROWS = 500


def expected_concordance(incidence: ArrayLike, risk: ArrayLike) -> float:
    """Concordance that a risk score has in expectation, by the last horizon.

    Of two subjects, the one with the earlier event should have the higher risk; a pair counts by the chance that the
    two events come in different intervals and the first by the last horizon. Who never has the event, death without
    it included, comes last. Equal risks count half.

    Args:
        incidence: Float [n, horizons], P(T <= horizon) of each subject, never falling along a row.
        risk: Float [n].

    Raises:
        MetricError: no pair can be told apart, or malformed input.
    """
    score = np.asarray(risk, dtype=np.float64)
    good = total = 0.0
    for rows, first, second in _pairs(incidence):
        if score.shape != (second.shape[1],):
            raise MetricError("the risk needs one value per subject", got=score.shape, expected=f"({second.shape[1]},)")
        sign = np.sign(score[rows, None] - score[None, :])
        good += float((first * (1 + sign) / 2 + second * (1 - sign) / 2).sum())
        total += float((first + second).sum())
    return _share(good, total)


def concordance_bound(incidence: ArrayLike) -> float:
    """The highest expected concordance of any ordering, even one that judged every pair by itself.

    Each pair is ordered by whichever is likelier to have its event first. No score orders all pairs so (preferences
    may go in circles), which makes this a bound and not an optimum.

    Args:
        incidence: As `expected_concordance`.

    Raises:
        MetricError: no pair can be told apart, or malformed input.
    """
    best = total = 0.0
    for _, first, second in _pairs(incidence):
        best += float(np.maximum(first, second).sum())
        total += float((first + second).sum())
    return _share(best, total)


def expected_brier(probability: ArrayLike) -> float:
    """Brier score of true probabilities, in expectation: the mean of p (1 - p).

    Raises:
        MetricError: outside 0 to 1, or nothing.
    """
    p = np.asarray(probability, dtype=np.float64)
    if p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise MetricError("the probabilities are malformed", got=f"{p.size} values", expected="some, each 0 to 1")
    return float((p * (1 - p)).mean())


def _pairs(incidence: ArrayLike) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
    """Rows, and for each of them against every subject: P(row's event first), P(the other's first)."""
    cumulative = np.asarray(incidence, dtype=np.float64)
    if cumulative.ndim != 2 or not cumulative.size or not (np.diff(cumulative, axis=1, prepend=0, append=1) >= 0).all():
        raise MetricError(
            "the incidences are malformed", got=f"shape {cumulative.shape}",
            expected="[subjects, horizons], each row rising from 0 or more to 1 or less",
        )  # fmt: skip
    density, survival = np.diff(cumulative, axis=1, prepend=0), 1 - cumulative
    for top in range(0, len(cumulative), _ROWS):
        rows = np.arange(top, min(top + _ROWS, len(cumulative)))
        first, second = density[rows] @ survival.T, survival[rows] @ density.T
        first[np.arange(len(rows)), rows] = second[np.arange(len(rows)), rows] = 0
        yield rows, first, second


def _share(part: float, total: float) -> float:
    if total <= 0:
        raise MetricError("no pair of subjects can be told apart", got="no chance of an event", expected="some")
    return part / total
