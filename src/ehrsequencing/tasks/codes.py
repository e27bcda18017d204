"""Which codes a pattern means: prefixes, whole identifiers, other spellings, and ancestors."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrsequencing.data.dataset import CODES_FILE, MedsDataset
from ehrsequencing.errors import DataError

WHOLE_CODE_SYSTEMS = ("SNOMED", "RXNORM", "LOINC")
"""Systems whose identifiers are no paths: 22298006 is no parent of 222980061, so a pattern means the whole code."""
_PAIR = {"code": pl.String(), "spelling": pl.String()}


class CodeTable:
    """The ancestors of a dataset's codes, as `metadata/codes.parquet` gives them in `parent_codes`.

    Attributes:
        ancestors: Columns `code`, `spelling`: every ancestor of a code, at any distance.
        dataset: Where the kinds of codes come from; None where nobody asks for them.
    """

    def __init__(self, ancestors: pl.DataFrame, dataset: MedsDataset | None = None) -> None:
        self.ancestors = ancestors
        self.dataset = dataset

    @classmethod
    def of(cls, dataset: MedsDataset) -> CodeTable:
        """Read the code table of a dataset; without one, or without `parent_codes`, no code has an ancestor.

        Raises:
            DataError: unreadable, or `parent_codes` holds neither strings nor lists of strings.
        """
        file = dataset.path / CODES_FILE
        try:
            table = pl.read_parquet(file) if file.exists() else pl.DataFrame()
        except (pl.exceptions.ComputeError, OSError) as problem:
            raise DataError(f"{file} is not readable parquet", got=str(problem).splitlines()[0]) from None
        if not {"code", "parent_codes"} <= set(table.columns):
            return cls(pl.DataFrame(schema=_PAIR), dataset)
        return cls(_closure(_parents(table, file)), dataset)

    def matching(self, codes: pl.Series, patterns: tuple[str, ...]) -> pl.Series:
        """The codes that match a pattern themselves, in another spelling, or through an ancestor; sorted.

        A pattern matches every code that starts with it; in `WHOLE_CODE_SYSTEMS` it matches that code alone.

        >>> table = CodeTable(pl.DataFrame({"code": ["DX//1"], "spelling": ["SNOMED/22298006"]}))
        >>> codes = pl.Series(["ICD10CM//I21.4", "DIAGNOSIS//ICD//9//41071", "SNOMED//222980061", "DX//1"])
        >>> table.matching(codes, ("ICD10CM//I21", "ICD9CM//410.7", "SNOMED//22298006")).to_list()
        ['DIAGNOSIS//ICD//9//41071', 'DX//1', 'ICD10CM//I21.4']
        """
        itself = pl.DataFrame({"code": codes.cast(pl.String).unique()}).with_columns(spelling="code")
        known = self.ancestors.join(itself, on="code", how="semi")
        written = pl.concat([itself, known])
        spelled = pl.concat([written, written.with_columns(spelling=_spelling())])
        return spelled.filter(pl.any_horizontal(_fits(pattern) for pattern in patterns))["code"].unique().sort()

    def of_kinds(self, kinds: tuple[str, ...]) -> pl.DataFrame:
        """Column `code`: the dataset's codes of these kinds."""
        table = self.dataset.codes() if self.dataset else pl.DataFrame(schema={"code": pl.String, "kind": pl.String})
        return table.filter(pl.col("kind").is_in(kinds)).select("code")


def _fits(pattern: str) -> pl.Expr:
    spelling = pl.col("spelling")
    system, _, rest = pattern.partition("//")
    if system in WHOLE_CODE_SYSTEMS and rest:
        return (spelling == pattern) | spelling.str.starts_with(pattern + "//")
    return spelling.str.starts_with(pattern)


def _spelling() -> pl.Expr:
    """Foreign spellings as ours: `SNOMED/1` (OMOP-derived MEDS), `DIAGNOSIS//ICD//9//41071` (MIMIC), ICD without dots.

    ICD-9-CM has its dot after three characters (four in E codes), ICD-10-CM after three.
    """
    spelling = pl.col("spelling")
    slashes = pl.when(spelling.str.contains("//", literal=True)).then(spelling)
    spelling = slashes.otherwise(spelling.str.replace("/", "//", literal=True))
    spelling = spelling.str.replace(r"^DIAGNOSIS//ICD//(9|10)//", "ICD${1}CM//")
    spelling = spelling.str.replace(r"^(ICD9CM//(?:E\d{3}|[V\d]\d{2}))(\d{1,2})$", "${1}.${2}")
    return spelling.str.replace(r"^(ICD10CM//[A-Z]\d[0-9A-Z])([0-9A-Z]{1,4})$", "${1}.${2}")


def _parents(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    found = table.schema["parent_codes"]
    if found == pl.List(pl.String):
        table = table.explode("parent_codes")
    elif found not in (pl.String, pl.Null):
        raise DataError(f"column parent_codes of {file} has the wrong type", got=found, expected="lists of codes")
    pairs = table.select(pl.col("code").cast(pl.String), spelling=pl.col("parent_codes").cast(pl.String))
    return pairs.drop_nulls().unique()


def _closure(parents: pl.DataFrame) -> pl.DataFrame:
    """Ancestors at any distance; a table that runs in circles ends, too, since no pair is followed twice."""
    step = parents.rename({"code": "spelling", "spelling": "next"})
    pairs = newest = parents
    while len(newest):
        newest = newest.join(step, on="spelling").select("code", spelling="next").unique()
        newest = newest.join(pairs, on=["code", "spelling"], how="anti")
        pairs = pl.concat([pairs, newest])
    return pairs
