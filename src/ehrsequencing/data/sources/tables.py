"""Tables of raw records: CSV, CSV.gz or parquet, in pieces of typed columns; problems are named by file and row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import polars.selectors as cs
import pyarrow.parquet as pq

from ehrsequencing.data.sources.cells import (
    EARLIEST,
    LATEST,
    TYPES,
    Cells,
    Kind,
    cells_of,
    empty_column,
    text_beside,
    texts,
)
from ehrsequencing.data.sources.csv_files import PLAIN, Advance, Layout, csv_blocks, frame_of, header
from ehrsequencing.data.sources.problems import Place, named_problems, quoted, refuse_cells
from ehrsequencing.errors import DataError

Wanted = Mapping[str, Kind | Cells]
"""Columns by lower-case name: what they hold, or how they are read (then under any name)."""

SUFFIXES = (".csv", ".csv.gz", ".parquet")
PARQUET_ROWS = 1 << 17


@dataclass(frozen=True)
class Piece:
    """Some rows of a table.

    Attributes:
        table: Name of the table.
        file: Where they come from.
        rows: The columns asked for and `row` (Int64): number within the file, from 1, header and blank lines apart.
        unreadable: Per column of numbers how many values are none that float32 can hold; these are null.
        implausible: Per column of times how many are before `EARLIEST` or after `LATEST`; these are null.
        absent: Optional columns that the file lacks; these are null.
        texts: Per column of numbers how many values are none and stand in the column of text beside it.
        first: Per column of `unreadable` and `implausible` the first such cell.
        impossible: Rows with a cell of `implausible`.
        parts: Where the rows are those of several files: rows before each, and the file.
    """

    table: str
    file: Path
    rows: pl.DataFrame
    unreadable: dict[str, int] = field(default_factory=dict)
    implausible: dict[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    texts: dict[str, int] = field(default_factory=dict)
    first: dict[str, Place] = field(default_factory=dict)
    impossible: tuple[int, ...] = ()
    parts: tuple[tuple[int, Path], ...] = ()

    def place(self, row: int) -> str:
        """A row as it is found in its file."""
        if not self.parts:
            return f"row {row}"
        before, file = next(part for part in reversed(self.parts) if part[0] < row)
        return f"row {row - before} of {file}"


@dataclass(frozen=True)
class Table:
    """One table, in one file or in several parts."""

    name: str
    files: tuple[Path, ...]
    layout: Layout = PLAIN

    def read(
        self, required: Wanted, optional: Wanted | None = None, advance: Advance | None = None
    ) -> Generator[Piece, None, None]:
        """Yield typed pieces; memory holds one.

        Args:
            required: Lower-case column names, whatever their case in the file, and what they hold.
            optional: Columns that are null where the file lacks them.
            advance: Progress.

        Raises:
            DataError: a file is empty, damaged, cut short or in another encoding, lacks a required column, has rows of
                another width, or holds a value that is no identifier or time.
        """
        wanted = {name: cells_of(name, given) for name, given in {**required, **(optional or {})}.items()}
        needed = [column for name in required for column in wanted[name].columns]
        for file in self.files:
            found = column_names(file, self.layout)
            if missing := [column for column in dict.fromkeys(needed) if column not in found]:
                raise DataError(
                    f"{file} lacks {', '.join(missing)}",
                    got=f"columns {', '.join(found)}",
                    expected=f"columns {', '.join(dict.fromkeys(needed))}",
                    remedy=self.layout.stated_in and f"mend the names, or delimiter, in {self.layout.stated_in}",
                )
            columns = {column for cells in wanted.values() for column in cells.columns if column in found}
            read = _parquet if file.suffix.lower() == ".parquet" else csv_blocks
            first = 1
            names = [found[column] for column in found if column in columns]
            with closing(read(file, names, self.layout, advance)) as blocks:
                for raw in blocks:
                    renamed = raw.rename({found[column]: column for column in columns})
                    yield self._typed(renamed, pl.int_range(first, first + len(raw), eager=True), wanted, file)
                    first += len(raw)

    def whole(self, required: Wanted, optional: Wanted | None = None) -> Piece:
        """All rows in one piece, for small tables."""
        pieces = list(self.read(required, optional))
        if not pieces:
            wanted = {name: cells_of(name, given) for name, given in {**required, **(optional or {})}.items()}
            schema: dict[str, pl.DataType] = {"row": pl.Int64()}
            for name, cells in wanted.items():
                schema |= {name: TYPES[cells.kind]} | ({text_beside(name): pl.String()} if cells.keep_text else {})
            return Piece(self.name, self.files[0], pl.DataFrame(schema=schema))
        return joined(pieces, self.files[0].parent if len(self.files) > 1 else self.files[0])

    def _typed(self, raw: pl.DataFrame, row: pl.Series, wanted: Mapping[str, Cells], file: Path) -> Piece:
        columns = [row.alias("row")]
        counts: dict[str, dict[str, int]] = {"number": {}, "time": {}, "text": {}}
        first: dict[str, Place] = {}
        impossible: set[int] = set()
        absent = []
        for name, cells in wanted.items():
            if any(column not in raw.columns for column in cells.columns):
                absent.append(name)
                columns.append(empty_column(name, cells.kind, len(raw)))
                if cells.keep_text:
                    columns.append(empty_column(text_beside(name), "text", len(raw)))
                continue
            values = raw[cells.columns[0]]
            if len(cells.columns) > 1:
                # A date without its clock is a date.
                joined_cells = pl.concat_str(cells.columns, separator=" ", ignore_nulls=True)
                values = raw.select(
                    pl.when(pl.col(cells.columns[0]).is_not_null()).then(joined_cells).alias(" ".join(cells.columns))
                ).to_series()
            typed, bad = cells.read(values)
            if bad is not None and cells.kind != "number":
                refuse_cells(bad, values, file, row, cells)
            if cells.kind == "time":
                bad = ~typed.is_between(EARLIEST, LATEST).fill_null(True)
                typed = typed.set(bad, None) if bad.any() else typed
            columns.append(typed.alias(name))
            if cells.keep_text:
                text, bad = _texts_of(values, bad)
                columns.append(text.alias(text_beside(name)))
                if count := text.count():
                    counts["text"][values.name] = count
            if cells.kind in counts and bad is not None and (count := int(bad.sum())):
                counts[cells.kind][values.name] = count
                at = bad.arg_true()[0]
                first.setdefault(values.name, Place(file, row[at], quoted(values[at]), cells.remedy))
                if cells.kind == "time":
                    impossible.update(row.filter(bad))
        return Piece(
            self.name, file, pl.DataFrame(columns), counts["number"], counts["time"], tuple(absent), counts["text"],
            first, tuple(sorted(impossible)),
        )  # fmt: skip


@dataclass(frozen=True)
class Held(Table):
    """A table with its pieces in memory, for sources whose subjects are known only when all rows are read."""

    pieces: tuple[Piece, ...] = ()

    def read(
        self, required: Wanted, optional: Wanted | None = None, advance: Advance | None = None
    ) -> Generator[Piece, None, None]:
        """The pieces, as the source made them; see `Table.read`."""
        yield from self.pieces
        if advance is not None:
            for file in self.files:
                advance(file, file.stat().st_size)


def _texts_of(values: pl.Series, bad: pl.Series | None) -> tuple[pl.Series, pl.Series | None]:
    """The cells that are no numbers as text, and those that are no text either."""
    if bad is None or not bad.any():
        return empty_column(values.name, "text", len(values)), bad
    text, _ = texts(values.set(~bad, None))
    return text, bad & text.is_null()


def joined(pieces: Sequence[Piece], file: Path) -> Piece:
    """Pieces of a table as one, under the name of its file or of their folder: rows numbered through, counts summed."""
    before: dict[Path, int] = {}
    rows = 0
    for piece in pieces:
        before.setdefault(piece.file, rows)
        rows += len(piece.rows)
    first: dict[str, Place] = {}
    for piece in reversed(pieces):
        first |= piece.first
    unreadable, implausible, kept = (
        dict(sum((Counter(getattr(piece, name)) for piece in pieces), Counter[str]()))
        for name in ("unreadable", "implausible", "texts")
    )
    return Piece(
        pieces[0].table,
        file,
        pl.concat([piece.rows for piece in pieces]).with_columns(row=pl.int_range(1, pl.len() + 1)),
        unreadable,
        implausible,
        tuple(sorted({column for piece in pieces for column in piece.absent})),
        kept,
        first,
        tuple(row + before[piece.file] for piece in pieces for row in piece.impossible),
        () if file in before else tuple((rows, part) for part, rows in before.items()),
    )


def find_tables(folder: Path) -> dict[str, Table]:
    """Tables that lie directly in a folder, by their lower-case name; a folder of parts is one table.

    Raises:
        DataError: the folder is missing, or a table is there twice.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing" if not folder.exists() else f"{folder} is no folder", expected="a folder"
        )
    found: dict[str, list[tuple[Path, ...]]] = {}
    for path in sorted(folder.iterdir()):
        name = table_name(path)
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            parts = tuple(part for part in sorted(path.iterdir()) if _is_part(part))
            if parts:
                found.setdefault((name or path.name).lower(), []).append(parts)
        elif name is not None:
            found.setdefault(name.lower(), []).append((path,))
    for name, places in found.items():
        if len(places) > 1:
            raise DataError(
                f"{folder} has table {name} twice",
                got=" and ".join(str(place[0].relative_to(folder)) for place in places),
                expected="one file, or one folder of parts",
                remedy="remove the one not meant",
            )
    return {name: Table(name, places[0]) for name, places in found.items()}


