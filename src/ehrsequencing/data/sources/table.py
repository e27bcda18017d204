"""Any tables of events, as CSV or parquet, by a mapping of their columns: a hospital's extract needs no code."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl

from ehrsequencing.data.calendar import SHIFTED_DATES
from ehrsequencing.data.dataset import name_some
from ehrsequencing.data.sources.finishing import end_days, known_visits
from ehrsequencing.data.sources.problems import shortened
from ehrsequencing.data.sources.spool import (
    EXACT,
    EventSpool,
    merge_codes,
    midnight_notes,
    summary,
    write_observation_end,
)
from ehrsequencing.data.sources.table_blocks import (
    DAY_END,
    Plan,
    described,
    events_plan,
    filter_cells,
    sex_of,
    subjects_plan,
    visit_times,
    visits_plan,
)
from ehrsequencing.data.sources.table_cells import CellReaders
from ehrsequencing.data.sources.table_files import TableFiles
from ehrsequencing.data.sources.table_mapping import Mapping as TableMapping
from ehrsequencing.data.sources.table_mapping import read_mapping
from ehrsequencing.data.sources.tables import Piece, keyed
from ehrsequencing.data.sources.target import Target
from ehrsequencing.errors import DataError
from ehrsequencing.io import write_bytes

NOTES = [
    "Events are stamped when they were known, as the mapping states it: at their time, at the later of time and known, "
    "at the start or end of their visit (at_visit), or at the origin (at_origin).",
    "Where any table has times of day, what is known by its date alone is stamped at the end of that day.",
]
HASHED = "subject_id is the first 63 bits of BLAKE2b-64 of the identifier; metadata/subject_ids.parquet has both."
OFFSET = f"{SHIFTED_DATES}: the mapping's times are numbers since an origin, so calendar dates mean nothing."
UNKNOWN_VISITS = "events_of_visits_that_are_not_in_the_table_of_visits"
SUBJECT_IDS_FILE = "metadata/subject_ids.parquet"


def load(src: Path, target: Target, *, mapping: Path) -> None:
    """Import the tables that a mapping describes.

    Args:
        src: Folder of tables, or one file.
        target: Where it is written, and how.
        mapping: TOML file; see `table_mapping.EXAMPLE`.

    Raises:
        ConfigError: the mapping is wrong.
        DataError: a file or column is missing, a file is damaged, an identifier or time does not parse, a subject is
            stated twice with different facts, a filter or class of the mapping matches nothing; with `strict`, a row
            without a place.
        RunError: `out` exists.
    """
    given = read_mapping(Path(mapping))
    files, readers = TableFiles(src, given), CellReaders(given)
    plans = _plans(given, files, readers)
    people = _people(given, plans)
    with target.writer() as writer:
        subjects = _registry(people, plans, readers, writer.folder / ".subjects.parquet")
        registry = "the table of subjects" if people is not None else "any table"
        read = [plan.table for plan in plans]
        with target.spool(writer, subjects, read, registry) as spool:
            timed = [index for index, plan in enumerate(plans) if _add(spool, plan, given)]
            names = [plans[index].table.name for index in timed]
            book = _with_descriptions(spool.book(), given, files, readers)
            visits = None if given.visits is None else 0 if given.subjects is None else 1
            finish = _Finish(timed, visits)
            written = spool.write(writer, finish, finish.conflicts)
            codes = book.join(written["events_by_code"], on="code", how="semi")
            if people is not None and "observed_until" in people.rows.columns:
                write_observation_end(writer, _observation(people.rows, timed=bool(timed)))
            if given.ids == "text":
                writer.write_file(SUBJECT_IDS_FILE, _subject_ids(readers, subjects))
            writer.finish(
                codes,
                source=given.source,
                options={
                    "strict": target.strict,
                    "mapping": given.model_dump(mode="json", by_alias=True, exclude_unset=True),
                },
                notes=[
                    *given.notes,
                    *NOTES,
                    *[HASHED] * (given.ids == "text"),
                    *[OFFSET] * (given.origin is not None),
                    *_sexes(given, people),
                    *midnight_notes(spool, names),
                ],
                extra=summary(
                    spool,
                    written,
                    codes,
                    date_only=not timed,
                    **({"conflicts": dict(finish.conflicts)} if visits is not None else {}),
                    events_at_midnight=spool.midnights(names),
                    tables_not_read=files.not_used(),
                ),
            )


class _Finish:
    """Last changes to a shard: days ended, and `visit_id` taken from events of unknown visits, which it counts."""

    def __init__(self, timed: list[int], visits: int | None) -> None:
        """Args:
        timed: Tables with times of day.
        visits: The table of visits, if there is one.
        """
        self.timed, self.visits = timed, visits
        self.conflicts: Counter[str] = Counter()

    def __call__(self, events: pl.DataFrame) -> pl.DataFrame:
        events = end_days(events, self.timed)
        if self.visits is not None:
            events, unknown = known_visits(events, self.visits)
            self.conflicts[UNKNOWN_VISITS] += unknown
        return events


def _plans(given: TableMapping, files: TableFiles, readers: CellReaders) -> list[Plan]:
    """Subjects first, then visits, then the tables; each under a name of its own."""
    plans: list[Plan] = []
    if given.subjects is not None:
        plans.append(subjects_plan(given.subjects, files.find(given.subjects.file), readers))
    visits = None
    if given.visits is not None:
        plans.append(visits_plan(given.visits, files.find(given.visits.file), readers))
        visits = visit_times(given.visits, plans[-1], readers)
    for block in given.tables:
        plan = events_plan(block, files.find(block.file), readers, visits)
        plans.append(plan if block.name is None else replace(plan, table=replace(plan.table, name=block.name)))
    times: Counter[str] = Counter()
    for place, plan in enumerate(plans):
        times[plan.table.name] += 1
        if (time := times[plan.table.name]) > 1:
            plans[place] = replace(plan, table=replace(plan.table, name=f"{plan.table.name}#{time}"))
    return plans


def _people(given: TableMapping, plans: list[Plan]) -> Piece | None:
    """The rows of the table of subjects that `where` leaves; None where the mapping has none.

    Raises:
        DataError: `where` leaves none; a subject is stated twice with different facts.
    """
    if given.subjects is None:
        return None
    piece = plans[0].table.whole(plans[0].cells)
    _, kept = filter_cells(CellReaders(given), given.subjects.where)
    facts = [name for name in plans[0].cells if not name.startswith("where:")]
    people = replace(piece, rows=piece.rows.filter(kept))
    if people.rows.is_empty() and len(piece.rows):
        raise DataError(
            f"where in [subjects] excludes everyone in {piece.file}", got=f"{len(piece.rows)} rows",
            expected="at least one subject", remedy="mend where in the mapping",
        )  # fmt: skip
    stated = people.rows.unique(facts, keep="first", maintain_order=True)
    keyed(replace(piece, rows=stated), "subject_id", f"{given.subjects.subject} with other facts")
    return people


def _registry(people: Piece | None, plans: list[Plan], readers: CellReaders, file: Path) -> pl.DataFrame:
    """Columns `subject_id`, `birth` of everyone: of the table of subjects, else of all tables together.

    Args:
        people: From `_people`.
        plans: All.
        readers: Know the texts of identifiers afterwards.
        file: Keeps what was gathered from all tables, for an import that is taken up.
    """
    unknown = pl.lit(None, dtype=pl.Datetime("us"))
    if people is not None:
        birth = pl.col("birth").dt.truncate("1d") if "birth" in people.rows.columns else unknown
        rows = people.rows.select("subject_id", birth=birth).drop_nulls("subject_id")
        return rows.unique("subject_id", keep="first", maintain_order=True)
    if file.exists():
        found = pl.read_parquet(file)
        texts = found.drop_nulls("identifier").select("subject_id", "identifier").rows()
        readers.subjects.texts.update(texts)
        readers.subjects.known.update((text, number) for number, text in texts)
        return found.select("subject_id", birth=unknown)
    seen: set[int] = set()
    for plan in plans:
        for piece in plan.table.read({"subject_id": plan.cells["subject_id"]}):
            seen.update(piece.rows["subject_id"].drop_nulls().unique())
    if not seen:
        raise DataError("no table names a subject", expected="at least one")
    subjects = pl.DataFrame({"subject_id": sorted(seen)}, schema={"subject_id": pl.Int64})
    write_bytes(file, _subject_ids(readers, subjects))
    return subjects.with_columns(birth=unknown)


def _add(spool: EventSpool, plan: Plan, given: TableMapping) -> bool:
    """Take a table's events; tell whether it has times of day.

    Raises:
        DataError: its rows make no event, or a class of visits named in the mapping does not occur.
    """
    name = plan.table.name
    classes: set[str] = set()
    for piece in spool.read(plan.table, plan.cells):
        made = plan.events(piece.rows)
        notes = spool.notes(name)
        exact = any(_has_times_of_day(events) for events in made)
        classes.update(value for column in plan.classes for value in piece.rows[column].drop_nulls().unique())
        notes |= {"timed": exact or notes.get("timed", False), "classes": sorted(classes)}
        spool.add(piece, *made, no_time=plan.no_time, no_event=plan.no_event, contradictions=plan.contradictions)
    account, notes = spool.account(name), spool.notes(name)
    if plan.facts and account["rows"] and account["rows_without_events"].total() == account["rows"]:
        raise DataError(
            f"no row of {name} makes an event", got=f"{account['rows']} rows, {plan.no_event}",
            remedy="mend where, or the names of the columns, in the mapping",
        )  # fmt: skip
    wanted = given.visits.inpatient if plan.classes and given.visits is not None else ()
    if isinstance(wanted, list) and (absent := sorted(set(wanted) - set(notes.get("classes", ())))):
        found = name_some(notes.get("classes", ()))
        raise DataError(
            f"{name} has no visit of class {', '.join(absent)}",
            got=found or (f"{account['rows']} rows without a class" if account["rows"] else "a header and no row"),
            remedy="mend inpatient in [visits]",
        )  # fmt: skip
    return bool(notes.get("timed"))


def _has_times_of_day(events: pl.DataFrame) -> bool:
    time = pl.col("time")
    return bool(events.select(((pl.col("clock") == EXACT) & (time != time.dt.truncate("1d"))).any()).item())


def _with_descriptions(
    book: pl.DataFrame, given: TableMapping, files: TableFiles, readers: CellReaders
) -> pl.DataFrame:
    """The code table, descriptions filled in from [[codes]]."""
    for block in given.codes:
        names = described(block, files.find(block.file), readers)
        book = book.join(names, on="code", how="left", maintain_order="left")
        book = book.with_columns(description=pl.coalesce("description", "described")).drop("described")
    return merge_codes(book)


def _sexes(given: TableMapping, people: Piece | None) -> list[str]:
    """A note on the sexes that the mapping does not know."""
    if people is None or given.subjects is None or given.subjects.sex is None:
        return []
    _, known = sex_of(given.subjects)
    cell = pl.col("sex")
    counts = people.rows.filter(cell.is_not_null() & ~known)["sex"].value_counts()
    if counts.is_empty():
        return []
    ordered = counts.sort("count", "sex", descending=[True, False])
    found = [f"GENDER//{shortened(value)} ({count:,} rows)" for value, count in ordered.head(10).iter_rows()]
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    return [f"Sexes that are neither F nor M nor in sex_values keep their own code: {', '.join(found)}{more}."]


def _observation(people: pl.DataFrame, *, timed: bool) -> pl.DataFrame:
    """`observation_end` per subject: the end of the day where only the date is known and other tables have times."""
    end, midnight = pl.col("observed_until"), pl.col("observed_until").dt.truncate("1d")
    if timed:
        by_day = (pl.col("observed_until:date") == 1) | ((end == midnight) & (end == midnight).all())
        end = pl.when(by_day).then(end + DAY_END).otherwise(end)
    return people.select("subject_id", observation_end=end).drop_nulls().unique("subject_id").sort("subject_id")


def _subject_ids(readers: CellReaders, subjects: pl.DataFrame) -> bytes:
    names = readers.subjects.texts
    table = subjects.select("subject_id").sort("subject_id").with_columns(
        identifier=pl.col("subject_id").replace_strict(names, default=None, return_dtype=pl.String)
    )  # fmt: skip
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()
