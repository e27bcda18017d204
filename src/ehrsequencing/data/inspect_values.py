"""Values of an inspection: a table of percentiles per code and unit, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.inspect_findings import Faults, Finding, few
from ehrsequencing.data.inspect_tallies import some

GRID = (0, 1, 5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 95, 99, 100)
"""Percentiles of the table."""
UNIT_FACTOR, UNIT_SHARE, UNIT_VALUES = 1.8, 0.01, 20
"""Units disagree where all quartiles differ by the factor; a unit counts with this share and number of values."""
CONSTANT_VALUES = 20
MG_PER_DL = {"mmol/l": 10.0, "umol/l": 10_000.0}
MOLAR_MASS = {
    "creatinine": 113.12, "glucose": 180.16, "cholesterol": 386.65, "bilirubin": 584.66, "calcium": 40.078,
    "urea nitrogen": 28.01, "uric acid": 168.11, "magnesium": 24.305, "phosphorus": 30.974, "triglycerides": 885.4,
}  # fmt: skip
"""Grams per mole: 1 mg/dL of a substance of molar mass M is 10 / M mmol/L. Urea is reported as its two nitrogens."""
FACTORS = {
    ("lb", "kg"): 1 / 2.20462, ("in", "cm"): 2.54, ("g/dl", "g/l"): 10.0, ("mmhg", "kpa"): 1 / 7.50062,
    ("oz", "kg"): 0.0283495, ("mg/dl", "mg/l"): 10.0, ("mg/dl", "g/l"): 0.01, ("mg/dl", "g/dl"): 0.001,
    ("g", "kg"): 0.001, ("g", "mg"): 1000.0, ("mg", "ug"): 1000.0, ("m", "cm"): 100.0, ("%", "1"): 0.01,
}  # fmt: skip
_NEAR = 0.15


def value_table(histogram: pl.DataFrame) -> pl.DataFrame:
    """Percentiles of every code and unit.

    Args:
        histogram: Columns `code`, `unit`, `value`, `count`, `subject`, `cut`, sorted by the first three.

    Returns:
        Columns `code`, `unit`, `n`, `distinct`, `mean`, `subject`, `estimated` and `p0` to `p100` (`GRID`), each
        a value that occurred; most frequent first.

    >>> rows = {"code": ["A", "A"], "unit": ["", ""], "value": [1.0, 3.0], "count": [3, 1], "subject": [7, 8]}
    >>> value_table(pl.DataFrame(rows).with_columns(cut=0)).select("n", "distinct", "mean", "p50", "p100").row(0)
    (4, 2, 1.5, 1.0, 3.0)
    """
    pairs = histogram.group_by("code", "unit", maintain_order=True).agg(
        n=pl.col("count").sum(), distinct=pl.len().cast(pl.Int64),
        mean=(pl.col("value").cast(pl.Float64) * pl.col("count")).sum() / pl.col("count").sum(),
        subject=pl.col("subject").min(), estimated=(pl.col("cut") > 0).any(),
    )  # fmt: skip
    upto = np.cumsum(histogram["count"].to_numpy())
    n = pairs["n"].to_numpy()
    before = np.cumsum(n) - n
    value = histogram["value"].to_numpy()
    for percent in GRID:
        place = before + np.maximum(np.ceil(n * (percent / 100)), 1).astype(np.int64)
        column = value[np.searchsorted(upto, place, side="left")] if len(value) else value
        pairs = pairs.with_columns(pl.Series(f"p{percent}", column).cast(pl.Float64))
    return pairs.sort(["n", "code", "unit"], descending=[True, False, False])


def values(frames: Mapping[str, pl.DataFrame], pairs: pl.DataFrame, kinds: Mapping[str, str]) -> list[Finding]:
    """Numbers as text, infinite and constant values, and units of one code that disagree.

    Args:
        frames: Totals of `tally`.
        pairs: From `inspect.value_table`: `code`, `unit`, `n`, `distinct`, `subject` and percentiles `p5` ... `p95`.
        kinds: Kind of each code.
    """
    faults, texts = Faults(frames), frames["texts"].sort("events", descending=True)
    found = []
    if len(texts):
        lines = [
            f"{code}: {n:,} events, such as {text.strip()!r}"
            for code, n, text in texts.select("code", "events", "text").iter_rows()
        ]
        found.append(
            Finding("text", "warning", "numbers in text_value without a numeric_value", faults.events("text"), 0,
                    "events", "write them to numeric_value; as text no model sees them",
                    faults.examples("text"), few(lines))
        )  # fmt: skip
    if faults.events("infinite"):
        found.append(
            Finding("values", "error", "infinite values", faults.events("infinite"), 0, "events",
                    "correct them, or make them null where they stand for missing; prepare refuses them",
                    faults.examples("infinite"))
        )  # fmt: skip
    constant = pairs.filter((pl.col("n") >= CONSTANT_VALUES) & (pl.col("distinct") == 1))
    if len(constant):
        lines = [
            f"{named(code, unit)}: always {value:g} ({n:,} events)"
            for code, unit, value, n in constant.select("code", "unit", "p50", "n").iter_rows()
        ]
        found.append(
            Finding("values", "note", "codes whose value never varies", len(constant), len(pairs),
                    "codes and units", "check that the number is no placeholder; it tells a model nothing",
                    tuple(some(constant["subject"])), few(lines))
        )  # fmt: skip
    return found + units(pairs, kinds)


def units(pairs: pl.DataFrame, kinds: Mapping[str, str]) -> list[Finding]:
    """Codes with several units: of different scale, or of one scale under two names."""
    several = pairs.filter((pl.len() > 1).over("code") & (pl.col("n") > 0)).sort("code")
    apart: list[tuple[str, pl.DataFrame, bool]] = []
    alike: list[tuple[str, pl.DataFrame]] = []
    for (code,), rows in several.partition_by("code", as_dict=True, maintain_order=True).items():
        rows = rows.sort(["n", "unit"], descending=[True, False])
        total = int(rows["n"].sum())
        kept = rows.filter(pl.col("n") >= UNIT_VALUES)
        if len(kept) < 2:
            continue
        differs = [differ_by_factor(kept.row(0, named=True), row) for row in kept.iter_rows(named=True)]
        if any(differs):
            most = int(kept.filter(pl.Series(differs))["n"].max())  # type: ignore[arg-type]
            # Doses of a drug are stated by its form (mL, bag, tablet): other quantities, not other units of one.
            severe = most >= UNIT_SHARE * total and kinds.get(str(code)) != "drug"
            apart.append((str(code), kept, severe))
        else:
            alike.append((str(code), kept))
    mixed = "codes mix units of different scale"
    found = []
    for severity, what, group, remedy in (
        ("error", mixed, [(code, rows) for code, rows, severe in apart if severe], "convert each code to one unit"),
        (
            "warning", f"{mixed}, by doses of a drug or in few events",
            [(code, rows) for code, rows, severe in apart if not severe],
            "nothing where these are forms of a drug: value tokens are made per code and unit; else convert",
        ),
        (
            "note", "codes state one scale under several units", alike,
            "write one name of the unit, since value tokens are made per code and unit",
        ),
    ):  # fmt: skip
        if group:
            lines, owners = _unit_lines(group), tuple(some(pl.concat([rows["subject"] for _, rows in group])))
            total = pairs["code"].n_unique()
            found.append(
                Finding("units", severity, what, len(group), total, "codes with numbers", remedy, owners, lines)
            )
    return found


def differ_by_factor(usual: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the three quartiles of two units differ by `UNIT_FACTOR` or more in one direction.

    >>> differ_by_factor({"p25": 0.8, "p50": 1.0, "p75": 1.3}, {"p25": 70.0, "p50": 88.0, "p75": 115.0})
    True
    """
    quartiles = [(usual[name], other[name]) for name in ("p25", "p50", "p75")]
    if any(a <= 0 or b <= 0 for a, b in quartiles):
        return False
    ratios = [b / a for a, b in quartiles]
    return min(ratios) >= UNIT_FACTOR or max(ratios) <= 1 / UNIT_FACTOR


