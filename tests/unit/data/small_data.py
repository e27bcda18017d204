"""Datasets and splits small enough to write down, on disk through the real writers."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.store import EVENT_COLUMNS, SplitStore, SplitWriter


def day(number: float) -> datetime:
    """Days after 2020-01-01."""
    return datetime(2020, 1, 1) + timedelta(days=number)


def microseconds(number: float) -> int:
    """The same instant as the store writes it."""
    return round((day(number) - datetime(1970, 1, 1)) / timedelta(microseconds=1))


def write_split(
    folder: Path,
    subjects: dict[int, list[dict[str, float]]],
    name: str = "train",
    births: dict[int, int] | None = None,
) -> SplitStore:
    """A split of a token store with exactly these rows; columns left out have no value. Births in microseconds."""
    absent = {"code": 5, "visit": -1, "time": STATIC_TIME, "value": np.nan, "statistic": -1, "kind": 0}
    ids = np.array(sorted(subjects), dtype=np.int64)
    rows = [{**absent, **row} for subject in ids.tolist() for row in subjects[subject]]
    columns = {column: np.array([row[column] for row in rows], dtype=EVENT_COLUMNS[column]) for column in EVENT_COLUMNS}
    lengths = np.array([len(subjects[subject]) for subject in ids.tolist()], dtype=np.int64)
    birth = np.array([(births or {}).get(subject, STATIC_TIME) for subject in ids.tolist()], dtype=np.int64)
    writer = SplitWriter(folder / name)
    writer.write_subjects(ids, lengths, birth_time=birth, death_time=np.full(len(ids), STATIC_TIME, dtype=np.int64))
    writer.write_rows(0, columns)
    return SplitStore(folder, name)
