"""Calibration curves, and the score interval of a proportion."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from ehrsequencing.errors import MetricError
from ehrsequencing.evaluation.metrics import RankedScores, equal_mass_bins


def wilson(share: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion.

    Source: Wilson 1927, Journal of the American Statistical Association 22:209-212.

    >>> low, high = wilson(1.0, 5); round(low, 3), round(high, 3)
    (0.566, 1.0)
    """
    z = float(norm.ppf((1 + level) / 2))
    spread = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / spread
    half = z / spread * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding must not leave the share itself outside.
    return max(0.0, min(share, centre - float(half))), min(1.0, max(share, centre + float(half)))


def calibration_curve(
    y_true: ArrayLike, p: ArrayLike, *, bins: int = 10, level: float = 0.95
) -> list[dict[str, float]]:
    """Observed share of positives beside the mean probability, in bins of equal mass.

    Args:
        y_true: Bool [n].
        p: Float [n].
        bins: At most this many; rows of equal probability share a bin, and bins that this leaves empty are left out.
        level: Of the intervals, which count rows as independent, several of one subject too.

    Returns:
        Per bin `predicted`, `observed`, `low`, `high` (score interval of `observed`) and `n`, by rising probability.

    Raises:
        MetricError: no bins, or see `metrics.checked`.

    >>> [(row["predicted"], row["observed"], row["n"]) for row in calibration_curve([0, 1, 1], [0.2, 0.5, 0.5])]
    [(0.2, 0.0, 1), (0.5, 1.0, 2)]
    """
    if bins < 1:
        raise MetricError("a calibration curve needs at least one bin", got=bins)
    scores = RankedScores(y_true, p)
    mass = scores.by_group(np.ones((1, len(scores.y))))
    bin_of_group = equal_mass_bins(mass, bins)[0]
    n, predicted, positives = (
        np.bincount(bin_of_group, weights=scores.by_group(values), minlength=bins)
        for values in (np.ones(len(scores.y)), scores.p, scores.y)
    )
    curve = []
    # Ranks descend, so the last bin holds the lowest probabilities.
    for index in np.flatnonzero(n)[::-1].tolist():
        share = float(positives[index] / n[index])
        low, high = wilson(share, int(n[index]), level)
        curve.append(
            {
                "predicted": float(predicted[index] / n[index]),
                "observed": share,
                "low": low,
                "high": high,
                "n": int(n[index]),
            }
        )
    return curve
