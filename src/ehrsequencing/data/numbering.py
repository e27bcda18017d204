"""Numbers of visits for rows in time order, in whole-array steps."""

from __future__ import annotations

import numpy as np

from ehrsequencing.data.schema import MICROSECONDS_PER_DAY, STATIC_TIME

_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def number_visits(
    begins: np.ndarray, time: np.ndarray, visit_id: np.ndarray, stated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Visits of each subject by their first time, from 0; -1 for rows without a time.

    A visit is the rows of one `visit_id`, or of one calendar day where there is none. Visits that begin together are
    numbered by their `visit_id`, days after them.

    Args:
        begins: Bool [n], the first row of each subject.
        time: int64 [n], ascending within a subject; `STATIC_TIME` without one.
        visit_id: int64 [n].
        stated: Bool [n], whether the row has a `visit_id`.

    Returns:
        int32 [n], the visit of each row, and int64, the visits of each subject that has rows.

    >>> day = 86_400_000_000
    >>> begins, stated = np.array([True, False, False, False]), np.array([False, False, False, True])
    >>> time = np.array([STATIC_TIME, 0, 5, 3 * day])
    >>> number_visits(begins, time, np.array([0, 0, 0, 7]), stated)
    (array([-1,  0,  0,  1], dtype=int32), array([2]))
    """
    if not len(time):
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    key = np.where(stated, visit_id, time // MICROSECONDS_PER_DAY)
    dated = time != STATIC_TIME
    change = begins.copy()
    change[1:] |= (key[1:] != key[:-1]) | (stated[1:] != stated[:-1]) | (dated[1:] != dated[:-1])
    start = np.flatnonzero(change)
    is_dated = dated[start]
    start_dated = start[is_dated]
    subject = np.cumsum(begins, dtype=np.int32)[start_dated] - 1
    number = _number_runs(subject, time[start_dated], key[start_dated], stated[start_dated])
    of_run = np.full(len(start), -1, dtype=np.int32)
    of_run[is_dated] = number
    visits = np.zeros(int(np.count_nonzero(begins)), dtype=np.int64)
    np.maximum.at(visits, subject, number + np.int64(1))
    return np.repeat(of_run, np.diff(np.r_[start, len(time)])), visits


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
