"""What a vocabulary does not know of a dataset, by the source's own codes."""

from __future__ import annotations

from typing import Any

import polars as pl

from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.vocabulary import Vocabulary

MOST_NAMED = 30


def unknown_codes(events: pl.DataFrame, vocabulary: Vocabulary) -> dict[str, Any]:
    """Events and distinct codes of a dataset that read as UNK under a vocabulary; all splits together.

    Args:
        events: Columns `code` (each once), `kind` and `events`, births and deaths left out.
        vocabulary: The vocabulary.

    Returns:
        `events`, `unknown_events`, `codes`, `unknown_codes`; `kinds`: the same four per kind that occurs; and
        `most_frequent`: the unknown codes with the most events, `{code, kind, events}`, at most `MOST_NAMED`.
    """
    known = pl.Series(vocabulary.base_codes, dtype=pl.String)
    table = events.with_columns(unknown=~pl.col("code").is_in(known.implode())).sort(
        ["events", "code"], descending=[True, False]
    )
    lost = table.filter("unknown").head(MOST_NAMED)
    by_kind = {
        kind: _totals(table.filter(kind=kind)) for kind in KINDS if (table["kind"] == kind).any()
    }  # fmt: skip
    return {**_totals(table), "kinds": by_kind, "most_frequent": lost.select("code", "kind", "events").to_dicts()}


def _totals(table: pl.DataFrame) -> dict[str, int]:
    unknown = table.filter("unknown")
    return {
        "events": int(table["events"].sum()),
        "unknown_events": int(unknown["events"].sum()),
        "codes": len(table),
        "unknown_codes": len(unknown),
    }
