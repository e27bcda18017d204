"""Visits: which events of a subject belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from ehrsequencing.errors import ConfigError, DataError

_FORMS = "visit_id, day, gap:24h, visit_id+day or visit_id+gap:24h"
_MAX_HOURS = 1_000_000
_MICROSECONDS_PER_HOUR = 3_600_000_000


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


def number_visits(rows: pl.DataFrame, rule: VisitRule = VisitRule()) -> pl.DataFrame:
    """Add `visit` (int32): visits of a subject by their first time, from 0; -1 for rows without a time.

    Visits that begin together are numbered by their `visit_id`, those without one after them. No visit is shared by
    subjects, whatever their identifiers.

    Args:
        rows: Columns `subject_id`, `visit_id` (Int64, may be null), `time` (Datetime us, may be null).
        rule: The rule.

    Raises:
        DataError: the rule is `visit_id` alone and a row with a time has none.

    >>> from datetime import datetime
    >>> times = [datetime(2020, 1, 2), None, datetime(2020, 1, 1), datetime(2020, 1, 1, 9)]
    >>> rows = pl.DataFrame({"subject_id": [1, 1, 1, 1], "visit_id": [7, None, None, None], "time": times})
    >>> number_visits(rows)["visit"].to_list()
    [1, -1, 0, 0]
    >>> number_visits(rows, VisitRule.parse("gap:20h"))["visit"].to_list()
    [0, -1, 0, 0]
    """
    dated = pl.col("time").is_not_null()
    own = pl.col("visit_id") if rule.by_id else pl.lit(None, dtype=pl.Int64)
    if rule.by_day:
        rows = rows.with_columns(start=pl.col("time").dt.date().to_physical().cast(pl.Int64))
    elif rule.gap_hours is not None:
        rows = rows.join(
            _starts(rows.filter(dated & own.is_null()), rule.gap_hours),
            on=["subject_id", "time"], how="left", maintain_order="left",
        )  # fmt: skip
    else:
        _refuse_rows_without_id(rows.filter(dated))
        rows = rows.with_columns(start=pl.lit(None, dtype=pl.Int64))
    key = ["subject_id", "without_id", "key"]
    rows = rows.with_columns(without_id=own.is_null(), key=pl.coalesce(own, "start"))
    visits = rows.filter(dated).group_by(key).agg(first=pl.col("time").min())
    visits = visits.sort("subject_id", "first", "without_id", "key")
    visits = visits.with_columns(visit=pl.int_range(pl.len(), dtype=pl.Int32).over("subject_id"))
    rows = rows.join(visits.drop("first"), on=key, how="left", maintain_order="left")
    return rows.with_columns(visit=pl.when(dated).then("visit").otherwise(pl.lit(-1, dtype=pl.Int32))).drop(
        "without_id", "key", "start"
    )


def _starts(rows: pl.DataFrame, gap_hours: float) -> pl.DataFrame:
    """Columns `subject_id`, `time` and `start`, the first time of the visit, of every distinct time."""
    times = rows.select("subject_id", "time").unique().sort("subject_id", "time")
    passed = pl.col("time").to_physical().diff().over("subject_id")
    begins = passed.is_null() | (passed > round(gap_hours * _MICROSECONDS_PER_HOUR))
    return times.with_columns(
        start=pl.when(begins).then(pl.col("time").to_physical()).forward_fill().over("subject_id")
    )


def _refuse_rows_without_id(rows: pl.DataFrame) -> None:
    missing = rows.filter(pl.col("visit_id").is_null())
    if len(missing):
        subject, time = missing.sort("subject_id", "time").select("subject_id", "time").row(0)
        raise DataError(
            "the rule of visits needs a visit_id in every event with a time",
            got=f"{len(missing)} events without one, first of subject {subject} at {time}",
            remedy="choose visit_id+day or visit_id+gap:24h",
        )
