"""Events of many tables, which name subjects in any order, gathered into shards that fit in memory."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.data.dataset import OBSERVATION_FILE, MedsWriter
from ehrsequencing.data.schema import (
    BIRTH_CODE,
    DAYS_PER_YEAR,
    DEATH_CODE,
    EVENT_SCHEMA,
    MICROSECONDS_PER_DAY,
)
from ehrsequencing.data.sources.account import count_rows, new_account, read_account, stated
from ehrsequencing.data.sources.cells import EARLIEST, LATEST
from ehrsequencing.data.sources.problems import quoted, shortened
from ehrsequencing.data.sources.shards import ImportProgress, shards_of
from ehrsequencing.data.sources.spool_files import SpoolFiles
from ehrsequencing.data.sources.tables import Piece, Table, Wanted
from ehrsequencing.errors import DataError

MAX_AGE_YEARS = 125
EVENTS_PER_SHARD = 2_000_000
MAX_SHARDS = 128  # files open at once; some systems allow 256
BYTES_PER_ROW = {".gz": 20, ".csv": 100, ".parquet": 15, ".txt": 17}  # others are compressed
BOOK_ROWS = 200_000
BOOK_SCHEMA = {"code": pl.String(), "kind": pl.String(), "description": pl.String(), "numeric": pl.Boolean()}
WRITTEN = ("visits", "events_after_death", "subjects_without_birth", "events_repeated", "events_merged")

EXACT, DATE_ONLY, MIDNIGHT = 0, 1, 2
"""How well a time is known: to the second; a date without time; written as midnight, which may mean either."""
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
    return (rows if where is None else rows.filter(where)).select(
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

    >>> rows = pl.DataFrame({"drug": ["Sodium  Chloride", None]})
    >>> rows.select("drug", code=named("DRUG", "drug"), same=named("DRUG", pl.lit("Water"))).rows()
    [('Sodium  Chloride', 'DRUG//Sodium Chloride', 'DRUG//Water'), (None, None, 'DRUG//Water')]
    """
    columns = [pl.col(part) if isinstance(part, str) else part for part in parts]
    spaced = (column.map_batches(_single_spaced, return_dtype=pl.String, is_elementwise=True) for column in columns)
    return pl.concat_str([pl.lit(prefix), *spaced], separator="//")


