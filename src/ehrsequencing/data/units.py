"""Units of numbers: spellings of one unit made one, and conversion by a stated table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

from ehrsequencing.errors import ConfigError, DataError

ANY_CODE = "*"
SPELLING, STANDARD = "spelling", "standard"
_STANDARD_FILE = Path(__file__).with_name("units.csv")
_SPELLINGS_FILE = Path(__file__).with_name("unit_spellings.csv")
_COLUMNS = ("code", "from", "to", "factor", "offset", "source")
_AMBIGUOUS = {"G/L"}
PAIR_SCHEMA = {
    "code": pl.String(), "unit": pl.String(), "new_unit": pl.String(), "factor": pl.Float64(), "offset": pl.Float64(),
}  # fmt: skip


def spelled(unit: str) -> str:
    """The UCUM spelling of a unit where `unit_spellings.csv` knows the one given; else the unit as it is.

    Case and blanks do not matter, and both signs for micro are a u. No number changes: 10*9/L is 10*3/uL. G/L stays:
    it is grams to some laboratories and 10*9 cells to others.

    >>> spelled("MG/DL"), spelled("K/uL"), spelled("x10^9/L"), spelled("µg / L"), spelled("tablets")
    ('mg/dL', '10*3/uL', '10*3/uL', 'ug/L', 'tablets')
    """
    return unit if "".join(unit.split()) in _AMBIGUOUS else _spellings().get(_key(unit), unit)


def _key(unit: str) -> str:
    return "".join(unit.split()).lower().replace("µ", "u").replace("μ", "u")


@cache
def _spellings() -> dict[str, str]:
    with _SPELLINGS_FILE.open(encoding="utf-8", newline="") as stream:
        return {key: row["unit"] for row in csv.DictReader(stream) for key in row["spellings"].split("|")}


@dataclass(frozen=True)
class Conversion:
    """`number * factor + offset` is the number in the unit `target`; `code` may be `*`, any code."""

    code: str
    unit: str
    target: str
    factor: float
    offset: float


class UnitTable:
    """Conversions, each (code, unit) once, beside the spellings, which every table knows."""

    def __init__(self, conversions: Iterable[Conversion] = ()) -> None:
        """Raises DataError where a (code, unit) has two targets, or where a target is converted again."""
        self._by_pair: dict[tuple[str, str], Conversion] = {}
        for row in conversions:
            if row.unit == row.target:
                raise DataError("the unit table converts a unit into itself", got=f"{row.code}, {row.unit}")
            if (row.code, row.unit) in self._by_pair:
                raise DataError("the unit table converts a code and unit twice", got=f"{row.code}, {row.unit}")
            self._by_pair[row.code, row.unit] = row
        codes = {row.code for row in self._by_pair.values()}
        for row in self._by_pair.values():
            # A row for any code serves those codes that have none of their own for the unit.
            served = (
                {row.code} if row.code != ANY_CODE else {code for code in codes if self._find(code, row.unit) is row}
            )
            for code in sorted(served):
                if onward := self._find(code, row.target):
                    raise DataError(
                        "the unit table converts into a unit that it converts again",
                        got=f"{code}: {row.unit} to {row.target} to {onward.target}", expected="one unit in the end",
                    )  # fmt: skip

    @classmethod
    def of(cls, choice: str | Path) -> UnitTable:
        """The table of an option: `spelling`, `standard` (`units.csv`), or a CSV file whose rows go before those.

        Raises:
            ConfigError: neither of the words, and no file.
            DataError: the file is no table of units.
        """
        if str(choice) == SPELLING:
            return cls()
        standard = tuple(_read(_STANDARD_FILE))
        if str(choice) == STANDARD:
            return cls(standard)
        file = Path(choice)
        if not file.is_file():
            raise ConfigError("units", got=choice, expected=f"{SPELLING}, {STANDARD} or a CSV file")
        own = tuple(_read(file))
        stated = {(row.code, row.unit) for row in own}
        # A unit that the file converts is no target any more.
        rest = (row for row in standard if not stated & {(row.code, row.unit), (row.code, row.target)})
        return cls((*own, *rest))

    @property
    def conversions(self) -> tuple[Conversion, ...]:
        """By code and unit."""
        return tuple(self._by_pair[pair] for pair in sorted(self._by_pair))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitTable) and self.conversions == other.conversions

    def __hash__(self) -> int:
        return hash(self.conversions)

    def to_json(self) -> list[list[str | float]]:
        """Rows code, unit, target, factor, offset."""
        return [[row.code, row.unit, row.target, row.factor, row.offset] for row in self.conversions]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[str | float]]) -> UnitTable:
        """What `to_json` gave."""
        return cls(Conversion(str(c), str(u), str(t), float(f), float(o)) for c, u, t, f, o in rows)

    def changes(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """What becomes of the numbers of distinct (code, unit) pairs.

        Args:
            pairs: Columns `code`, `unit` ("" where none is stated).

        Returns:
            Columns of `PAIR_SCHEMA` of the pairs that change, `number * factor + offset` in `new_unit`.

        >>> pairs = pl.DataFrame({"code": ["LOINC//2345-7", "OMR//Weight"], "unit": ["mmol/l", "lbs"]})
        >>> UnitTable.of("standard").changes(pairs).rows()
        [('LOINC//2345-7', 'mmol/l', 'mg/dL', 18.0156, 0.0), ('OMR//Weight', 'lbs', 'kg', 0.45359237, 0.0)]
        >>> UnitTable.of("spelling").changes(pairs).rows()
        [('LOINC//2345-7', 'mmol/l', 'mmol/L', 1.0, 0.0), ('OMR//Weight', 'lbs', '[lb_av]', 1.0, 0.0)]
        """
        rows = []
        for code, unit in pairs.select("code", "unit").sort("code", "unit").iter_rows():
            written = spelled(unit)
            found = self._find(code, written)
            if found is not None:
                rows.append((code, unit, found.target, found.factor, found.offset))
            elif written != unit:
                rows.append((code, unit, written, 1.0, 0.0))
        return pl.DataFrame(rows, schema=PAIR_SCHEMA, orient="row")

    def _find(self, code: str, unit: str) -> Conversion | None:
        return self._by_pair.get((code, unit)) or self._by_pair.get((ANY_CODE, unit))


def _read(file: Path) -> Iterator[Conversion]:
    """Rows of a unit table; `offset` may be left out and is then 0, `source` is for readers."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{file} is not in UTF-8", expected="a CSV file") from None
    reader = csv.DictReader(lines)
    names = reader.fieldnames or []
    if missing := [name for name in _COLUMNS[:4] if name not in names]:
        raise DataError(
            f"{file} lacks {', '.join(missing)}", got=f"columns {', '.join(names) or 'none'}",
            expected=", ".join(_COLUMNS[:4]) + " and, as wanted, offset and source",
        )  # fmt: skip
    for number, row in enumerate(reader, start=1):
        code, unit, target = ((row[name] or "").strip() for name in _COLUMNS[:3])
        try:
            factor, offset = float(row["factor"]), float(row.get("offset") or 0)
        except (TypeError, ValueError):
            factor = offset = math.nan
        if not (code and unit and target and factor > 0 and math.isfinite(factor) and math.isfinite(offset)):
            raise DataError(
                f"row {number} of {file} is no conversion", got=", ".join(str(value) for value in row.values()),
                expected="a code or *, two units, a positive factor and a finite offset",
            )  # fmt: skip
        yield Conversion(code, spelled(unit), spelled(target), factor, offset)
