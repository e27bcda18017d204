"""What an inspection finds wrong: pure functions of its totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from ehrsequencing.data.inspect_tallies import OLD_YEARS, PLACEHOLDERS, REFUSED_YEARS, RESULTS_DAYS, some

SEVERITIES = ("error", "warning", "note")
"""What `prepare` refuses or what makes a model wrong; what is probably a fault; what a reader should know."""
SHIFTED_SHARE = 0.5
"""Where this share of subjects have events in the future, the dates were shifted on purpose."""
LONE_SHARE = 0.001
"""Events beyond a year without any event are strays where they are at most this share."""
MANY_DUPLICATES, MANY_SINGLE = 0.01, 0.5
MOST_DETAILS = 10


@dataclass(frozen=True)
class Finding:
    """One fault, or one thing a reader should know.

    Attributes:
        check: Name of the check.
        severity: One of `SEVERITIES`.
        what: What is there, without the counts.
        count, of, unit: How many, of how many (0: not stated), of what ("subjects", "events", "codes", ...).
        remedy: What to do.
        subjects: Some subjects as examples.
        details: Lines on single codes or splits.
    """

    check: str
    severity: str
    what: str
    count: int
    of: int
    unit: str
    remedy: str
    subjects: tuple[int, ...] = ()
    details: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {"subjects": list(self.subjects), "details": list(self.details)}
        return {**asdict(self), "amount": self.amount(), **lists}

    def amount(self) -> str:
        """`3 of 40 subjects (7.5 %)`."""
        if not self.of:
            return f"{self.count:,} {self.unit}"
        share = 100 * self.count / self.of
        return f"{self.count:,} of {self.of:,} {self.unit} ({share:.{1 if share >= 0.1 else 3}f} %)"


class Faults:
    """Counts of `tally`'s faults and the subjects that show them."""

    def __init__(self, frames: Mapping[str, pl.DataFrame]) -> None:
        counts = frames["faults"].select("fault", "events", "subjects").iter_rows()
        self._counts = {fault: (events, subjects) for fault, events, subjects in counts}
        self._examples = dict(frames["examples"].select("fault", "subject_id").iter_rows())

    def events(self, *faults: str) -> int:
        """Events with any of the faults, which exclude each other."""
        return sum(self._counts.get(fault, (0, 0))[0] for fault in faults)

    def subjects(self, fault: str) -> int:
        """Subjects with the fault."""
        return int(self._counts.get(fault, (0, 0))[1])

    def examples(self, *faults: str) -> tuple[int, ...]:
        """Some of these subjects."""
        return tuple(some(pl.Series([s for fault in faults for s in self._examples.get(fault, [])], dtype=pl.Int64)))


