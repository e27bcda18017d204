"""What an inspection counts: pure functions of the events of some subjects, and the sum over shards."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import polars as pl

from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, MICROSECONDS_PER_DAY
from ehrsequencing.data.survey import is_event, number

EARLIEST = datetime(1900, 1, 1)
EARLIEST_BIRTH = datetime(1780, 1, 1)
"""No event is before `EARLIEST` and nobody grows older than 120."""
OLD_YEARS, REFUSED_YEARS = 120, 125
"""Ages that nobody is known to have passed by much, and ages that preparation refuses."""
RESULTS_DAYS = 90
"""Results come in after death, cultures for weeks; no event of a life is that late."""
PLACEHOLDERS = (datetime(1900, 1, 1), datetime(1970, 1, 1))
"""Midnights that software writes where it knows no date."""
EXAMPLES = 5
SEX_PREFIXES = ("GENDER//", "SEX//")
MAX_DISTINCT = 1024
"""Distinct values of a code and unit that are counted one by one; beyond, neighbours are counted together."""
_FIRST_CUT, _NEXT_CUT, _LAST_CUT = 11, 2, 17
"""Bits cut from the 23 of a float32's mantissa, in steps as they are needed: to 0.02, 0.1, 0.4 and 1.6 %."""
_MERGE_ROWS = 500_000
_MICROSECONDS_PER_YEAR = DAYS_PER_YEAR * MICROSECONDS_PER_DAY
_DAY = pl.duration(days=1)
_TEXT_NUMBER = r"^\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*$"

_SUM, _MIN, _MAX = "sum", "min", "max"
RULES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "codes": (("split", "code"), {"events": _SUM, "subjects": _SUM, "numbers": _SUM}),
    "values": (("code", "unit", "value"), {"count": _SUM, "subject": _MIN, "cut": _MAX}),
    "texts": (("code",), {"events": _SUM, "text": _MIN}),
    "repeats": (("code",), {"events": _SUM}),
    "visit_sizes": (("size",), {"count": _SUM}),
    "ages": (("age",), {"count": _SUM}),
    "months": (("month",), {"count": _SUM}),
    "faults": (("fault",), {"events": _SUM, "subjects": _SUM}),
}
"""Tallies that add up over shards: their keys, and how each other column is joined. `subjects` has a row per subject
and `shards` one per shard, and these are put one below the other; `examples` keeps the least subjects of a fault."""


def tally(events: pl.DataFrame, where: str, today: datetime) -> dict[str, pl.DataFrame]:
    """Count the events of some subjects, each with all its events.

    Args:
        events: Columns of `EVENT_SCHEMA` and `split`, in the order of the file.
        where: Name of the file.
        today: Dates from the day after on lie in the future.

    Returns:
        Frames by name: those of `RULES`, `subjects`, `shards` and `examples`.

    >>> events = pl.DataFrame({"subject_id": [1, 1], "time": [None, datetime(2020, 1, 1)], "code": ["GENDER//F", "A"]})
    >>> nothing = {column: pl.lit(None) for column in ("numeric_value", "visit_id", "unit", "text_value")}
    >>> frames = tally(events.with_columns(split=pl.lit("train"), **nothing), "a file", datetime(2024, 1, 1))
    >>> frames["subjects"].select("events", "static", "visits", "sex").row(0)
    (2, 1, 1, 'F')
    """
    order = order_of(events).with_columns(shard=pl.lit(where))
    events = events.with_columns(
        pl.col("unit").cast(pl.String).fill_null(""),
        pl.col("text_value").cast(pl.String),
        pl.col("visit_id").cast(pl.Int64),
        numeric_value=pl.col("numeric_value").cast(pl.Float32),
        code_id=pl.col("code").cast(pl.Categorical),
    )
    tokens = events.filter(is_event())
    dated = tokens.filter(pl.col("time").is_not_null())
    sizes = visit_sizes(dated)
    subjects = lives(events, tokens, sizes)
    dated = dated.join(subjects.select("subject_id", "birth", "death"), on="subject_id", how="left")
    numbers = tokens.with_columns(value=number()).filter(pl.col("value").is_not_null())
    repeated = duplicates(events.drop("split", "code_id"))
    texts = text_numbers(tokens)
    found = {
        **_row_faults(dated, today),
        "infinite": numbers.filter(pl.col("value").is_infinite()),
        "duplicate": repeated,
        "text": texts,
        "birth repeated": _repeated(events, subjects, "births", BIRTH_CODE),
        "death repeated": _repeated(events, subjects, "deaths", DEATH_CODE),
        "early birth": subjects.filter(pl.col("birth") < EARLIEST_BIRTH),
        "two sexes": subjects.filter(pl.col("sexes") > 1),
    }
    return {
        "subjects": subjects.drop("sexes", "births", "deaths"),
        "shards": order,
        "codes": _codes(tokens),
        "values": _values(numbers.filter(pl.col("value").is_finite())),
        "texts": texts.group_by("code").agg(events=pl.len().cast(pl.Int64), text=pl.col("text_value").min()),
        "repeats": repeated.group_by("code").agg(events=pl.len().cast(pl.Int64)),
        "visit_sizes": sizes.group_by("size").agg(count=pl.len().cast(pl.Int64)),
        "ages": _ages(dated),
        "months": dated.group_by(month=_month()).agg(count=pl.len().cast(pl.Int64)),
        "faults": pl.DataFrame(
            [(name, len(rows), rows["subject_id"].n_unique()) for name, rows in found.items() if len(rows)],
            schema={"fault": pl.String, "events": pl.Int64, "subjects": pl.Int64},
            orient="row",
        ),
        "examples": pl.DataFrame(
            [(name, some(rows["subject_id"])) for name, rows in found.items() if len(rows)],
            schema={"fault": pl.String, "subject_id": pl.List(pl.Int64)},
            orient="row",
        ),
    }


