"""First pass over a piece: its events in the order of the token store, with visits, births and deaths apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from ehrsequencing.data.dataset import name_some
from ehrsequencing.data.recode import Recoding
from ehrsequencing.data.schema import (
    BIRTH_CODE,
    DAYS_PER_YEAR,
    DEATH_CODE,
    KINDS,
    MICROSECONDS_PER_DAY,
    SPLITS,
    STATIC_TIME,
    kind_of_code,
)
from ehrsequencing.data.shards import Columns, Piece, read_piece
from ehrsequencing.data.visits import RowsWithoutVisitError, VisitRule, number_visits
from ehrsequencing.errors import DataError
from ehrsequencing.io import read_json

TRAIN = SPLITS.index("train")
_PART_ROWS = 250_000
_MICROSECONDS_PER_YEAR = DAYS_PER_YEAR * MICROSECONDS_PER_DAY


@dataclass(frozen=True)
class Rows:
    """Events in the order of the store, subjects by split and identifier.

    Attributes:
        subject_id: int64 [s]; split: uint8 [s]; rows: int64 [s]; visits: int64 [s].
        birth_time, death_time: int64 [s], `STATIC_TIME` where unknown.
        time: int64 [n], microseconds; `STATIC_TIME` for static rows.
        visit: int32 [n].
        value: float32 [n].
        pair: int32 [n], index into `codes` and `units`.
        codes, units: Names [p] of the pairs that occur; the unit is "" where there is none.
    """

    subject_id: np.ndarray
    split: np.ndarray
    rows: np.ndarray
    visits: np.ndarray
    birth_time: np.ndarray
    death_time: np.ndarray
    time: np.ndarray
    visit: np.ndarray
    value: np.ndarray
    pair: np.ndarray
    codes: list[str]
    units: list[str]


@dataclass(frozen=True)
class Reading:
    """How pieces are read.

    Attributes:
        kinds: JSON file of code -> index into `KINDS`, for the codes whose kind is not that of their system.
        recoding: File of `Recoding.save`; None where codes and units stay.
        visits: Which events are a visit.
        max_age_years: Events at greater ages are refused.
    """

    kinds: Path
    recoding: Path | None
    visits: VisitRule
    max_age_years: float


def read_rows(piece: Piece, how: Reading) -> Rows:
    """Read a piece and bring its events into order; births and deaths become times.

    Args:
        piece: What to read.
        how: How to read it.

    Raises:
        DataError: unreadable, an infinite value, events before birth or beyond `max_age_years`, two times of birth or
            death, or an event without the `visit_id` that the rule of visits needs.
    """
    found = read_piece(piece)
    if how.recoding is not None:
        found = Recoding.load(how.recoding).apply(found)
    subject_id, split, first = _subjects(piece, found.subject_id)
    if not _ascending(split, subject_id):
        found = found.take(np.lexsort((found.subject_id, piece.splits_of(found.subject_id))))
        subject_id, split, first = _subjects(piece, found.subject_id)
    birth, births = _one_time(BIRTH_CODE, found, subject_id, first)
    death, deaths = _one_time(DEATH_CODE, found, subject_id, first)
    events = np.ones(len(found.time), dtype=bool)
    events[births] = events[deaths] = False
    _refuse_infinite(piece, found, np.repeat(split == TRAIN, np.diff(np.r_[first, len(events)])))
    names = _Names.of(found, how.kinds)
    ends = np.r_[first[1:], len(events)]
    # Cut into parts that fit a processor's cache.
    cuts = np.unique(np.searchsorted(first, np.arange(0, len(events), _PART_ROWS)))
    cuts = cuts[cuts < len(first)]

    def ordered(low: int, high: int) -> tuple[np.ndarray, ...]:
        own = slice(int(first[low]), int(ends[high - 1]))
        return _ordered(
            piece, found.take(own), events[own], first[low:high] - own.start, subject_id[low:high], birth[low:high],
            names, how,
        )  # fmt: skip

    try:
        parts = [ordered(low, high) for low, high in pairwise([*cuts.tolist(), len(subject_id)])]
    except DataError:
        # Its message counts the whole piece.
        ordered(0, len(subject_id))
        raise
    rows, visits, time, visit, value, cell = (np.concatenate(column) for column in zip(*parts, strict=True))
    codes, units, pair = names.pairs(cell)
    return Rows(subject_id, split, rows, visits, birth, death, time, visit, value, pair, codes, units)


def _ordered(
    piece: Piece,
    found: Columns,
    events: np.ndarray,
    first: np.ndarray,
    subject_id: np.ndarray,
    birth: np.ndarray,
    names: _Names,
    how: Reading,
) -> tuple[np.ndarray, ...]:
    """Events of some subjects in order: rows and visits of each subject; time, visit, value and cell of each row."""
    rows = np.add.reduceat(events, first, dtype=np.int64)
    if not events.all():
        found = found.take(events)
    begins = np.zeros(len(found.time), dtype=bool)
    begins[(np.cumsum(rows) - rows)[rows > 0]] = True
    if not (begins[1:] | (found.time[1:] >= found.time[:-1])).all():
        found = found.take(np.lexsort((found.time, np.cumsum(begins))))
    _check_ages(piece, found, begins, subject_id, rows, birth, how.max_age_years)
    try:
        visit, counted = number_visits(begins, found.time, found.visit_id, found.stated, how.visits)
    except RowsWithoutVisitError as problem:
        owner = int(np.searchsorted(np.cumsum(rows), problem.rows[0], side="right"))
        raise DataError(
            "the rule of visits needs a visit_id in every event with a time",
            got=f"{len(problem.rows)} events without one, first of subject {subject_id[owner]}"
            f" at {np.datetime64(int(found.time[problem.rows[0]]), 'us').item()}",
            remedy="choose visit_id+day or visit_id+gap:24h",
        ) from None
    visits = np.zeros(len(subject_id), dtype=np.int64)
    visits[rows > 0] = counted
    value, cell = found.value, names.cells(found)
    order = _canonical(begins, found.time, visit, value, cell, len(names.units))
    if order is not None:
        visit, value, cell = visit[order], value[order], cell[order]
    return rows, visits, found.time, visit, value, cell


def _subjects(piece: Piece, subject: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Identifier, split and first row of each run of rows of one subject."""
    first = np.flatnonzero(np.r_[len(subject) > 0, subject[1:] != subject[:-1]])
    return subject[first], piece.splits_of(subject[first]), first


