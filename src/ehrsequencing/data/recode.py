"""Codes rolled up and units converted: tables over distinct codes and units, applied to integers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.dataset import CODES_FILE, MedsDataset
from ehrsequencing.data.rollup import RolledUp, roll_up
from ehrsequencing.data.rules import Rules
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, SPLITS
from ehrsequencing.data.shards import Columns, Piece, read_piece
from ehrsequencing.data.units import UnitTable
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.io import write_text


@dataclass(frozen=True)
class Recoding:
    """What changes, over distinct codes and units; both tables are small and may be empty.

    Attributes:
        codes: New code of each code that changes.
        pairs: By code before roll-up and unit ("" where none is stated): new unit, factor, offset.
    """

    codes: dict[str, str]
    pairs: dict[tuple[str, str], tuple[str, float, float]]

    def apply(self, found: Columns) -> Columns:
        """Events in new units and under new codes.

        >>> rows = np.zeros(2, dtype=np.int32)
        >>> old = Columns(rows, rows, rows, rows, np.float32([1, np.nan]), rows, rows > 0, ["A.1"], ["g"])
        >>> new = Recoding({"A.1": "A"}, {("A.1", "g"): ("mg", 1000.0, 0.0)}).apply(old)
        >>> new.codes, new.value.tolist(), [new.units[unit] for unit in new.unit]
        (['A'], [1000.0, nan], ['mg', 'mg'])
        """
        if self.pairs:
            found = self._converted(found)
        if not self.codes:
            return found
        new = [self.codes.get(code, code) for code in found.codes]
        names = list(dict.fromkeys(new))
        place = {name: index for index, name in enumerate(names)}
        return replace(found, codes=names, code=np.array([place[name] for name in new], dtype=np.int32)[found.code])

    def _converted(self, found: Columns) -> Columns:
        row = {code: index for index, code in enumerate(found.codes)}
        column = {unit: index for index, unit in enumerate(found.units)}
        here = [pair for pair in self.pairs if pair[0] in row and pair[1] in column]
        if not here:
            return found
        units = list(dict.fromkeys([*found.units, *(self.pairs[pair][0] for pair in here)]))
        place = {unit: index for index, unit in enumerate(units)}
        many = len(found.units)
        keys = np.array([row[code] * many + column[unit] for code, unit in here], dtype=np.int64)
        order = np.argsort(keys)
        # Rows of codes without a conversion, most of them, need no second look.
        touched = np.zeros(len(found.codes), dtype=bool)
        touched[keys // many] = True
        rows = np.flatnonzero(touched[found.code])
        key = found.code[rows].astype(np.int64) * many + found.unit[rows]
        at = np.minimum(np.searchsorted(keys[order], key), len(keys) - 1)
        hit = keys[order][at] == key
        rows, which = rows[hit], order[at[hit]]
        new_unit, factor, offset = zip(*(self.pairs[pair] for pair in here), strict=True)
        unit, value = found.unit.copy(), found.value.copy()
        unit[rows] = np.array([place[name] for name in new_unit], dtype=np.int32)[which]
        with np.errstate(over="ignore"):
            # A number that leaves float32 is infinite, and refused as such.
            converted = found.value[rows].astype(np.float64) * np.array(factor)[which] + np.array(offset)[which]
            value[rows] = converted.astype(np.float32) + np.float32(0)
        return replace(found, unit=unit, units=units, value=value)

    def save(self, path: Path) -> None:
        """Write JSON."""
        pairs = [[*pair, *new] for pair, new in self.pairs.items()]
        write_text(path, json.dumps({"codes": self.codes, "pairs": pairs}))

    @staticmethod
    @lru_cache(maxsize=1)
    def load(path: Path) -> Recoding:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        pairs = {(code, unit): (new, factor, offset) for code, unit, new, factor, offset in content["pairs"]}
        return Recoding(content["codes"], pairs)


def count_numbers(piece: Piece) -> pl.DataFrame:
    """Columns `code`, `unit` ("" where none is stated), `numbers` and `in_train`, how many of them are of train."""
    found = read_piece(piece)
    key = found.code.astype(np.int64) * len(found.units) + found.unit
    distinct, inverse = np.unique(key, return_inverse=True)
    number = ~np.isnan(found.value)
    train = piece.splits_of(found.subject_id) == SPLITS.index("train")
    table = pl.DataFrame(
        {
            "code": [found.codes[index] for index in (distinct // len(found.units)).tolist()],
            "unit": [found.units[index] for index in (distinct % len(found.units)).tolist()],
            "numbers": np.bincount(inverse[number], minlength=len(distinct)).astype(np.int64),
            "in_train": np.bincount(inverse[number & train], minlength=len(distinct)).astype(np.int64),
        }
    )
    return table.filter(~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]))


def recoding(
    dataset: MedsDataset, numbers: Sequence[pl.DataFrame], rules: Rules, *, must_change: bool
) -> tuple[Recoding, pl.DataFrame, dict[str, str], dict[str, Any]]:
    """What the rules change in a dataset.

    Args:
        dataset: The dataset.
        numbers: What `count_numbers` says of its pieces.
        rules: Its rules.
        must_change: Refuse a roll-up or unit table that changes nothing.

    Returns:
        The changes; the code table under the new codes; `RolledUp.standing`, {} without a roll-up; and for the
        manifest `roll_up` (codes before and after, rolled, left alone) and `units` (code, from, to, factor, offset and
        number of events of every conversion), as far as the rules ask for them.

    Raises:
        ConfigError: it changes nothing.
        DataError: the code table has malformed parents.
    """
    seen = pl.concat(numbers).group_by("code", "unit").agg(pl.col("numbers", "in_train").sum())
    account: dict[str, Any] = {}
    pairs = _unit_changes(seen, rules.units, account, must_change)
    book = dataset.codes_with(seen.group_by("code").agg(numeric=(pl.col("in_train") > 0).any()))
    rolled = _roll_up(dataset.path, book, rules.roll_up, account, must_change)
    codes = pl.DataFrame(
        list(rolled.table.items()) if rolled else [],
        schema={"code": pl.String(), "new_code": pl.String()},
        orient="row",
    )
    changed = Recoding(
        dict(codes.iter_rows()),
        {(code, unit): (new, factor, offset) for code, unit, new, factor, offset in pairs.iter_rows()},
    )
    return changed, _new_book(book, codes), rolled.standing if rolled else {}, account


def _new_book(book: pl.DataFrame, codes: pl.DataFrame) -> pl.DataFrame:
    """The code table; a broader code that it lacks takes the kind of the first code below it."""
    table = book.join(codes, on="code", how="left", maintain_order="left")
    above = (
        table.drop_nulls("new_code")
        .group_by("new_code", maintain_order=True)
        .agg(below_kind=pl.col("kind").first(), below_numeric=pl.col("numeric").any())
        .rename({"new_code": "code"})
    )
    stays = pl.col("new_code").is_null() | pl.col("code").is_in(above["code"].implode())
    return (
        table.filter(stays)
        .join(above, on="code", how="full", coalesce=True)
        .select(
            "code",
            "description",
            kind=pl.coalesce("kind", "below_kind"),
            numeric=pl.coalesce("numeric", pl.lit(False)) | pl.coalesce("below_numeric", pl.lit(False)),
        )
        .sort("code")
    )


def _unit_changes(
    seen: pl.DataFrame, units: UnitTable | None, account: dict[str, Any], must_change: bool
) -> pl.DataFrame:
    if units is None:
        return UnitTable().changes(seen.clear())
    changes = units.changes(seen)
    if must_change and changes.is_empty():
        raise ConfigError(
            "units would change nothing", got=f"{len(seen)} pairs of code and unit",
            expected="one that the unit table knows", remedy="leave units out, or pass allow_unused",
        )  # fmt: skip
    counted = seen.select("code", "unit", events="numbers")
    counts = changes.join(counted, on=["code", "unit"], how="left", maintain_order="left")
    account["units"] = counts.rename({"unit": "from", "new_unit": "to"}).to_dicts()
    return changes


def _roll_up(
    path: Path, book: pl.DataFrame, rules: tuple[str, ...], account: dict[str, Any], must_change: bool
) -> RolledUp | None:
    if not rules:
        return None
    book = book.filter(~pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]))
    done = roll_up(
        book["code"].to_list(), rules, _parents(path), book.filter("numeric")["code"].to_list(),
        must_change=must_change,
    )  # fmt: skip
    account["roll_up"] = _roll_up_account(book, done)
    return done


def _roll_up_account(book: pl.DataFrame, done: RolledUp) -> dict[str, int]:
    codes = book["code"].to_list()
    return {
        "codes_before": len(codes),
        "codes_after": len({done.table.get(code, code) for code in codes}),
        "rolled": len(done.table),
        "left_with_several_parents": done.ambiguous,
        "left_with_values": done.with_values,
    }


def _parents(path: Path) -> dict[str, list[str]]:
    """Parents of every code, as `metadata/codes.parquet` states them; {} where it does not."""
    file = path / CODES_FILE
    if not file.exists() or "parent_codes" not in pl.read_parquet_schema(file):
        return {}
    table = pl.read_parquet(file, columns=["code", "parent_codes"])
    found = table.schema["parent_codes"]
    inner = found.inner if isinstance(found, pl.List) else found
    if inner not in (pl.String, pl.Categorical, pl.Null) or (inner == found and found != pl.Null):
        raise DataError(f"parent_codes of {file} have the wrong type", got=found, expected="lists of codes")
    listed = table.cast({"code": pl.String, "parent_codes": pl.List(pl.String)}).drop_nulls()
    return {code: [parent for parent in above if parent] for code, above in listed.iter_rows()}
