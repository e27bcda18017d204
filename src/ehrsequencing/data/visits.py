"""Visits: which events of a subject belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.errors import ConfigError

_FORMS = "visit_id, day, gap:24h, visit_id+day or visit_id+gap:24h"
_MAX_HOURS = 1_000_000
_MICROSECONDS_PER_HOUR = 3_600_000_000
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class RowsWithoutVisitError(ValueError):
    """Rows that the rule of visits has no place for: `rows`, int64."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__(f"{len(rows)} rows without a visit_id")
        self.rows = rows


@dataclass(frozen=True)
class VisitRule:
    """How events become visits.

    Attributes:
        by_id: Events of one `visit_id` are a visit.
        by_day: The other events are a visit per calendar day.
        gap_hours: The other events are a visit as long as none comes more than these hours after the one before.
    """

    by_id: bool = True
    by_day: bool = True
    gap_hours: float | None = None

    @classmethod
    def parse(cls, text: str) -> VisitRule:
        """Read a rule: `visit_id`, `day`, `gap:24h`, or `visit_id+` and one of the others for events without one.

        Raises:
            ConfigError: another text, or hours beyond a million.

        >>> VisitRule.parse("visit_id+gap:24h")
        VisitRule(by_id=True, by_day=False, gap_hours=24.0)
        >>> str(VisitRule.parse("gap:36.0h"))
        'gap:36h'
        """
        found = re.fullmatch(r"(visit_id)?(\+)?(?:(day)|gap:(\d+(?:\.\d+)?)h)?", text)
        by_id, plus, by_day, hours = found.groups() if found else (None,) * 4
        rest = bool(by_day or hours)
        if not (by_id or rest) or bool(plus) != bool(by_id and rest) or float(hours or 0) > _MAX_HOURS:
            raise ConfigError("the rule of visits", got=text, expected=_FORMS)
        return cls(bool(by_id), bool(by_day), float(hours) if hours else None)

    def __str__(self) -> str:
        rest = "day" if self.by_day else "" if self.gap_hours is None else f"gap:{self.gap_hours:.12g}h"
        return "+".join(part for part in ("visit_id" if self.by_id else "", rest) if part)


_DEFAULT = VisitRule()


