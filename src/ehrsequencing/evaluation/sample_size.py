"""How wide an interval will be, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from ehrsequencing.errors import MetricError

ASSUMED_AUROC = 0.75
"""What the guidance assumes; the interval of a better model is narrower."""
_MOST = 10**9


def auroc_standard_error(auroc: float, positives: int, negatives: int) -> float:
    """Standard error of AUROC for independent rows, from the value alone.

    It takes scores that are spread exponentially, which is on the wide side: for normal ones of equal spread and an
    AUROC of 0.75 the truth is about 14 % less.

    Args:
        auroc: Expected value, 0 to 1.
        positives, negatives: Rows of each class.

    Raises:
        MetricError: a class without rows, or `auroc` outside 0 to 1.

    Source: Hanley & McNeil 1982, Radiology 143:29-36.

    >>> round(auroc_standard_error(0.75, 100, 900), 4)
    0.0291
    """
    if positives < 1 or negatives < 1:
        raise MetricError(
            "AUROC needs both classes",
            got=f"{positives} positives and {negatives} negatives",
            expected="1 or more each",
        )
    if not 0 <= auroc <= 1:
        raise MetricError("an AUROC is out of range", got=auroc, expected="0 to 1")
    two_positives, two_negatives = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc)
    variance += (positives - 1) * (two_positives - auroc**2) + (negatives - 1) * (two_negatives - auroc**2)
    return math.sqrt(max(0.0, variance) / (positives * negatives))


def expected_half_width(positives: int, negatives: int, *, auroc: float = ASSUMED_AUROC, level: float = 0.95) -> float:
    """Half the width that the interval of AUROC is expected to have.

    Several rows of one subject count as independent here, so the true interval is wider where there are many.

    Raises:
        MetricError: as `auroc_standard_error`; also `level` outside 0 to 1.

    >>> round(expected_half_width(100, 900), 3), round(expected_half_width(1000, 9000), 3)
    (0.057, 0.018)
    """
    if not 0 < level < 1:
        raise MetricError("the level of an interval is out of range", got=level, expected="between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2) * auroc_standard_error(auroc, positives, negatives)


def positives_needed(half_width: float, share: float, *, auroc: float = ASSUMED_AUROC, level: float = 0.95) -> int:
    """Positive rows with which the interval of AUROC is expected to be at most plus or minus `half_width`.

    Args:
        half_width: For example 0.02.
        share: Share of positives, which fixes the negatives that come with them.

    Raises:
        MetricError: `half_width` or `share` out of range, or more than a thousand million rows needed.

    >>> positives_needed(0.02, share=0.1)
    812
    """
    if not 0 < half_width < 1 or not 0 < share < 1:
        raise MetricError(
            "half width and share lie between 0 and 1", got=f"{half_width} and {share}", expected="between 0 and 1"
        )

    def wide(positives: int) -> bool:
        negatives = max(1, round(positives * (1 - share) / share))
        return expected_half_width(positives, negatives, auroc=auroc, level=level) > half_width

    high = 1
    while wide(high):
        high *= 2
        if high > _MOST:
            raise MetricError("no cohort is large enough", got=f"half width {half_width}", remedy="ask for a wider one")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wide(middle) else (low, middle)
    return high


def guidance(positives: int, negatives: int, *, split: str = "held-out", auroc: float = ASSUMED_AUROC) -> str:
    """One sentence on how precisely an AUROC will be known on so many rows.

    >>> print(guidance(74, 1150))
    held-out: 74 positives of 1,224 rows, so an AUROC of 0.75 will be known to about ±0.066 (95 %); \
±0.02 needs about 795 positives
    >>> print(guidance(0, 5))
    held-out: 0 positives of 5 rows: no AUROC can be computed
    """
    rows = positives + negatives
    head = f"{split}: {positives:,} positives of {rows:,} rows"
    if not positives or not negatives:
        return f"{head}: no AUROC can be computed"
    half = expected_half_width(positives, negatives, auroc=auroc)
    text = f"{head}, so an AUROC of {auroc:g} will be known to about ±{min(half, 0.5):.3f} (95 %)"
    if half > 0.02:
        text += f"; ±0.02 needs about {positives_needed(0.02, positives / rows, auroc=auroc):,} positives"
    return text


def split_guidance(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence per judged split on how precisely an AUROC will be known, from the counts of a labels' manifest.

    >>> split_guidance({"held_out": {"rows": 1224, "subjects": 310, "positives": 74}})[0][:37]
    'held-out: 74 positives of 1,224 rows,'
    """
    found = []
    for split, told in (("held_out", "held-out"), ("tuning", "tuning")):
        counts = splits.get(split, {})
        if "positives" in counts:
            found.append(guidance(counts["positives"], counts["rows"] - counts["positives"], split=told))
    return found
