"""CSV files in blocks of rows; when reading ends, whyever, no thread of the parser is left."""

from __future__ import annotations

import csv
import gzip
import io
import re
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc

from ehrsequencing.data.sources.problems import named_problems
from ehrsequencing.errors import DataError

Advance = Callable[[Path, int], None]
"""Called with a file and how many of its bytes have been read."""

_T = TypeVar("_T")

BLOCK_BYTES = 8 << 20
SECONDS_TO_END = 10.0


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


class _Counted(io.RawIOBase):
    """A stream that counts the quotation marks that it gives out."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream, self.quotes = stream, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        content: bytes = self.stream.read(size)
        self.quotes += content.count(b'"')
        return content


class _Blocks:
    """The parsed blocks of an open file, each with the position in the file after it.

    The parser reads ahead on a thread of its own, which calls `_Counted.read`. Python aborts when such a thread calls
    it at exit; so that none can, `close` waits until the parser has let go of the stream. The parser has nothing else
    to wait for: its reader's `close` does nothing, and an error in the first block leaves no reader to close.
    """

    def __init__(self, raw: BinaryIO, compression: str | None, options: Mapping[str, Any]) -> None:
        self._raw = raw
        self._stream: _Counted | None = _Counted(pa.input_stream(raw, compression=compression))
        self._reader: pc.CSVStreamingReader | None = None
        self._options = options

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> _Blocks:
        return self

    def __next__(self) -> tuple[pa.RecordBatch, int]:
        if self._stream is None:
            raise StopIteration
        if self._reader is None:
            # No frame of a traceback may hold the stream: here they hold `self` alone.
            self._reader = pc.open_csv(self._stream, **self._options)
        return self._reader.read_next_batch(), self._raw.tell()

    @property
    def quotes(self) -> int:
        """Quotation marks read so far."""
        return 0 if self._stream is None else self._stream.quotes

    def close(self) -> None:
        """End reading; returns when no thread reads any more."""
        if self._stream is None:
            return
        left = weakref.ref(self._stream)
        self._reader = self._stream = None
        end = time.monotonic() + SECONDS_TO_END
        while left() is not None and time.monotonic() < end:
            time.sleep(0.001)


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
    _, delimiter = header(file, layout)
    quoted = delimiter != "\t"

    options = {
        # On one thread, errors say which row; decompression and conversion already run beside our own work.
        "read_options": pc.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, encoding=layout.encoding),
        "parse_options": pc.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
        ),
        "convert_options": pc.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.large_string()),
            strings_can_be_null=True,
            null_values=list(layout.missing),
        ),
    }
    compression = "gzip" if file.suffix.lower() == ".gz" else None
    rows = 0
    with (
        named_problems(file, layout),
        file.open("rb", buffering=0) as raw,
        _Blocks(raw, compression, options) as blocks,
    ):
        large = file.stat().st_size > BLOCK_BYTES
        for batch, position in _ahead(blocks) if large else blocks:
            rows += batch.num_rows
            if batch.num_rows:
                yield frame_of(batch)
            if advance is not None:
                advance(file, position)
        if quoted and layout.extends_ascii and blocks.quotes % 2:
            # The parser takes the rest of the file as one cell, and with it all rows therein.
            raise DataError(f"{file} has a quotation mark that is never closed", got=f"row {rows} to the end")


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same, the next one being made on another thread meanwhile; ends that thread before it ends itself."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def frame_of(batch: pa.RecordBatch) -> pl.DataFrame:
    """A batch of Arrow as a frame."""
    frame = pl.from_arrow(batch)
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()
