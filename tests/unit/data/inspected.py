"""A dataset in which an inspection finds nothing, to which tests add one fault at a time."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.data.schema import EVENT_SCHEMA

TODAY = datetime(2024, 6, 1)
SUBJECTS = {"train": range(1, 61), "tuning": range(61, 91), "held_out": range(91, 121)}
Rows = dict[str, list[dict[str, Any]]]


def event(subject: int, time: datetime | None, code: str, **more: Any) -> dict[str, Any]:
    """A row; columns left out are null."""
    return {**dict.fromkeys(EVENT_SCHEMA), "subject_id": subject, "time": time, "code": code, **more}


def day(number: float) -> datetime:
    """Days after 2010-01-01."""
    return datetime(2010, 1, 1) + timedelta(days=number)


def healthy() -> Rows:
    """Rows by shard: 120 subjects with birth, sex, six visits of a diagnosis and a lab each, in three splits."""
    shards: Rows = {}
    for split, subjects in SUBJECTS.items():
        rows = shards.setdefault(f"{split}/0", [])
        for subject in subjects:
            rows.append(event(subject, None, f"GENDER//{'FM'[subject % 2]}"))
            rows.append(event(subject, datetime(1950 + subject % 30, 1, 1), "MEDS_BIRTH"))
            for visit in range(6):
                when = day(90 * visit + subject % 50)
                rows.append(event(subject, when, "ICD10CM//I10"))
                value = 0.7 + 0.01 * ((7 * subject + 11 * visit) % 50)
                rows.append(event(subject, when, "LOINC//2160-0", numeric_value=value, unit="mg/dL"))
    return shards


def write(folder: Path, shards: Rows) -> Path:
    """Write the rows as another tool would: data/SPLIT/NUMBER.parquet and nothing else."""
    for name, rows in shards.items():
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows, schema=EVENT_SCHEMA).write_parquet(path)
    return folder
