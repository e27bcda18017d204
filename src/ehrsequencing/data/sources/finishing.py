"""Last changes to a shard of spooled events, which holds all events of its subjects; pure functions of frames."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ehrsequencing.data.sources.spool import DATE_ONLY, MIDNIGHT


def end_days(events: pl.DataFrame, timed: Sequence[int]) -> pl.DataFrame:
    """Stamp events known by date alone at the last second of their day.

    Args:
        events: Columns `time`, `clock`, `table`.
        timed: Tables in which a time of day was found; there, midnight is a time. Where no table has one, all events
            of a day carry its midnight and stay there.
    """
    if not timed:
        return events
    by_day = (pl.col("clock") == DATE_ONLY) | ((pl.col("clock") == MIDNIGHT) & ~pl.col("table").is_in(list(timed)))
    end = pl.col("time") + pl.duration(days=1) - pl.duration(seconds=1)
    return events.with_columns(time=pl.when(by_day).then(end).otherwise("time"))


def known_visits(events: pl.DataFrame, visits: int) -> tuple[pl.DataFrame, int]:
    """Take `visit_id` from events whose subject has no such visit in table `visits`; tell how many they are."""
    known = events.filter(pl.col("table") == visits).select("subject_id", "visit_id", known=True).unique()
    events = events.join(known, on=["subject_id", "visit_id"], how="left", maintain_order="left")
    unknown = pl.col("visit_id").is_not_null() & pl.col("known").is_null()
    count = events.select(unknown.sum()).item()
    return events.with_columns(visit_id=pl.when(pl.col("known")).then("visit_id")).drop("known"), count


def first_only(events: pl.DataFrame, code: str) -> tuple[pl.DataFrame, int]:
    """Keep each subject's earliest event of a code that may occur once; tell how many further ones there were."""
    found = events.with_row_index("place").filter(pl.col("code") == code)
    first = found.sort("time", maintain_order=True).unique("subject_id", keep="first")["place"]
    further = found["place"].filter(~found["place"].is_in(first.implode()))
    return events.with_row_index("place").filter(~pl.col("place").is_in(further.implode())).drop("place"), len(further)