def _single_spaced(values: pl.Series) -> pl.Series:
    """As text, each run of blanks one; numbers have none, and text rarely has, which is told in a third of the time."""
    text = values.cast(pl.String)
    if values.dtype != pl.String or not text.str.contains(r"\s\s|[^\S ]").any():
        return text
    return text.str.replace_all(r"\s+", " ")


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
        folder: For temporary files. Those that a killed import left there, of the same input, are taken up.
        subjects: `subject_id` (Int64, each once), `birth` (Datetime, null where unknown) and, where the source has
            splits, `split`.
        tables: What will be read; their sizes choose the number of shards.
        registry: Name of the table of subjects, for messages.
        strict: An event that would be dropped is an error.
        progress: Called with (pieces of 16 MiB read and shards written, all of them).
        """
        self.folder, self.strict, self.registry = folder, strict, registry
        sizes = {file: file.stat().st_size for table in tables for file in table.files}
        rows = sum(size / BYTES_PER_ROW.get(file.suffix.lower(), 20) for file, size in sizes.items())
        self.shards = shards_of(subjects, min(MAX_SHARDS, int(rows // EVENTS_PER_SHARD) + 1))
        plausible = pl.when(pl.col("birth").is_between(EARLIEST, LATEST)).then("birth")
        births = subjects.select("subject_id", birth=plausible)
        self._subjects = self.shards.select("subject_id", "shard").join(births, on="subject_id").sort("subject_id")
        self._progress = ImportProgress(sizes, self.shards["shard"].n_unique(), progress)
        self.tables: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, dict[str, Any]] = {}
        self._books: dict[str, list[pl.DataFrame]] = {}
        self._files = SpoolFiles(folder)
        self._reading = ExitStack()

    def __enter__(self) -> EventSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.close()
        self._files.close()

    def advance(self, file: Path, position: int) -> None:
        """Progress of reading, for `Table.read`."""
        self._progress.reading(file, position)

    def account(self, table: str) -> dict[str, Any]:
        """Counts of a table, see `new_account`; tables stand in the order of their first mention."""
        return self.tables.setdefault(table, new_account())

    def notes(self, table: str) -> dict[str, Any]:
        """What a source must remember of a table (JSON), kept with the table when a kill interrupts the import."""
        return self._notes.setdefault(table, {})

    def read(self, table: Table, required: Wanted, optional: Wanted | None = None) -> Iterator[Piece]:
        """Pieces of a table, as `Table.read` yields them, of which the caller adds the events.

        A table whose pieces were all taken is not read again when a killed import is taken up: nothing is yielded,
        and its account, codes and notes are there.
        """
        self.account(table.name)
        index = self._index(table.name)
        if (done := self._files.done_table(index)) is not None:
            state, codes = done
            self.tables[table.name] = read_account(state["account"])
            self._notes[table.name] = state["notes"]
            self._books[table.name] = [codes]
            for file in table.files:
                self.advance(file, file.stat().st_size)
            return
        # An error over a piece leaves the reader as it stands; it must have ended when the interpreter does.
        yield from self._reading.enter_context(closing(table.read(required, optional, self.advance)))
        state = {"name": table.name, "account": stated(self.account(table.name)), "notes": self.notes(table.name)}
        self._books[table.name] = [self._book_of(table.name)]
        self._files.table_done(index, state, self._books[table.name][0])

    def midnights(self, timed: Iterable[str]) -> dict[str, int]:
        """Events written as midnight, by table, of those that have times of day; there they keep midnight."""
        return {name: many for name in timed if (many := self.notes(name).get("midnights"))}

    def _index(self, table: str) -> int:
        return list(self.tables).index(table)

    def add(
        self,
        piece: Piece,
        *events: pl.DataFrame,
        no_time: str = "without a time",
        no_event: str = "no event by rule",
        further: Mapping[str, pl.Expr] | None = None,
        contradictions: Mapping[str, pl.Expr] | None = None,
    ) -> None:
        """Take the events made from a piece of a table.

        Args:
            piece: What they were made from; counts its rows.
            events: From `event`.
            no_time: Reason given for dated events without a time.
            no_event: Reason given for rows of which no event is made.
            further: Reasons of the source's own why an event is dropped, to conditions on the events.
            contradictions: Name to a condition on the piece's rows that are kept and counted although what they say
                cannot be, such as an end before the start.

        Raises:
            DataError: `strict`, and an event would be dropped, a number is unreadable, a time implausible, or what a
                row says cannot be.
        """
        account = self.account(piece.table)
        account["columns_missing"].update(piece.absent)
        self._count_cells(piece, account)
        for name, wrong in (contradictions or {}).items():
            if len(rows := piece.rows.filter(wrong)):
                told = rows.row(0, named=True)
                cells = (f"{column} {quoted(told[column])}" for column in wrong.meta.root_names())
                self._refuse(
                    f"{piece.file} has {len(rows)} rows with {name}",
                    f"{', '.join(dict.fromkeys(cells))} in {piece.place(told['row'])}",
                )
                account["contradictions"][name] += len(rows)
        joined = self._with_subjects(events[0] if len(events) == 1 else pl.concat(events))
        reasons = self._reasons(no_time, piece.impossible) | dict(further or {})
        bad = joined.select(pl.any_horizontal(*reasons.values()).alias("bad"))["bad"]
        dropped = joined.clear().with_columns(reason=pl.lit(""))
        if bad.any():
            named = (pl.when(condition).then(pl.lit(name)) for name, condition in reasons.items())
            dropped = joined.filter(bad).with_columns(reason=pl.coalesce(*named))
            joined = joined.filter(~bad)
            first = dropped.row(0, named=True)
            self._refuse(
                f"{piece.file} has {len(dropped)} events that would be dropped",
                f"{first['reason']}: subject {first['subject_id']}, code {shortened(first['code'])}, "
                f"time {first['time']} in {piece.place(first['row'])}",
            )
            account["dropped"].update(dict(dropped["reason"].value_counts().iter_rows()))
        account["events"] += len(joined)
        if midnights := int((joined["clock"] == MIDNIGHT).sum()):
            notes = self.notes(piece.table)
            notes["midnights"] = notes.get("midnights", 0) + midnights
        count_rows(account, piece.rows["row"], joined["row"], dropped.select("row", "reason"), no_event)
        self._note_codes(piece.table, joined)
        index = self._index(piece.table)
        joined = joined.with_columns(table=pl.lit(index, dtype=pl.UInt8)).select("shard", *SPOOL_SCHEMA)
        parts = joined.partition_by("shard", as_dict=True, maintain_order=True, include_key=False)
        for (shard,), rows in parts.items():
            self._files.append(index, int(shard), rows)

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

    def _reasons(self, no_time: str, impossible: Sequence[int]) -> dict[str, pl.Expr]:
        """Why an event is dropped: never null; the first that holds counts.

        Args:
            no_time: For dated events without a time.
            impossible: Rows with a time that was taken away because its year cannot be.
        """
        time, birth = pl.col("time"), pl.col("birth")
        undated = time.is_null() & ~pl.col("undated")
        no_year = undated & pl.col("row").is_in(list(impossible)) if impossible else pl.lit(False)
        oldest = birth + pl.duration(microseconds=int(MAX_AGE_YEARS * DAYS_PER_YEAR * MICROSECONDS_PER_DAY))
        return {
            "without a subject": pl.col("subject_id").is_null(),
            f"subject not in {self.registry}": pl.col("shard").is_null(),
            "without a code": pl.col("code").is_null(),
            f"before {EARLIEST.year} or after {LATEST.year}": no_year
            | (~time.is_between(EARLIEST, LATEST)).fill_null(False),
            no_time: undated,
            "before birth": (time < birth).fill_null(False),
            f"more than {MAX_AGE_YEARS} years after birth": (time > oldest).fill_null(False),
        }

    def _with_subjects(self, events: pl.DataFrame) -> pl.DataFrame:
        """Add `shard` and `birth`, null for subjects unknown; bisection, since there may be millions."""
        known = self._subjects["subject_id"].to_numpy()
        wanted = events["subject_id"].fill_null(-1).to_numpy()
        place = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
        found = pl.Series(known[place] == wanted) & events["subject_id"].is_not_null()
        columns = self._subjects.select("shard", "birth")[place]
        return events.hstack(columns.select(pl.when(found).then(pl.all())))

    def _refuse(self, what: str, got: str, remedy: str | None = None) -> None:
        if self.strict:
            mend = "mend the file, or import without strict, which counts them in the manifest"
            raise DataError(what, got=got, remedy=f"{remedy}, or {mend}" if remedy else mend)

    def _count_cells(self, piece: Piece, account: dict[str, Any]) -> None:
        for key, counts in (("unreadable", piece.unreadable), ("implausible", piece.implausible)):
            for column, count in counts.items():
                wrong = "no numbers" if key == "unreadable" else f"before {EARLIEST.year} or after {LATEST.year}"
                file, row, value, remedy = piece.first[column]
                self._refuse(
                    f"column {column} of {piece.file} has {count} values that are {wrong}",
                    f"{value} in row {row}" + ("" if file == piece.file else f" of {file}"), remedy,
                )  # fmt: skip
                account[key][column] += count
        account["texts"].update(piece.texts)

    def _note_codes(self, table: str, events: pl.DataFrame) -> None:
        book = self._books.setdefault(table, [])
        book.append(
            merge_codes(events.select("code", "kind", "description", numeric=pl.col("numeric_value").is_not_null()))
        )
        if sum(map(len, book)) > BOOK_ROWS:
            self._books[table] = [self._book_of(table)]

    def _book_of(self, table: str) -> pl.DataFrame:
        parts = self._books.get(table) or [pl.DataFrame(schema=BOOK_SCHEMA)]
        return merge_codes(pl.concat(parts))

    def book(self) -> pl.DataFrame:
        """Columns `code`, `kind`, `description`, `numeric` of every code taken so far; the first table decides."""
        book = merge_codes(
            pl.concat([pl.DataFrame(schema=BOOK_SCHEMA), *(self._book_of(name) for name in self.tables)])
        )
        if book.is_empty():
            raise DataError("no table has an event", expected="at least one")
        return book.sort("code")

    def write(
        self,
        writer: MedsWriter,
        finish: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
        conflicts: Counter[str] | None = None,
    ) -> dict[str, Any]:
        """Write every shard that a killed import had not written yet.

        Args:
            writer: The dataset.
            finish: Last changes to a shard (columns of `SPOOL_SCHEMA`), which then holds all events of its subjects.
            conflicts: What `finish` counts in; after `write`, over all shards.

        Returns:
            `visits`, `events_after_death`, `subjects_without_birth`, `events_repeated` (equal in every column to one
            before them), `events_merged` (taken away by `finish`) and `events_by_code` (columns `code`, `len`).
        """
        self._files.close()
        conflicts = Counter() if conflicts is None else conflicts
        totals: Counter[str] = Counter(dict.fromkeys(WRITTEN, 0))
        by_code = []
        for shard, split, number in self.shards.select("shard", "split", "number").unique().sort("shard").iter_rows():
            if (done := self._files.done_shard(shard)) is None:
                before = Counter(conflicts)
                events = self._files.read(shard)
                counts, codes = _write_shard(writer, split, number, events, finish)
                found = {key: count - before[key] for key, count in conflicts.items()}
                self._files.shard_done(shard, {"counts": counts, "conflicts": found}, codes)
            else:
                counts, codes = done[0]["counts"], done[1]
                for key, count in done[0]["conflicts"].items():
                    conflicts[key] += count
            totals.update(counts)
            by_code.append(codes)
            self._progress.wrote()
        return {**totals, "events_by_code": pl.concat(by_code).group_by("code").agg(pl.col("len").sum()).sort("code")}


def _write_shard(
    writer: MedsWriter,
    split: str,
    number: int,
    events: pl.DataFrame | None,
    finish: Callable[[pl.DataFrame], pl.DataFrame] | None,
) -> tuple[dict[str, int], pl.DataFrame]:
    """Write a shard's events; returns its counts by name of `WRITTEN` and its events by code."""
    if events is None:
        return dict.fromkeys(WRITTEN, 0), pl.DataFrame(schema={"code": pl.String, "len": pl.UInt32})
    spooled = len(events)
    events = finish(events) if finish is not None else events
    death = pl.col("time").filter(pl.col("code") == DEATH_CODE).min().over("subject_id")
    subjects = events["subject_id"].n_unique()
    counts = {
        "visits": len(events.select("subject_id", "visit_id").drop_nulls().unique()),
        "events_after_death": events.select((pl.col("time") > death).sum()).item(),
        "subjects_without_birth": subjects - events.filter(pl.col("code") == BIRTH_CODE)["subject_id"].n_unique(),
        "events_repeated": len(events) - events.select(*EVENT_SCHEMA).hash_rows().n_unique(),
        "events_merged": spooled - len(events),
    }
    writer.write_events(split, number, events.select(*EVENT_SCHEMA))
    return counts, events.group_by("code").len()


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
        **{name: written[name] for name in WRITTEN},
        "events_by_kind": dict(kinds.iter_rows()),
        "events_dropped": dict(sorted(dropped.items(), key=lambda entry: (-entry[1], entry[0]))),
        "tables": {name: stated(account) for name, account in spool.tables.items()},
        **further,
    }


def midnight_notes(spool: EventSpool, timed: Iterable[str]) -> list[str]:
    """A note on events that keep a midnight which may mean the date alone; none where there are none."""
    shares = (f"{name} {many:,} of {spool.account(name)['events']:,}" for name, many in spool.midnights(timed).items())
    told = ", ".join(shares)
    what = "Events written as 00:00:00 in a table that has times of day keep midnight, which may mean the date alone"
    return [f"{what}: {told}."] if told else []


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
