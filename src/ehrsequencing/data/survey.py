"""First pass over a MEDS dataset: rows per subject, and what train says about codes and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.events import collect
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, SPLITS
from ehrsequencing.data.values import ValueStatistics
from ehrsequencing.errors import DataError

_MAX_DISTINCT = 16_384
_DROPPED_BITS = 11  # of the 23 in a float32's mantissa
_MERGE_ROWS = 1_000_000


def is_event() -> pl.Expr:
    """Rows that become tokens: birth and death are times of the subject, not events of a history."""
    return ~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE])


def number() -> pl.Expr:
    """The numeric value; NaN is missing, and both zeros are one."""
    return pl.col("numeric_value").fill_nan(None) + pl.lit(0.0, dtype=pl.Float32)


def refuse_infinite(events: pl.DataFrame, where: str) -> None:
    """DataError when a numeric value is infinite, naming the codes."""
    infinite = events.filter(pl.col("numeric_value").is_infinite())
    if len(infinite):
        raise DataError(
            f"infinite values in {where}",
            got=f"{len(infinite)}, of code {', '.join(infinite['code'].unique().sort()[:5])}",
            expected="numbers, or null where a value is missing",
        )


@dataclass(frozen=True)
class Survey:
    """What the first pass found.

    Attributes:
        lengths: Per split columns `subject_id` (ascending) and `rows`.
        histogram: Train only: columns `code`, `unit`, `value` (null: no number), `count`, sorted.
    """

    lengths: dict[str, pl.DataFrame]
    histogram: pl.DataFrame

    def statistics(self, *, value_bins: int, min_count: int, max_discrete_bins: int) -> ValueStatistics:
        """Value statistics of every (code, unit) that train has a number of."""
        numbers = self.histogram.drop_nulls("value")
        pairs = numbers.group_by("code", "unit", maintain_order=True).len()
        return ValueStatistics.fit(
            pairs["code"].to_list(),
            pairs["unit"].to_list(),
            np.concatenate([[0], pairs["len"].cum_sum().to_numpy()]).astype(np.int64),
            numbers["value"].to_numpy(),
            numbers["count"].to_numpy(),
            value_bins=value_bins,
            min_count=min_count,
            max_discrete_bins=max_discrete_bins,
        )

    def token_counts(self, values: ValueStatistics, codes: Sequence[str]) -> np.ndarray:
        """Train events per code and bin, int64 [codes, 1 + bins]; column 0 counts events without a bin."""
        position = pl.DataFrame({"code": codes}, schema={"code": pl.String}).with_row_index("owner")
        pairs = self.histogram.select("code", "unit").unique(maintain_order=True)
        rows = values.rows(pairs["code"].to_list(), pairs["unit"].to_list())
        pairs = pairs.with_columns(row=pl.Series(rows)).join(position, on="code", how="left")
        table = self.histogram.join(pairs, on=["code", "unit"], how="left")
        bins = values.bin(table["row"].to_numpy(), table["value"].fill_null(float("nan")).to_numpy())
        counts = np.zeros((len(codes), 1 + values.bins), dtype=np.int64)
        np.add.at(counts, (table["owner"].to_numpy(), bins), table["count"].to_numpy())
        return counts


def survey(dataset: MedsDataset, advance: Callable[[], None]) -> Survey:
    """Read every shard once; memory holds one shard and a histogram of the values of train.

    A code with more than 16,384 distinct values is counted to 12 significant bits (0.02 %), so that the histogram
    stays small whatever the size of the dataset.

    Args:
        dataset: The dataset.
        advance: Called after each shard.

    Raises:
        DataError: an infinite value in train.
    """
    lengths: dict[str, pl.DataFrame] = {}
    pending: list[pl.DataFrame] = []
    merged = pl.DataFrame(schema={"code": pl.String, "unit": pl.String, "value": pl.Float32, "count": pl.Int64})
    for split in SPLITS:
        parts = [pl.DataFrame(schema={"subject_id": pl.Int64, "rows": pl.Int64})]
        for path, frame in zip(dataset.shards(split), dataset.frames(split), strict=True):
            columns = ["subject_id", "code", "unit", "numeric_value"] if split == "train" else ["subject_id", "code"]
            events = collect(frame.select(columns), str(path))
            parts.append(events.group_by("subject_id").agg(rows=is_event().sum().cast(pl.Int64)))
            if split == "train":
                refuse_infinite(events, "train")
                pending.append(_histogram(events))
                if sum(map(len, pending)) > max(_MERGE_ROWS, len(merged)):
                    merged, pending = _merge([merged, *pending]), []
            advance()
        lengths[split] = pl.concat(parts).sort("subject_id")
    merged = _merge([merged, *pending])
    return Survey(lengths, merged.sort("code", "unit", "value"))


def _histogram(events: pl.DataFrame) -> pl.DataFrame:
    """Distinct values per code and unit with their counts."""
    keyed = events.filter(is_event()).select("code", pl.col("unit").fill_null(""), value=number())
    return keyed.group_by("code", "unit", "value").agg(count=pl.len().cast(pl.Int64))


def _merge(parts: list[pl.DataFrame]) -> pl.DataFrame:
    keys = ["code", "unit", "value"]
    merged = pl.concat(parts).group_by(keys).agg(pl.col("count").sum())
    crowded = pl.len().over("code", "unit") > _MAX_DISTINCT
    if not merged.select(crowded.any()).item():
        return merged
    # Cutting the last bits of a float32's mantissa rounds towards zero and keeps the order.
    bits = merged["value"].fill_null(0.0).to_numpy().view(np.int32) & ~((1 << _DROPPED_BITS) - 1)
    coarse = pl.Series("coarse", bits.view(np.float32))
    rounded = pl.when(crowded & pl.col("value").is_not_null()).then(coarse).otherwise("value")
    return merged.with_columns(value=rounded).group_by(keys).agg(pl.col("count").sum())
