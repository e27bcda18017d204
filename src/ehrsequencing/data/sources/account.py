"""What became of every row of a table: the account that an importer keeps and its manifest states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

COUNTS = ("rows", "events", "rows_with_events")
REASONS = ("rows_dropped", "rows_without_events", "dropped", "texts", "unreadable", "implausible", "contradictions")


def new_account() -> dict[str, Any]:
    """Counts of a table.

    `rows` = `rows_with_events` + `rows_dropped` (by reason: events were made of the row, none was kept) +
    `rows_without_events` (by reason: by rule, no event is made of the row). Further `events` kept and `dropped` (by
    reason); by column `texts`, which stand in columns of numbers and are kept as text, `unreadable` numbers and
    `implausible` times, which read as missing; `contradictions` (by name); and `columns_missing` of the optional ones.
    """
    return {**dict.fromkeys(COUNTS, 0), **{key: Counter() for key in REASONS}, "columns_missing": set()}


def read_account(written: Mapping[str, Any]) -> dict[str, Any]:
    """An account as `stated` wrote it.

    >>> read_account(stated(new_account())) == new_account()
    True
    """
    account = new_account()
    for key, value in written.items():
        account[key] = value if key in COUNTS else Counter(value) if key in REASONS else set(value)
    return account


def count_rows(account: dict[str, Any], rows: pl.Series, kept: pl.Series, dropped: pl.DataFrame, no_event: str) -> None:
    """Add rows and what became of them.

    Args:
        account: Changed.
        rows: Numbers of the rows read, each once.
        kept: Row of every event kept.
        dropped: `row` and `reason` of every event dropped.
        no_event: Reason of the rows in neither.
    """
    account["rows"] += len(rows)
    if rows.is_empty():
        return
    numbers = rows.to_numpy()
    first = numbers.min()
    seen = np.zeros(int(numbers.max() - first) + 1, dtype=np.bool_)
    seen[kept.to_numpy() - first] = True
    with_events = int(seen.sum())
    lost = dropped.filter(~pl.Series(seen[dropped["row"].to_numpy() - first])).unique("row", keep="first")
    account["rows_with_events"] += with_events
    account["rows_dropped"].update(dict(lost["reason"].value_counts().iter_rows()))
    if without := len(rows) - with_events - len(lost):
        account["rows_without_events"][no_event] += without


def stated(account: Mapping[str, Any]) -> dict[str, Any]:
    """A table's account as the manifest states it: sorted, and without what is empty."""
    entries: dict[str, Any] = {key: account[key] for key in COUNTS}
    entries |= {key: dict(sorted(account[key].items())) for key in REASONS if account[key]}
    return entries | ({"columns_missing": sorted(account["columns_missing"])} if account["columns_missing"] else {})
