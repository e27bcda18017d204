"""Concepts of the OMOP vocabularies, looked up after the events are read, so that only those used are held."""

from __future__ import annotations

import polars as pl

from ehrsequencing.data.sources.tables import Advance, Table, once

PLACEHOLDER = "OMOP//"
BUILT_IN = (
    (8507, "GENDER//M", "Male"),
    (8532, "GENDER//F", "Female"),
    (8657, "RACE//1", "American Indian or Alaska Native"),
    (8515, "RACE//2", "Asian"),
    (8516, "RACE//3", "Black or African American"),
    (8557, "RACE//4", "Native Hawaiian or Other Pacific Islander"),
    (8527, "RACE//5", "White"),
    (38003563, "ETHNICITY//Hispanic", "Hispanic or Latino"),
    (38003564, "ETHNICITY//Not_Hispanic", "Not Hispanic or Latino"),
    (9201, "VISIT//IP", "Inpatient Visit"),
    (9202, "VISIT//OP", "Outpatient Visit"),
    (9203, "VISIT//ER", "Emergency Room Visit"),
    (262, "VISIT//ERIP", "Emergency Room and Inpatient Visit"),
)
"""Concepts that nearly every dataset uses, for those that come without them: identifier, code, name."""
VITALS = (
    "8302-2", "29463-7", "3141-9", "39156-5", "8480-6", "8462-4", "8867-4", "9279-1", "8310-5", "8331-1", "8328-7",
    "2708-6", "59408-5", "8287-5", "72514-3",
)  # fmt: skip
"""LOINC codes of height, weight, body mass index, blood pressure, heart and breathing rate, temperature, saturation,
head circumference and pain: vital signs, where a measurement is a laboratory result otherwise."""
_PLACEHOLDER = r"^(.*?)OMOP//(\d+)(//low|//high)?$"
_SCHEMA = {"concept_id": pl.Int64(), "code": pl.String(), "name": pl.String(), "concept_class": pl.String()}
_ANCESTORS = {"ancestor_concept_id": "id", "descendant_concept_id": "id"}


def placeholder(concept: str) -> pl.Expr:
    """`OMOP//concept_id`; null where the concept is missing or 0, which means that none fits."""
    return pl.when(pl.col(concept) > 0).then(pl.concat_str(pl.lit(PLACEHOLDER), pl.col(concept)))


def concepts_of(codes: pl.Series) -> set[int]:
    """Identifiers in the placeholders that codes end in, apart from a flag."""
    return set(codes.str.extract(_PLACEHOLDER, 2).drop_nulls().cast(pl.Int64))


def read_concepts(table: Table | None, used: set[int], advance: Advance | None = None) -> pl.DataFrame:
    """Columns `concept_id`, `code` (`VOCABULARY//code`), `name`, `concept_class` of the concepts used, each once.

    Args:
        table: `concept`, or None; then the built-in ones serve.
        used: Identifiers.
        advance: Progress.
    """
    rows = [pl.DataFrame(schema=_SCHEMA)]
    wanted = pl.Series("concept_id", sorted(used), dtype=pl.Int64)
    if table is not None:
        columns = {"concept_id": "id", "vocabulary_id": "text", "concept_code": "text"}
        optional = {"concept_name": "text", "concept_class_id": "text"}
        for piece in table.read(columns, optional, advance):  # type: ignore[arg-type]
            vocabulary = pl.col("vocabulary_id").str.to_uppercase().str.replace_all(r"\s+", "_")
            code = pl.col("concept_code").str.replace_all(r"\s+", "_")
            rows.append(
                piece.rows.filter(pl.col("concept_id").is_in(wanted.implode())).select(
                    "concept_id",
                    code=pl.concat_str([vocabulary, code], separator="//"),
                    name="concept_name",
                    concept_class="concept_class_id",
                )
            )
    built_in = [(*concept, None) for concept in BUILT_IN]
    known = pl.DataFrame(built_in, schema=_SCHEMA, orient="row").filter(pl.col("concept_id").is_in(wanted.implode()))
    where = "" if table is None else table.files[0]
    found = once(pl.concat(rows).drop_nulls("code"), ["concept_id"], where)
    return pl.concat([found, known]).unique("concept_id", keep="first", maintain_order=True)


