"""What a model may see: histories up to and including a prediction time, and their truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrsequencing.data.labels import NO_CATEGORY, VALUE_COLUMNS
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.store import SplitStore
from ehrsequencing.errors import DataError, LabelError

_ROWS_AT_ONCE = 2_000_000
_MORE_THAN_ANY_VISIT = 1 << 32
_NO_ROW = np.iinfo(np.int64).max


def history_bounds(split: SplitStore, indices: np.ndarray, until: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each subject with `time <= until`; static rows always belong.

    Args:
        split: The split.
        indices: int64 [n], positions of subjects in the split.
        until: int64 [n], microseconds since 1970, inclusive.

    Returns:
        Start and stop rows, int64 [n] each.

    Raises:
        DataError: a position outside the split.
    """
    indices, until = np.asarray(indices, dtype=np.int64), np.asarray(until, dtype=np.int64)
    if len(indices) and (indices.min() < 0 or indices.max() >= len(split)):
        raise DataError(
            f"subject positions outside split {split.name}",
            got=f"{indices.min()} to {indices.max()}",
            expected=f"0 to {len(split) - 1}",
        )
    start, low, high = split.offsets[indices], split.offsets[indices], split.offsets[indices + 1]
    # Bisection over the time-ordered rows of all subjects at once.
    active = np.flatnonzero(low < high)
    while len(active):
        middle = (low[active] + high[active]) // 2
        visible = split.time[middle] <= until[active]
        low[active[visible]] = middle[visible] + 1
        high[active[~visible]] = middle[~visible]
        active = active[low[active] < high[active]]
    return start, low