def known_factor(from_unit: str, to_unit: str, ratio: float) -> str | None:
    """What conversion explains that medians differ by `ratio`; None where none is known.

    >>> known_factor("mg/dL", "umol/L", 86.0)
    'creatinine: 1 mg/dL is 88.4 umol/L'
    >>> known_factor("mg/dL", "umol/L", 3.0) is None
    True
    """
    names = (_plain_unit(from_unit), _plain_unit(to_unit))
    for (a, b), turned in ((names, False), (names[::-1], True)):
        wanted = 1 / ratio if turned else ratio
        stated = (to_unit, from_unit) if turned else (from_unit, to_unit)
        known = {"": FACTORS[a, b]} if (a, b) in FACTORS else {}
        if a == "mg/dl" and b in MG_PER_DL:
            known = {f"{name}: ": MG_PER_DL[b] / mass for name, mass in MOLAR_MASS.items()}
        near = {name: abs(math.log(wanted / factor)) for name, factor in known.items()}
        if near and (best := min(near, key=near.__getitem__)) is not None and near[best] <= math.log1p(_NEAR):
            return f"{best}1 {stated[0]} is {known[best]:.3g} {stated[1]}"
    return None


def _plain_unit(unit: str) -> str:
    plain = unit.strip().lower().replace("µ", "u").replace("μ", "u").replace("mcg", "ug").strip("[]{}")
    return {"lbs": "lb", "lb_av": "lb", "kgs": "kg", "in_i": "in", "inch": "in", "inches": "in", "mm hg": "mmhg",
            "mm[hg": "mmhg", "grams": "g", "ounces": "oz"}.get(plain, plain)  # fmt: skip


def _unit_lines(group: Sequence[tuple[str, pl.DataFrame]]) -> tuple[str, ...]:
    group = sorted(group, key=lambda item: -int(item[1]["n"].sum()))
    lines = []
    for code, rows in group:
        total, usual = int(rows["n"].sum()), rows.row(0, named=True)
        parts = []
        for row in rows.iter_rows(named=True):
            text = f"{row['unit'] or 'no unit'} {100 * row['n'] / total:.1f} % (median {row['p50']:g}"
            if row["unit"] != usual["unit"] and usual["p50"] and row["p50"] and differ_by_factor(usual, row):
                ratio = row["p50"] / usual["p50"]
                text += f", {ratio:.3g} times"
                hint = known_factor(usual["unit"], row["unit"], ratio) if ratio > 0 else None
                text += f"; {hint}" if hint else ""
            parts.append(text + ")")
        lines.append(f"{code}: {', '.join(parts)}")
    return few(lines)


def named(code: str, unit: str) -> str:
    """A code with its unit, for people."""
    return f"{code} [{unit}]" if unit else code
