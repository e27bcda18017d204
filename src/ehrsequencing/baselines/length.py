"""How long a history is, and nothing of what it says: the baseline that every survival table has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples, history_bounds
from ehrsequencing.data.store import SplitStore
from ehrsequencing.errors import LabelError

LENGTH_NAMES = ("visits", "events", "span_days")


def length_features(split: SplitStore, examples: Examples) -> NDArray[np.float64]:
    """Number of visits, number of dated events, and days from the first of them to the prediction time.

    What the token store holds counts, up to the prediction time and whole (no model's truncation); static rows and
    birth do not. Without a dated event all three are 0.

    Args:
        split: The split.
        examples: n histories.

    Returns:
        Float64 [n, 3], columns `LENGTH_NAMES`.

    Raises:
        LabelError: no examples.
    """
    if not len(examples):
        raise LabelError("no examples to measure", got="0 rows", expected="at least one")
    _, stop = history_bounds(split, examples.index, examples.until)
    _, first = history_bounds(split, examples.index, np.full(len(examples), STATIC_TIME))
    found = np.zeros((len(examples), len(LENGTH_NAMES)))
    dated = np.flatnonzero(stop > first)
    first, stop = first[dated], stop[dated]
    # Visits are numbered in the order of their first rows, so that the highest number so far counts them.
    owner = np.repeat(np.arange(len(dated)), stop - first)
    begins = np.cumsum(stop - first) - (stop - first)
    rows = np.arange(len(owner)) + (first - begins)[owner]
    latest = np.maximum.reduceat(split.visit[rows], begins) if len(rows) else np.zeros(0)
    found[dated, 0] = latest.astype(np.int64) - split.visit[first] + 1
    found[dated, 1] = stop - first
    found[dated, 2] = (examples.until[dated] - split.time[first]) / MICROSECONDS_PER_DAY
    return found
