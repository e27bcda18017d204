"""Events of one table after the other on disk, by shard; a table that was spooled whole outlives a kill."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrsequencing.io import read_json, write_json


class SpoolFiles:
    """Files of a folder: `TABLE.PART.SHARD.arrows` for events, TABLE and SHARD being numbers; `TABLE.json` and
    `TABLE.codes.parquet` once a table is whole; `SHARD.written.json` and `SHARD.written.parquet` once a shard is.

    Files of one table are open at a time; a table that is taken up again later gets another part.
    """

    def __init__(self, folder: Path) -> None:
        """Keep what belongs to whole tables; remove the rest, which a killed process was writing."""
        self.folder = folder
        self._table: int | None = None
        self._parts: dict[int, int] = {}
        self._open = ExitStack()
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        folder.mkdir(exist_ok=True)
        whole = {int(file.name.split(".")[0]) for file in folder.glob("*.json") if "written" not in file.name}
        for file in folder.glob("*.arrows"):
            if int(file.name.split(".")[0]) not in whole:
                file.unlink()

    def append(self, table: int, shard: int, rows: pl.DataFrame) -> None:
        """Add events to a shard."""
        if table != self._table:
            self.close()
            self._table = table
            self._parts[table] = self._parts.get(table, -1) + 1
        batch = _by_dictionary(rows.to_arrow(compat_level=pl.CompatLevel.oldest()))
        if shard not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            name = f"{table:03}.{self._parts[table]:03}.{shard:03}.arrows"
            sink = self._open.enter_context(pa.OSFile(str(self.folder / name), "wb"))
            self._writers[shard] = self._open.enter_context(pa.ipc.new_stream(sink, batch.schema, options=options))
        self._writers[shard].write_table(batch)

    def close(self) -> None:
        """Write out the table of the last `append`."""
        self._open.close()
        self._writers.clear()
        self._table = None

    def read(self, shard: int) -> pl.DataFrame | None:
        """Events of a shard in the order of tables and of `append`; None where it has none."""
        frames = []
        for file in sorted(self.folder.glob(f"*.{shard:03}.arrows")):
            with pa.ipc.open_stream(str(file)) as stream:
                frames.append(stream.read_all())
        if not frames:
            return None
        return pl.DataFrame(pa.concat_tables(frames)).with_columns(pl.col(pl.Categorical).cast(pl.String))

    def table_done(self, table: int, state: Mapping[str, Any], codes: pl.DataFrame) -> None:
        """Note that a table is spooled whole, with what the spool knows of it."""
        self.close()
        files = {file.name: file.stat().st_size for file in self.folder.glob(f"{table:03}.*.arrows")}
        codes.write_parquet(self.folder / f"{table:03}.codes.parquet")
        write_json(self.folder / f"{table:03}.json", {"files": files, **state})

    def done_table(self, table: int) -> tuple[dict[str, Any], pl.DataFrame] | None:
        """What `table_done` noted; None where the table is not spooled, or not as noted."""
        note = self.folder / f"{table:03}.json"
        if not note.exists():
            return None
        state = read_json(note)
        for name, size in state["files"].items():
            file = self.folder / name
            written = self._written(int(name.split(".")[2])).exists()
            if not written and not (file.exists() and file.stat().st_size == size):
                note.unlink()
                for stale in self.folder.glob(f"{table:03}.*.arrows"):
                    stale.unlink()
                return None
        return state, pl.read_parquet(self.folder / f"{table:03}.codes.parquet")

    def shard_done(self, shard: int, state: Mapping[str, Any], codes: pl.DataFrame) -> None:
        """Note that a shard is written, with its counts, and remove its events."""
        codes.write_parquet(self._written(shard).with_suffix(".parquet"))
        write_json(self._written(shard), state)
        self._clear(shard)

    def done_shard(self, shard: int) -> tuple[dict[str, Any], pl.DataFrame] | None:
        """What `shard_done` noted."""
        note = self._written(shard)
        if not note.exists():
            return None
        self._clear(shard)
        return read_json(note), pl.read_parquet(note.with_suffix(".parquet"))

    def _written(self, shard: int) -> Path:
        return self.folder / f"{shard:03}.written.json"

    def _clear(self, shard: int) -> None:
        for file in self.folder.glob(f"*.{shard:03}.arrows"):
            file.unlink()


def _by_dictionary(rows: pa.Table) -> pa.Table:
    """Text as references to a dictionary: half of the space on disk, and quicker to read than to copy."""
    columns = [
        column.dictionary_encode() if pa.types.is_large_string(column.type) else column for column in rows.columns
    ]
    return pa.table(columns, names=rows.column_names)
