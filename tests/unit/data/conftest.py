from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import settings

from ehrsequencing.data.schema import EVENT_SCHEMA

settings.register_profile("no timing", deadline=None)
settings.load_profile("no timing")
Event = tuple[Any, ...]


@pytest.fixture
def write_meds(tmp_path: Path) -> Callable[..., Path]:
    """Write a MEDS dataset of another tool: `write_meds(train=[[shard of events], ...], tuning=..., name=...)`.

    An event is (subject, time, code) and, as far as wanted, numeric value, visit, unit.
    """

    def write(name: str = "meds", **splits: Sequence[Sequence[Event]]) -> Path:
        columns = ("subject_id", "time", "code", "numeric_value", "visit_id", "unit")
        schema = {column: EVENT_SCHEMA[column] for column in columns}
        for split, shards in splits.items():
            for number, events in enumerate(shards):
                rows = [(*event, *[None] * (len(columns) - len(event))) for event in events]
                path = tmp_path / name / "data" / split / f"{number}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
        return tmp_path / name

    return write
