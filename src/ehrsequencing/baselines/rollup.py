"""Coarser groups of codes: three-character categories and chapters of ICD, levels of ATC, parents of nested names."""

from __future__ import annotations

import bisect

_ICD9_STARTS = (1, 140, 240, 280, 290, 320, 390, 460, 520, 580, 630, 680, 710, 740, 760, 780, 800)
_ICD9_CHAPTERS = (
    "infectious", "neoplasms", "endocrine", "blood", "mental", "nervous and senses", "circulatory", "respiratory",
    "digestive", "genitourinary", "pregnancy", "skin", "musculoskeletal", "congenital", "perinatal", "symptoms",
    "injury",
)  # fmt: skip
_ICD10_CHAPTERS = {
    "A": "infectious", "B": "infectious", "C": "neoplasms", "E": "endocrine", "F": "mental", "G": "nervous",
    "I": "circulatory", "J": "respiratory", "K": "digestive", "L": "skin", "M": "musculoskeletal",
    "N": "genitourinary", "O": "pregnancy", "P": "perinatal", "Q": "congenital", "R": "symptoms", "S": "injury",
    "T": "injury", "U": "special", "V": "external", "W": "external", "X": "external", "Y": "external", "Z": "factors",
}  # fmt: skip


def groups_of_code(code: str) -> tuple[str, ...]:
    """Names of the groups that a code belongs to, finest first; empty where none is known.

    >>> groups_of_code("ICD10CM//E11.9")
    ('ICD10CM//E11', 'ICD10CM chapter endocrine')
    >>> groups_of_code("DIAGNOSIS_PRINCIPAL//ICD9CM//428")
    ('DIAGNOSIS_PRINCIPAL//ICD9CM chapter circulatory',)
    >>> groups_of_code("ATC//A10BA02"), groups_of_code("DRUG//insulin//Up"), groups_of_code("LOINC//4548-4")
    (('ATC//A10', 'ATC//A'), ('DRUG//insulin',), ())
    """
    path, _, name = code.rpartition("//")
    system = path.rpartition("//")[2]
    if system in ("ICD9CM", "ICD10CM"):
        category = name[: 4 if system == "ICD9CM" and name[:1] == "E" else 3]
        chapter = _icd9_chapter(category) if system == "ICD9CM" else _icd10_chapter(category)
        found = [f"{path}//{category}"] if category != name else []
        return (*found, f"{path} chapter {chapter}") if chapter else tuple(found)
    if system == "ATC":
        return tuple(f"{path}//{name[:level]}" for level in (3, 1) if len(name) > level)
    return (path,) if "//" in path else ()


def _icd9_chapter(category: str) -> str | None:
    if category[:1] in ("E", "V"):
        return "external" if category[0] == "E" else "factors"
    if not category.isdecimal() or int(category) == 0:
        return None
    return _ICD9_CHAPTERS[bisect.bisect_right(_ICD9_STARTS, int(category)) - 1]


def _icd10_chapter(category: str) -> str | None:
    letter, number = category[:1], category[1:3]
    if letter == "D":
        return "neoplasms" if number < "50" else "blood"
    if letter == "H":
        return "eye" if number < "60" else "ear"
    return _ICD10_CHAPTERS.get(letter)