def require_tables(tables: Mapping[str, Table], names: tuple[str, ...], where: Path) -> None:
    """DataError when a table without which there is nothing to import is missing."""
    if missing := [name for name in names if name not in tables]:
        raise DataError(
            f"{where} lacks table {', '.join(missing)}",
            got=", ".join(sorted(tables)) or "no table",
            expected=" or ".join(f"{missing[0]}{suffix}" for suffix in SUFFIXES),
        )


def keyed(piece: Piece, key: str, called: str | None = None) -> pl.DataFrame:
    """Rows of a table of subjects or visits that have the key.

    Args:
        piece: The rows.
        key: Its column.
        called: What messages call it, where that is another name.

    Raises:
        DataError: a key is repeated, or there is none.
    """
    rows = piece.rows.filter(pl.col(key).is_not_null())
    if rows.is_empty():
        raise DataError(f"{piece.file} has no {called or key}", got=f"{len(piece.rows)} rows", expected="at least one")
    if len(twice := rows.filter(pl.col(key).is_duplicated())):
        raise DataError(
            f"{piece.file} repeats values of {called or key}",
            got=f"{twice[key][0]}, first in {piece.place(twice['row'][0])}", expected="each once",
        )  # fmt: skip
    return rows


def once(rows: pl.DataFrame, keys: Sequence[str], where: str | Path) -> pl.DataFrame:
    """Rows with a key, each key once; equal rows are one.

    Raises:
        DataError: rows of one key differ.
    """
    rows = rows.drop_nulls(keys).unique(maintain_order=True)
    if len(twice := rows.filter(rows.select(keys).is_duplicated())):
        raise DataError(
            f"{where} states {', '.join(keys)} twice, and differently",
            got=", ".join(map(str, twice.select(keys).row(0))), expected="each once",
        )  # fmt: skip
    return rows