@dataclass(frozen=True)
class Windows:
    """Kept rows per example after truncation: `[start, start + static)` and `[recent, stop)`; int64 [n] each."""

    start: np.ndarray
    static: np.ndarray
    recent: np.ndarray
    stop: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Kept rows, int64 [n]."""
        return self.static + self.stop - self.recent

    def rows(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Kept rows of these examples, one after the other.

        Args:
            chosen: int64 [m], positions of examples.

        Returns:
            int64 [rows] each: position in `chosen`, place within the example, and row of the split.
        """
        lengths, static = self.lengths[chosen], self.static[chosen]
        example = np.repeat(np.arange(len(chosen)), lengths)
        place = np.arange(len(example)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        row = np.repeat(self.start[chosen], lengths) + place
        skipped = self.recent[chosen] - self.start[chosen] - static
        row += np.where(place >= static[example], skipped[example], 0)
        return example, place, row


def truncated(split: SplitStore, indices: np.ndarray, until: np.ndarray, max_rows: int | None) -> Windows:
    """Cut histories to `max_rows` rows: static rows stay, then the most recent rows.

    Static rows take at most half of the room, so that a subject with very many still shows events. Where the store's
    rule `long_histories` is "visits", the cut moves on to the first place in the room that divides no visit; where
    there is none, as in a visit longer than the room, the most recent rows stay.

    Args:
        split, indices, until: As in `history_bounds`.
        max_rows: Rows at most per example; None keeps all.
    """
    indices = np.asarray(indices, dtype=np.int64)
    start, stop = history_bounds(split, indices, until)
    _, dated = history_bounds(split, indices, np.full(len(start), STATIC_TIME, dtype=np.int64))
    static = dated - start
    if max_rows is None:
        return Windows(start, static, dated, stop)
    over = stop - start > max_rows
    static = np.where(over, np.minimum(static, max_rows // 2), static)
    recent = np.maximum(dated, stop - (max_rows - static))
    cut = np.flatnonzero((recent > dated) & (recent < stop))
    if split.rules.long_histories == "visits" and len(cut):
        recent[cut] = _between_visits(split, indices[cut], recent[cut], stop[cut])
    return Windows(start, static, recent, stop)


def leave_room(split: SplitStore, indices: np.ndarray, windows: Windows, max_tokens: int) -> tuple[Windows, np.ndarray]:
    """Shorten histories until there is room for a separator after each visit.

    Args:
        split: The split.
        indices: int64 [n], positions of subjects.
        windows: Their rows.
        max_tokens: Rows and separators at most per example.

    Returns:
        The shorter windows, cut by the same rule, and the number of separators of each, int64 [n].
    """
    recent = windows.recent.copy()
    ends = np.zeros(len(recent), dtype=np.int64)
    block = np.cumsum(windows.stop - windows.recent) // _ROWS_AT_ONCE
    for some in np.split(np.arange(len(recent)), np.flatnonzero(np.diff(block)) + 1):
        room = max_tokens - windows.static[some]
        over = some
        for _ in range(2):
            owner, first, row = _runs(recent[over], windows.stop[over] - recent[over])
            # Separators from each row on; the last row of a run is the end of a visit.
            closes = _closes_visit(split, owner, row)
            after = np.cumsum(closes[::-1])[::-1]
            bounds = np.append(first, len(row))
            left = after - np.append(after, 0)[bounds[1:]][owner]
            filled = np.flatnonzero(np.diff(bounds))
            ends[over] = 0
            ends[over[filled]] = left[first[filled]]
            fits = windows.stop[over][owner] - row + left <= room[np.searchsorted(some, over)][owner]
            begins = windows.stop[over].copy()
            found = np.minimum.reduceat(np.where(fits, row, _NO_ROW), first[filled]) if len(filled) else row[:0]
            begins[filled] = np.minimum(found, begins[filled])
            cut = begins > recent[over]
            if not cut.any():
                break
            over, begins = over[cut], begins[cut]
            inside = np.flatnonzero(begins < windows.stop[over])
            if split.rules.long_histories == "visits" and len(inside):
                mine = over[inside]
                begins[inside] = _between_visits(split, indices[mine], begins[inside], windows.stop[mine])
            recent[over] = begins
    return Windows(windows.start, windows.static, recent, windows.stop), ends


def _closes_visit(split: SplitStore, owner: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bool [rows]: whether a separator belongs behind the row, among rows of examples in order of time."""
    if split.rules.order_within_visit != "canonical":
        return np.append((split.visit[row[1:]] != split.visit[row[:-1]]) | (owner[1:] != owner[:-1]), True)[: len(row)]
    # Rows will be put in order of visits, which may overlap in time: the last row of each visit counts.
    closes = np.zeros(len(row), dtype=bool)
    _, last = np.unique((owner * _MORE_THAN_ANY_VISIT + split.visit[row])[::-1], return_index=True)
    closes[len(row) - 1 - last] = True
    return closes


def _between_visits(split: SplitStore, indices: np.ndarray, recent: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The first row from `recent` on that divides no visit of the rows before `stop`; else `recent`. int64 [n].

    Visits are numbered by their first rows, so a row divides none where all visits from it on are greater than all
    before it. What comes at `stop` or later, and may lie in the future, is not looked at.
    """
    result = recent.copy()
    order = np.argsort(indices, kind="stable")
    subjects = np.unique(indices)
    block = np.cumsum(split.lengths[subjects]) // _ROWS_AT_ONCE
    for chosen in np.split(subjects, np.flatnonzero(np.diff(block)) + 1):
        lengths = split.lengths[chosen]
        owner, _, row = _runs(split.offsets[chosen], lengths)
        greatest = np.maximum.accumulate(split.visit[row] + owner * _MORE_THAN_ANY_VISIT) - owner * _MORE_THAN_ANY_VISIT
        place = np.cumsum(lengths) - lengths - split.offsets[chosen]
        mine = order[slice(*np.searchsorted(indices[order], [chosen[0], chosen[-1] + 1]))]
        for some in np.array_split(mine, -(-int((stop - recent)[mine].sum()) // _ROWS_AT_ONCE)):
            owner, first, row = _runs(recent[some], stop[some] - recent[some])
            before = greatest[row - 1 + place[np.searchsorted(chosen, indices[some])][owner]]
            # Backwards, every example lies below the one before it, and the least visit starts anew.
            back = split.visit[row[::-1]] + owner[::-1] * _MORE_THAN_ANY_VISIT
            after = np.minimum.accumulate(back)[::-1] - owner * _MORE_THAN_ANY_VISIT
            found = np.minimum.reduceat(np.where(after > before, row, _NO_ROW), first)
            result[some] = np.where(found < _NO_ROW, found, recent[some])
    return result


def _runs(start: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows `start[i]` up to `start[i] + lengths[i]`, one run after the other: run of each, first of each run, row.

    >>> owner, first, row = _runs(np.array([7, 2]), np.array([2, 3]))
    >>> owner.tolist(), first.tolist(), row.tolist()
    ([0, 0, 1, 1, 1], [0, 2], [7, 8, 2, 3, 4])
    """
    first = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(start)), lengths)
    return owner, first, np.arange(len(owner)) + (start - first)[owner]


@dataclass(frozen=True)
class Examples:
    """What to look at: a subject's history until a time, with a target or without.

    Attributes:
        index: int64 [n], position of the subject in the split.
        until: int64 [n], microseconds since 1970, inclusive.
        target: float32 [n]; bool [n, categories] of a multi-label task; float64 [n, 2] of a survival task, days since
            the prediction time and cause, 0 where censored; or None.
        subject_id: int64 [n].
        categories: Names of the columns of a multi-label target; else empty.
        causes: Names of the causes 1, 2, ... of a survival task; else empty.
    """

    index: np.ndarray
    until: np.ndarray
    target: np.ndarray | None
    subject_id: np.ndarray
    categories: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def whole_histories(cls, split: SplitStore) -> Examples:
        """Every subject of the split once, until its last event (`STATIC_TIME` for subjects without dated events)."""
        last = np.full(len(split), STATIC_TIME, dtype=np.int64)
        filled = split.lengths > 0
        last[filled] = split.time[split.offsets[1:][filled] - 1]
        return cls(np.arange(len(split)), last, None, np.array(split.subject_id))

    @classmethod
    def from_labels(
        cls, split: SplitStore, labels: pl.DataFrame, categories: Sequence[str] = (), causes: Sequence[str] = ()
    ) -> Examples:
        """The labels whose subject is in the split, in their order.

        The target is the one value column that the labels fill: `boolean_value` as 0 or 1, `integer_value` or
        `float_value` as they are. With `categories` it is `categorical_value`: an example per subject and prediction
        time, True where a row names the category; rows that name another one are read as no positive.

        Args:
            split: The split.
            labels: Columns of `LABEL_SCHEMA`, as `read_labels` returns them.
            categories: Of a multi-label task, in the order of the target's columns.

        Raises:
            LabelError: no label in this split, a subject without any event until its prediction time, or labels that
                one number per row (or the categories) cannot express.
        """
        index = split.index_of(labels["subject_id"].to_numpy())
        here = index >= 0
        if not here.any():
            raise LabelError(
                f"no label belongs to split {split.name}",
                got=f"{len(labels)} labels of other subjects",
                remedy="make labels and token store from the same dataset",
            )
        rows, index = labels.filter(pl.Series(here)), index[here]
        if causes:
            target = rows.select(pl.col("float_value", "integer_value").cast(pl.Float64)).to_numpy()
        elif categories:
            target, first = _categories(rows, categories)
            rows, index = rows[first], index[first]
        else:
            target = _target(rows)
        until = rows["prediction_time"].cast(pl.Datetime("us")).to_physical().to_numpy()
        start, stop = history_bounds(split, index, until)
        if empty := int((start == stop).sum()):
            blank = int(np.flatnonzero(start == stop)[0])
            raise LabelError(
                f"labels of split {split.name} lie before the first event of their subject",
                got=f"{empty} of {len(rows)}, first subject {rows.item(blank, 'subject_id')}"
                f" at {rows.item(blank, 'prediction_time')}",
                expected="at least one event until the prediction time",
                remedy="drop these rows from the cohort",
            )
        return cls(index, until.astype(np.int64), target, split.subject_id[index], tuple(categories), tuple(causes))

    @classmethod
    def asked(cls, split: SplitStore, labels: pl.DataFrame) -> Examples:
        """The subjects and prediction times of labels, each once, without what came.

        Raises:
            LabelError: as `from_labels`.
        """
        rows = labels.select("subject_id", "prediction_time").unique(maintain_order=True)
        found = cls.from_labels(split, rows.with_columns(float_value=pl.lit(0.0)))
        return cls(found.index, found.until, None, found.subject_id)


def filled_columns(labels: pl.DataFrame) -> list[str]:
    """Value columns with at least one value."""
    return [
        column for column in VALUE_COLUMNS if column in labels.columns and labels[column].null_count() < len(labels)
    ]


def _target(rows: pl.DataFrame) -> np.ndarray:
    filled = filled_columns(rows)
    if len(filled) != 1 or filled == ["categorical_value"] or rows[filled[0]].null_count():
        raise LabelError(
            "labels do not give one number per row",
            got=f"values in {', '.join(filled) or 'no column'}",
            expected="boolean_value, integer_value or float_value in every row",
        )
    return rows[filled[0]].cast(pl.Float32).to_numpy()


def _categories(rows: pl.DataFrame, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Target, bool [examples, categories], and the first row of each example, int64 [examples]."""
    if filled_columns(rows) != ["categorical_value"] or rows["categorical_value"].null_count():
        raise LabelError(
            "labels do not give one category per row",
            got=f"values in {', '.join(filled_columns(rows)) or 'no column'}",
            expected="categorical_value in every row",
        )
    keyed = rows.select(
        pl.struct("subject_id", "prediction_time").rank("dense").cast(pl.Int64).alias("example") - 1,
        pl.col("categorical_value").alias("category"),
    ).with_row_index("row")
    both = keyed.filter(pl.len().over("example") > 1, pl.col("category") == NO_CATEGORY)
    if len(both):
        subject, time = rows[int(both["row"][0])].select("subject_id", "prediction_time").row(0)
        raise LabelError(
            f"labels say {NO_CATEGORY} beside a category",
            got=f"{len(both)} examples, first subject {subject} at {time}",
            expected=f"{NO_CATEGORY} alone, where no category is positive",
        )
    # Examples in the order in which the labels first name them.
    firsts = keyed.group_by("example").agg(pl.col("row").min()).sort("row").with_row_index("place")
    cells = keyed.join(firsts.select("example", "place"), on="example").join(
        pl.DataFrame({"category": list(categories), "column": np.arange(len(categories))}), on="category"
    )
    target = np.zeros((len(firsts), len(categories)), dtype=np.bool_)
    target[cells["place"].to_numpy(), cells["column"].to_numpy()] = True
    return target, firsts["row"].to_numpy().astype(np.int64)
