"""CSV files in blocks of rows; when reading ends, whyever, no thread is left that uses Python."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pc

from ehrsequencing.data.sources.problems import named_problems
from ehrsequencing.errors import DataError

Advance = Callable[[Path, int], None]
"""Called with a file and how many of its bytes have been read."""

_T = TypeVar("_T")

BLOCK_BYTES = 8 << 20
LONGEST_ROW = 4 * BLOCK_BYTES
_QUOTE = ord('"')


@dataclass(frozen=True)
class Layout:
    """How a CSV file is written.

    Attributes:
        encoding: Of Python.
        delimiter: None: a comma, or a tab where the first line has tabs and no comma (OHDSI's vocabularies).
        missing: Cells that mean nothing; in parquet, too.
        stated_in: What states encoding and delimiter, for messages; None where nothing does.
    """

    encoding: str = "utf-8"
    delimiter: str | None = None
    missing: tuple[str, ...] = ("",)
    stated_in: str | None = None

    @property
    def extends_ascii(self) -> bool:
        """Whether bytes below 128 are ASCII."""
        return not self.encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32"))


PLAIN = Layout()


def header(file: Path, layout: Layout) -> tuple[list[str], str]:
    """Column names and the delimiter; lines end as LF, CRLF or CR.

    Raises:
        DataError: the file is empty, damaged or in another encoding.
    """
    opener: Callable[..., io.BufferedIOBase] = gzip.open if file.suffix.lower() == ".gz" else open  # type: ignore[assignment]
    encoding = "utf-8-sig" if layout.encoding.lower() in ("utf-8", "utf8") else layout.encoding
    with named_problems(file, layout), opener(file, "rb") as stream:
        # A file without LF is one line, of which the parser cannot take more than a block either.
        line = stream.readline(BLOCK_BYTES)
        if layout.extends_ascii:
            text = re.split(rb"[\r\n]", line, maxsplit=1)[0].decode(encoding)
        else:
            # In UTF-16 the line ends within its last character.
            text = re.split(r"[\r\n]", line.decode(encoding, "ignore"), maxsplit=1)[0]
    if not text:
        raise DataError(f"{file} is empty", expected="a header and rows")
    delimiter = layout.delimiter or ("\t" if "\t" in text and "," not in text else ",")
    return next(csv.reader([text], delimiter=delimiter)), delimiter


class _Blocks:
    """The parsed blocks of an open file, each with the position in the file after it.

    Arrow's parser reads ahead on a thread of its own that outlives the reading, and Python aborts when such a thread
    touches one of its objects at exit. Therefore the parser never gets a stream or a buffer of Python's: here the file
    is read, decoded and cut between rows, in Arrow's own memory.
    """

    def __init__(self, file: Path, raw: pa.OSFile, columns: list[str], layout: Layout) -> None:
        self.rows = 0
        self._file, self._raw = file, raw
        self._stream = pa.CompressedInputStream(raw, "gzip") if file.suffix.lower() == ".gz" else raw
        utf8 = codecs.lookup(layout.encoding).name in ("utf-8", "ascii")
        self._decoder = None if utf8 else codecs.getincrementaldecoder(layout.encoding)()
        self._names, self._delimiter = header(file, layout)
        # OHDSI's vocabularies, with tabs, have quotation marks that stand for themselves.
        self._quoted = self._delimiter != "\t"
        self._parse = pc.ParseOptions(
            delimiter=self._delimiter, quote_char='"' if self._quoted else False, newlines_in_values=self._quoted
        )
        self._convert = pc.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.large_string()),
            strings_can_be_null=True,
            null_values=list(layout.missing),
        )
        self._begun, self._rest = False, b""

    def __iter__(self) -> _Blocks:
        return self

    def __next__(self) -> tuple[pa.Table, int]:
        """Of the next bytes that begin and end where a row does."""
        while True:
            content, ended = self._more()
            end, open_quote = _end_of_rows(content, self._delimiter if self._quoted else None)
            end = content.size if ended else end
            if ended and open_quote:
                # The parser takes the rest of the file as one cell, and with it all rows therein.
                row = self.rows + self._parsed(content).num_rows
                raise DataError(f"{self._file} has a quotation mark that is never closed", got=f"row {row} to the end")
            if ended and not content.size:
                raise StopIteration
            if content.size - end > LONGEST_ROW:
                raise DataError(
                    f"{self._file} is malformed",
                    got=f"row {self.rows + 1}, which does not end within {LONGEST_ROW >> 20} MB",
                    expected="rows that end, and quotation marks that are closed",
                )
            self._rest = content[end:].to_pybytes()
            if end:
                table = self._parsed(content[:end])
                self.rows += table.num_rows
                return table, self._raw.tell()

    def _more(self) -> tuple[pa.Buffer, bool]:
        """What is left of the bytes before and those after them, and whether these are the last."""
        rest = len(self._rest)
        if self._decoder is None:
            content = pa.allocate_buffer(rest + BLOCK_BYTES)
            room = memoryview(content).cast("B")
            read = 0
            # Short of a block only at the end, so that a small file is one piece.
            while read < BLOCK_BYTES and (more := self._stream.readinto(room[rest + read :])):
                read += more
            ended = read < BLOCK_BYTES
        else:
            parts, size = [], 0
            while size < BLOCK_BYTES and (more := self._stream.read(BLOCK_BYTES - size)):
                parts.append(more)
                size += len(more)
            ended = size < BLOCK_BYTES
            text = self._decoder.decode(b"".join(parts), ended).encode()
            read = len(text)
            content = pa.allocate_buffer(rest + read)
            room = memoryview(content).cast("B")
            room[rest:] = text
        room[:rest] = self._rest
        content = content[: rest + read]
        if not self._begun:
            self._begun = True
            first = re.match(rb"(?:\xef\xbb\xbf)?[^\r\n]*(?:\r?\n|\r)?", content)
            content = content[first.end() if first else 0 :]
        return content, ended

    def _parsed(self, content: pa.Buffer) -> pa.Table:
        """A table of whole rows."""
        # On one thread, errors say which row.
        read = pc.ReadOptions(block_size=content.size + 1, use_threads=False, column_names=self._names)
        try:
            return pc.read_csv(pa.BufferReader(content), read, self._parse, self._convert)
        except pa.ArrowInvalid as problem:
            # Counted from the header, as the parser counts in a whole file.
            before = self.rows + 1
            text = re.sub(r"(?<=Row #)\d+", lambda row: str(int(row[0]) + before), str(problem), count=1)
        raise pa.ArrowInvalid(text)


def _last_line(content: np.ndarray) -> int:
    """Where the last whole line of some lines ends; 0 if there is none."""
    for size in (1 << 12, len(content)):
        begin = max(len(content) - size, 0)
        place = content[begin:].tobytes().rfind(b"\n")
        if place >= 0:
            return begin + place + 1
    # The last CR may be the first half of CRLF.
    return content.tobytes().rfind(b"\r", 0, -1) + 1


def _end_of_rows(buffer: pa.Buffer, delimiter: str | None) -> tuple[int, bool]:
    """Where the last whole row of bytes that begin with a row ends (0: nowhere); whether a quote is open at the end.

    A cell is quoted if it begins with a quotation mark, as Arrow reads it; one further inside is a character. Without
    a delimiter nothing is quoted.
    """
    content = np.frombuffer(buffer, np.uint8)
    marks = np.flatnonzero(content == _QUOTE) if delimiter is not None else np.empty(0, np.int64)
    if delimiter is None or not len(marks):
        return _last_line(content), False
    opening, closing = marks[0::2], marks[1::2]
    border = np.zeros(256, bool)
    border[[_QUOTE, *delimiter.encode(), *b"\r\n"]] = True
    before, after = opening[opening > 0] - 1, closing[closing < len(content) - 1] + 1
    if border[content[before]].all() and border[content[after]].all():
        # Marks open and close in turn, doubled ones included: outside is where an even number of them precedes.
        end = len(content)
        while (line := _last_line(content[:end])) and (preceding := int(np.searchsorted(marks, line))) % 2:
            end = int(marks[preceding - 1])
        return line, len(marks) % 2 == 1
    cell = re.compile(rb"(?:\A|(?<=[\r\n" + re.escape(delimiter.encode()) + rb']))"[^"]*(?:""[^"]*)*("?)')
    open_quote = False

    def blank(match: re.Match[bytes]) -> bytes:
        nonlocal open_quote
        open_quote = not match[1]
        return b"x" * len(match[0])

    return _last_line(np.frombuffer(cell.sub(blank, content.tobytes()), np.uint8)), open_quote


def csv_blocks(
    file: Path, columns: list[str], layout: Layout, advance: Advance | None
) -> Generator[pl.DataFrame, None, None]:
    """Blocks of rows of some columns, as text.

    Args:
        file: CSV or CSV.gz.
        columns: As the file writes them.
        layout: How it is written.
        advance: Progress.

    Raises:
        DataError: the file is damaged, cut short or in another encoding, or has rows of another width.
    """
    with named_problems(file, layout), pa.OSFile(str(file)) as raw:
        blocks = _Blocks(file, raw, columns, layout)
        large = file.stat().st_size > BLOCK_BYTES
        for table, position in _ahead(blocks) if large else blocks:
            if table.num_rows:
                yield frame_of(table)
            if advance is not None:
                advance(file, position)


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same, the next one being made on another thread meanwhile; ends that thread before it ends itself."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def frame_of(batch: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    """A batch or a table of Arrow as a frame."""
    frame = pl.from_arrow(batch)
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()