def table_name(path: Path) -> str | None:
    """The name without a suffix that we read, for example `person` of `PERSON.csv.gz`; None for other files."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return None


def _is_part(path: Path) -> bool:
    return path.is_file() and not path.name.startswith((".", "_")) and table_name(path) is not None


def column_names(file: Path, layout: Layout = PLAIN) -> dict[str, str]:
    """Lower-case column names to the names as written.

    Raises:
        DataError: the file is empty or damaged, or repeats a name.
    """
    if file.suffix.lower() == ".parquet":
        with named_problems(file):
            names = pq.read_schema(file).names
    else:
        names = header(file, layout)[0]
    lower = [name.strip().lower() for name in names]
    if repeated := sorted({name for name in lower if lower.count(name) > 1}):
        raise DataError(f"{file} repeats columns", got=", ".join(repeated), expected="each name once")
    return dict(zip(lower, names, strict=True))


def _parquet(
    file: Path, columns: list[str], layout: Layout, advance: Advance | None
) -> Generator[pl.DataFrame, None, None]:
    missing = [cell for cell in layout.missing if cell]
    with named_problems(file), pq.ParquetFile(file) as source:
        total, done, size = source.metadata.num_rows, 0, file.stat().st_size
        for batch in source.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            if batch.num_rows:
                frame = frame_of(batch)
                yield frame.with_columns(cs.string().replace(missing, None)) if missing else frame
            done += batch.num_rows
            if advance is not None:
                advance(file, size * done // max(total, 1))
