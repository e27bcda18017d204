"""A token store as events, so that it is inspected as a dataset is, and what only a store can tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, KINDS, SPLITS, STATIC_TIME
from ehrsequencing.data.store import SplitStore, TokenStore
from ehrsequencing.data.vocabulary import NUM_SPECIAL, UNK

ROWS_AT_ONCE = 2_000_000
MAX_LENGTH = 512
"""The longest history that a model sees; of longer ones the latest events are kept."""


def store_frames(store: TokenStore) -> Iterator[tuple[str, pl.DataFrame]]:
    """The events of a store in pieces of whole subjects: name of the split, columns of `EVENT_SCHEMA` and `split`.

    Codes are those behind the tokens; what the vocabulary does not know is `[UNK]`.
    """
    vocabulary = store.vocabulary
    codes = pl.Series([*vocabulary.base_codes, vocabulary.tokens[UNK]], dtype=pl.String)
    units = pl.Series([*store.values.units, ""], dtype=pl.String)
    for name in SPLITS:
        split = store.split(name)
        for start, stop in _pieces(split):
            yield name, _events(split, start, stop, vocabulary.base_ids, codes, units)


def pieces(store: TokenStore) -> int:
    """How many frames `store_frames` yields."""
    return sum(len(_pieces(store.split(name))) for name in SPLITS)


def _pieces(split: SplitStore) -> list[tuple[int, int]]:
    """First and last subject (exclusive) of each piece; a subject of more rows is a piece of its own."""
    found, start = [], 0
    while start < len(split):
        reach = int(np.searchsorted(split.offsets, split.offsets[start] + ROWS_AT_ONCE, side="right")) - 1
        stop = max(reach, start + 1)
        found.append((start, stop))
        start = stop
    return found


def _events(
    split: SplitStore, start: int, stop: int, base_ids: np.ndarray, codes: pl.Series, units: pl.Series
) -> pl.DataFrame:
    rows = slice(int(split.offsets[start]), int(split.offsets[stop]))
    subjects = np.asarray(split.subject_id[start:stop])
    base = base_ids[split.code[rows]]
    time = pl.Series(split.time[rows]).set(pl.Series(split.time[rows] == STATIC_TIME), None)
    visit = pl.Series(split.visit[rows]).cast(pl.Int64)
    statistic = split.statistic[rows]
    events = pl.DataFrame(
        {
            "subject_id": np.repeat(subjects, np.diff(split.offsets[start : stop + 1])),
            "time": time.cast(pl.Datetime("us")),
            "code": codes.gather(np.where(base < 0, len(codes) - 1, base)),
            "numeric_value": pl.Series(split.value[rows]).fill_nan(None),
            "visit_id": visit.set(visit < 0, None),
            "unit": units.gather(np.where(statistic < 0, len(units) - 1, statistic)),
        }
    )
    born = pl.Series(split.birth_time[start:stop])
    died = pl.Series(split.death_time[start:stop])
    # Every subject has a row of birth, dated or not, so that those without any token are counted, too.
    births = pl.DataFrame({"subject_id": subjects, "time": born.set(born == STATIC_TIME, None)})
    deaths = pl.DataFrame({"subject_id": subjects, "time": died}).filter(pl.col("time") != STATIC_TIME)
    times = [
        frame.with_columns(pl.col("time").cast(pl.Datetime("us")), code=pl.lit(code))
        for frame, code in ((births, BIRTH_CODE), (deaths, DEATH_CODE))
    ]
    return pl.concat([events, *times], how="diagonal").with_columns(
        split=pl.lit(split.name), text_value=pl.lit(None, dtype=pl.String)
    )


def store_facts(store: TokenStore) -> dict[str, Any]:
    """Vocabulary, unknown tokens per kind and lengths of histories; plain values."""
    total, unknown = np.zeros(len(KINDS), dtype=np.int64), np.zeros(len(KINDS), dtype=np.int64)
    lengths = []
    for name in SPLITS:
        split = store.split(name)
        lengths.append(split.lengths)
        for start in range(0, len(split.code), ROWS_AT_ONCE):
            kind = split.kind[start : start + ROWS_AT_ONCE]
            total += np.bincount(kind, minlength=len(KINDS))
            lost = split.code[start : start + ROWS_AT_ONCE] == UNK
            unknown += np.bincount(kind[lost], minlength=len(KINDS))
    every = np.concatenate(lengths)
    return {
        "vocabulary": len(store.vocabulary),
        "codes": len(store.vocabulary.base_codes),
        "value_tokens": len(store.vocabulary) - NUM_SPECIAL - len(store.vocabulary.base_codes),
        "unused": int((~store.vocabulary.used[NUM_SPECIAL:]).sum()),
        "unknown": [
            {"kind": kind, "events": events, "unknown": lost}
            for kind, events, lost in zip(KINDS, total.tolist(), unknown.tolist(), strict=True)
            if events
        ],
        "max_length": MAX_LENGTH,
        "longer": int((every > MAX_LENGTH).sum()),
        "subjects_with_tokens": int((every > 0).sum()),
    }
