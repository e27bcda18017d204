"""Label files in the MEDS label schema, each with a manifest beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from meds import LabelSchema

from ehrsequencing.data.schema import LABEL_SCHEMA
from ehrsequencing.errors import LabelError
from ehrsequencing.io import atomic_path, hash_bytes, hash_file, read_json, write_json

VALUE_COLUMNS = ("boolean_value", "integer_value", "float_value", "categorical_value")


def validate_labels(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Cast to `LABEL_SCHEMA` (absent value columns become null), sort by subject and time, and check.

    One row per (subject, prediction time); multi-label tasks one row per (subject, prediction time, category).

    Args:
        frame: Columns `subject_id`, `prediction_time` and at least one of the value columns.
        name: What the errors call the labels.

    Raises:
        LabelError: a column is missing or of the wrong type, a row lacks subject, time or every value, rows are
            duplicated, or there are none.
    """
    present = [column for column in VALUE_COLUMNS if column in frame.columns]
    missing = [column for column in ("subject_id", "prediction_time") if column not in frame.columns]
    if missing or not present:
        raise LabelError(
            f"labels {name} lack {', '.join(missing) or 'a value column'}",
            got=f"columns {', '.join(frame.columns)}",
            expected=f"subject_id, prediction_time and one of {', '.join(VALUE_COLUMNS)}",
        )
    if frame.is_empty():
        raise LabelError(f"labels {name} are empty", got="0 rows", remedy="check the cohort rules of the task")
    columns = []
    for column, wanted in LABEL_SCHEMA.items():
        if column not in frame.columns:
            columns.append(pl.lit(None, dtype=wanted).alias(column))
            continue
        expression, found = pl.col(column), frame.schema[column]
        if isinstance(found, pl.Datetime) and found.time_zone is not None:
            expression = expression.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        elif wanted.is_temporal() != found.is_temporal() and found != pl.Null:
            raise LabelError(f"column {column} of labels {name} has the wrong type", got=found, expected=wanted)
        columns.append(expression.cast(wanted))
    try:
        labels = frame.select(columns)
    except pl.exceptions.InvalidOperationError as problem:
        raise LabelError(
            f"a column of labels {name} has the wrong type",
            got=str(problem).splitlines()[0],
            expected="the MEDS label schema",
        ) from None
    for column in ("subject_id", "prediction_time"):
        if nulls := labels[column].null_count():
            raise LabelError(
                f"labels {name} have rows without {column}", got=f"{nulls} of {len(labels)}", expected="none"
            )
    if valueless := labels.select(pl.all_horizontal(pl.col(VALUE_COLUMNS).is_null()).sum()).item():
        raise LabelError(
            f"labels {name} have rows without a value", got=f"{valueless} of {len(labels)}", expected="none"
        )
    key = ["subject_id", "prediction_time", "categorical_value"]
    if repeated := len(labels) - labels.n_unique(key):
        raise LabelError(
            f"labels {name} repeat a subject and prediction time", got=f"{repeated} repeated rows", expected="each once"
        )
    return labels.sort(key)


def manifest_path(path: Path) -> Path:
    """Where the manifest of a label file (or folder of shards) lies."""
    return path.with_suffix(".json")


def write_labels(path: str | Path, frame: pl.DataFrame, manifest: dict[str, Any]) -> None:
    """Write `path` (parquet) and its manifest (`.json` beside it), each atomically.

    The MEDS label schema allows no null in a value column, so columns that carry nothing are left out of the file.

    Raises:
        LabelError: see `validate_labels`; also extra columns, or values present in some rows only.
    """
    path = Path(path)
    if extra := [column for column in frame.columns if column not in LABEL_SCHEMA]:
        raise LabelError(
            f"labels {path.stem} have extra columns", got=", ".join(extra), expected=", ".join(LABEL_SCHEMA)
        )
    labels = validate_labels(frame, path.stem)
    labels = labels.select(column for column in labels.columns if labels[column].null_count() < len(labels))
    if partial := [column for column in labels.columns if labels[column].null_count()]:
        raise LabelError(
            f"labels {path.stem} have missing values", got=f"nulls in {', '.join(partial)}", expected="none"
        )
    table = LabelSchema.align(labels.to_arrow())
    # The manifest first: a crash in between leaves a description without labels, never labels without one.
    write_json(manifest_path(path), manifest)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_labels(path: str | Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Read a label file, or a folder of label shards as other tools write them.

    Returns:
        Labels with the columns of `LABEL_SCHEMA`, sorted by subject and time (columns beyond the schema are left
        out), and the manifest ({} when there is none).

    Raises:
        LabelError: nothing there, not parquet, or see `validate_labels`.
    """
    path = Path(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise LabelError(f"no labels at {path}", expected="a parquet file", remedy="make them with `ehrseq task build`")
    try:
        frame = pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed")
    except (pl.exceptions.ComputeError, OSError) as problem:
        raise LabelError(f"{path} is not readable parquet", got=str(problem).splitlines()[0]) from None
    manifest = manifest_path(path)
    labels = validate_labels(frame, path.stem)
    return labels, read_json(manifest, LabelError) if manifest.exists() else {}


def labels_hash(path: str | Path) -> str:
    """Hash of a label file, or over the shards of a folder by name."""
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    shards = sorted(path.rglob("*.parquet"))
    return hash_bytes(*(f"{shard.relative_to(path)} {hash_file(shard)}".encode() for shard in shards))
