"""What is wrong with a table: errors that name the file, the row and the cell, and say what states otherwise."""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
import pyarrow as pa

from ehrsequencing.data.sources.cells import Cells
from ehrsequencing.errors import DataError

if TYPE_CHECKING:
    from ehrsequencing.data.sources.csv_files import Layout

SHOWN = 60
_EXPECTED = {"id": ("whole numbers", "such as 17 or 17.0"), "text": ("text", "one value per row")}


ARCHIVE_PROBLEMS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError,
)  # fmt: skip
"""What the standard library raises about archives; RuntimeError of encrypted ones and of unknown compression."""


class Place(NamedTuple):
    """Where a cell stands: file, row (from 1, header and blank lines apart), what is written, and how to mend it."""

    file: Path
    row: int
    value: str
    remedy: str | None = None


def shortened(value: object) -> str:
    """A value for a message: at most `SHOWN` characters of it.

    >>> shortened("x" * 1000) == "x" * 57 + "..."
    True
    """
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def quoted(value: object) -> str:
    """The same, text in quotation marks.

    >>> quoted("2999-01-01"), quoted(1.5)
    ("'2999-01-01'", '1.5')
    """
    return repr(shortened(value)) if isinstance(value, str) else shortened(value)


def refuse_cells(bad: pl.Series, values: pl.Series, file: Path, row: pl.Series, cells: Cells) -> None:
    """DataError that names the first bad cell, if there is one.

    Args:
        bad: Which cells are bad.
        values: As they are written.
        file: Where they come from.
        row: Their rows.
        cells: How they were read.
    """
    if not bad.any():
        return
    first = bad.arg_true()[0]
    name, expected = _EXPECTED.get(cells.kind, ("times", "such as 2020-01-31 08:00:00 or 2020-01-31"))
    if cells.kind == "id" and cells.expected is not None:
        name = "identifiers"
    raise DataError(
        f"column {values.name} of {file} has {int(bad.sum())} values that are no {name}",
        got=f"{quoted(values[first])} in row {row[first]}",
        expected=cells.expected or expected,
        remedy=cells.remedy,
    )


class named_problems:  # noqa: N801
    """What the readers raise about a file, as one DataError that names it."""

    def __init__(self, file: Path, layout: Layout | None = None) -> None:
        self.file = file
        self.encoding = layout.encoding.upper() if layout is not None else "UTF-8"
        self.stated_in = layout.stated_in if layout is not None else None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, UnicodeError) or "invalid UTF8" in str(problem):
            row = re.search(r"Row #(\d+)", str(problem))
            raise DataError(
                f"{self.file} is not in {self.encoding}",
                # The parser counts the header, too.
                got=f"another encoding in row {int(row[1]) - 1}" if row else str(problem).splitlines()[0][:300],
                expected=self.encoding,
                remedy="convert the file to UTF-8"
                if self.stated_in is None
                else f"state encoding in {self.stated_in}, for example encoding = 'latin-1'",
            ) from None
        if isinstance(problem, (pa.ArrowException, OSError, EOFError, zlib.error)):
            damaged = not isinstance(problem, pa.ArrowException) or isinstance(problem, OSError)
            remedy = "compare its checksum with the publisher's" if damaged else None
            if self.stated_in is not None:
                remedy = "mend the file" + ("" if damaged else f", or state delimiter in {self.stated_in}")
            raise DataError(
                f"{self.file} is {'damaged or cut short' if damaged else 'malformed'}",
                got=str(problem).splitlines()[0][:300],
                expected="a parquet file" if self.file.suffix.lower() == ".parquet" else f"a {self.encoding} CSV file",
                remedy=remedy,
            ) from None
