"""Events of many tables, which name subjects in any order, gathered into shards that fit in memory."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ehrsequencing.data.dataset import OBSERVATION_FILE, MedsWriter
from ehrsequencing.data.schema import (
    BIRTH_CODE,
    DAYS_PER_YEAR,
    DEATH_CODE,
    EVENT_SCHEMA,
    MICROSECONDS_PER_DAY,
    SPLITS,
)
from ehrsequencing.data.sources.tables import EARLIEST, LATEST, Piece, Table
from ehrsequencing.data.splits import split_of
from ehrsequencing.errors import DataError

MAX_AGE_YEARS = 125
EVENTS_PER_SHARD = 2_000_000
MAX_SHARDS = 128  # files open at once; some systems allow 256
BYTES_PER_ROW = {".gz": 20, ".csv": 100, ".parquet": 15, ".txt": 17}
PROGRESS_BYTES = 16 << 20
BOOK_ROWS = 200_000

EXACT, DATE_ONLY, MIDNIGHT = 0, 1, 2
"""How well a time is known: to the second; a date without time; written as midnight, which may mean either."""
ACCOUNT = ("rows", "events", "rows_with_events")
ACCOUNT_BY = ("rows_dropped", "rows_without_events", "dropped", "unreadable", "implausible", "contradictions")
SPOOL_SCHEMA = {**EVENT_SCHEMA, "clock": pl.Int8(), "table": pl.UInt8()}


def event(
    rows: pl.DataFrame,
    code: pl.Expr,
    time: pl.Expr | None,
    kind: str,
    *,
    subject: str = "subject_id",
    visit: str | None = None,
    value: pl.Expr | None = None,
    unit: pl.Expr | None = None,
    text: pl.Expr | None = None,
    description: pl.Expr | None = None,
    clock: pl.Expr | None = None,
    where: pl.Expr | None = None,
) -> pl.DataFrame:
    """One event per row of a table's piece, as `EventSpool.add` takes them; `time` None for undated facts."""
    nothing = pl.lit(None)
    return rows.filter(pl.lit(True) if where is None else where).select(
        "row",
        subject_id=pl.col(subject),
        time=(nothing if time is None else time).cast(pl.Datetime("us")),
        code=code,
        numeric_value=(nothing if value is None else value).cast(pl.Float32),
        visit_id=(nothing if visit is None else pl.col(visit)).cast(pl.Int64),
        unit=(nothing if unit is None else unit).cast(pl.String),
        text_value=(nothing if text is None else text).cast(pl.String),
        clock=(pl.lit(EXACT) if clock is None else clock).cast(pl.Int8),
        kind=pl.lit(kind),
        description=(nothing if description is None else description).cast(pl.String),
        undated=pl.lit(time is None),
    )


def named(prefix: str, *parts: str | pl.Expr) -> pl.Expr:
    """Code `prefix//part//...`, blanks inside a part made single; null where a part is.

    >>> pl.DataFrame({"drug": ["Sodium  Chloride", None]}).select(named("DRUG", "drug")).to_series().to_list()
    ['DRUG//Sodium Chloride', None]
    """
    columns = [pl.col(part) if isinstance(part, str) else part for part in parts]
    return pl.concat_str(
        [pl.lit(prefix), *(column.cast(pl.String).str.replace_all(r"\s+", " ") for column in columns)], separator="//"
    )