def some(subjects: pl.Series) -> list[int]:
    """The least few of the distinct subjects."""
    return subjects.drop_nulls().unique().sort().head(EXAMPLES).to_list()


def order_of(events: pl.DataFrame) -> pl.DataFrame:
    """One row: `rows`, whether subjects are `scattered` over the file, and rows that are `late`, after a later one.

    >>> order_of(pl.DataFrame({"subject_id": [1, 2, 1], "time": [None, datetime(2020, 1, 1), None]})).row(0)
    (3, True, 0)
    """
    same = pl.col("subject_id") == pl.col("subject_id").shift(1)
    back = (pl.col("time") < pl.col("time").shift(1)) | (
        pl.col("time").is_null() & pl.col("time").shift(1).is_not_null()
    )
    return events.select(
        rows=pl.len().cast(pl.Int64),
        scattered=(~same).fill_null(True).sum() > pl.col("subject_id").n_unique(),
        late=(same & back).fill_null(False).sum().cast(pl.Int64),
    )


def visit_sizes(dated: pl.DataFrame) -> pl.DataFrame:
    """Columns `subject_id`, `size` of every visit: the rows of one `visit_id`, or of one day where there is none."""
    key = pl.coalesce("visit_id", pl.col("time").dt.date().to_physical().cast(pl.Int64))
    keyed = dated.select("subject_id", by_day=pl.col("visit_id").is_null(), key=key)
    return keyed.group_by("subject_id", "by_day", "key").agg(size=pl.len().cast(pl.Int64)).drop("by_day", "key")


def lives(events: pl.DataFrame, tokens: pl.DataFrame, sizes: pl.DataFrame) -> pl.DataFrame:
    """One row per subject: `split`, `events`, `static`, `visits`, `first`, `last`, `birth`, `death`, `sex`.

    `births` and `deaths` count the different times stated, and `sexes` the different sexes.
    """
    sex = tokens.filter(pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in SEX_PREFIXES)).select(
        "subject_id", sex=pl.col("code").str.split("//").list.last().str.to_uppercase()
    )
    own = tokens.group_by("subject_id").agg(
        events=pl.len().cast(pl.Int64),
        static=pl.col("time").null_count().cast(pl.Int64),
        first=pl.col("time").min(),
        last=pl.col("time").max(),
    )
    table = events.group_by("subject_id").agg(pl.col("split").first())
    table = table.join(own, on="subject_id", how="left")
    table = table.join(
        sizes.group_by("subject_id").agg(visits=pl.len().cast(pl.Int64)), on="subject_id", how="left"
    ).join(
        sex.group_by("subject_id").agg(pl.col("sex").min(), sexes=pl.col("sex").n_unique()), on="subject_id", how="left"
    )
    for code, time, times in ((BIRTH_CODE, "birth", "births"), (DEATH_CODE, "death", "deaths")):
        stated = events.filter((pl.col("code") == code) & pl.col("time").is_not_null())
        stated = stated.group_by("subject_id").agg(
            pl.col("time").min().alias(time), pl.col("time").n_unique().alias(times)
        )
        table = table.join(stated, on="subject_id", how="left")
    return table.with_columns(pl.col("events", "static", "visits").fill_null(0)).sort("subject_id")


def duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """The second and further of rows that are equal in all columns."""
    # The hash finds the few candidates quickly; equality decides.
    suspects = events.filter(events.hash_rows().is_duplicated())
    return suspects.filter(~pl.struct(pl.all()).is_first_distinct()) if len(suspects) else suspects


def text_numbers(tokens: pl.DataFrame) -> pl.DataFrame:
    """The events whose text is a number and whose `numeric_value` is empty."""
    return tokens.filter(
        pl.col("numeric_value").fill_nan(None).is_null() & pl.col("text_value").str.contains(_TEXT_NUMBER)
    )


def _row_faults(dated: pl.DataFrame, today: datetime) -> dict[str, pl.DataFrame]:
    """Rows of `dated` (with `birth` and `death`) whose date cannot be."""
    time, age = pl.col("time"), _age_years()
    wrong = {
        "early": time < EARLIEST,
        "future": time >= pl.lit(today) + _DAY,
        "before birth": time < pl.col("birth"),
        "after death": (time >= pl.col("death") + _DAY) & (time < pl.col("death") + pl.duration(days=RESULTS_DAYS)),
        "long after death": time >= pl.col("death") + pl.duration(days=RESULTS_DAYS),
        "old": (age > OLD_YEARS) & (age <= REFUSED_YEARS),
        "refused age": age > REFUSED_YEARS,
        **{f"placeholder {day:%Y-%m-%d}": time == day for day in PLACEHOLDERS},
    }
    return {name: dated.filter(condition).select("subject_id") for name, condition in wrong.items()}


