"""The check of units: of one code, and of values under one unit that look like two."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, ndtr

from ehrsequencing.data.schema import KINDS, kind_of_code
from ehrsequencing.tasks.audit_data import AuditData, Finding

UNIT_FACTOR, UNIT_SHARE, UNIT_VALUES = 1.8, 0.01, 20
HOLE_FACTOR = 3.0
KNOWN_FACTORS = (2.2046, 2.54, 10.0, 17.1, 18.02, 38.67, 88.4, 88.57, 100.0, 1000.0, 1e6)
"""Kilograms and pounds, centimetres and inches, powers of ten, and mmol or umol against mg/dL of bilirubin, glucose,
cholesterol, creatinine and triglycerides."""
MIX_SHARE, MIX_DISTANCE, MIX_APART, MIX_VALLEY = 0.04, 0.035, 2.5, 0.8
"""Two groups by a known factor: the least share of one, the largest distance of their sum from the data, their distance
in standard deviations, and how deep the density between them falls."""


def units(data: AuditData) -> list[Finding] | str:
    """Two units of one code whose values differ by a factor, and one unit whose values fall in two groups."""
    values = data.store.values
    if not len(values):
        return "no numeric value"
    vocabulary = data.store.vocabulary
    coded = vocabulary.base_ids >= 0
    kinds = {
        vocabulary.base_codes[code]: KINDS[kind]
        for code, kind in zip(vocabulary.base_ids[coded].tolist(), vocabulary.kinds[coded].tolist(), strict=True)
    }
    found = []
    rows_of: dict[str, list[int]] = {}
    for row, code in enumerate(values.codes):
        rows_of.setdefault(code, []).append(row)
    for code, rows in rows_of.items():
        usual = max(rows, key=lambda row: int(values.n[row]))
        for row in rows:
            factor = _factor(values.grid[usual], values.grid[row])
            if row == usual or values.n[row] < UNIT_VALUES or not factor:
                continue
            # The doses of a drug are stated by its form (mL, bag, tablet): other quantities, not other units of one.
            mixed = values.n[row] >= UNIT_SHARE * values.n[rows].sum() and kinds.get(code, kind_of_code(code)) != "drug"
            found.append(
                Finding(
                    "units", "error" if mixed else "warning", f"{code} mixes units of different scale",
                    f"{_unit(values.units[usual])} with median {values.grid[usual, 50]:g} ({values.n[usual]:,} values) "
                    f"and {_unit(values.units[row])} with {values.grid[row, 50]:g} ({values.n[row]:,})",
                    f"one unit, or quartiles within a factor of {UNIT_FACTOR}",
                )
            )  # fmt: skip
    for row, code in enumerate(values.codes):
        if values.n[row] < 10 * UNIT_VALUES:
            continue
        hole, mixed = _hole(values.grid[row]), None
        if hole is None and kinds.get(code, kind_of_code(code)) != "drug":
            mixed = _mixed(values.grid[row])
        if mixed:
            found.append(
                Finding(
                    "units", "warning",
                    f"{code} in {_unit(values.units[row])} has two groups of values a known factor apart",
                    f"{mixed[1]:.0%} of {values.n[row]:,} values {mixed[0]:g} times the others", "one unit",
                )
            )  # fmt: skip
        if hole:
            found.append(
                Finding(
                    "units", "warning", f"{code} in {_unit(values.units[row])} has two groups of values",
                    f"none of {values.n[row]:,} between {hole[0]:g} and {hole[1]:g}", "one unit",
                )
            )  # fmt: skip
    return found


def _unit(unit: str) -> str:
    return unit or "no unit"


def _factor(usual: np.ndarray, other: np.ndarray) -> bool:
    """Whether all three quartiles differ by a factor in the same direction."""
    a, b = usual[[25, 50, 75]].astype(np.float64), other[[25, 50, 75]].astype(np.float64)
    if (a <= 0).any() or (b <= 0).any():
        return False
    ratio = b / a
    return bool((ratio >= UNIT_FACTOR).all() or (ratio <= 1 / UNIT_FACTOR).all())


def _hole(grid: np.ndarray) -> tuple[float, float] | None:
    """Two neighbouring percentiles that differ by a factor, with many distinct values on both sides.

    The groups must differ by more than each spreads, as one quantity in two units does and a skewed one does not.
    """
    grid = grid.astype(np.float64)
    if grid[0] <= 0:
        return None
    ratio = grid[5:97] / grid[4:96]
    place = int(np.argmax(ratio)) + 4
    low, high = grid[: place + 1], grid[place + 1 :]
    distinct = min(len(np.unique(low)) / len(low), len(np.unique(high)) / len(high))
    if ratio.max() < HOLE_FACTOR or distinct < 0.5 or min(len(low), len(high)) < 4:
        return None
    spread = max(np.quantile(side, 0.9) / np.quantile(side, 0.1) for side in (low, high))
    return (float(low[-1]), float(high[0])) if np.median(high) / np.median(low) > spread else None


def _mixed(grid: np.ndarray) -> tuple[float, float] | None:
    """A known factor and the share of values that are multiplied by it, where log-values are two such normal groups.

    Groups of one spread and a given distance, by expectation and maximisation over the percentiles (Dempster, Laird &
    Rubin 1977). They count where their sum fits and one normal distribution does not, with a valley between them.
    """
    grid = grid[1:-1].astype(np.float64)
    value, place = np.unique(grid, return_inverse=True)
    if grid[0] <= 0 or len(value) < len(grid) / 2:
        return None
    x, level = np.log(value), np.bincount(place, np.arange(1, len(grid) + 1) / (len(grid) + 1)) / np.bincount(place)
    weight = np.bincount(place) / len(grid)
    center = weight @ x
    alone = np.abs(ndtr((x - center) / np.sqrt(weight @ (x - center) ** 2)) - level).max()
    best = None
    for factor in KNOWN_FACTORS:
        apart = np.log(factor)
        if x[-1] - x[0] < apart:
            break
        for start in (0.1, 0.5, 0.9):
            share, low, spread = start, float(np.quantile(x, (1 - start) / 2)), apart / 4
            for _ in range(60):
                odds = ((x - low) ** 2 - (x - low - apart) ** 2) / (2 * spread**2) + np.log(share / (1 - share))
                high = expit(odds)
                share = float(np.clip(weight @ high, 1e-3, 1 - 1e-3))
                low = float(weight @ (x - apart * high))
                spread = float(np.sqrt(weight @ ((1 - high) * (x - low) ** 2 + high * (x - low - apart) ** 2)))
                if spread < apart / 100:
                    break
            off = np.abs(
                (1 - share) * ndtr((x - low) / spread) + share * ndtr((x - low - apart) / spread) - level
            ).max()
            line = low + apart * np.linspace(0, 1, 101)
            density = (1 - share) * np.exp(-0.5 * ((line - low) / spread) ** 2)
            density += share * np.exp(-0.5 * ((line - low - apart) / spread) ** 2)
            clear = density.min() <= MIX_VALLEY * min(density[0], density[-1]) and apart >= MIX_APART * spread
            fits = off <= min(MIX_DISTANCE, alone / 2) and MIX_SHARE <= share <= 1 - MIX_SHARE
            if clear and fits and (best is None or off < best[0]):
                best = (off, factor, share)
    return best and (best[1], best[2])
