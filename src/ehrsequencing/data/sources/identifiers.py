"""Numbers for identifiers that are text, such as UUIDs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.data.sources.problems import quoted
from ehrsequencing.errors import DataError

NO_NUL, MEND_NUL = "text without NUL bytes", "mend the file: NUL bytes mean that it is damaged, or in UTF-16"


def with_nul(texts: pl.Series) -> pl.Series:
    """Which identifiers have a NUL byte: they look like others and equal none, so that their rows would be lost.

    >>> with_nul(pl.Series(["p-1", "p-1\\0"])).to_list()
    [False, True]
    """
    return texts.str.contains("\0", literal=True).fill_null(False)


def identifiers(texts: pl.Series) -> pl.Series:
    """The first 63 bits of BLAKE2b (8 bytes, big-endian) of the lower-case text: the same number in every export.

    >>> identifiers(pl.Series(["3edac2e3-d223", "3EDAC2E3-D223"])).n_unique()
    1
    """
    written = texts.str.to_lowercase().cast(pl.Binary)
    digests = b"".join([hashlib.blake2b(text, digest_size=8).digest() for text in written])
    return pl.Series(texts.name, (np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64))


def refuse_nul(rows: pl.DataFrame, column: str, file: Path) -> None:
    """DataError that names the first row whose identifier, a text, has a NUL byte."""
    bad = rows.filter(with_nul(rows[column]))
    if len(bad):
        raise DataError(
            f"column {column} of {file} has {len(bad)} values that are no identifiers",
            got=f"{quoted(bad[column][0])} in row {bad['row'][0]}", expected=NO_NUL, remedy=MEND_NUL,
        )  # fmt: skip


def with_identifier(rows: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
    """Add the Int64 column `name` of the identifiers of a column of text; null stays null."""
    texts = rows[column].drop_nulls().unique()
    return rows.join(
        pl.DataFrame([texts, identifiers(texts).alias(name)]), on=column, how="left", maintain_order="left"
    )


def refuse_collisions(pairs: pl.DataFrame, text: str, number: str, where: str) -> None:
    """DataError where two texts, which differ not only in case, have one number.

    >>> refuse_collisions(pl.DataFrame({"id": ["a", "A", "b"], "n": [1, 1, 2]}), "id", "n", "patients.csv")
    """
    texts = pairs.select(number, pl.col(text).str.to_lowercase()).drop_nulls().unique()
    shared = texts.filter(pl.col(number).is_duplicated()).sort(number, text)
    if len(shared):
        first, second = shared[text][:2]
        raise DataError(
            f"two identifiers of {where} have the same number", got=f"{first} and {second}, both {shared[number][0]}",
            expected="a number each", remedy="rename one of the two wherever it occurs",
        )  # fmt: skip