def dates(frames: Mapping[str, pl.DataFrame], *, note: str | None, last_observed: Any = None) -> list[Finding]:
    """Dates that cannot be, or hardly.

    Args:
        frames: Totals of `tally`.
        note: The dataset's own note that its dates are no calendar dates.
        last_observed: The latest end of observation, a datetime; None where the dataset states none.
    """
    faults, subjects, months = Faults(frames), frames["subjects"], frames["months"]
    events = int(months["count"].sum())
    if not events:
        return []
    found = []
    people = subjects["last"].count()
    shifted = note is not None or faults.subjects("future") >= SHIFTED_SHARE * people
    mend = "correct the dates, or leave these events out"
    for fault, severity, what, remedy in (
        ("early", "error", "events before 1900", f"{mend}; a year such as 1753 or 1899 often stands for no date"),
        ("future", "error", "events in the future", mend),
    ):
        if fault == "future" and shifted:
            severity, what = "note", "dates are shifted into the future, so events in the future cannot be told"
            remedy = "nothing, where the publisher shifted them; tasks by calendar year mean nothing then"
        if faults.events(fault):
            found.append(
                Finding("dates", severity, what, faults.events(fault), events, "events", remedy, faults.examples(fault))
            )
    if faults.subjects("early birth"):
        found.append(
            Finding("dates", "error", "births before 1780", faults.subjects("early birth"), len(subjects), "subjects",
                    "correct MEDS_BIRTH", faults.examples("early birth"))
        )  # fmt: skip
    if last_observed is not None:
        beyond = subjects.filter(pl.col("last") >= pl.lit(last_observed) + pl.duration(days=1))
        if len(beyond):
            found.append(
                Finding("dates", "error", "events after the last end of observation", len(beyond), people, "subjects",
                        "correct the dates or metadata/observation.parquet", tuple(some(beyond["subject_id"])))
            )  # fmt: skip
    years = months.group_by(year=pl.col("month") // 12).agg(pl.col("count").sum()).sort("year")
    for day in PLACEHOLDERS:
        fault = f"placeholder {day:%Y-%m-%d}"
        whole = int(years.filter(year=day.year)["count"].sum())
        if 2 * faults.events(fault) > whole > 0:
            found.append(
                Finding("dates", "warning", f"events at midnight of {day:%Y-%m-%d}, which often stands for no date",
                        faults.events(fault), events, "events", "make the time null where none is known",
                        faults.examples(fault))
            )  # fmt: skip
    if not shifted:
        found += _strays(years, subjects, events)
    return found


def _strays(years: pl.DataFrame, subjects: pl.DataFrame, events: int) -> list[Finding]:
    """A few events beyond at least one calendar year without any, at either end."""
    found = []
    for late in (False, True):
        ordered = years.sort("year", descending=late)
        gap = (pl.col("year") - pl.col("year").shift(-1)).abs() > 1
        reach = ordered.with_columns(total=pl.col("count").cum_sum(), gap=gap.fill_null(False)).filter(
            pl.col("gap") & (pl.col("total") <= LONE_SHARE * events)
        )
        if reach.is_empty():
            continue
        year, total = reach.row(-1, named=True)["year"], int(reach["total"][-1])
        edge = pl.col("last").dt.year() >= year if late else pl.col("first").dt.year() <= year
        side = f"from {year} on, after" if late else f"up to {year}, before"
        found.append(
            Finding(
                "dates", "warning", f"events {side} a year without any event of anybody", total, events, "events",
                "check these dates: a mistyped year looks like this",
                tuple(some(subjects.filter(edge)["subject_id"])),
            )
        )  # fmt: skip
    return found


def lifetimes(frames: Mapping[str, pl.DataFrame]) -> list[Finding]:
    """Births that are missing or contradict each other, and events outside a life."""
    faults, subjects = Faults(frames), frames["subjects"]
    people, events = len(subjects), int(frames["months"]["count"].sum())
    found = []
    missing = subjects.filter(pl.col("birth").is_null())
    if len(missing):
        found.append(
            Finding(
                "birth", "warning", "no MEDS_BIRTH with a date", len(missing), people, "subjects",
                "add the birth where the source has it; ages of these subjects stay unknown to models and tasks",
                tuple(some(missing["subject_id"])),
            )
        )  # fmt: skip
    for name, code in (("birth", "MEDS_BIRTH"), ("death", "MEDS_DEATH")):
        fault = f"{name} repeated"
        if faults.subjects(fault):
            found.append(
                Finding(name, "error", f"several times of {code}", faults.subjects(fault), people, "subjects",
                        "keep one; prepare refuses such subjects", faults.examples(fault))
            )  # fmt: skip
    if faults.events("before birth"):
        found.append(
            Finding("birth", "error", "events before birth", faults.events("before birth"), events, "events",
                    "correct MEDS_BIRTH or the dates; prepare refuses such events", faults.examples("before birth"))
        )  # fmt: skip
    late = faults.events("long after death")
    after = late + faults.events("after death")
    if after:
        what = "events a day or more after death" + (
            f", {late:,} of them later than {RESULTS_DAYS} days" if late else ""
        )
        found.append(
            Finding("death", "error" if late else "warning", what, after, events, "events",
                    "correct MEDS_DEATH or the dates; results may come in after death, events of a life do not",
                    faults.examples("long after death", "after death"))
        )  # fmt: skip
    refused = faults.events("refused age")
    old = refused + faults.events("old")
    if old:
        what = f"events beyond an age of {OLD_YEARS}"
        what += f", {refused:,} of them beyond {REFUSED_YEARS}, which prepare refuses" if refused else ""
        found.append(
            Finding("age", "error" if refused else "warning", what, old, events, "events",
                    "correct MEDS_BIRTH or the dates; some publishers write ages above 89 as a very early birth",
                    faults.examples("refused age", "old"))
        )  # fmt: skip
    if faults.subjects("two sexes"):
        found.append(
            Finding("sex", "warning", "two sexes on record", faults.subjects("two sexes"), people, "subjects",
                    "keep one per subject, or date the change", faults.examples("two sexes"))
        )  # fmt: skip
    return found


def records(frames: Mapping[str, pl.DataFrame], *, files: bool = True) -> list[Finding]:
    """Rows and files: duplicates, subjects with hardly a record, shards out of order.

    Args:
        frames: Totals of `tally`.
        files: Whether the rows are the dataset's own. In a store unknown codes look alike, and rows are sorted.
    """
    faults, subjects = Faults(frames), frames["subjects"]
    rows = int(frames["shards"]["rows"].sum())
    found = []
    if files and faults.events("duplicate"):
        many = faults.events("duplicate") >= MANY_DUPLICATES * rows
        repeats = frames["repeats"].sort(["events", "code"], descending=[True, False])
        lines = [f"{code}: {count:,}" for code, count in repeats.select("code", "events").iter_rows()]
        found.append(
            Finding("duplicates", "warning" if many else "note", "events that repeat another in every column",
                    faults.events("duplicate"), rows, "events",
                    "drop them unless the source means a repetition; each becomes a token of its own",
                    faults.examples("duplicate"), few(lines))
        )  # fmt: skip
    single = subjects.filter(pl.col("events") - pl.col("static") <= 1)
    if len(single):
        found.append(
            Finding("history", "warning" if len(single) >= MANY_SINGLE * len(subjects) else "note",
                    "at most one event with a date", len(single), len(subjects), "subjects",
                    "expect nothing of a sequence model on them; --history-days of a task leaves them out",
                    tuple(some(single["subject_id"])))
        )  # fmt: skip
    shards = frames["shards"].filter(pl.col("scattered") | (pl.col("late") > 0)) if files else pl.DataFrame()
    if len(shards):
        lines = [
            f"{name}: " + " and ".join(
                [*(["a subject's rows do not stand together"] if scattered else []),
                 *([f"{late:,} rows after a later one of the subject"] if late else [])]
            )
            for name, scattered, late in shards.select("shard", "scattered", "late").iter_rows()
        ]  # fmt: skip
        found.append(
            Finding("order", "warning", "not sorted by subject and time, as MEDS asks", len(shards),
                    len(frames["shards"]), "shards",
                    "sort them: prepare sorts by itself, other tools may cut histories wrongly", details=few(lines))
        )  # fmt: skip
    return found


def few(lines: Sequence[str]) -> tuple[str, ...]:
    """The first few lines, and how many there are besides."""
    more = len(lines) - MOST_DETAILS
    return (*lines[:MOST_DETAILS], *([f"{more:,} more"] if more > 0 else []))
