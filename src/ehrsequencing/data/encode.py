"""Second pass: rows of some subjects, gathered from the first pass, as columns of the token store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ehrsequencing.data.store import SplitWriter
from ehrsequencing.data.survey import SPOOLED, Pairs, Scanned, load_mark, save_mark, spooled, word_sum
from ehrsequencing.data.values import ValueStatistics, bins_of
from ehrsequencing.data.vocabulary import Vocabulary

BLOCK_ROWS = 1_000_000


@dataclass(frozen=True)
class Subjects:
    """Subjects of a split in the order of the store, and where their rows lie after the first pass; [s] each.

    Attributes:
        subject_id, rows, birth_time, death_time: int64.
        piece: int32, index of the piece.
        start: int64, the first row within the piece.
        visits: int64, of all these subjects in all.
        most_visits: Of one subject.
    """

    subject_id: np.ndarray
    rows: np.ndarray
    birth_time: np.ndarray
    death_time: np.ndarray
    piece: np.ndarray
    start: np.ndarray
    visits: int
    most_visits: int

    @classmethod
    def of(cls, pieces: Sequence[Scanned], split: int) -> Subjects:
        """The subjects of a split, by index into `SPLITS`."""
        chosen = [piece.split == split for piece in pieces]

        def gathered(name: str) -> np.ndarray:
            return np.concatenate([getattr(piece, name)[own] for piece, own in zip(pieces, chosen, strict=True)])

        starts = [(np.cumsum(piece.rows) - piece.rows)[own] for piece, own in zip(pieces, chosen, strict=True)]
        owner = np.repeat(np.arange(len(pieces), dtype=np.int32), [int(own.sum()) for own in chosen])
        subject_id, visits = gathered("subject_id"), gathered("visits")
        order = np.argsort(subject_id)
        return cls(
            subject_id[order], gathered("rows")[order], gathered("birth_time")[order], gathered("death_time")[order],
            owner[order], np.concatenate(starts)[order], int(visits.sum()), int(visits.max(initial=0)),
        )  # fmt: skip

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of subjects with about a million rows each; none of a split without rows."""
        before = np.cumsum(self.rows) - self.rows
        cuts = np.flatnonzero(np.r_[True, np.diff(before // BLOCK_ROWS) > 0]).tolist() if self.rows.any() else []
        return list(zip(cuts, [*cuts[1:], len(self.rows)], strict=True)) if cuts else []


@dataclass(frozen=True)
class EncodeTask:
    """Rows to write from row `first` of a split on: those of some subjects, `piece`, `start` and `rows` of each.

    `fit` is what `save_fit` wrote, `output` the file whose presence says that the rows are written.
    """

    pieces: list[Path]
    piece: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    first: int
    folder: Path
    dtypes: dict[str, str]
    fit: Path
    output: Path


def save_fit(path: Path, pairs: Pairs, kinds: Sequence[int], vocabulary: Vocabulary, values: ValueStatistics) -> None:
    """Write the tables that turn pairs and values into tokens; `kinds` of each pair."""
    codes = list(dict.fromkeys(pairs.codes))
    row = {code: index for index, code in enumerate(codes)}
    save_mark(
        path,
        code=np.array([row[code] for code in pairs.codes], dtype=np.int32),
        kind=np.array(kinds, dtype=np.uint8),
        statistic=values.rows(pairs.codes, pairs.units),
        tokens=vocabulary.lookup_table(codes, values.bins),
        edges=values.edges,
        pairs=np.concatenate(pairs.of_piece),
        bounds=np.cumsum([0, *map(len, pairs.of_piece)]),
    )


@lru_cache(maxsize=1)
def _load_fit(path: Path) -> dict[str, np.ndarray]:
    return load_mark(path) or {}


def encode(task: EncodeTask) -> None:
    """Write the rows of a task, then its file: `tokens` and `per_token` (how often each comes), `numbers`,
    `without_statistics`, `static`, and `written` to check the rows by.
    """
    fit = _load_fit(task.fit)
    columns = _gather(task, fit)
    time, visit, value, pair = (columns[name] for name in ("time", "visit", "value", "pair"))
    kind, code = fit["kind"][pair], fit["code"][pair]
    number = np.flatnonzero(~np.isnan(value))
    statistic = np.full(len(value), -1, dtype=np.int32)
    statistic[number] = fit["statistic"][pair[number]]
    _order_units(task.rows, time, visit, code, value, statistic)
    bins = np.zeros(len(value), dtype=np.int32)
    bins[number] = bins_of(fit["edges"], statistic[number], value[number])
    token = fit["tokens"][code, bins]
    found = {"code": token, "visit": visit, "time": time, "value": value, "statistic": statistic, "kind": kind}
    found = {name: np.ascontiguousarray(found[name], dtype=dtype) for name, dtype in task.dtypes.items()}
    SplitWriter(task.folder, task.dtypes).write_rows(task.first, found)
    per_token = np.bincount(token)
    tokens = np.flatnonzero(per_token)
    save_mark(
        task.output, tokens=tokens, per_token=per_token[tokens], numbers=np.array(len(number)),
        without_statistics=(statistic[number] < 0).sum(), static=(visit < 0).sum(),
        written=np.array([word_sum(array) for array in found.values()], dtype=np.uint64),
    )  # fmt: skip


def is_encoded(task: EncodeTask) -> bool:
    """Whether an earlier process finished the task and its rows are still what it wrote."""
    mark = load_mark(task.output)
    if mark is None:
        return False
    rows = SplitWriter(task.folder, task.dtypes).read_rows(task.first, task.first + int(task.rows.sum()))
    return bool(mark["written"].tolist() == [word_sum(array) for array in rows.values()])


def _order_units(
    rows: np.ndarray,
    time: np.ndarray,
    visit: np.ndarray,
    code: np.ndarray,
    value: np.ndarray,
    statistic: np.ndarray,
) -> None:
    """Bring equal numbers of a code at one time of one visit into the order of their statistics, in place.

    They differ in nothing but the unit, and the first pass has put them in the order of its names.
    """
    equal = np.flatnonzero((time[1:] == time[:-1]) & (value[1:] == value[:-1])) + 1
    equal = equal[(visit[equal] == visit[equal - 1]) & (code[equal] == code[equal - 1])]
    equal = equal[~np.isin(equal, np.cumsum(rows))]
    if not (statistic[equal] < statistic[equal - 1]).any():
        return
    group = np.cumsum(np.r_[True, np.diff(equal) > 1])
    for first, last in zip(
        equal[np.flatnonzero(np.r_[True, np.diff(group) > 0])] - 1,
        equal[np.flatnonzero(np.r_[np.diff(group) > 0, True])] + 1,
        strict=True,
    ):
        statistic[first:last] = np.sort(statistic[first:last])


def _gather(task: EncodeTask, fit: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of `SPOOLED` for the subjects of the task in their order, pairs numbered over all pieces."""
    lengths = task.rows
    first = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    found = np.unique(task.piece).tolist()
    columns = {name: np.empty(total, dtype=dtype) for name, dtype in SPOOLED.items()}
    for piece in found:
        own = np.flatnonzero(task.piece == piece)
        many = int(lengths[own].sum())
        # Subjects of a piece are in the order of the store, so that a range of them is a range of rows.
        low = int(task.start[own[0]])
        if len(found) == 1:
            to: slice | np.ndarray = slice(None)
        else:
            own_first = np.cumsum(lengths[own]) - lengths[own]
            to = np.arange(many) + np.repeat(first[own] - own_first, lengths[own])
        known = fit["pairs"][fit["bounds"][piece] : fit["bounds"][piece + 1]]
        for name in SPOOLED:
            part = spooled(task.pieces[piece], name, low, low + many)
            columns[name][to] = known[part] if name == "pair" else part
    return columns