class EventSpool:
    """Takes events table by table, keeps account of them, and writes the dataset's shards.

    Memory holds the subjects (identifier, birth, shard), the distinct codes, and one piece or shard.
    """

    def __init__(
        self,
        folder: Path,
        subjects: pl.DataFrame,
        tables: Iterable[Table],
        *,
        registry: str,
        strict: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Args:
        folder: For temporary files; gone after `write`.
        subjects: `subject_id` (Int64, each once) and `birth` (Datetime, null where unknown).
        tables: What will be read; their sizes choose the number of shards.
        registry: Name of the table of subjects, for messages.
        strict: An event that would be dropped is an error.
        progress: Called with (pieces of 16 MiB read and shards written, all of them).
        """
        self.folder, self.strict, self.registry = folder, strict, registry
        sizes = {file: file.stat().st_size for table in tables for file in table.files}
        rows = sum(size / BYTES_PER_ROW[file.suffix] for file, size in sizes.items())
        self.shards = _shards(subjects, min(MAX_SHARDS, int(rows // EVENTS_PER_SHARD) + 1))
        plausible = pl.when(pl.col("birth").is_between(EARLIEST, LATEST)).then("birth")
        self._subjects = (
            self.shards.select("subject_id", "shard")
            .join(subjects.with_columns(birth=plausible), on="subject_id")
            .sort("subject_id")
        )
        self._progress = _Progress(sizes, self.shards["shard"].n_unique(), progress)
        self.tables: dict[str, dict[str, Any]] = {}
        self._last: dict[str, Piece] = {}
        self._book: list[pl.DataFrame] = []
        self._files = ExitStack()
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        folder.mkdir()

    def __enter__(self) -> EventSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def advance(self, file: Path, position: int) -> None:
        """Progress of reading, for `Table.read`."""
        self._progress.reading(file, position)

    def account(self, table: str) -> dict[str, Any]:
        """Counts of a table.

        `rows` = `rows_with_events` + `rows_dropped` (by reason: events were made of the row, none was kept) +
        `rows_without_events` (by reason: by rule, no event is made of the row). Further `events` kept and `dropped`
        (by reason); `unreadable` numbers and `implausible` times by column, which read as missing; `contradictions`
        (by name); and `columns_missing` of the optional ones.
        """
        return self.tables.setdefault(
            table, {**dict.fromkeys(ACCOUNT, 0), **{key: Counter() for key in ACCOUNT_BY}, "columns_missing": set()}
        )

    def add(
        self,
        piece: Piece,
        *events: pl.DataFrame,
        no_time: str = "without a time",
        no_event: str = "no event by rule",
        contradictions: Mapping[str, pl.Expr] | None = None,
    ) -> None:
        """Take the events made from a piece of a table.

        Args:
            piece: What they were made from; counts its rows.
            events: From `event`.
            no_time: Reason given for dated events without a time.
            no_event: Reason given for rows of which no event is made.
            contradictions: Name to a condition on the piece's rows that are kept and counted although what they say
                cannot be, such as an end before the start.

        Raises:
            DataError: `strict`, and an event would be dropped, a number is unreadable, a time implausible, or what a
                row says cannot be.
        """
        account = self.account(piece.table)
        account["rows"] += len(piece.rows)
        account["columns_missing"].update(piece.absent)
        self._count_cells(piece, account)
        for name, wrong in (contradictions or {}).items():
            if len(rows := piece.rows.filter(wrong)):
                self._refuse(f"{piece.file} has {len(rows)} rows with {name}", f"row {rows['row'][0]}")
                account["contradictions"][name] += len(rows)
        joined = self._with_subjects(pl.concat(events))
        age = (pl.col("time") - pl.col("birth")).dt.total_microseconds()
        reasons = {
            "without a subject": pl.col("subject_id").is_null(),
            f"subject not in {self.registry}": pl.col("shard").is_null(),
            "without a code": pl.col("code").is_null(),
            no_time: pl.col("time").is_null() & ~pl.col("undated"),
            f"before {EARLIEST.year} or after {LATEST.year}": ~pl.col("time").is_between(EARLIEST, LATEST),
            "before birth": age < 0,
            f"more than {MAX_AGE_YEARS} years after birth": age > MAX_AGE_YEARS * DAYS_PER_YEAR * MICROSECONDS_PER_DAY,
        }
        reason = pl.coalesce(
            *(pl.when(wrong.fill_null(False)).then(pl.lit(name)) for name, wrong in reasons.items()), pl.lit(None)
        )
        joined = joined.with_columns(reason=reason)
        dropped = joined.filter(pl.col("reason").is_not_null())
        if len(dropped):
            first = dropped.row(0, named=True)
            self._refuse(
                f"{piece.file} has {len(dropped)} events that would be dropped",
                f"{first['reason']}: subject {first['subject_id']}, code {first['code']}, time {first['time']} "
                f"in row {first['row']}",
            )  # fmt: skip
            account["dropped"].update(dict(dropped["reason"].value_counts().iter_rows()))
            joined = joined.filter(pl.col("reason").is_null())
        account["events"] += len(joined)
        self._count_rows(piece, account, joined, dropped, no_event)
        self._note_codes(joined)
        index = list(self.tables).index(piece.table)
        joined = joined.with_columns(table=pl.lit(index, dtype=pl.UInt8))
        for (shard,), rows in joined.partition_by("shard", as_dict=True, maintain_order=True).items():
            self._append(int(shard), rows.select(*SPOOL_SCHEMA))

    def set_aside(self, piece: Piece, reason: pl.Expr) -> Piece:
        """Count the rows of which no event is made, by `reason` (text, null for the others); return those others.

        For rows that the publisher marks as missing or wrong: nothing is lost, so they are no error with `strict`.
        """
        rows = piece.rows.with_columns(reason=reason)
        aside = rows.filter(pl.col("reason").is_not_null())["reason"]
        account = self.account(piece.table)
        account["rows"] += len(aside)
        account["rows_without_events"].update(dict(aside.value_counts().iter_rows()))
        return replace(piece, rows=rows.filter(pl.col("reason").is_null()).drop("reason"))

    def _with_subjects(self, events: pl.DataFrame) -> pl.DataFrame:
        """Add `shard` and `birth`, null for subjects unknown; bisection, since there may be millions."""
        known = self._subjects["subject_id"].to_numpy()
        wanted = events["subject_id"].fill_null(-1).to_numpy()
        place = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
        found = pl.Series(known[place] == wanted) & events["subject_id"].is_not_null()
        columns = self._subjects.select("shard", "birth")[place]
        return events.hstack(columns.select(pl.when(found).then(pl.all())))

    def _refuse(self, what: str, got: str | None = None) -> None:
        if self.strict:
            remedy = "mend the file, or import without strict, which counts them in the manifest"
            raise DataError(what, got=got, remedy=remedy)

    def _count_cells(self, piece: Piece, account: dict[str, Any]) -> None:
        for key, counts in (("unreadable", piece.unreadable), ("implausible", piece.implausible)):
            for column, count in counts.items():
                wrong = "no numbers" if key == "unreadable" else f"before {EARLIEST.year} or after {LATEST.year}"
                self._refuse(f"column {column} of {piece.file} has {count} values that are {wrong}")
                account[key][column] += count

    @staticmethod
    def _count_rows(
        piece: Piece, account: dict[str, Any], kept: pl.DataFrame, dropped: pl.DataFrame, no_event: str
    ) -> None:
        if piece.rows.is_empty():
            return
        first, last = piece.rows["row"].min(), piece.rows["row"].max()
        seen = np.zeros(last - first + 1, dtype=bool)  # type: ignore[operator]
        seen[kept["row"].to_numpy() - first] = True
        with_events = int(seen.sum())
        lost = dropped.filter(~pl.Series(seen[dropped["row"].to_numpy() - first])).unique("row", keep="first")
        account["rows_with_events"] += with_events
        account["rows_dropped"].update(dict(lost["reason"].value_counts().iter_rows()))
        if without := len(piece.rows) - with_events - len(lost):
            account["rows_without_events"][no_event] += without

    def _note_codes(self, events: pl.DataFrame) -> None:
        self._book.append(
            merge_codes(events.select("code", "kind", "description", numeric=pl.col("numeric_value").is_not_null()))
        )
        if sum(map(len, self._book)) > BOOK_ROWS:
            self._book = [merge_codes(pl.concat(self._book))]

    def _append(self, shard: int, rows: pl.DataFrame) -> None:
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        if shard not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            sink = self._files.enter_context(pa.OSFile(str(self._spooled(shard)), "wb"))
            self._writers[shard] = self._files.enter_context(pa.ipc.new_stream(sink, table.schema, options=options))
        self._writers[shard].write_table(table)

    def _spooled(self, shard: int) -> Path:
        return self.folder / f"{shard}.arrows"

    def book(self) -> pl.DataFrame:
        """Columns `code`, `kind`, `description`, `numeric` of every code taken so far; the first table decides."""
        if not self._book:
            raise DataError("no table has an event", expected="at least one")
        return merge_codes(pl.concat(self._book)).sort("code")

    def write(self, writer: MedsWriter, finish: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> dict[str, Any]:
        """Write every shard, then remove the temporary files.

        Args:
            writer: The dataset.
            finish: Last changes to a shard (columns of `SPOOL_SCHEMA`), which then holds all events of its subjects.

        Returns:
            `visits`, `events_after_death`, `subjects_without_birth`, `events_repeated` (equal in every column to one
            before them), `events_merged` (taken away by `finish`) and `events_by_code` (columns `code`, `len`).
        """
        self._files.close()
        visits = after_death = born = everyone = repeated = merged = 0
        by_code = [pl.DataFrame(schema={"code": pl.String, "len": pl.UInt32})]
        places = self.shards.select("shard", "split", "number").unique().sort("shard")
        for shard, split, number in places.iter_rows():
            if shard in self._writers:
                with pa.ipc.open_stream(str(self._spooled(shard))) as stream:
                    events = pl.DataFrame(stream.read_all())
                merged += len(events)
                events = finish(events) if finish is not None else events
                merged -= len(events)
                repeated += len(events) - events.select(*EVENT_SCHEMA).hash_rows().n_unique()
                death = pl.col("time").filter(pl.col("code") == DEATH_CODE).min().over("subject_id")
                after_death += events.select((pl.col("time") > death).sum()).item()
                born += events.filter(pl.col("code") == BIRTH_CODE)["subject_id"].n_unique()
                everyone += events["subject_id"].n_unique()
                visits += len(events.select("subject_id", "visit_id").drop_nulls().unique())
                by_code.append(events.group_by("code").len())
                writer.write_events(split, number, events.select(*EVENT_SCHEMA))
                self._spooled(shard).unlink()
            self._progress.wrote()
        self.folder.rmdir()
        return {
            "visits": visits,
            "events_after_death": after_death,
            "subjects_without_birth": everyone - born,
            "events_repeated": repeated,
            "events_merged": merged,
            "events_by_code": pl.concat(by_code).group_by("code").agg(pl.col("len").sum()).sort("code"),
        }


def summary(spool: EventSpool, written: Mapping[str, Any], codes: pl.DataFrame, **further: Any) -> dict[str, Any]:
    """Entries of the manifest: what was read, written, dropped and why.

    Args:
        spool: After `write`.
        written: What `write` returned.
        codes: Columns `code`, `kind` of every code written.
        further: The source's own entries.
    """
    dropped: Counter[str] = Counter()
    for account in spool.tables.values():
        dropped.update(account["dropped"])
    kinds = written["events_by_code"].join(codes, on="code").group_by("kind").agg(pl.col("len").sum()).sort("kind")
    return {
        "visits": written["visits"],
        "events_by_kind": dict(kinds.iter_rows()),
        "events_dropped": dict(dropped.most_common()),
        "events_after_death": written["events_after_death"],
        "subjects_without_birth": written["subjects_without_birth"],
        "events_repeated": written["events_repeated"],
        "events_merged": written["events_merged"],
        "tables": {name: stated(account) for name, account in spool.tables.items()},
        **further,
    }


def stated(account: Mapping[str, Any]) -> dict[str, Any]:
    """A table's account as the manifest states it: sorted, and without what is empty."""
    entries: dict[str, Any] = {key: account[key] for key in ACCOUNT}
    entries |= {key: dict(sorted(account[key].items())) for key in ACCOUNT_BY if account[key]}
    return entries | ({"columns_missing": sorted(account["columns_missing"])} if account["columns_missing"] else {})


def write_observation_end(writer: MedsWriter, ends: pl.DataFrame) -> None:
    """Write `metadata/observation.parquet`: columns `subject_id`, `observation_end` (Datetime us)."""
    buffer = io.BytesIO()
    ends.write_parquet(buffer)
    writer.write_file(str(OBSERVATION_FILE), buffer.getvalue())


def merge_codes(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per code: the first kind and description, numeric where any is."""
    return rows.group_by("code", maintain_order=True).agg(
        pl.col("kind").first(), pl.col("description").drop_nulls().first(), pl.col("numeric").any()
    )


def _shards(subjects: pl.DataFrame, total: int) -> pl.DataFrame:
    """Columns `subject_id`, `split`, `number` (within the split), `shard` (over all), by ascending identifier."""
    ordered = subjects.select("subject_id").sort("subject_id")
    ordered = ordered.with_columns(split=pl.Series(split_of(ordered["subject_id"].to_numpy()), dtype=pl.String))
    parts, first = [], 0
    for split in SPLITS:
        rows = ordered.filter(pl.col("split") == split)
        count = min(len(rows), max(1, round(total * len(rows) / max(len(ordered), 1))))
        number = np.arange(len(rows)) * count // max(len(rows), 1)
        parts.append(
            rows.with_columns(number=pl.Series(number, dtype=pl.Int64), shard=pl.Series(number + first, dtype=pl.Int64))
        )
        first += count
    return pl.concat(parts)


class _Progress:
    """Pieces of 16 MiB read, then shards written."""

    def __init__(self, sizes: Mapping[Path, int], shards: int, tell: Callable[[int, int], None] | None) -> None:
        self.tell = tell
        self.read = dict.fromkeys(sizes, 0)
        self.of = {file: max(1, -(-size // PROGRESS_BYTES)) for file, size in sizes.items()}
        self.total = sum(self.of.values()) + shards
        self.written = self.told = 0

    def reading(self, file: Path, position: int) -> None:
        self.read[file] = min(self.of[file], -(-position // PROGRESS_BYTES))
        self._tell(sum(self.read.values()))

    def wrote(self) -> None:
        self.written += 1
        self._tell(sum(self.of.values()) + self.written)

    def _tell(self, done: int) -> None:
        if self.tell is not None and done > self.told:
            self.told = done
            self.tell(done, self.total)
