"""Sets of phenotypes: names and code patterns, read from a TOML file."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrsequencing.errors import ConfigError
from ehrsequencing.io import hash_bytes

SHIPPED = {"common": Path(__file__).with_name("phenotypes.toml")}
"""Sets that come with the library, by name."""
DEFAULT_HORIZON_DAYS = 365
_KEYS = {"name", "description", "codes", "source"}


@dataclass(frozen=True)
class Phenotypes:
    """A set of phenotypes.

    Attributes:
        source: Name of a shipped set, or the file as given.
        codes: Patterns of each phenotype, by name in alphabetical order.
        horizon_days: The file's horizon.
        hash: Of the file's content.
    """

    source: str
    codes: dict[str, tuple[str, ...]]
    horizon_days: int
    hash: str


def read_phenotypes(source: str) -> Phenotypes:
    """Read a shipped set by name, or a TOML file.

    The file has `[[phenotype]]` tables with `name` (lower-case letters, digits and underscores) and `codes` (patterns),
    optionally `description` and `source`; and optionally, above them, `horizon_days` (365).

    Raises:
        ConfigError: the file is missing or malformed, or a phenotype lacks name or codes, or is repeated.

    >>> len(read_phenotypes("common").codes) >= 12
    True
    """
    path = SHIPPED.get(source, Path(source))
    if not path.is_file():
        raise ConfigError(
            f"no phenotypes at {source}", expected=f"a TOML file, or the name of a shipped set: {', '.join(SHIPPED)}"
        )
    content = path.read_bytes()
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as problem:
        raise ConfigError(f"{source} is not readable TOML", got=str(problem).splitlines()[0]) from None
    tables = document.get("phenotype")
    extra = sorted(set(document) - {"phenotype", "horizon_days"})
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables) or extra:
        raise ConfigError(
            f"{source} is no set of phenotypes", got=f"keys {', '.join(sorted(document)) or 'none'}",
            expected="tables [[phenotype]] with name and codes, and optionally horizon_days",
        )  # fmt: skip
    horizon = document.get("horizon_days", DEFAULT_HORIZON_DAYS)
    if type(horizon) is not int:
        raise ConfigError(f"horizon_days of {source}", got=repr(horizon), expected="a whole number of days")
    codes: dict[str, tuple[str, ...]] = {}
    for number, table in enumerate(tables, start=1):
        name, patterns = _phenotype(table, f"phenotype {number} of {source}")
        if name in codes:
            raise ConfigError(f"{source} names phenotype {name} twice", expected="each once")
        codes[name] = patterns
    return Phenotypes(source, dict(sorted(codes.items())), horizon, hash_bytes(content))


def _phenotype(table: dict[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    if extra := sorted(set(table) - _KEYS):
        raise ConfigError(f"{where} has unknown keys", got=", ".join(extra), expected=", ".join(sorted(_KEYS)))
    name, codes = table.get("name"), table.get("codes")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigError(f"{where} has no name", got=repr(name), expected="lower-case letters, digits and underscores")
    if not isinstance(codes, list) or not codes or not all(isinstance(code, str) and code.strip() for code in codes):
        raise ConfigError(f"{where} ({name}) has no codes", got=repr(codes)[:80], expected="a list of code patterns")
    return name, tuple(code.strip() for code in codes)
