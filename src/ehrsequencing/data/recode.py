"""A dataset as its rules read it: codes rolled up, units converted; tables over distinct codes and units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.dataset import CODES_FILE, MedsDataset
from ehrsequencing.data.events import collect
from ehrsequencing.data.rollup import RolledUp, roll_up
from ehrsequencing.data.rules import Rules
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.survey import is_event, number
from ehrsequencing.data.units import UnitTable
from ehrsequencing.errors import ConfigError, DataError


@dataclass(frozen=True)
class Recoding:
    """What changes, over distinct codes and units; both tables are small and may be empty.

    Attributes:
        codes: Columns `code`, `new_code`.
        pairs: Columns of `units.PAIR_SCHEMA`, by the code before roll-up; `unit` is "" where none is stated.
    """

    codes: pl.DataFrame
    pairs: pl.DataFrame

    def apply(self, events: pl.LazyFrame) -> pl.LazyFrame:
        """Events, columns of `EVENT_SCHEMA`, in new units and under new codes."""
        if self.codes.is_empty() and self.pairs.is_empty():
            return events
        columns = events.collect_schema().names()
        if len(self.pairs):
            pairs = self.pairs.lazy().rename({"unit": "stated"})
            converted = pl.col("numeric_value").cast(pl.Float64) * pl.col("factor") + pl.col("offset")
            events = (
                events.with_columns(stated=pl.col("unit").fill_null(""))
                .join(pairs, on=["code", "stated"], how="left", maintain_order="left")
                .with_columns(
                    unit=pl.coalesce("new_unit", "unit"),
                    numeric_value=pl.coalesce(converted.cast(pl.Float32), "numeric_value"),
                )
            )
        if len(self.codes):
            events = events.join(self.codes.lazy(), on="code", how="left", maintain_order="left")
            events = events.with_columns(code=pl.coalesce("new_code", "code"))
        return events.select(columns)


class RecodedDataset(MedsDataset):
    """A dataset whose events and code table follow rules; splits, subjects and fingerprint are the dataset's.

    Attributes:
        recoding: What changes.
        rolled_codes: `RolledUp.standing`; {} without a roll-up.
        account: For the manifest: `roll_up` (codes before and after, rolled, left alone) and `units` (code, from, to,
            factor, offset and number of events of every conversion), as far as the rules ask for them.
    """

    def __init__(self, dataset: MedsDataset, rules: Rules, *, must_change: bool) -> None:
        """Args:
            dataset: The dataset.
            rules: Its rules.
            must_change: Refuse a roll-up or unit table that changes nothing.

        Raises:
            ConfigError: it changes nothing.
            DataError: the code table has malformed parents.
        """
        super().__init__(dataset.path, dataset.manifest, dataset._shards)
        self._source = dataset
        self.account: dict[str, Any] = {}
        self.rolled_codes: dict[str, str] = {}
        pairs = self._unit_changes(rules.units, must_change)
        codes = self._code_changes(rules.roll_up, must_change)
        self.recoding = Recoding(codes, pairs)

    def frames(self, split: str) -> Iterator[pl.LazyFrame]:
        for frame in self._source.frames(split):
            yield self.recoding.apply(frame)

    @cached_property
    def _codes(self) -> pl.DataFrame:
        """The code table; a broader code that it lacks takes the kind of the first code below it."""
        book = self._source.codes()
        table = book.join(self.recoding.codes, on="code", how="left", maintain_order="left")
        above = (
            table.drop_nulls("new_code")
            .group_by("new_code", maintain_order=True)
            .agg(below_kind=pl.col("kind").first(), below_numeric=pl.col("numeric").any())
            .rename({"new_code": "code"})
        )
        stays = pl.col("new_code").is_null() | pl.col("code").is_in(above["code"].implode())
        return (
            table.filter(stays)
            .join(above, on="code", how="full", coalesce=True)
            .select(
                "code",
                "description",
                kind=pl.coalesce("kind", "below_kind"),
                numeric=pl.coalesce("numeric", pl.lit(False)) | pl.coalesce("below_numeric", pl.lit(False)),
            )
            .sort("code")
        )

    def _unit_changes(self, units: UnitTable | None, must_change: bool) -> pl.DataFrame:
        if units is None:
            return UnitTable().changes(pl.DataFrame(schema={"code": pl.String, "unit": pl.String}))
        counts = [
            collect(
                frame.filter(is_event())
                .group_by("code", pl.col("unit").fill_null(""))
                .agg(events=number().is_not_null().sum().cast(pl.Int64)),
                str(self.path),
            )
            for split in SPLITS
            for frame in self._source.frames(split)
        ]
        seen = pl.concat(counts).group_by("code", "unit").agg(pl.col("events").sum())
        changes = units.changes(seen)
        if must_change and changes.is_empty():
            raise ConfigError(
                "units would change nothing", got=f"{len(seen)} pairs of code and unit",
                expected="one that the unit table knows", remedy="leave units out",
            )  # fmt: skip
        account = changes.join(seen, on=["code", "unit"], how="left", maintain_order="left")
        self.account["units"] = account.rename({"unit": "from", "new_unit": "to"}).to_dicts()
        return changes

    def _code_changes(self, rules: tuple[str, ...], must_change: bool) -> pl.DataFrame:
        schema = {"code": pl.String(), "new_code": pl.String()}
        if not rules:
            return pl.DataFrame(schema=schema)
        book = self._source.codes().filter(is_event())
        done = roll_up(
            book["code"].to_list(), rules, _parents(self.path), book.filter("numeric")["code"].to_list(),
            must_change=must_change,
        )  # fmt: skip
        self.account["roll_up"] = _roll_up_account(book, done)
        self.rolled_codes = done.standing
        return pl.DataFrame(list(done.table.items()), schema=schema, orient="row")


def _roll_up_account(book: pl.DataFrame, done: RolledUp) -> dict[str, int]:
    codes = book["code"].to_list()
    return {
        "codes_before": len(codes),
        "codes_after": len({done.table.get(code, code) for code in codes}),
        "rolled": len(done.table),
        "left_with_several_parents": done.ambiguous,
        "left_with_values": done.with_values,
    }


def _parents(path: Path) -> dict[str, list[str]]:
    """Parents of every code, as `metadata/codes.parquet` states them; {} where it does not."""
    file = path / CODES_FILE
    if not file.exists() or "parent_codes" not in pl.read_parquet_schema(file):
        return {}
    table = pl.read_parquet(file, columns=["code", "parent_codes"])
    found = table.schema["parent_codes"]
    inner = found.inner if isinstance(found, pl.List) else found
    if inner not in (pl.String, pl.Categorical, pl.Null) or (inner == found and found != pl.Null):
        raise DataError(f"parent_codes of {file} have the wrong type", got=found, expected="lists of codes")
    listed = table.cast({"code": pl.String, "parent_codes": pl.List(pl.String)}).drop_nulls()
    return {code: [parent for parent in above if parent] for code, above in listed.iter_rows()}
