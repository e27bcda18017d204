"""What each block of a mapping reads, and the events that a row of it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DEATH_CODE
from ehrsequencing.data.sources.cells import Cells, text_beside
from ehrsequencing.data.sources.spool import DATE_ONLY, EXACT, MIDNIGHT, event, named
from ehrsequencing.data.sources.table_cells import CellReaders, condition, has_clock
from ehrsequencing.data.sources.table_mapping import OFFSETS, Codes, EventTable, Subjects, Visits, Where, Wide
from ehrsequencing.data.sources.tables import Piece, Table, once
from ehrsequencing.errors import DataError

KEYS = ("subject_id", "visit_id")
SEXES = ("F", "M")
UNKNOWN_SEX = "a sex that is neither F nor M nor in sex_values, kept as its own code"
NO_STAY = "visit without a start, or stay without an end that follows its start"
NO_VISIT_ID = "no identifier of the visit, so that its events are of none"


@dataclass(frozen=True)
class Plan:
    """One block: the columns it reads under the names its events use, and how they are made.

    Attributes:
        table: Under the name of its account.
        cells: Name to column.
        events: From rows of these names to events.
        no_time, no_event: Reasons, as in `EventSpool.add`.
        contradictions: As in `EventSpool.add`.
        classes: Column of the classes of visits, where the mapping names those that are stays.
        facts: False for a list of subjects and nothing more.
    """

    table: Table
    cells: dict[str, Cells]
    events: Callable[[pl.DataFrame], list[pl.DataFrame]]
    no_time: str = "without a time"
    no_event: str = "excluded by where"
    contradictions: dict[str, pl.Expr] | None = None
    classes: tuple[str, ...] = ()
    facts: bool = True


def filter_cells(readers: CellReaders, where: Where, label: str = "where") -> tuple[dict[str, Cells], pl.Expr]:
    """Columns that a filter reads, and the filter."""
    names = {column: f"{label}:{column}" for column in where}
    return {names[column]: readers.text(column) for column in where}, condition(where, names)


def clock(form: str | None, time: pl.Expr) -> pl.Expr:
    """How well a time is known: see `spool.EXACT` and its neighbours."""
    if form in OFFSETS:
        return pl.lit(EXACT)
    if form is not None and not has_clock(form):
        return pl.lit(DATE_ONLY)
    return pl.when(time == time.dt.truncate("1d")).then(MIDNIGHT).otherwise(EXACT)


def time_cells(readers: CellReaders, name: str, columns: str | list[str], form: str | None) -> dict[str, Cells]:
    """A column of times and, beside it, one that tells the dates among them."""
    return {name: readers.time(columns, form), f"{name}:date": readers.date_only(columns, form)}


def known_to(name: str, form: str | None) -> pl.Expr:
    """How well the times of `time_cells` are known, cell by cell."""
    return pl.when(pl.col(f"{name}:date") == 1).then(DATE_ONLY).otherwise(clock(form, pl.col(name)))


def sex_of(block: Subjects) -> tuple[pl.Expr, pl.Expr]:
    """The sex that a cell means, and whether the mapping says so; an unknown one is kept as it is."""
    cell = pl.col("sex")
    means = block.sex_values or {sex: sex for sex in SEXES}
    return cell.replace(means), cell.is_in(list(means))


def subjects_plan(block: Subjects, table: Table, readers: CellReaders) -> Plan:
    """Birth, undated facts, and death."""
    cells: dict[str, Cells] = {"subject_id": readers.subject(block.subject)}
    filters, kept = filter_cells(readers, block.where)
    died, dead = filter_cells(readers, block.death_where, "death_where")
    sex, known_sex = sex_of(block)
    undated = {"sex": named("GENDER", sex)} if block.sex is not None else {}
    undated |= {f"static:{prefix}": named(prefix, f"static:{prefix}") for prefix in block.static}
    if block.sex is not None:
        cells["sex"] = readers.text(block.sex)
    if block.birth is not None:
        cells["birth"] = readers.time(block.birth, block.time_format)
    if block.age is not None:
        cells["birth"] = readers.age(block.age)
    for name, column in (("death", block.death), ("observed_until", block.observed_until)):
        if column is not None:
            cells |= time_cells(readers, name, column, block.time_format)
    cells |= {f"static:{prefix}": readers.text(column) for prefix, column in block.static.items()} | filters | died

    stated = pl.DataFrame({"stated": pl.Series([], dtype=pl.UInt64)})

    def events(rows: pl.DataFrame) -> list[pl.DataFrame]:
        nonlocal stated
        rows = rows.filter(kept)
        # Also what an earlier piece of the file stated: a table of visits may say who somebody is in each row.
        rows = rows.with_columns(stated=rows.drop("row").hash_rows()).unique(
            "stated", keep="first", maintain_order=True
        )
        rows = rows.join(stated, on="stated", how="anti", maintain_order="left")
        stated = pl.concat([stated, rows.select("stated")])
        made = [
            event(rows, code, None, "demographic", where=pl.col(column).is_not_null())
            for column, code in undated.items()
        ]
        if "birth" in cells:
            birth = pl.col("birth").dt.truncate("1d")
            made.append(
                event(
                    rows, pl.lit(BIRTH_CODE), birth, "demographic", where=birth.is_not_null(),
                    description=pl.lit("Birth"),
                )
            )  # fmt: skip
        if "death" in cells:
            death = pl.col("death")
            made.append(
                event(
                    rows, pl.lit(DEATH_CODE), death, "demographic", where=death.is_not_null() & dead,
                    description=pl.lit("Death"), clock=known_to("death", block.time_format),
                )
            )  # fmt: skip
        return made or [event(rows, pl.lit(None), None, "demographic", where=pl.lit(False))]

    no_event = "excluded by where, nothing stated, or stated in another row"
    odd = {} if block.sex is None else {UNKNOWN_SEX: kept & pl.col("sex").is_not_null() & ~known_sex}
    facts = len(cells) > 1 + len(filters) + len(died)
    return Plan(table, cells, events, no_event=no_event, contradictions=odd, facts=facts)


def _ends_with_its_day(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """Whether a visit ends on the day it starts, with no time of day: then it ends when that day is over."""
    return (end == end.dt.truncate("1d")) & (end == start.dt.truncate("1d"))


def visits_plan(block: Visits, table: Table, readers: CellReaders) -> Plan:
    """Stays in hospital (admission and discharge), and other visits at their start."""
    cells = {
        "subject_id": readers.subject(block.subject),
        "visit_id": readers.visit(block.visit),
        **time_cells(readers, "start", block.start, block.time_format),
    }
    filters, kept = filter_cells(readers, block.where)
    if block.end is not None:
        cells |= time_cells(readers, "end", block.end, block.time_format)
    for name, column in (("class", block.class_), ("discharge", block.discharge)):
        if column is not None:
            cells[name] = readers.text(column)
    cells |= filters

    def told(name: str) -> pl.Expr:
        return pl.col(name).fill_null("UNKNOWN") if name in cells else pl.lit("UNKNOWN")

    stays = block.inpatient if isinstance(block.inpatient, list) else []
    stay = pl.lit(True) if block.inpatient is True else told("class").is_in(stays)
    start, end = pl.col("start"), pl.col("end") if "end" in cells else pl.lit(None, dtype=pl.Datetime("us"))
    by_day = _ends_with_its_day(start, end)
    ending = known_to("end", block.time_format) if "end" in cells else pl.lit(EXACT)
    ending = pl.when(by_day).then(DATE_ONLY).otherwise(ending)

    def events(rows: pl.DataFrame) -> list[pl.DataFrame]:
        made = [
            event(rows, named(block.prefix, told("class")), start, "encounter", visit="visit_id", where=kept & ~stay)
        ]
        if block.inpatient:
            made += [
                event(
                    rows, named("HOSPITAL_ADMISSION", told("class")), start, "encounter", visit="visit_id",
                    where=kept & stay,
                ),
                event(
                    rows, named("HOSPITAL_DISCHARGE", told("discharge")), pl.when((end >= start) | by_day).then(end),
                    "encounter", visit="visit_id", where=kept & stay, clock=ending,
                ),
            ]  # fmt: skip
        return made

    return Plan(
        table, cells, events, NO_STAY,
        contradictions={
            "visits that end before they start": kept & ~stay & (end < start) & ~by_day,
            NO_VISIT_ID: kept & pl.col("visit_id").is_null(),
        },
        classes=("class",) if stays else (),
    )  # fmt: skip


DAY_END = pl.duration(days=1) - pl.duration(seconds=1)


def events_plan(block: EventTable, table: Table, readers: CellReaders, visits: pl.DataFrame | None) -> Plan:
    """One event per row, or per filled cell of a wide table."""
    cells: dict[str, Cells] = {"subject_id": readers.subject(block.subject)}
    filters, kept = filter_cells(readers, block.where)
    if block.visit is not None:
        cells["visit_id"] = readers.visit(block.visit)
    for name, columns in (("time", block.time), ("known", block.known)):
        if columns is not None:
            cells |= time_cells(readers, name, columns, block.time_format)
    codes = [block.code] if isinstance(block.code, str) else block.code or []
    cells |= {f"code:{place}": readers.text(column) for place, column in enumerate(codes)}
    if block.value is not None:
        both = block.text is not None and block.text.lower() == block.value.lower()
        cells["value"] = readers.number(block.value, keep_text=both)
    for name, column in (("unit", block.unit), ("text", block.text), ("description", block.description)):
        if column is not None and not (name == "text" and block.value is not None and both):
            cells[name] = readers.text(column)
    wide = {name: Wide(column=given) if isinstance(given, str) else given for name, given in block.columns.items()}
    for name, each in wide.items():
        number = each.as_ == "number"
        cells[f"column:{name}"] = readers.number(each.column, keep_text=True) if number else readers.text(each.column)
    cells |= filters
    visit = "visit_id" if block.visit is not None else None

    def optional(name: str) -> pl.Expr | None:
        return pl.col(name) if name in cells else None

    def timed(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Expr | None, pl.Expr]:
        """Rows, when each is known, and how well: at the later of both times, a date being over at its end."""
        if block.undated:
            return rows, None, pl.lit(EXACT)
        if block.at_origin:
            return rows, pl.lit(readers.mapping.since(), dtype=pl.Datetime("us")), pl.lit(EXACT)
        if block.at_visit is not None and visits is not None:
            known = visits.select(*KEYS, pl.col(block.at_visit, f"{block.at_visit}:date"))
            rows = rows.join(known, on=list(KEYS), how="left", maintain_order="left")
            return rows, pl.col(block.at_visit), known_to(block.at_visit, None)
        stamps = []
        for name in ("time", "known"):
            if name in cells:
                end = pl.col(name) + pl.when(pl.col(f"{name}:date") == 1).then(DAY_END).otherwise(pl.duration())
                stamps.append((pl.col(name), known_to(name, block.time_format), end))
        (time, precision, end), *later = stamps
        for other, other_precision, other_end in later:
            takes = other.is_not_null() & (time.is_null() | (other_end > end))
            time, precision = (
                pl.when(takes).then(other).otherwise(time),
                pl.when(takes).then(other_precision).otherwise(precision),
            )
        return rows, time, precision

    def prefixed(*parts: str | pl.Expr) -> pl.Expr:
        if block.prefix is not None:
            return named(block.prefix, *parts)
        first, *rest = (pl.col(part) if isinstance(part, str) else part for part in parts)
        return pl.concat_str([first, *rest], separator="//").str.replace_all(r"\s+", " ")

    def events(rows: pl.DataFrame) -> list[pl.DataFrame]:
        rows, time, known = timed(rows)
        if wide:
            return [_of_cell(rows, name, each, time, known) for name, each in wide.items()]
        code = prefixed(pl.lit(block.constant)) if block.constant is not None else prefixed(*_names("code", len(codes)))
        value, text = optional("value"), optional("text")
        if value is not None and cells["value"].keep_text:
            text = pl.col(text_beside("value"))
        elif value is not None and text is not None:
            text = pl.when(value.is_null()).then(text)
        unit = optional("unit") if block.unit_is is None else pl.lit(block.unit_is)
        return [
            event(
                rows, code, time, block.kind, visit=visit, value=value, unit=unit, text=text,
                description=optional("description"), clock=known, where=kept,
            )
        ]  # fmt: skip

    def _of_cell(rows: pl.DataFrame, name: str, each: Wide, time: pl.Expr | None, known: pl.Expr) -> pl.DataFrame:
        cell, filled = pl.col(f"column:{name}"), pl.col(f"column:{name}").is_not_null()
        code = prefixed(pl.lit(name), cell) if each.as_ == "code" else prefixed(pl.lit(name))
        text = cell if each.as_ == "text" else None
        beside = text_beside(f"column:{name}")
        if each.as_ == "number" and rows[beside].null_count() < len(rows):
            text, filled = pl.col(beside), filled | pl.col(beside).is_not_null()
        return event(
            rows, code, time, block.kind, visit=visit, value=cell if each.as_ == "number" else None,
            unit=None if each.unit is None else pl.lit(each.unit), text=text, clock=known, where=kept & filled,
        )  # fmt: skip

    no_time = (
        "without a time"
        if block.at_visit is None
        else f"of a visit unknown, excluded by where, or without {block.at_visit}"
    )
    return Plan(
        table,
        cells,
        events,
        no_time,
        "excluded by where, or all columns empty" if wide else "excluded by where",
    )


def _names(stem: str, count: int) -> Iterator[str]:
    return (f"{stem}:{place}" for place in range(count))


def visit_times(block: Visits, plan: Plan, readers: CellReaders) -> pl.DataFrame:
    """Columns `subject_id`, `visit_id`, `start`, `end` of every visit that `where` leaves, each once; in memory.

    An end before the start is none. `start:date` and `end:date` are 1 where only the day is known.

    Args:
        block: The visits.
        plan: From `visits_plan`.
        readers: Of the mapping.

    Raises:
        DataError: a visit is stated twice, and rows of it differ in a column that the mapping names.
    """
    _, kept = filter_cells(readers, block.where)
    facts = [name for name in plan.cells if not name.startswith("where:")]
    times = [name for name in ("start", "start:date", "end", "end:date") if name in plan.cells]
    files = plan.table.files

    def stated(piece: Piece) -> pl.DataFrame:
        rows = piece.rows.filter(kept).drop_nulls(KEYS)
        place = pl.lit(files.index(piece.file), dtype=pl.UInt16)
        hashes = rows.select(facts).hash_rows()
        return rows.select(*KEYS, *times, "row").with_columns(hashes.alias("facts"), file=place)

    found = [stated(piece) for piece in plan.table.read(plan.cells)] or [stated(plan.table.whole(plan.cells))]
    rows = pl.concat(found).unique([*KEYS, "facts"], keep="first", maintain_order=True)
    if len(twice := rows.filter(pl.struct(KEYS).is_duplicated()).sort(KEYS, maintain_order=True)):
        places = (f"row {row} of {files[file]}" for row, file in twice.select("row", "file").head(2).iter_rows())
        raise DataError(
            f"{plan.table.name} states a visit twice, and differently", got=" and ".join(places),
            expected="each visit of a subject once, or in equal rows",
        )  # fmt: skip
    rows = rows.drop("row", "file", "facts")
    if "end" not in plan.cells:
        return rows.with_columns(end=pl.lit(None, dtype=pl.Datetime("us")), **{"end:date": pl.lit(0.0)})
    start, end = pl.col("start"), pl.col("end")
    by_day = _ends_with_its_day(start, end).fill_null(False)
    ended = pl.when(end.is_not_null() & ((end < start) & ~by_day).ne_missing(True)).then(end)
    return rows.with_columns(end=ended, **{"end:date": pl.when(by_day).then(1.0).otherwise("end:date")})


def described(block: Codes, table: Table, readers: CellReaders) -> pl.DataFrame:
    """Columns `code`, `described`, each code once."""
    columns = [block.code] if isinstance(block.code, str) else block.code
    cells = {f"code:{place}": readers.text(column) for place, column in enumerate(columns)}
    rows = table.whole(cells | {"description": readers.text(block.description)}).rows
    parts = [pl.col(name).str.replace_all(r"\s+", " ") for name in cells]
    prefix = [pl.lit(block.prefix)] if block.prefix is not None else []
    code = pl.concat_str([*prefix, *parts], separator="//")
    return once(rows.select(code=code, described="description").drop_nulls(), ["code"], table.files[0])
