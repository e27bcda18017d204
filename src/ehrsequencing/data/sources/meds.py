"""Any MEDS dataset, brought to MEDS 0.4 as we write it: checked, sorted, every subject whole in one shard.

Source: the Medical Event Data Standard, https://github.com/Medical-Event-Data-Standard/meds, versions 0.3 (flat events,
`patient_id` until 0.3.0, a row of codes.parquet per code at least) and 0.4 (`text_value`, one row per code).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl

from ehrsequencing.data.dataset import CODES_FILE, DATASET_FILE, MedsDataset, manifest_in, read_codes
from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE, KINDS, kind_of_code
from ehrsequencing.data.sources.finishing import first_only
from ehrsequencing.data.sources.meds_layout import (
    BLANK_TIME,
    COLUMNS,
    REQUIRED,
    Events,
    Shard,
    find_layout,
    read_subjects,
)
from ehrsequencing.data.sources.spool import event, summary, write_observation_end
from ehrsequencing.data.sources.target import Target
from ehrsequencing.errors import DataError
from ehrsequencing.io import read_json

ORIGIN = ("dataset_name", "dataset_version", "etl_name", "etl_version", "meds_version", "created_at", "license")
BLANK = {"a time of empty text, taken as a fact without a date": pl.col(BLANK_TIME).is_not_null()}
CODE_COLUMNS = ("code", "description", "parent_codes", "kind", "numeric")
NOTES = [
    "Times are those of the source, in UTC without zone; undated rows stay undated.",
    "Existing splits are kept; without any, subjects are split by BLAKE2b of the identifier.",
    "Of several births or deaths of a subject the earliest is kept.",
]


def load(src: Path, target: Target) -> None:
    """Import a dataset of another tool, or of an earlier version of the standard.

    Args:
        src: Folder with `data/**/*.parquet` and, where at hand, `metadata/`; a folder with parquet files; or one file.
        target: Where it is written, and how.

    Raises:
        DataError: no parquet file, a file is damaged, a required column is missing, an identifier or time does not
            parse; with `strict`, an event without a place.
        SplitError: a subject in two splits, or in none of those stated.
        RunError: `out` exists.
    """
    root, shards = find_layout(src)
    subjects = read_subjects(root, shards)
    origin = read_json(root / DATASET_FILE, DataError) if (root / DATASET_FILE).exists() else {}
    ours = manifest_in(origin, root / DATASET_FILE)
    fixed = bool(ours.get("fixed_code_book", False))
    described, further = _described(root / CODES_FILE)
    events = Events.of(shards)
    with target.writer() as writer, target.spool(writer, subjects, [events], "data") as spool:
        kinds = {name: kind for name, (kind, _) in COLUMNS.items()}
        required = {name: kinds.pop(name) for name in REQUIRED}
        for piece in spool.read(events, required, {**kinds, BLANK_TIME: "text"}):
            spool.add(piece, *_events(piece.rows), contradictions=BLANK)
        book, finish = spool.book(), _Finish()
        written = spool.write(writer, finish, finish.conflicts)
        codes = _code_table(book.join(written["events_by_code"], on="code", how="semi"), described, whole=fixed)
        ends = MedsDataset(root, {}, {}).observation_end()
        if ends is not None:
            write_observation_end(writer, ends.join(subjects, on="subject_id", how="semi").sort("subject_id"))
        writer.finish(
            codes,
            source="meds",
            options={"strict": target.strict},
            notes=[*ours.get("notes", []), *NOTES],
            fixed_code_book=fixed,
            extra=summary(
                spool,
                written,
                codes,
                origin={key: origin[key] for key in ORIGIN if key in origin},
                columns=_columns(shards),
                columns_left_out=sorted({*(column for shard in shards for column in shard.left_out)}),
                code_columns_left_out=further,
                conflicts=dict(finish.conflicts),
            ),
        )


def _columns(shards: list[Shard]) -> dict[str, str]:
    """Our columns and what the source calls them."""
    found: dict[str, set[str]] = {}
    for shard in shards:
        for ours, theirs in shard.columns.items():
            found.setdefault(ours, set()).add(theirs)
    return {ours: ", ".join(sorted(theirs)) for ours, theirs in found.items()}


def _events(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Facts without a date, and events; a birth or death without a date is neither."""
    vital = pl.col("code").is_in([BIRTH_CODE, DEATH_CODE]).fill_null(False)
    undated = pl.col("time").is_null() & ~vital
    code, value, unit, text = (pl.col(name) for name in ("code", "numeric_value", "unit", "text_value"))
    return [
        event(rows, code, time, "other", visit="visit_id", value=value, unit=unit, text=text, where=where)
        for time, where in ((None, undated), (pl.col("time"), ~undated))
    ]


class _Finish:
    """One birth and one death for each subject; counts the others."""

    def __init__(self) -> None:
        self.conflicts: Counter[str] = Counter()

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        for code, name in ((BIRTH_CODE, "further_births_of_a_subject"), (DEATH_CODE, "further_deaths_of_a_subject")):
            events, further = first_only(events, code)
            self.conflicts[name] += further
        return events


def _described(file: Path) -> tuple[pl.DataFrame, list[str]]:
    """Columns `CODE_COLUMNS` of a code table, each code once, and the names of its other columns.

    Version 0.3 asks for at least one row per code: the first description stands, and the parents of all.
    """
    table = read_codes(file)
    parents = table.schema.get("parent_codes", pl.Null())
    if isinstance(parents, pl.List) and not parents.inner.is_nested():
        table = table.with_columns(pl.col("parent_codes").cast(pl.List(pl.String)))
    elif parents in (pl.String, pl.Categorical, pl.Null):
        written = pl.col("parent_codes") if "parent_codes" in table.columns else pl.lit(None)
        table = table.with_columns(parent_codes=pl.concat_list(written.cast(pl.String)))
    else:
        raise DataError(f"column parent_codes of {file} has the wrong type", got=parents, expected="lists of codes")
    types = {"description": pl.String(), "kind": pl.String(), "numeric": pl.Boolean()}
    table = table.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in types.items() if name not in table
    )
    rows = table.select(
        pl.col("code").cast(pl.String).str.strip_chars(),
        pl.col("description").cast(pl.String),
        "parent_codes",
        kind=pl.when(pl.col("kind").cast(pl.String).is_in(KINDS)).then(pl.col("kind").cast(pl.String)),
        numeric=pl.col("numeric").cast(pl.Boolean),
    ).filter(pl.col("code").is_not_null() & (pl.col("code") != ""))
    merged = rows.group_by("code", maintain_order=True).agg(
        pl.col("description", "kind").drop_nulls().first(),
        pl.col("parent_codes").explode().drop_nulls().unique(maintain_order=True),
        pl.col("numeric").any(),
    )
    return merged, sorted(set(table.columns) - set(CODE_COLUMNS))


def _code_table(book: pl.DataFrame, described: pl.DataFrame, *, whole: bool) -> pl.DataFrame:
    """Codes of the events with what the source says of them; with `whole`, its other codes, too."""
    seen = book.select("code", found="numeric")
    rows = seen.join(described, on="code", how="full" if whole else "left", coalesce=True, maintain_order="left")
    by_system = pl.col("code").map_elements(kind_of_code, return_dtype=pl.String)
    table = rows.select(
        "code", "description", kind=pl.coalesce("kind", by_system),
        numeric=pl.coalesce("numeric" if whole else "found", "found", pl.lit(False)),
        parent_codes=pl.when(pl.col("parent_codes").list.len() > 0).then("parent_codes"),
    )  # fmt: skip
    return table if table["parent_codes"].count() else table.drop("parent_codes")
