"""One code in many spellings: with and without dots, in any case, behind any name of its system."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FAMILIES = (
    ("icd10pcs", ("ICD10PCS", "PROCEDUREICD10", "I10PCS")),
    ("icd9proc", ("ICD9PROC", "ICD9PCS", "PROCEDUREICD9", "ICD9SG")),
    ("icd10", ("ICD10CM", "ICD10", "DIAGNOSISICD10", "I10")),
    ("icd9", ("ICD9CM", "ICD9", "DIAGNOSISICD9", "I9")),
    ("rxnorm", ("RXNORM", "RXCUI", "RXNORMEXTENSION", "RX")),
    ("snomed", ("SNOMED", "SNOMEDCT", "SNOMEDCTUS", "SCTID")),
    ("loinc", ("LOINC", "LNC")),
    ("cpt", ("CPT", "CPT4")),
    ("hcpcs", ("HCPCS",)),
    ("ndc", ("NDC",)),
    ("atc", ("ATC",)),
)
_FAMILY = {name: family for family, names in _FAMILIES for name in names}
_JOINED = re.compile(rf"({'|'.join(sorted(_FAMILY, key=len, reverse=True))})[_ |-](.+)", re.DOTALL)
_HIERARCHIES = {"icd10": 3, "icd9": 3, "icd10pcs": 1, "icd9proc": 2, "atc": 1}
"""Fewest characters of a parent, of systems whose codes are paths."""
_ATC_LENGTHS = (5, 4, 3, 1)


def normalised(code: str) -> tuple[str, str]:
    """System and own part of a code, alike for all of its spellings; the system is "" where none is named.

    >>> [normalised(code) for code in ("ICD10CM//E11.9", "icd10:e119", "ICD10_E119", "DIAGNOSIS//ICD//10//E119")]
    [('icd10', 'E119'), ('icd10', 'E119'), ('icd10', 'E119'), ('icd10', 'E119')]
    >>> normalised("E11.9"), normalised("RACE//Black or African"), normalised("race/black_or_african")
    (('', 'E119'), ('RACE', 'BLACK OR AFRICAN'), ('', 'RACE/BLACK OR AFRICAN'))
    """
    upper = code.strip().upper()
    system, separator, own = upper.rpartition("//")
    if not separator:
        system, separator, own = upper.rpartition(":")
    if not separator and (joined := _JOINED.fullmatch(upper)):
        system, own = joined.group(1), joined.group(2)
    return _system(system), " ".join(own.replace(".", "").replace("_", " ").split())


def _system(text: str) -> str:
    """Family of a system's name, or of its last part that names one; else its last part."""
    parts = [re.sub(r"[^A-Z0-9]", "", part) for part in re.split(r"//|:", text)]
    for name in ("".join(parts), "".join(parts[-2:]), "".join(parts[-3:]), parts[-1]):
        if name in _FAMILY:
            return _FAMILY[name]
    return parts[-1]


def ancestors(code: str) -> Iterator[str]:
    """Broader codes of one whose system is a hierarchy by prefix (ICD, ATC), nearest first, as `SYSTEM//code`.

    >>> list(ancestors("ICD10CM//E11.65")), list(ancestors("ATC//A10BA02")), list(ancestors("RXNORM//860975"))
    (['ICD10//E116', 'ICD10//E11'], ['ATC//A10BA', 'ATC//A10B', 'ATC//A10', 'ATC//A'], [])
    """
    system, own = normalised(code)
    if system not in _HIERARCHIES:
        return
    least = _HIERARCHIES[system] + (system == "icd9" and own[:1] == "E")
    for length in range(len(own) - 1, least - 1, -1):
        if system != "atc" or length in _ATC_LENGTHS:
            yield f"{system.upper()}//{own[:length]}"
