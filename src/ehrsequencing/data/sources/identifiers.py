"""Numbers for identifiers that are text, such as UUIDs."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from ehrsequencing.errors import DataError


def identifiers(texts: pl.Series) -> pl.Series:
    """The first 63 bits of BLAKE2b (8 bytes, big-endian) of the lower-case text: the same number in every export.

    >>> identifiers(pl.Series(["3edac2e3-d223", "3EDAC2E3-D223"])).n_unique()
    1
    """
    written = texts.str.to_lowercase().cast(pl.Binary)
    digests = b"".join([hashlib.blake2b(text, digest_size=8).digest() for text in written])
    return pl.Series(texts.name, (np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64))


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
