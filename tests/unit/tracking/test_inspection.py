"""The page of an inspection: what its charts show and leave out."""

import re
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.data.inspect import inspect
from ehrsequencing.tracking.inspection import in_words, inspection_page


def document(folder: Path, times: list[datetime | None]) -> dict:
    (folder / "data").mkdir()
    number = len(times)
    rows = {"subject_id": [1] * number, "time": times, "code": ["A"] * number, "numeric_value": range(number)}
    pl.DataFrame(rows, schema_overrides={"time": pl.Datetime("us")}).write_parquet(folder / "data" / "0.parquet")
    return inspect(folder, today=datetime(2024, 1, 1)).document


DAYS = [datetime(2015, 1, 1) + timedelta(days=number) for number in range(4000)]


@pytest.mark.parametrize(("strays", "left"), [([], None), ([datetime(2222, 1, 1)], 1), ([datetime(1901, 1, 1)] * 2, 2)])
def test_a_stray_date_does_not_stretch_the_chart(tmp_path, strays, left):
    page = inspection_page(document(tmp_path, [*DAYS, *strays]))
    caption = re.search(r"<figcaption>(Events per [^<]*)<", page).group(1)
    assert caption.endswith(f"; {left} events further out are not drawn") == bool(left)
    labels = re.findall(r">(\d{4})(?:-\d\d)?</text>", page)
    assert labels
    assert all(2014 <= int(label) <= 2026 for label in labels)


def test_short_spans_are_drawn_by_month_and_long_ones_by_year(tmp_path):
    (tmp_path / "short").mkdir()
    (tmp_path / "long").mkdir()
    assert "Events per month" in inspection_page(document(tmp_path / "short", DAYS[:300]))
    years = [datetime(year, 1, 1) for year in range(1960, 2020)]
    assert "Events per year" in inspection_page(document(tmp_path / "long", years))


def test_a_dataset_without_dates_has_no_charts_of_time(tmp_path):
    found = document(tmp_path, [None] * 3)
    page = inspection_page(found)
    assert "Time and age" not in page
    assert "Histories" in page
    assert not [line for line in in_words(found) if line.startswith("Events lie")]