def resolution(codes: pl.Series, concepts: pl.DataFrame) -> pl.DataFrame:
    """Columns `code`, `resolved`, `name` of codes that end in a placeholder (and a flag) with a known concept.

    >>> concepts = pl.DataFrame({"concept_id": [9201], "code": ["VISIT//IP"], "name": ["Inpatient Visit"]})
    >>> resolution(pl.Series(["HOSPITAL_ADMISSION//OMOP//9201", "OMOP//1", "MEDS_BIRTH"]), concepts).rows()
    [('HOSPITAL_ADMISSION//OMOP//9201', 'HOSPITAL_ADMISSION//VISIT//IP', 'Inpatient Visit')]
    >>> resolution(pl.Series(["LAB_FLAG//OMOP//9201//low"]), concepts).row(0)[1:]
    ('LAB_FLAG//VISIT//IP//low', 'Inpatient Visit: low')
    """
    parts = (
        codes.alias("code")
        .to_frame()
        .with_columns(
            before=pl.col("code").str.extract(_PLACEHOLDER, 1),
            concept_id=pl.col("code").str.extract(_PLACEHOLDER, 2).cast(pl.Int64),
            flag=pl.col("code").str.extract(_PLACEHOLDER, 3).fill_null(""),
        )
    )
    joined = parts.join(concepts.rename({"code": "found"}), on="concept_id", how="inner", maintain_order="left")
    return joined.select(
        "code",
        resolved=pl.concat_str("before", "found", "flag"),
        name=pl.concat_str("name", pl.col("flag").str.replace("//", ": ")),
    )


def inpatient_concepts(
    ancestors: Table | None, roots: frozenset[int], advance: Advance | None = None
) -> frozenset[int]:
    """Visit concepts that are stays in hospital: the roots and, with `concept_ancestor`, what descends from them."""
    if ancestors is None:
        return roots
    found = set(roots)
    for piece in ancestors.read(_ANCESTORS, None, advance):  # type: ignore[arg-type]
        below = piece.rows.filter(pl.col("ancestor_concept_id").is_in(sorted(roots)))
        found |= set(below["descendant_concept_id"].drop_nulls())
    return frozenset(found)


def read_ancestors(table: Table | None, used: set[int], advance: Advance | None = None) -> pl.DataFrame:
    """Columns `concept_id`, `ancestor_id`, `steps` (the fewest) of the ancestors of the concepts used; none itself.

    Args:
        table: `concept_ancestor`, or None; then there are none.
        used: Identifiers.
        advance: Progress.
    """
    rows = [pl.DataFrame(schema={"concept_id": pl.Int64, "ancestor_id": pl.Int64, "steps": pl.Int64})]
    if table is not None:
        wanted = pl.Series(sorted(used), dtype=pl.Int64)
        columns = {**_ANCESTORS, "min_levels_of_separation": "id"}
        for piece in table.read(columns, None, advance):  # type: ignore[arg-type]
            rows.append(
                piece.rows.select(
                    concept_id="descendant_concept_id", ancestor_id="ancestor_concept_id",
                    steps="min_levels_of_separation",
                ).filter(pl.col("concept_id").is_in(wanted.implode()), pl.col("steps") > 0)
            )  # fmt: skip
    return pl.concat(rows).drop_nulls().unique()


def parent_codes(ancestors: pl.DataFrame, concepts: pl.DataFrame) -> pl.DataFrame:
    """Columns `code`, `parent_codes`: the ingredients of RxNorm's drugs, the next concepts above all others.

    Args:
        ancestors: From `read_ancestors`.
        concepts: From `read_concepts`, with the ancestors.
    """
    own = concepts.select("concept_id", "code")
    above = concepts.select(ancestor_id="concept_id", parent="code", parent_class="concept_class")
    ingredient = (pl.col("parent_class") == "Ingredient").fill_null(False) & pl.col("parent").str.starts_with("RXNORM")
    drug = pl.col("code").str.starts_with("RXNORM")
    return (
        ancestors.join(own, on="concept_id", how="inner")
        .join(above, on="ancestor_id", how="inner")
        .filter(pl.when(drug).then(ingredient).otherwise(pl.col("steps") == 1))
        .group_by("code")
        .agg(parent_codes=pl.col("parent").unique().sort())
    )
