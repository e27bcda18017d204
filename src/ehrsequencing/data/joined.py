"""Subjects of several splits as one split in memory, for judging a model on a dataset that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ehrsequencing.data.store import EVENT_COLUMNS, SplitStore, TokenStore


class JoinedSplit(SplitStore):
    """Some subjects of a store, whatever their split, in ascending order; their rows are copied into memory."""

    def __init__(self, store: TokenStore, splits: Sequence[str], subject_ids: np.ndarray) -> None:
        """Copy subjects.

        Args:
            store: The store.
            splits: Splits to look in; their names joined by "+" are the name of this one.
            subject_ids: int64 [n]; those that no split has are left out.
        """
        self.name = "+".join(splits)
        self.rules = store.split(splits[0]).rules
        wanted = np.unique(np.asarray(subject_ids, dtype=np.int64))
        parts: list[tuple[SplitStore, np.ndarray]] = []
        for name in splits:
            split = store.split(name)
            index = split.index_of(wanted)
            parts.append((split, index[index >= 0]))
        subjects = np.concatenate([split.subject_id[index] for split, index in parts])
        order = np.argsort(subjects, kind="stable")
        self.subject_id = subjects[order]
        self.birth_time = np.concatenate([split.birth_time[index] for split, index in parts])[order]
        self.death_time = np.concatenate([split.death_time[index] for split, index in parts])[order]
        lengths = np.concatenate([split.lengths[index] for split, index in parts])
        self.offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
        # Where each row of the parts goes: the first row of its subject here, plus its place within the subject.
        first = np.empty(len(order), dtype=np.int64)
        first[order] = self.offsets[:-1]
        own_first = np.cumsum(lengths) - lengths
        target = np.arange(int(lengths.sum())) + np.repeat(first - own_first, lengths)
        source = [_rows(split, index) for split, index in parts]
        for column in EVENT_COLUMNS:
            found = np.concatenate(
                [getattr(split, column)[rows] for (split, _), rows in zip(parts, source, strict=True)]
            )
            joined = np.empty_like(found)
            joined[target] = found
            setattr(self, column, joined)

    def __reduce__(self) -> Any:
        # A split on disk travels as its path; this one as what it holds.
        return _restore, (self.__dict__,)


def _restore(content: dict[str, Any]) -> JoinedSplit:
    joined = JoinedSplit.__new__(JoinedSplit)
    joined.__dict__.update(content)
    return joined


def _rows(split: SplitStore, index: np.ndarray) -> np.ndarray:
    lengths = split.lengths[index]
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(split.offsets[index] - before, lengths)
