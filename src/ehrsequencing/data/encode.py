"""Second pass over a MEDS dataset: the events of a shard as columns of the token store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrsequencing.data.dataset import name_some
from ehrsequencing.data.schema import BIRTH_CODE, DAYS_PER_YEAR, DEATH_CODE, KINDS, MICROSECONDS_PER_DAY, STATIC_TIME
from ehrsequencing.data.survey import is_event, number, refuse_infinite
from ehrsequencing.data.values import ValueStatistics
from ehrsequencing.data.visits import VisitRule, number_visits
from ehrsequencing.data.vocabulary import Vocabulary
from ehrsequencing.errors import DataError

_MICROSECONDS_PER_YEAR = DAYS_PER_YEAR * MICROSECONDS_PER_DAY


@dataclass(frozen=True)
class EncodedShard:
    """Subjects of a shard, ascending, their times of birth and death, the columns of all their rows, and visits."""

    subject_id: np.ndarray
    birth_time: np.ndarray
    death_time: np.ndarray
    columns: dict[str, np.ndarray]
    visits: int


class Encoder:
    """Turns events into rows of the store; a pure function of the events once vocabulary and statistics are given."""

    def __init__(
        self,
        codes: pl.DataFrame,
        vocabulary: Vocabulary,
        values: ValueStatistics,
        *,
        visits: VisitRule,
        max_age_years: float,
    ) -> None:
        """Args:
        codes: Columns `code` and `kind` of every code in the data.
        vocabulary, values: Fitted on train, or reused.
        visits: Which events are a visit.
        max_age_years: Events at greater ages are refused.
        """
        kinds = {kind: index for index, kind in enumerate(KINDS)}
        book = codes.select("code", kind=pl.col("kind").replace_strict(kinds, return_dtype=pl.UInt8))
        # By kind, then by code: the order of events within a visit at one time.
        book = book.sort("kind", "code").with_row_index("rank")
        self._book = book
        self._tokens = vocabulary.lookup_table(book["code"].to_list(), values.bins)
        self._values = values
        self._pairs = pl.DataFrame(
            {"code": values.codes, "unit": values.units, "statistic": np.arange(len(values), dtype=np.int32)},
            schema={"code": pl.String, "unit": pl.String, "statistic": pl.Int32},
        )
        self._visits, self._max_age_years = visits, max_age_years

    def encode(self, events: pl.DataFrame, where: str) -> EncodedShard:
        """Encode the events of some subjects.

        Args:
            events: Columns of `EVENT_SCHEMA`, in any order.
            where: What errors call the events.

        Raises:
            DataError: an infinite value, events before birth or beyond `max_age_years`, two times of birth or death,
                or an event without the `visit_id` that the rule of visits needs.
        """
        refuse_infinite(events, where)
        subjects = events.select("subject_id").unique().sort("subject_id")
        subjects = subjects.join(_time_of(events, BIRTH_CODE, "birth_time"), on="subject_id", how="left")
        subjects = subjects.join(_time_of(events, DEATH_CODE, "death_time"), on="subject_id", how="left")
        subjects = subjects.sort("subject_id")
        rows = (
            events.filter(is_event())
            .select(
                "subject_id",
                "code",
                "visit_id",
                "time",
                pl.col("unit").fill_null(""),
                value=number(),
                microseconds=pl.col("time").to_physical().fill_null(STATIC_TIME),
            )
            .join(self._book, on="code", how="left")
            .join(self._pairs, on=["code", "unit"], how="left")
            .join(subjects.select("subject_id", "birth_time"), on="subject_id", how="left")
        )
        elapsed = pl.col("microseconds") - pl.col("birth_time")
        age = pl.when(pl.col("time").is_not_null()).then(elapsed / _MICROSECONDS_PER_YEAR)
        rows = number_visits(rows.with_columns(age=age), self._visits)
        self._check_ages(rows, where)
        rows = rows.sort("subject_id", "microseconds", "visit", "rank", "value", "statistic", nulls_last=False)
        value = rows["value"].fill_null(float("nan")).to_numpy()
        statistic = np.where(np.isnan(value), -1, rows["statistic"].fill_null(-1).to_numpy())
        columns = {
            "code": self._tokens[rows["rank"].to_numpy(), self._values.bin(statistic, value)],
            "visit": rows["visit"].to_numpy(),
            "age": rows["age"].fill_null(float("nan")).to_numpy(),
            "time": rows["microseconds"].to_numpy(),
            "value": value,
            "statistic": statistic,
            "kind": rows["kind"].to_numpy(),
        }
        times = subjects.select(pl.col("birth_time", "death_time").fill_null(STATIC_TIME))
        visits = rows.group_by("subject_id").agg(pl.col("visit").max() + 1)["visit"].sum()
        return EncodedShard(
            subjects["subject_id"].to_numpy(),
            times["birth_time"].to_numpy(),
            times["death_time"].to_numpy(),
            columns,
            int(visits),
        )

    def _check_ages(self, rows: pl.DataFrame, where: str) -> None:
        for wrong, what, expected, remedy in (
            (pl.col("age") < 0, "lie before birth", "ages of 0 and more", "correct MEDS_BIRTH or the event times"),
            (
                pl.col("age") > self._max_age_years,
                f"lie beyond an age of {self._max_age_years:g} years",
                f"ages up to {self._max_age_years:g}",
                "correct MEDS_BIRTH, or pass a greater max_age_years",
            ),
        ):
            bad = rows.filter(wrong)
            if len(bad):
                sample = bad.sort("subject_id", "time").head(3)
                shown = [
                    f"subject {subject}: {code} at {time} (age {age:.2f})"
                    for subject, code, time, age in sample.select("subject_id", "code", "time", "age").iter_rows()
                ]
                raise DataError(
                    f"{len(bad)} events in {where} {what}",
                    got=f"{bad['subject_id'].n_unique()} subjects, such as {', '.join(shown)}",
                    expected=expected,
                    remedy=remedy,
                )


def _time_of(events: pl.DataFrame, code: str, name: str) -> pl.DataFrame:
    """Columns `subject_id` and `name` (microseconds) of subjects with that code and a time."""
    dated = events.filter((pl.col("code") == code) & pl.col("time").is_not_null())
    times = dated.group_by("subject_id").agg(
        pl.col("time").min().to_physical().alias(name), distinct=pl.col("time").n_unique()
    )
    several = times.filter(pl.col("distinct") > 1)
    if len(several):
        raise DataError(
            f"{len(several)} subjects have several times of {code}",
            got=f"subject {name_some(several['subject_id'].sort())}",
            expected="one",
            remedy="keep one of them",
        )
    return times.drop("distinct")
