"""The tables of the synthetic disease model, read and compiled to integer arithmetic.

Four tables beside this module state the model: conditions, drugs, labs, codes. Log-hazards are held as integers in
hundredths of a nat, so that sums are exact and a subject is the same whatever array it is computed in.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ehrsequencing.data.schema import KINDS
from ehrsequencing.errors import DataError
from ehrsequencing.io import hash_bytes

UNIT = 0.01
"""Nats of one integer unit of log-hazard."""
NEVER = 255
"""Value of `since` for what never happened."""
FLOOR, CEILING = -1500, 400
"""Range of the log-hazard table, in units."""
TRAITS = ("frail", "cardio", "mental", "care")
MEMORY = ("scar", "nsaid_harm", "early_metformin")
"""What a subject's body remembers of the order of events; see docs/synthetic.md."""
STATICS = ("male", "smoker")
RING = "complement_ring"
"""Place of the complement cycle, which one lab reads; see `synthetic_patterns`."""
TABLES = ("synthetic_conditions.csv", "synthetic_drugs.csv", "synthetic_labs.csv", "synthetic_codes.csv")
_TERM = re.compile(r"(\w+)(\*|<(\d+)|=(\d+))?:(-?[\d.]+)$")

Term = tuple[str, str, int]
"""Name, kind ("level", "present", "recent", "equals") and argument of what an effect reads."""


@dataclass(frozen=True)
class Effect:
    """A term and what it adds to a log-hazard (units) or to a lab's value (scale of the lab)."""

    term: Term
    size: float


@dataclass(frozen=True)
class Lab:
    """One measured quantity; fields are the columns of `synthetic_labs.csv`.

    `twin` is the number of an earlier lab with which it shares its own level and noise, by `twin_correlation`; -1
    where there is none.
    """

    code: str
    unit: str
    panel: str
    log_scale: bool
    centre: float
    between: float
    within: float
    decimals: int
    low: float
    high: float
    age: float
    twin: int
    twin_correlation: float
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Conditions:
    """Columns of `synthetic_conditions.csv` as arrays over conditions; rates are log-hazards per month in units."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    courses: np.ndarray
    sexes: np.ndarray
    levels: np.ndarray
    requires: np.ndarray
    onset: np.ndarray
    age: np.ndarray
    progress: np.ndarray
    recede: np.ndarray
    detect: np.ndarray
    visits: np.ndarray
    mortality: np.ndarray
    admit: np.ndarray
    stay: np.ndarray
    onset_effects: tuple[tuple[Effect, ...], ...]
    progress_effects: tuple[tuple[Effect, ...], ...]
    recede_effects: tuple[tuple[Effect, ...], ...]

    @property
    def acute(self) -> np.ndarray:
        """Numbers of the acute conditions, in order of the table: the first present is a visit's cause."""
        return np.flatnonzero(self.courses == "acute")


@dataclass(frozen=True)
class Drugs:
    """Columns of `synthetic_drugs.csv`: probabilities per visit, drug that must come before, indications."""

    names: tuple[str, ...]
    start: np.ndarray
    stop: np.ndarray
    after: np.ndarray
    indications: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class CodeBook:
    """Every code once, in order of kind and code, and the roles that the model fills with them.

    `roles` maps a role to (indices into `codes`, cumulative weights up to 1).
    """

    codes: tuple[str, ...]
    descriptions: tuple[str, ...]
    kinds: tuple[str, ...]
    numeric: np.ndarray
    roles: dict[str, tuple[np.ndarray, np.ndarray]]

    def index(self, code: str) -> int:
        """Position of a code."""
        return self.codes.index(code)


@dataclass(frozen=True)
class Model:
    """The disease model."""

    conditions: Conditions
    drugs: Drugs
    labs: tuple[Lab, ...]
    book: CodeBook
    fingerprint: str

    def condition(self, name: str) -> int:
        """Number of a condition."""
        return self.conditions.names.index(name)

    def drug(self, name: str) -> int:
        """Number of a drug class."""
        return self.drugs.names.index(name)


def log_rate(per_year: float) -> int:
    """Log-hazard per month, in units, of a yearly rate; the floor for zero."""
    return FLOOR if per_year <= 0 else round(math.log(per_year / 12) / UNIT)


@functools.lru_cache(maxsize=1)
def hazard_table() -> np.ndarray:
    """uint32 [CEILING - FLOOR + 1]: threshold under which a uniform uint32 means the event, by log-hazard.

    The lowest entry is exactly 0: what cannot happen never does.
    """
    rates = np.exp(np.arange(FLOOR, CEILING + 1) * UNIT)
    table = np.rint(-np.expm1(-rates) * (2**32 - 1)).astype(np.uint32)
    table[0] = 0
    return table


def threshold(log_hazard: np.ndarray) -> np.ndarray:
    """uint32 thresholds of log-hazards in units."""
    return hazard_table()[np.clip(log_hazard, FLOOR, CEILING) - FLOOR]


def parse_effects(text: str, scale: float, known: set[str], where: str) -> tuple[Effect, ...]:
    """Parse `name:size` (present), `name*:size` (per level), `name<6:size` (under 6 months old), `name=2:size`.

    Raises:
        DataError: malformed, or an unknown name.

    >>> parse_effects("mi<6:1.5", 100, {"mi"}, "a table")
    (Effect(term=('mi', 'recent', 6), size=150.0),)
    """
    effects = []
    for part in text.split():
        match = _TERM.match(part)
        if match is None or match[1] not in known:
            raise DataError(f"{where} has an effect that cannot be read", got=part, expected="name[*|<months|=level]:x")
        if match[2] is None:
            kind, argument = "present", 0
        elif match[2] == "*":
            kind, argument = "level", 0
        elif match[3]:
            kind, argument = "recent", int(match[3])
        else:
            kind, argument = "equals", int(match[4])
        effects.append(Effect((match[1], kind, argument), round(float(match[5]) * scale, 6)))
    return tuple(effects)


