"""Label files in the MEDS label schema, each with a manifest beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from meds import LabelSchema

from ehrsequencing.data.schema import LABEL_SCHEMA
from ehrsequencing.errors import CheckpointError, LabelError
from ehrsequencing.io import atomic_path, hash_bytes, hash_file, read_json, write_json

VALUE_COLUMNS = ("boolean_value", "integer_value", "float_value", "categorical_value")
NO_CATEGORY = "[none]"
"""`categorical_value` of the one row of a multi-label example without any positive category."""
MAX_HORIZON_DAYS = 100_000
"""A window longer than any life."""
CATEGORIES_FILE = "categories.json"
"""In the model folder of a multi-label task: the category of each output."""
CAUSES_FILE = "causes.json"
"""In the model folder of a survival task: the name of each cause."""
ENTRY_COLUMNS = ("entry", "entry_days", "entry_time", "delayed_entry", "left_truncation", "truncation_time")
"""Columns by which other tools say that a subject was watched from later than the prediction time on."""


def trained_categories(model_folder: Path) -> list[str]:
    """Categories that a model folder decides; none of a model of another kind.

    Raises:
        CheckpointError: the file is damaged.
    """
    return _names(model_folder / CATEGORIES_FILE, "categories")


def trained_causes(model_folder: Path) -> list[str]:
    """Names of the causes of a survival model's folder; none of a model of another kind.

    Raises:
        CheckpointError: the file is damaged.
    """
    return _names(model_folder / CAUSES_FILE, "causes")


def _names(file: Path, key: str) -> list[str]:
    if not file.is_file():
        return []
    stated = read_json(file, CheckpointError).get(key)
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise CheckpointError(f"{file} names no {key}", got=str(stated)[:80], expected="a list of names")
    return stated


def horizon_of(manifest: dict[str, Any]) -> float | None:
    """`horizon_days` of a label manifest, None where it states no number.

    Raises:
        LabelError: no length of a window.
    """
    days = manifest.get("horizon_days")
    if isinstance(days, bool) or not isinstance(days, int | float):
        return None
    if not 0 <= days <= MAX_HORIZON_DAYS:
        raise LabelError(
            "horizon_days of the labels' manifest is no length of a window", got=str(days)[:40],
            expected=f"0 to {MAX_HORIZON_DAYS:,} days", remedy="correct the manifest",
        )  # fmt: skip
    return days


def validate_labels(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Cast to `LABEL_SCHEMA` (absent value columns become null), sort by subject and time, and check.

    One row per (subject, prediction time); multi-label tasks one row per (subject, prediction time, positive category),
    and one row of `NO_CATEGORY` where an example has none: it was asked, and the answer is nothing.
    No value changes in a cast: identifiers are integers, `integer_value` holds whole numbers, and `boolean_value`
    holds booleans or the numbers 0 and 1.

    Args:
        frame: Columns `subject_id`, `prediction_time` and at least one of the value columns.
        name: What the errors call the labels.

    Raises:
        LabelError: a column is missing or of the wrong type, a value has no place in it, a row lacks
            subject, time or every value, rows are duplicated, or there are none; or survival labels beside a column
            that says when a subject entered.
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
    _refuse_lossy(frame, name)
    late = [column for column in frame.columns if column.lower() in ENTRY_COLUMNS]
    if late and {"integer_value", "float_value"} <= set(present):
        raise LabelError(
            f"survival labels {name} say when a subject entered, after the prediction time", got=f"column {late[0]}",
            expected="subjects watched from the prediction time on (no left truncation)",
            remedy="make the time of entry the prediction time, count durations from it, and leave the column out",
        )  # fmt: skip
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
    with_none = labels.filter((pl.col("categorical_value") == NO_CATEGORY).any().over(key[:2]))
    if mixed := len(with_none) - with_none.n_unique(key[:2]):
        raise LabelError(
            f"labels {name} have examples with {NO_CATEGORY} beside a category", got=f"{mixed} rows",
            expected=f"{NO_CATEGORY} alone, where an example has no category",
        )  # fmt: skip
    return labels.sort(key)


def _refuse_lossy(frame: pl.DataFrame, name: str) -> None:
    """Refuse values that a cast to `LABEL_SCHEMA` would change or invent."""
    for column, expected in (
        ("subject_id", "integers"),
        ("boolean_value", "booleans, or the numbers 0 and 1"),
        ("integer_value", "whole numbers"),
        ("float_value", "numbers"),
    ):
        found = frame.schema.get(column, pl.Null())
        if found == pl.Null:
            continue
        value, known = pl.col(column), pl.col(column).is_not_null()
        number = found.is_integer() or found.is_float()
        if column == "boolean_value":
            wrong = pl.lit(False) if found == pl.Boolean else ((value != 0) & (value != 1)) if number else known
        elif column == "subject_id":
            wrong = pl.lit(False) if found.is_integer() else known
        elif column == "integer_value" and found.is_float():
            wrong = ~(value.is_finite() & (value == value.floor()))
        else:
            wrong = pl.lit(False) if number else known
        bad = frame.select(column).with_row_index("row").filter(wrong & known)
        if len(bad):
            row, first = bad.row(0)
            raise LabelError(
                f"column {column} of labels {name} has {len(bad)} wrong values",
                got=f"{first!r} ({found}) in row {row + 1}", expected=expected,
            )  # fmt: skip


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
    shards = []
    for file in _files(path):
        try:
            frame = pl.read_parquet(file)
        except (pl.exceptions.ComputeError, OSError) as problem:
            raise LabelError(f"{file} is not readable parquet", got=str(problem).splitlines()[0]) from None
        # Each shard by itself, and before types are made common: 1.5 in one shard must not excuse 1.0 in another.
        name = path.stem if file == path else f"{path.name}/{file.relative_to(path)}"
        if len(frame):
            shards.append(validate_labels(frame, name))
    labels = validate_labels(pl.concat(shards) if shards else frame, path.stem)
    manifest = manifest_path(path)
    return labels, read_json(manifest, LabelError) if manifest.exists() else {}


def labels_hash(path: str | Path) -> str:
    """Hex BLAKE2b-256 digest of a label file; of a folder, one over the sorted names and hashes of its shards.

    Raises:
        LabelError: nothing there.
    """
    path = Path(path)
    files = _files(path)
    if files == [path]:
        return hash_file(path)
    return hash_bytes(
        *(part.encode() for file in files for part in (file.relative_to(path).as_posix(), hash_file(file)))
    )


def _files(path: Path) -> list[Path]:
    """The label file, or the shards of a folder in the order of their names."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise LabelError(f"no labels at {path}", expected="a parquet file", remedy="make them with `ehrseq task build`")
    return files
