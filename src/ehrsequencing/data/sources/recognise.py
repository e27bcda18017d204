"""Which source a folder or file looks like, by the names in it."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from ehrsequencing.errors import DataError

SIGNS = {
    "uci-diabetes": ("**/diabetic_data",),
    "mimic-iv": ("hosp/patients", "hosp/admissions"),
    "mimic-iii": ("patients", "admissions", "d_icd_diagnoses"),
    "omop": ("person",),
    "synthea": ("patients", "encounters"),
    "physionet2012": ("outcomes-a",),
    "meds": ("data/", "metadata/"),
}
"""Per source names that are all there: lower case, without suffix; a folder ends in `/`, `**/` is at any depth."""
SUFFIXES = (".csv.gz", ".csv", ".parquet", ".txt", ".zip")


def recognise(src: Path, sources: Collection[str] = tuple(SIGNS)) -> list[str]:
    """Sources whose signs are all in a folder, zip or file, those with more signs first.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("PATIENTS.csv.gz", "ADMISSIONS.csv", "D_ICD_DIAGNOSES.csv"):
    ...     (folder / name).touch()
    >>> recognise(folder)
    ['mimic-iii']
    """
    if not src.exists():
        return []
    names = _names(src)
    anywhere = {name.rsplit("/", 1)[-1] for name in names}
    found = [
        source
        for source in sources
        if source in SIGNS
        and all(sign[3:] in anywhere if sign.startswith("**/") else sign in names for sign in SIGNS[source])
    ]
    return sorted(found, key=lambda source: -len(SIGNS[source]))


def refuse_other_source(kind: str, src: Path, out: Path, sources: Collection[str]) -> None:
    """Refuse an input that looks like another source than the one named, or that holds the one named.

    Raises:
        DataError: it does; names the command to use.
    """
    if kind not in SIGNS or kind in recognise(src, sources):
        return
    for inner in sorted(src.iterdir()) if src.is_dir() else ():
        if inner.is_dir() and kind in recognise(inner, sources):
            raise DataError(f"{src} holds {kind} in {inner.name}", remedy=f"ehrseq import {kind} {inner} {out}")
    if others := recognise(src, sources):
        raise DataError(
            f"{src} is not {kind}: this looks like {others[0]}", remedy=f"ehrseq import {others[0]} {src} {out}"
        )


def _names(src: Path, depth: int = 3) -> set[str]:
    if zipfile.is_zipfile(src) if src.is_file() else False:
        with zipfile.ZipFile(src) as archive:
            return {_stem(name) for name in archive.namelist()}
    if src.is_file():
        return {_stem(src.name)}
    names: set[str] = set()
    for path in src.iterdir():
        if path.is_dir():
            names.add(f"{path.name.lower()}/")
            names |= {f"{path.name.lower()}/{name}" for name in (_names(path, depth - 1) if depth > 1 else ())}
        else:
            names.add(_stem(path.name))
    return names


def _stem(name: str) -> str:
    lower = name.lower()
    suffix = next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")
    return lower.removesuffix(suffix)
