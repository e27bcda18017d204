"""Reference ranges that come with a result."""

from __future__ import annotations

import polars as pl


def range_flag(value: str, low: str, high: str) -> pl.Expr:
    """`low` below the range and `high` above it; null within, without a value, or where the range is none.

    Either end may be missing. Equal ends, which some writers use for "not stated", and ends that are swapped, are no
    range.

    >>> rows = [(1.0, 2.0, 6.0), (5.0, 2.0, 6.0), (9.0, 2.0, 6.0), (9.0, None, 6.0), (9.0, 0.0, 0.0)]
    >>> frame = pl.DataFrame(rows, schema=["value", "low", "high"], orient="row")
    >>> frame.select(range_flag("value", "low", "high")).to_series().to_list()
    ['low', None, 'high', 'high', None]
    """
    number, bottom, top = pl.col(value), pl.col(low), pl.col(high)
    flag = pl.when(number < bottom).then(pl.lit("low")).when(number > top).then(pl.lit("high"))
    return pl.when((bottom < top).fill_null(True)).then(flag)
