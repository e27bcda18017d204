"""Raw tables small enough to write down, as files."""

import gzip
import hashlib
from pathlib import Path

import polars as pl

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.schema import SPLITS


def write_table(file: Path, text: str) -> None:
    """Write comma-separated lines (blanks around cells removed) as the suffix says: .csv, .csv.gz or .parquet."""
    lines = [[cell.strip() for cell in line.split(",")] for line in text.strip().splitlines()]
    content = "".join(",".join(cells) + "\n" for cells in lines).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        frame = pl.read_csv(content, infer_schema_length=None)
        times = [name for name in frame.columns if name.lower().endswith(("_datetime", "_date"))]
        texts = [name for name in times if frame.schema[name] == pl.String]
        frame.with_columns(
            pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)
            if name.lower().endswith("_datetime")
            else pl.col(name).str.to_date()
            for name in texts
        ).write_parquet(file)
    else:
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def number_of(text: str) -> int:
    """The number of an identifier that is text."""
    return int(hashlib.blake2b(text.lower().encode(), digest_size=8).hexdigest(), 16) >> 1


def events_of(dataset: MedsDataset) -> pl.DataFrame:
    return (
        pl.concat([dataset.scan(split) for split in SPLITS])
        .collect()
        .sort("subject_id", "time", "code", maintain_order=True)
    )


def rows_of(events: pl.DataFrame, *columns: str) -> list[tuple]:
    """Rows as (time as text, code, further columns)."""
    shown = events.select(pl.col("time").dt.to_string("%Y-%m-%d %H:%M:%S"), "code", *columns)
    return sorted(shown.rows(), key=lambda row: (row[0] or "", row[1], str(row[2:])))
