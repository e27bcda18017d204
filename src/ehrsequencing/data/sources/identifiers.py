"""Numbers for identifiers that are text, such as UUIDs."""

from __future__ import annotations

import hashlib

import polars as pl

from ehrsequencing.errors import DataError


def identifier(text: str) -> int:
    """The first 63 bits of BLAKE2b (8 bytes, big-endian) of the lower-case text: the same number in every export.

    >>> identifier("3edac2e3-d223-6fae-d515-daf96ef6bc76") == identifier("3EDAC2E3-D223-6FAE-D515-DAF96EF6BC76")
    True
    """
    return int.from_bytes(hashlib.blake2b(text.lower().encode(), digest_size=8).digest(), "big") >> 1


def with_identifier(rows: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
    """Add the Int64 column `name` of the identifiers of a column of text; null stays null."""
    texts = rows[column].drop_nulls().unique()
    numbers = pl.Series(name, map(identifier, texts), dtype=pl.Int64)
    return rows.join(pl.DataFrame([texts, numbers]), on=column, how="left", maintain_order="left")


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