def number_visits(
    begins: np.ndarray, time: np.ndarray, visit_id: np.ndarray, stated: np.ndarray, rule: VisitRule = _DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """Visits of each subject by their first time, from 0; -1 for rows without a time.

    Visits that begin together are numbered by their `visit_id`, those without one after them. No visit is shared by
    subjects, whatever their identifiers.

    Args:
        begins: Bool [n], the first row of each subject.
        time: int64 [n], microseconds, ascending within a subject; `STATIC_TIME` without one.
        visit_id: int64 [n].
        stated: Bool [n], whether the row has a `visit_id`.
        rule: The rule.

    Returns:
        int32 [n], the visit of each row, and int64, the visits of each subject that has rows.

    Raises:
        RowsWithoutVisitError: the rule is `visit_id` alone and a row with a time has none.

    >>> day = 86_400_000_000
    >>> begins, stated = np.array([True, False, False, False]), np.array([False, False, False, True])
    >>> time = np.array([STATIC_TIME, 0, 5, 3 * day])
    >>> number_visits(begins, time, np.array([0, 0, 0, 7]), stated)
    (array([-1,  0,  0,  1], dtype=int32), array([2]))
    """
    if not len(time):
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    dated = time != STATIC_TIME
    if not rule.by_id:
        stated = np.zeros(len(time), dtype=bool)
    if rule.by_day:
        key = np.where(stated, visit_id, time // MICROSECONDS_PER_DAY)
    elif rule.gap_hours is not None:
        key = _first_times(begins, time, visit_id, stated, round(rule.gap_hours * _MICROSECONDS_PER_HOUR))
    else:
        if not (stated | ~dated).all():
            raise RowsWithoutVisitError(np.flatnonzero(dated & ~stated))
        key = visit_id
    change = begins.copy()
    change[1:] |= (key[1:] != key[:-1]) | (stated[1:] != stated[:-1]) | (dated[1:] != dated[:-1])
    start = np.flatnonzero(change)
    is_dated = dated[start]
    start_dated = start[is_dated]
    subject = np.searchsorted(np.flatnonzero(begins), start_dated, side="right") - 1
    number = _number_runs(subject, time[start_dated], key[start_dated], stated[start_dated])
    of_run = np.full(len(start), -1, dtype=np.int32)
    of_run[is_dated] = number
    visits = np.zeros(int(np.count_nonzero(begins)), dtype=np.int64)
    np.maximum.at(visits, subject, number + np.int64(1))
    return np.repeat(of_run, np.diff(np.r_[start, len(time)])), visits


def _first_times(
    begins: np.ndarray, time: np.ndarray, visit_id: np.ndarray, stated: np.ndarray, gap: int
) -> np.ndarray:
    """`visit_id` where it is stated, else the first time of the rows that follow each other within the gap."""
    rest = np.flatnonzero(~stated & (time != STATIC_TIME))
    key = visit_id.copy()
    if len(rest):
        subject = np.searchsorted(np.flatnonzero(begins), rest, side="right")
        opens = np.r_[True, (subject[1:] != subject[:-1]) | (np.diff(time[rest]) > gap)]
        first = rest[opens]
        key[rest] = np.repeat(time[first], np.diff(np.r_[np.flatnonzero(opens), len(rest)]))
    return key


def _number_runs(subject: np.ndarray, time: np.ndarray, key: np.ndarray, stated: np.ndarray) -> np.ndarray:
    """Visit of each run of rows, int32; runs are in order of subject and time."""
    first_run = _first_run(subject, key, stated)
    opens = np.flatnonzero(first_run == np.arange(len(first_run)))
    # Visits in order of their first row; those that begin together still in any order.
    owner, begin = subject[opens], time[opens]
    place = np.arange(len(opens), dtype=np.int32)
    together = np.r_[False, (owner[1:] == owner[:-1]) & (begin[1:] == begin[:-1])]
    tied = np.flatnonzero(together | np.r_[together[1:], False])
    if len(tied):
        visit = opens[tied]
        order = np.lexsort((key[visit], ~stated[visit], np.cumsum(~together)[tied]))
        place[tied[order]] = tied
    ordinal = np.empty(len(first_run), dtype=np.int32)
    ordinal[opens] = place
    first_of_subject = np.searchsorted(owner, subject)
    return (ordinal[first_run] - first_of_subject).astype(np.int32)


def _first_run(subject: np.ndarray, key: np.ndarray, stated: np.ndarray) -> np.ndarray:
    """The first run of the visit of each run, int64."""
    itself = np.arange(len(subject))
    mixed = key.view(np.uint64) * np.uint64(_ODD[0]) + subject.astype(np.uint64) * np.uint64(_ODD[1])
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_ODD[2]) + stated.astype(np.uint64)
    ordered = np.sort(mixed)
    if not (ordered[1:] == ordered[:-1]).any():
        return itself
    order = np.argsort(mixed)
    mixed = mixed[order]
    fresh = np.r_[True, mixed[1:] != mixed[:-1]]
    if not all((fresh[1:] | (column[order][1:] == column[order][:-1])).all() for column in (subject, key, stated)):
        # Two visits share a hash.
        order = np.lexsort((key, stated, subject))
        ordered_columns = [column[order] for column in (subject, key, stated)]
        fresh = np.r_[True, np.logical_or.reduce([column[1:] != column[:-1] for column in ordered_columns])]
    begins = np.flatnonzero(fresh)
    first = np.empty(len(subject), dtype=np.int64)
    first[order] = np.repeat(np.minimum.reduceat(order, begins), np.diff(np.r_[begins, len(order)]))
    return first
