"""Roll-up of codes: a table from each code to a broader one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE
from ehrsequencing.errors import ConfigError


@dataclass(frozen=True)
class _System:
    """Prefixes of a system's codes, what a code looks like, and how many characters may be kept."""

    prefixes: tuple[str, ...]
    pattern: str
    lengths: tuple[int, ...]


_SYSTEMS = {
    "icd10": _System(("ICD10CM", "ICD10", "DIAGNOSIS//ICD//10"), r"[A-Z]\d[0-9A-Z][0-9A-Z.]*", (3, 4, 5, 6)),
    "icd9": _System(("ICD9CM", "ICD9", "DIAGNOSIS//ICD//9"), r"(\d{3}|V\d\d|E\d{3})[\d.]*", (3, 4)),
    "icd10pcs": _System(("ICD10PCS", "PROCEDURE//ICD//10"), r"[0-9A-Z]{2,7}", (1, 2, 3, 4, 5, 6)),
    "icd9proc": _System(("ICD9PROC", "ICD9PCS", "PROCEDURE//ICD//9"), r"\d\d[\d.]*", (2, 3)),
    "atc": _System(("ATC",), r"[A-Z](\d\d([A-Z]([A-Z](\d\d)?)?)?)?", (1, 3, 4, 5)),
}
_INGREDIENT = "rxnorm=ingredient"
_FORMS = "icd10=3, icd9=3, icd10pcs=4, icd9proc=2, atc=4, rxnorm=ingredient or parents=1"
_MAX_STEPS = 20
_RXNORM = ("RXNORM//", "RXNORM_EXTENSION//")


@dataclass(frozen=True)
class RolledUp:
    """What a roll-up did to a book of codes.

    Attributes:
        table: Code to broader code, of the codes that change.
        standing: The same with the broader codes that are codes of the book themselves, standing for themselves; by
            code.
        ambiguous: Codes left alone because they have several parents.
        with_values: Codes left alone because they carry numbers, which no parent shares.
    """

    table: dict[str, str]
    standing: dict[str, str]
    ambiguous: int
    with_values: int


def parse_roll_up(text: str) -> str:
    """A roll-up in its one spelling.

    Raises:
        ConfigError: unknown, or a length that the system has not.

    >>> parse_roll_up("ICD10=3"), parse_roll_up("parents=2")
    ('icd10=3', 'parents=2')
    """
    name, _, value = text.strip().lower().partition("=")
    if f"{name}={value}" == _INGREDIENT:
        return _INGREDIENT
    lengths = range(1, _MAX_STEPS + 1) if name == "parents" else _SYSTEMS[name].lengths if name in _SYSTEMS else ()
    if not lengths:
        raise ConfigError("roll-up", got=text, expected=_FORMS)
    if value not in map(str, lengths):
        what = "steps" if name == "parents" else "characters of a code"
        raise ConfigError(f"roll-up {name}", got=value or "no number", expected=f"{what}: {_listed(lengths)}")
    return f"{name}={value}"


def roll_up(
    codes: Iterable[str],
    rules: Sequence[str],
    parents: Mapping[str, Sequence[str]],
    numeric: Iterable[str] = (),
    *,
    must_change: bool = True,
) -> RolledUp:
    """Apply roll-ups, one after the other, to distinct codes.

    Systems are told by the code's prefix (`ICD10CM//E11.9`, also behind a marker: `DIAGNOSIS_PRINCIPAL//ICD9CM//276`);
    what is no code of the system stays. ICD-9 codes beginning with E keep one character more, since their categories
    have four. `rxnorm=ingredient` follows RxNorm parents to the last, `parents=N` at most N parents of any code; a
    code with several parents stays, and so does one with numbers.

    Args:
        codes: Distinct codes.
        rules: As `parse_roll_up` returns them.
        parents: Parents of a code, as `parent_codes` of `metadata/codes.parquet` states them.
        numeric: Codes whose events carry numbers.
        must_change: Refuse a rule that changes no code.

    Raises:
        ConfigError: a rule changes nothing, where it must.

    >>> roll_up(["ICD10CM//E11.9", "ICD9CM//E849.7", "RXNORM//1"], ["icd10=3", "icd9=3"], {}).table
    {'ICD10CM//E11.9': 'ICD10CM//E11', 'ICD9CM//E849.7': 'ICD9CM//E849'}
    """
    now = {code: code for code in sorted(codes) if code not in (BIRTH_CODE, DEATH_CODE)}
    numbered, ambiguous, with_values = set(numeric), set(), set()
    for rule in rules:
        name, _, value = rule.partition("=")
        before = dict(now)
        for code, current in before.items():
            if name in _SYSTEMS:
                now[code] = _shortened(current, name, int(value))
                continue
            only = _RXNORM if rule == _INGREDIENT else ("",)
            steps = _MAX_STEPS if rule == _INGREDIENT else int(value)
            if not current.startswith(only):
                continue
            if code in numbered and parents.get(current):
                with_values.add(code)
                continue
            now[code], several = _climbed(current, parents, steps, only)
            if several:
                ambiguous.add(code)
        if must_change and now == before:
            raise ConfigError(
                f"roll-up {rule} changes no code", got=f"{len(now)} codes",
                expected="parent_codes in metadata/codes.parquet" if name in ("rxnorm", "parents") else None,
                remedy="leave it out, or pass allow_unused",
            )  # fmt: skip
    table = {code: broader for code, broader in now.items() if broader != code}
    standing = {broader: broader for broader in table.values() if broader in now} | table
    return RolledUp(table, dict(sorted(standing.items())), len(ambiguous), len(with_values))


def _climbed(code: str, parents: Mapping[str, Sequence[str]], steps: int, only: tuple[str, ...]) -> tuple[str, bool]:
    """The ancestor, and whether a code with several parents ended the way to it."""
    seen = {code}
    for _ in range(steps):
        above = sorted({parent for parent in parents.get(code, ()) if parent.startswith(only)} - seen)
        if len(above) != 1:
            return code, len(above) > 1
        code = above[0]
        seen.add(code)
    return code, False


def _shortened(code: str, name: str, kept: int) -> str:
    system = _SYSTEMS[name]
    found = re.fullmatch(rf"((?:.*//)?(?:{'|'.join(system.prefixes)})//)({system.pattern})", code, re.IGNORECASE)
    if found is None:
        return code
    before, own = found.group(1), found.group(2)
    kept += name == "icd9" and own[0] in "Ee"
    ends = [index + 1 for index, character in enumerate(own) if character != "."]
    return before + (own[: ends[kept - 1]] if len(ends) > kept else own)


def _listed(lengths: Sequence[int]) -> str:
    return f"1 to {lengths[-1]}" if isinstance(lengths, range) else ", ".join(map(str, lengths))