def _rows(name: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def _floats(rows: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in rows])


@functools.lru_cache(maxsize=1)
def load_model() -> Model:
    """Read the four tables.

    Raises:
        DataError: a table names something that another does not define.
    """
    condition_rows, drug_rows, lab_rows = _rows(TABLES[0]), _rows(TABLES[1]), _rows(TABLES[2])
    names = tuple(row["name"] for row in condition_rows)
    drug_names = tuple(row["name"] for row in drug_rows)
    known = {*names, *drug_names, *TRAITS, *MEMORY, *STATICS}

    def effects(column: str) -> tuple[tuple[Effect, ...], ...]:
        where = f"{TABLES[0]}, {column}"
        return tuple(parse_effects(row[column] or "", 1 / UNIT, known, where) for row in condition_rows)

    conditions = Conditions(
        names=names,
        groups=tuple(row["group"] for row in condition_rows),
        courses=np.array([row["course"] for row in condition_rows]),
        sexes=np.array([{"any": 2, "F": 0, "M": 1}[row["sex"]] for row in condition_rows], dtype=np.uint8),
        levels=_floats(condition_rows, "levels").astype(np.uint8),
        requires=np.array([names.index(row["requires"]) if row["requires"] else -1 for row in condition_rows]),
        onset=np.array([log_rate(float(row["onset"]) / 1000) for row in condition_rows], dtype=np.int32),
        age=np.rint(_floats(condition_rows, "age") / 10 / UNIT).astype(np.int32),
        progress=np.array([log_rate(float(row["progress"])) for row in condition_rows], dtype=np.int32),
        recede=np.array([log_rate(float(row["recede"])) for row in condition_rows], dtype=np.int32),
        detect=np.rint(_floats(condition_rows, "detect") * (2**32 - 1)).astype(np.uint32),
        visits=_floats(condition_rows, "visits").astype(np.int32),
        mortality=np.rint(_floats(condition_rows, "mortality") / UNIT).astype(np.int32),
        admit=_floats(condition_rows, "admit"),
        stay=_floats(condition_rows, "stay").astype(np.int64),
        onset_effects=effects("onset_effects"),
        progress_effects=effects("progress_effects"),
        recede_effects=effects("recede_effects"),
    )
    drugs = Drugs(
        names=drug_names,
        start=np.rint(_floats(drug_rows, "start") * (2**32 - 1)).astype(np.uint32),
        stop=np.rint(_floats(drug_rows, "stop") * (2**32 - 1)).astype(np.uint32),
        after=np.array([drug_names.index(row["after"]) if row["after"] else -1 for row in drug_rows]),
        indications=tuple(
            tuple(
                (names.index(part.split(">=")[0]), int(part.split(">=")[1]) if ">=" in part else 1)
                for part in row["indications"].split()
            )
            for row in drug_rows
        ),
    )
    fingerprint = hash_bytes(*(Path(__file__).with_name(name).read_bytes() for name in TABLES))
    return Model(conditions, drugs, _labs(lab_rows, known), _code_book(lab_rows), fingerprint)


def _labs(rows: list[dict[str, str]], known: set[str]) -> tuple[Lab, ...]:
    labs = []
    codes = [row["code"] for row in rows]
    for row in rows:
        twin, _, correlation = row["twin"].partition(":")
        parsed = parse_effects(row["effects"], 1.0, known - {*MEMORY} | {"age", RING}, TABLES[2])
        labs.append(
            Lab(
                code=row["code"],
                unit=row["unit"],
                panel=row["panel"],
                log_scale=row["scale"] == "log",
                centre=float(row["centre"]),
                between=float(row["between"]),
                within=float(row["within"]),
                decimals=int(row["decimals"]),
                low=float(row["low"]),
                high=float(row["high"]),
                age=sum(effect.size for effect in parsed if effect.term[0] == "age"),
                twin=codes.index(twin) if twin else -1,
                twin_correlation=float(correlation or 0),
                effects=tuple(effect for effect in parsed if effect.term[0] != "age"),
            )
        )
    return tuple(labs)


def _code_book(lab_rows: list[dict[str, str]]) -> CodeBook:
    rows = _rows(TABLES[3])
    entries = {row["code"]: (row["description"], row["kind"], False) for row in rows}
    entries |= {row["code"]: (row["description"], row["kind"], True) for row in lab_rows}
    codes = sorted(entries, key=lambda code: (KINDS.index(entries[code][1]), code))
    position = {code: index for index, code in enumerate(codes)}
    members: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        members.setdefault(row["role"], []).append((position[row["code"]], float(row["weight"])))
    roles = {}
    for role, found in members.items():
        weights = np.cumsum([weight for _, weight in found])
        roles[role] = (np.array([index for index, _ in found], dtype=np.int32), weights / weights[-1])
    return CodeBook(
        codes=tuple(codes),
        descriptions=tuple(entries[code][0] for code in codes),
        kinds=tuple(entries[code][1] for code in codes),
        numeric=np.array([entries[code][2] for code in codes]),
        roles=roles,
    )
