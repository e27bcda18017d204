"""Whether the splits of a dataset are drawn alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

import polars as pl

from ehrsequencing.data.inspect_findings import MOST_DETAILS, Finding
from ehrsequencing.data.schema import SPLITS

SPLIT_SUBJECTS, SPLIT_SMD, SPLIT_DISTANCE, SPLIT_ALPHA = 20, 0.3, 0.1, 0.001
"""Least subjects, standardised difference, distance of distributions and level of the tests of `splits`."""


def splits(frames: Mapping[str, pl.DataFrame]) -> list[Finding]:
    """Splits without subjects, and splits that are drawn differently from train.

    A code differs by a standardised difference of its share of subjects of `SPLIT_SMD` or more (Austin 2009,
    doi:10.1080/03610910902859574); a number by a distance of Kolmogorov and Smirnov of `SPLIT_DISTANCE` beyond
    chance. Both are tested at `SPLIT_ALPHA`, divided by the number of codes or numbers.
    """
    subjects = frames["subjects"]
    sizes = {split: int((subjects["split"] == split).sum()) for split in SPLITS}
    found = []
    empty = [split for split, size in sizes.items() if not size]
    if empty:
        found.append(
            Finding("splits", "warning", f"no subject in {' and '.join(empty)}", len(empty), len(SPLITS), "splits",
                    "add subjects, or leave out splits and split folders: subjects are then split by hash")
        )  # fmt: skip
    differing = []
    lines: list[str] = []
    for split in SPLITS[1:]:
        if min(sizes["train"], sizes[split]) < SPLIT_SUBJECTS:
            continue
        strange = [*_numbers_apart(subjects, split), *_codes_apart(frames["codes"], sizes, split)]
        if strange:
            differing.append(split)
            lines += [f"{split}: {line}" for line in strange[: MOST_DETAILS // 2]]
            if len(strange) > MOST_DETAILS // 2:
                lines.append(f"{split}: {len(strange) - MOST_DETAILS // 2:,} more")
    if differing:
        found.append(
            Finding("splits", "warning", f"{' and '.join(differing)} drawn differently from train", len(differing),
                    len(SPLITS) - 1, "splits",
                    "split by subject at random, unless a temporal or external validation is meant",
                    details=tuple(lines))
        )  # fmt: skip
    return found


_NUMBERS = {
    "events": pl.col("events"),
    "visits": pl.col("visits"),
    "first date": pl.col("first"),
    "last date": pl.col("last"),
    "age at the last event": (pl.col("last") - pl.col("birth")).dt.total_days() / 365.25,
}


def _numbers_apart(subjects: pl.DataFrame, split: str) -> list[str]:
    lines = []
    for name, expression in _NUMBERS.items():
        both = subjects.filter(pl.col("split").is_in(["train", split])).select(
            "split", value=expression.to_physical().cast(pl.Float64)
        ).drop_nulls()  # fmt: skip
        a, b = int((both["split"] == "train").sum()), int((both["split"] == split).sum())
        if min(a, b) < SPLIT_SUBJECTS:
            continue
        here = both.group_by("value").agg(
            train=(pl.col("split") == "train").sum() / a, other=(pl.col("split") == split).sum() / b
        )
        shares = here.sort("value").select(apart=(pl.col("train").cum_sum() - pl.col("other").cum_sum()).abs())
        distance = float(shares["apart"].max())  # type: ignore[arg-type]
        chance = math.sqrt(-math.log(SPLIT_ALPHA / len(_NUMBERS) / 2) / 2 * (a + b) / (a * b))
        if distance >= SPLIT_DISTANCE + chance:
            middle = subjects.select(pl.col("split"), value=expression).group_by("split").agg(pl.col("value").median())
            shown = dict(middle.select("split", pl.col("value").cast(pl.String)).iter_rows())
            lines.append(
                f"{name}, median {_short(shown[split])} against {_short(shown['train'])} in train "
                f"(distance of the distributions {distance:.2f})"
            )
    return lines


def _short(value: str) -> str:
    """A median as text: days of dates, and numbers to one decimal."""
    head = value.split(" ")[0]
    try:
        return f"{float(head):,.1f}"
    except ValueError:
        return head


def _codes_apart(codes: pl.DataFrame, sizes: Mapping[str, int], split: str) -> list[str]:
    a, b = sizes["train"], sizes[split]
    wide = codes.filter(split="train").select("code", train="subjects").join(
        codes.filter(split=split).select("code", other="subjects"), on="code", how="full", coalesce=True
    ).with_columns(pl.col("train", "other").fill_null(0))  # fmt: skip
    p, q, pooled = pl.col("train") / a, pl.col("other") / b, (pl.col("train") + pl.col("other")) / (a + b)
    spread = ((p * (1 - p) + q * (1 - q)) / 2).sqrt()
    table = wide.with_columns(
        p=p, q=q, smd=(q - p) / spread.clip(1e-6), expected=pooled * min(a, b),
        z=(q - p).abs() / (pooled * (1 - pooled) * (1 / a + 1 / b)).sqrt().clip(1e-9),
    ).filter(pl.col("expected") >= 5)  # fmt: skip
    if table.is_empty():
        return []
    limit = _normal_quantile(1 - SPLIT_ALPHA / 2 / len(table))
    strange = table.filter((pl.col("smd").abs() >= SPLIT_SMD) & (pl.col("z") >= limit)).sort(
        pl.col("smd").abs(), "code", descending=[True, False]
    )
    return [
        f"{code} in {100 * other:.1f} % of subjects against {100 * train:.1f} % in train"
        for code, train, other in strange.select("code", "p", "q").iter_rows()
    ]


def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
