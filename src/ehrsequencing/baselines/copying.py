"""Copy-history: a category is as likely as it was in train for subjects with the same past of that category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.sequences import Examples, truncated
from ehrsequencing.data.store import SplitStore
from ehrsequencing.data.vocabulary import Vocabulary

COUNT_EDGES = (1, 2, 3, 5, 10)
DAY_EDGES = (30.0, 90.0, 180.0, 365.0)
PRIOR_ROWS = 20.0
"""Rows of the pooled rate that a category's own rate is shrunk with."""
COPY_SETTINGS = ("seen", "frequency", "recency", "frequency and recency")
WHOLE_CODE_SYSTEMS = ("SNOMED", "RXNORM", "LOINC")
"""Systems whose identifiers are no paths: a pattern means the whole code."""


@dataclass(frozen=True)
class Past:
    """What a history says of each category.

    Attributes:
        count: uint16 [n, categories]; occurrences, at most 65,535.
        days: float32 [n, categories]; days since the last one, infinite where there is none or it has no date.
    """

    count: NDArray[np.uint16]
    days: NDArray[np.float32]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Bool [n, categories]; whether the category occurs in the history."""
        return self.count > 0


def columns_of_codes(
    vocabulary: Vocabulary, categories: Sequence[str], definitions: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[int, int]]:
    """Pairs (base code, category): which code of the store is a case of which category.

    Args:
        vocabulary: Of the store.
        categories: Codes, or names that `definitions` explains.
        definitions: Patterns per category: prefixes of codes, whole codes in `WHOLE_CODE_SYSTEMS`. A category without
            patterns is the code of that name.
    """
    definitions = definitions or {}
    pairs = []
    index = {code: position for position, code in enumerate(vocabulary.base_codes)}
    for column, category in enumerate(categories):
        patterns = definitions.get(category)
        if patterns is None:
            pairs += [(index[category], column)] if category in index else []
        else:
            pairs += [(i, column) for code, i in index.items() if any(_fits(code, pattern) for pattern in patterns)]
    return pairs


def _fits(code: str, pattern: str) -> bool:
    if pattern.partition("//")[0] in WHOLE_CODE_SYSTEMS:
        return code == pattern or code.startswith(pattern + "//")
    return code.startswith(pattern)


def past_of(
    split: SplitStore,
    examples: Examples,
    vocabulary: Vocabulary,
    pairs: Sequence[tuple[int, int]],
    *,
    max_rows: int | None = None,
) -> Past:
    """Occurrences of each category in the histories, cut as a model's are.

    Args:
        pairs: As `columns_of_codes` gives them.
        max_rows: As in `CountFeatures.fit`.
    """
    shape = (len(examples), len(examples.categories))
    count, last = np.zeros(shape, dtype=np.int64), np.full(shape, STATIC_TIME, dtype=np.int64)
    base = np.array([pair[0] for pair in pairs], dtype=np.int64)
    column = np.array([pair[1] for pair in pairs], dtype=np.int64)
    order = np.argsort(base, kind="stable")
    base, column = base[order], column[order]
    first = np.searchsorted(base, np.arange(len(vocabulary.base_codes) + 1))
    windows = truncated(split, examples.index, examples.until, max_rows)
    for start in range(0, len(examples), 4096):
        chosen = np.arange(start, min(start + 4096, len(examples)))
        example, _, row = windows.rows(chosen)
        code = vocabulary.base_ids[split.code[row]].astype(np.int64)
        known = code >= 0
        example, row, code = chosen[example[known]], row[known], code[known]
        # A code may be a case of several categories.
        cases = first[code + 1] - first[code]
        place = np.repeat(first[code] - np.cumsum(cases) + cases, cases) + np.arange(cases.sum())
        cell = (np.repeat(example, cases), column[place])
        np.add.at(count, cell, 1)
        np.maximum.at(last, cell, np.repeat(split.time[row], cases))
    days = np.where(
        last == STATIC_TIME, np.inf, (examples.until[:, None] - last.astype(np.float64)) / MICROSECONDS_PER_DAY
    )
    return Past(np.minimum(count, np.iinfo(np.uint16).max).astype(np.uint16), days.astype(np.float32))


@dataclass(frozen=True)
class CopyHistory:
    """Rates by category and past. Made by `fit`.

    Attributes:
        setting: One of `COPY_SETTINGS`: what of the past counts.
        rates: float [categories, bins].
    """

    setting: str
    rates: NDArray[np.float64]

    @classmethod
    def fit(cls, setting: str, past: Past, y: NDArray[np.bool_]) -> CopyHistory:
        """Rates in train, each shrunk to that of all categories with the same past.

        Args:
            y: Bool [n, categories].
        """
        categories = y.shape[1]
        bins, size = _bins(setting, past)
        cell = (bins + size * np.arange(categories)).ravel()
        n = np.bincount(cell, minlength=categories * size).reshape(categories, size)
        positives = np.bincount(cell, weights=y.ravel(), minlength=categories * size).reshape(categories, size)
        pooled = (positives.sum(0) + 0.5) / (n.sum(0) + 1)
        # Never seen: rare and frequent categories have little in common, so each is shrunk to its own share.
        prior = np.tile(pooled, (categories, 1))
        prior[:, 0] = (y.sum(0) + 0.5) / (len(y) + 1)
        return cls(setting, (positives + PRIOR_ROWS * prior) / (n + PRIOR_ROWS))

    def predict(self, past: Past) -> NDArray[np.float32]:
        """Probabilities, float32 [n, categories]."""
        bins, _ = _bins(self.setting, past)
        return self.rates[np.arange(len(self.rates)), bins].astype(np.float32)


def _bins(setting: str, past: Past) -> tuple[NDArray[np.int64], int]:
    """Bin of each cell, 0 where the category was never seen, and the number of bins."""
    seen = past.seen
    frequency = np.searchsorted(COUNT_EDGES, past.count, side="right")
    recency = np.where(seen, 1 + np.searchsorted(DAY_EDGES, past.days), 0)
    if setting == "seen":
        return seen.astype(np.int64), 2
    if setting == "frequency":
        return frequency, len(COUNT_EDGES) + 1
    if setting == "recency":
        return recency, len(DAY_EDGES) + 2
    return np.where(seen, 1 + (frequency - 1) * (len(DAY_EDGES) + 1) + recency - 1, 0), 1 + len(COUNT_EDGES) * (
        len(DAY_EDGES) + 1
    )