def _ascending(split: np.ndarray, ids: np.ndarray) -> bool:
    same = split[1:] == split[:-1]
    return bool(((split[1:] > split[:-1]) | (same & (ids[1:] > ids[:-1]))).all())


def _one_time(name: str, found: Columns, subject_id: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Time of each subject, int64, `STATIC_TIME` where no row of the code has one; and all rows of the code."""
    times = np.full(len(subject_id), STATIC_TIME, dtype=np.int64)
    if name not in found.codes:
        return times, np.zeros(0, dtype=np.int64)
    rows = np.flatnonzero(found.code == found.codes.index(name))
    dated = rows[found.time[rows] != STATIC_TIME]
    owner = np.searchsorted(first, dated, side="right") - 1
    times[owner] = found.time[dated]
    several = np.unique(owner[times[owner] != found.time[dated]])
    if len(several):
        raise DataError(
            f"{len(several)} subjects have several times of {name}",
            got=f"subject {name_some(np.sort(subject_id[several]).tolist())}", expected="one",
            remedy="keep one of them",
        )  # fmt: skip
    return times, rows


def _refuse_infinite(piece: Piece, found: Columns, in_train: np.ndarray) -> None:
    infinite = np.isinf(found.value)
    if not infinite.any():
        return
    # Of a shard with several splits, train is named first.
    where: object = "train" if (infinite & in_train).any() else piece.file
    here = infinite & in_train if where == "train" else infinite
    names = sorted({found.codes[index] for index in found.code[here].tolist()})
    raise DataError(
        f"infinite values in {where}",
        got=f"{int(here.sum())}, of code {', '.join(names[:5])}",
        expected="numbers, or null where a value is missing",
    )


def _check_ages(
    piece: Piece,
    found: Columns,
    begins: np.ndarray,
    subject_id: np.ndarray,
    rows: np.ndarray,
    birth: np.ndarray,
    max_age_years: float,
) -> None:
    """Refuse events before birth and at too great ages; times ascend within a subject, so its ends decide."""
    time = found.time
    opens = time != STATIC_TIME
    opens[1:] &= begins[1:] | (time[:-1] == STATIC_TIME)
    opens = np.flatnonzero(opens)
    ends = np.cumsum(rows)
    owner = np.searchsorted(ends, opens, side="right")
    opens, owner = opens[birth[owner] != STATIC_TIME], owner[birth[owner] != STATIC_TIME]
    early = owner[time[opens] < birth[owner]]
    late = owner[(time[ends[owner] - 1] - birth[owner]) / _MICROSECONDS_PER_YEAR > max_age_years]
    for subjects, wrong, what, expected, remedy in (
        (
            early, lambda age: age < 0, "lie before birth", "ages of 0 and more",
            "correct MEDS_BIRTH or the event times",
        ),
        (
            late, lambda age: age > max_age_years, f"lie beyond an age of {max_age_years:g} years",
            f"ages up to {max_age_years:g}", "correct MEDS_BIRTH, or pass a greater max_age_years",
        ),
    ):  # fmt: skip
        if not len(subjects):
            continue
        count = 0
        shown: list[str] = []
        for index in subjects[np.argsort(subject_id[subjects])].tolist():
            own = np.arange(ends[index] - rows[index], ends[index])
            own = own[time[own] != STATIC_TIME]
            age = (time[own] - birth[index]) / _MICROSECONDS_PER_YEAR
            bad = wrong(age)
            count += int(bad.sum())
            for row, years in zip(own[bad][: 3 - len(shown)].tolist(), age[bad].tolist(), strict=False):
                at = np.datetime64(int(time[row]), "us").item()
                shown.append(f"subject {subject_id[index]}: {found.codes[found.code[row]]} at {at} (age {years:.2f})")
        raise DataError(
            f"{count} events in {piece.file} {what}",
            got=f"{len(subjects)} subjects, such as {', '.join(shown)}",
            expected=expected,
            remedy=remedy,
        )


@lru_cache(maxsize=1)
def _kinds(file: Path) -> dict[str, int]:
    return dict(read_json(file))


@dataclass(frozen=True)
class _Names:
    """Codes by kind, then name, and units by name. A cell is the place of a code times all units, plus that of a unit.

    Attributes:
        codes, units: Names in order.
        of_code, of_unit: int64, what each index of the piece adds to a cell.
    """

    codes: list[str]
    units: list[str]
    of_code: np.ndarray
    of_unit: np.ndarray

    @classmethod
    def of(cls, found: Columns, kinds: Path) -> _Names:
        stated = _kinds(kinds)
        for code in found.codes:
            if code not in stated:
                stated[code] = KINDS.index(kind_of_code(code))
        codes = sorted(range(len(found.codes)), key=lambda index: (stated[found.codes[index]], found.codes[index]))
        units = sorted(range(len(found.units)), key=found.units.__getitem__)
        return cls(
            [found.codes[index] for index in codes], [found.units[index] for index in units],
            _inverse(codes, len(units)), _inverse(units, 1),
        )  # fmt: skip

    def cells(self, found: Columns) -> np.ndarray:
        """Cell of each row, int64."""
        return np.asarray(self.of_code[found.code] + self.of_unit[found.unit])

    def pairs(self, cell: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
        """Codes and units of the cells that occur, in order, and which of them each row has, int32."""
        cells = len(self.codes) * len(self.units)
        if cells <= max(4 * len(cell), 1 << 20):
            occurs = np.zeros(cells, dtype=bool)
            occurs[cell] = True
            distinct = np.flatnonzero(occurs)
            pair = (np.cumsum(occurs, dtype=np.int32) - np.int32(1))[cell]
        else:
            distinct, inverse = np.unique(cell, return_inverse=True)
            pair = inverse.astype(np.int32)
        code, unit = np.divmod(distinct, len(self.units))
        return [self.codes[index] for index in code.tolist()], [self.units[index] for index in unit.tolist()], pair


def _inverse(order: list[int], step: int) -> np.ndarray:
    """Place of each index in an order, times `step`; int64."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) * step
    return place


def _canonical(
    begins: np.ndarray, time: np.ndarray, visit: np.ndarray, value: np.ndarray, cell: np.ndarray, units: int
) -> np.ndarray | None:
    """Order of the rows at one time: by visit, code, value (missing first) and unit; None where no rows share one."""
    many = len(time)
    if many < 2:
        return None
    tied = ~begins
    tied[1:] &= time[1:] == time[:-1]
    # Rows that share subject and time with a neighbour.
    crowd = np.flatnonzero(tied | np.r_[tied[1:], False])
    if not len(crowd):
        return None
    group = np.cumsum(~tied[crowd], dtype=np.int64)
    own_visit, own_rank = visit[crowd].astype(np.int64) + 1, cell[crowd] // units
    widths = [int(part.max()) + 1 for part in (group, own_visit, own_rank)]
    if np.prod([float(width) for width in widths]) < 2.0**63:
        key = (group * widths[1] + own_visit) * widths[2] + own_rank
        inner = np.argsort(key, kind="stable") if (key[1:] < key[:-1]).any() else np.arange(len(key))
    else:
        inner = np.lexsort((own_rank, own_visit, group))
        parts = [part[inner] for part in (group, own_visit, own_rank)]
        key = np.empty(len(inner), dtype=np.int64)
        key[inner] = np.cumsum(np.r_[False, np.logical_or.reduce([part[1:] != part[:-1] for part in parts])])
    key = key[inner]
    same = np.r_[False, key[1:] == key[:-1]]
    repeated = np.flatnonzero(same | np.r_[same[1:], False])
    if len(repeated):
        rows = crowd[inner[repeated]]
        by_value = value_order(value[rows])
        inner[repeated] = inner[repeated][np.lexsort((cell[rows], by_value, key[repeated]))]
    order = np.arange(many)
    order[crowd] = crowd[inner]
    return order


def value_order(value: np.ndarray) -> np.ndarray:
    """Integers that order like float32 numbers, missing ones before all; int64.

    >>> value_order(np.float32([2, -1, np.nan, 0.5])).argsort().tolist()
    [2, 1, 3, 0]
    """
    bits = value.view(np.int32).astype(np.int64)
    return np.where(np.isnan(value), -(2**32), bits ^ ((bits >> 31) & 0x7FFFFFFF))