def _repeated(events: pl.DataFrame, subjects: pl.DataFrame, times: str, code: str) -> pl.DataFrame:
    several = subjects.filter(pl.col(times) > 1)
    return events.filter(pl.col("code") == code).join(several, on="subject_id", how="semi").select("subject_id")


def _codes(tokens: pl.DataFrame) -> pl.DataFrame:
    counts = tokens.group_by("split", "code_id").agg(
        events=pl.len().cast(pl.Int64), numbers=pl.col("numeric_value").fill_nan(None).count().cast(pl.Int64)
    )
    # One integer per subject and code: distinct integers are found several times as fast as distinct pairs.
    pair = pl.col("subject_id").rank("dense").cast(pl.UInt64) * 2**32 + pl.col("code_id").to_physical().cast(pl.UInt64)
    pairs = tokens.select("split", "code_id", pair=pair).unique("pair")
    subjects = pairs.group_by("split", "code_id").agg(subjects=pl.len().cast(pl.Int64))
    return counts.join(subjects, on=["split", "code_id"], how="left").select(
        "split", pl.col("code_id").cast(pl.String).alias("code"), "events", "subjects", "numbers"
    )


def _values(numbers: pl.DataFrame) -> pl.DataFrame:
    counts = numbers.group_by("code_id", pl.col("unit").cast(pl.Categorical), "value").agg(
        count=pl.len().cast(pl.Int64), subject=pl.col("subject_id").min(), cut=pl.lit(0, dtype=pl.Int32)
    )
    return counts.select(
        pl.col("code_id").cast(pl.String).alias("code"),
        pl.col("unit").cast(pl.String),
        "value",
        "count",
        "subject",
        "cut",
    )


def _age_years() -> pl.Expr:
    return (pl.col("time") - pl.col("birth")).dt.total_microseconds() / _MICROSECONDS_PER_YEAR


def _ages(dated: pl.DataFrame) -> pl.DataFrame:
    known = dated.select(age=_age_years().floor()).drop_nulls()
    return known.group_by(pl.col("age").cast(pl.Int64)).agg(count=pl.len().cast(pl.Int64))


def _month() -> pl.Expr:
    return pl.col("time").dt.year().cast(pl.Int64) * 12 + pl.col("time").dt.month().cast(pl.Int64) - 1


class Totals:
    """The sum of the tallies of many shards; memory holds the subjects, the codes and the histograms of values.

    Column `cut` of `values` is above 0 where values of a code and unit were counted together with their neighbours.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[pl.DataFrame]] = {}

    def add(self, frames: Mapping[str, pl.DataFrame]) -> None:
        """Take the tally of one shard."""
        for name, frame in frames.items():
            parts = self._parts.setdefault(name, [])
            parts.append(frame)
            if name in RULES and sum(map(len, parts[1:])) > max(_MERGE_ROWS, len(parts[0])):
                self._parts[name] = [self._merge(name)]

    def frames(self) -> dict[str, pl.DataFrame]:
        """The totals, by the names of `tally`, in a fixed order of rows."""
        merged = {name: self._merge(name) for name in self._parts}
        return {name: frame.sort(RULES[name][0]) if name in RULES else frame for name, frame in merged.items()}

    def _merge(self, name: str) -> pl.DataFrame:
        joined = pl.concat(self._parts[name])
        if name == "examples":
            return joined.explode("subject_id").group_by("fault").agg(pl.col("subject_id").sort().head(EXAMPLES))
        if name not in RULES:
            return joined
        return _thin(joined) if name == "values" else _aggregate(joined, name)


def _aggregate(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    keys, columns = RULES[name]
    return frame.group_by(keys).agg(getattr(pl.col(column), how)() for column, how in columns.items())


def _thin(values: pl.DataFrame) -> pl.DataFrame:
    """Add up equal values, and count neighbours together where a code and unit have too many distinct ones."""
    pair = ["code", "unit"]
    values = values.with_columns(pl.col("cut").max().over(pair))
    while True:
        # Cutting the last bits of a float32's mantissa rounds towards zero and keeps the order.
        kept = values["value"].to_numpy().view(np.int32) & (np.int32(-1) << values["cut"].to_numpy())
        values = _aggregate(values.with_columns(value=pl.Series(kept.view(np.float32))), "values")
        crowded = (pl.len().over(pair) > MAX_DISTINCT) & (pl.col("cut") < _LAST_CUT)
        if not values.select(crowded.any()).item():
            return values
        deeper = pl.when(pl.col("cut") == 0).then(_FIRST_CUT).otherwise(pl.col("cut") + _NEXT_CUT)
        values = values.with_columns(cut=pl.when(crowded).then(deeper).otherwise("cut").cast(pl.Int32))
