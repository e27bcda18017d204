import datetime as dt
import gzip
import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrsequencing.data.sources.cells import EARLIEST, LATEST, MAX_FLOAT32
from ehrsequencing.data.sources.csv_files import BLOCK_BYTES
from ehrsequencing.data.sources.tables import find_tables, once
from ehrsequencing.errors import DataError


def read(path, text, kind, encoding="utf-8"):
    """The typed column `value` of a file, and how many of its numbers were unreadable."""
    path.write_bytes(("key,value\n" + text).encode(encoding))
    piece = find_tables(path.parent)[path.stem].whole({"key": "text", "value": kind})
    return piece.rows["value"].to_list(), piece.unreadable.get("value", 0)


def test_names_in_capitals(tmp_path):
    """Of files compressed or not, which the suffix says."""
    content = b"Key,VALUE\nx,1\n"
    for name, written in (("A.CSV", content), ("B.CSV.GZ", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
    pl.DataFrame({"KEY": ["x"], "Value": [1]}).write_parquet(tmp_path / "C.PARQUET")
    for table in find_tables(tmp_path).values():
        assert table.whole({"key": "text", "value": "number"}).rows.rows() == [(1, "x", 1.0)], table


@pytest.mark.parametrize(
    ("kind", "given_text", "expected"),
    [
        ("id", " 7 ", 7), ("id", "7.0", 7), ("id", "7.", 7), ("id", "-7.00", -7), ("id", "", None), ("id", " ", None),
        ("id", "9007199254740993.0", 9007199254740993),
        ("time", "2020-01-31", dt.datetime(2020, 1, 31)), ("time", "2020-01-31 08:05", dt.datetime(2020, 1, 31, 8, 5)),
        ("time", "2020-01-31T08:05:09.25", dt.datetime(2020, 1, 31, 8, 5, 9, 250_000)),
        ("time", "2020-01-31T08:05:09Z", dt.datetime(2020, 1, 31, 8, 5, 9)),
        ("time", "2020-01-31 08:05:09+02:00", dt.datetime(2020, 1, 31, 6, 5, 9)), ("time", "", None),
        ("number", "1e3", 1000.0), ("number", " .5", 0.5), ("number", "", None), ("number", "-0", 0.0),
        ("text", " a b ", "a b"), ("text", '"a, ""b""\nc"', 'a, "b"\nc'), ("text", "", None),
    ],
)  # fmt: skip
def test_cells(tmp_path, kind, given_text, expected):
    assert read(tmp_path / "t.csv", f"x,{given_text}\n", kind) == ([expected], 0)
    beside = {"id": "1", "time": "2020-01-01 00:00:00", "number": "1", "text": "x"}[kind]
    assert read(tmp_path / "t.csv", f"x,{beside}\nx,{given_text}\n", kind)[0][1] == expected


@pytest.mark.parametrize("text", ["high", "NaN", "inf", "-Infinity", "1e39", "1,000", "1-2", "NULL"])
def test_numbers_that_are_none_are_null_and_counted(tmp_path, text):
    assert read(tmp_path / "t.csv", f'x,"{text}"\ny,2\n', "number") == ([None, 2.0], 1)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("id", "7.5"), ("id", "1e3"), ("id", "nan"), ("id", "99999999999999999999"), ("id", "0x10"), ("id", "7.0.0"),
        ("time", "31.01.2020"), ("time", "2020-02-30"), ("time", "01/02/2020"), ("time", "2020"), ("time", "NULL"),
        ("time", "0000-00-00 00:00:00"), ("time", "2020-01-31 25:00:00"),
    ],
)  # fmt: skip
def test_other_cells_are_refused_with_file_row_and_value(tmp_path, kind, text):
    what = "whole numbers" if kind == "id" else "times"
    with pytest.raises(
        DataError, match=rf"column value of .*t\.csv has 1 values that are no {what}; got '.*' in row 2"
    ):
        read(tmp_path / "t.csv", f"x,\ny,{text}\n", kind)


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1), st.booleans())
def test_identifiers_are_read_back(tmp_path_factory, numbers, as_float):
    text = "".join(f"x,{'' if n is None else str(n) + '.0' * as_float}\n" for n in numbers)
    assert read(tmp_path_factory.mktemp("t") / "t.csv", text, "id")[0] == numbers


@given(st.lists(st.one_of(st.none(), st.floats(width=64)), min_size=1))
def test_numbers_are_read_back_or_counted(tmp_path_factory, numbers):
    text = "".join(f"x,{'' if n is None else repr(n)}\n" for n in numbers)
    values, unreadable = read(tmp_path_factory.mktemp("t") / "t.csv", text, "number")
    fits = [n is not None and math.isfinite(n) and abs(n) <= MAX_FLOAT32 for n in numbers]
    assert values == [n if good else None for n, good in zip(numbers, fits, strict=True)]
    assert unreadable == sum(n is not None and not good for n, good in zip(numbers, fits, strict=True))


@given(
    st.lists(st.datetimes(EARLIEST, LATEST), min_size=1),
    st.lists(st.sampled_from([" ", "T"]), min_size=1),
)
def test_times_are_read_back_in_mixed_spellings(tmp_path_factory, times, separators):
    cells = [time.isoformat(sep=separators[i % len(separators)]) for i, time in enumerate(times)]
    text = "".join(f"x,{cell}\n" for cell in cells)
    assert read(tmp_path_factory.mktemp("t") / "t.csv", text, "time")[0] == times


@pytest.mark.parametrize(
    ("text", "kept"), [("1800-01-01", 0), ("1850-01-01", 1), ("2300-01-01", 1), ("2300-01-01 00:00:01", 0)]
)
def test_times_of_other_centuries_are_null_and_counted_but_births(tmp_path, text, kept):
    (tmp_path / "t.csv").write_text(f"key,value\n{text},{text}\n,\n")
    piece = find_tables(tmp_path)["t"].whole({"key": "birth", "value": "time"}, {"other": "text"})
    assert piece.rows["key"].null_count() == 1
    assert piece.rows["value"].null_count() == 2 - kept
    assert piece.implausible == ({} if kept else {"value": 1})
    assert piece.absent == ("other",)


def test_a_table_larger_than_a_block(tmp_path):
    """Rows are numbered through the pieces, and nothing is lost between them."""
    rows = 3 * BLOCK_BYTES // 100
    frame = pl.DataFrame({"value": pl.int_range(rows, eager=True), "text": "x" * 100})
    frame.write_csv(tmp_path / "t.csv")
    table = find_tables(tmp_path)["t"]
    seen = []
    pieces = list(table.read({"value": "id"}, advance=lambda file, position: seen.append((file, position))))
    assert len(pieces) > 2
    together = pl.concat([piece.rows for piece in pieces])
    assert (together["value"] == frame["value"]).all() and (together["row"] == frame["value"] + 1).all()
    assert seen[-1] == (tmp_path / "t.csv", (tmp_path / "t.csv").stat().st_size)


def test_optional_columns_that_are_missing_are_null(tmp_path):
    (tmp_path / "t.csv").write_text("Key\na\n")
    table = find_tables(tmp_path)["t"]
    rows = table.whole({"key": "text"}, {"when": "time", "what": "id", "size": "number", "name": "text"}).rows
    assert rows.row(0) == (1, "a", None, None, None, None)
    assert rows.schema["when"] == pl.Datetime("us") and rows.schema["what"] == pl.Int64
    (tmp_path / "t.csv").write_text("Key\n")
    assert table.whole({"key": "text"}, {"when": "time"}).rows.schema == {
        "row": pl.Int64, "key": pl.String, "when": pl.Datetime("us"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "values", "kind", "expected"),
    [
        (pl.Float64, [6.0, float("nan"), None], "id", [6, None, None]),
        (pl.Int32, [6, None], "id", [6, None]),
        (pl.Decimal(38, 0), [6, None], "id", [6, None]),
        (pl.Date, [dt.date(2020, 1, 31), None], "time", [dt.datetime(2020, 1, 31), None]),
        (pl.Datetime("ns", "Europe/Paris"), [dt.datetime(2020, 1, 31)], "time", [dt.datetime(2020, 1, 30, 23)]),
        (pl.Float32, [0.5, float("nan")], "number", [0.5, None]),
        (pl.Categorical, ["a ", None], "text", ["a", None]),
        (pl.Int64, [5], "text", ["5"]),
        (pl.Null, [None], "time", [None]),
    ],
)
def test_parquet_types(tmp_path, dtype, values, kind, expected):
    column = pl.Series("Value", values)
    if isinstance(dtype, pl.Datetime):
        column = column.cast(pl.Datetime("ns")).dt.replace_time_zone("Europe/Paris")
    column.cast(dtype).to_frame().write_parquet(tmp_path / "t.parquet")
    piece = find_tables(tmp_path)["t"].whole({"value": kind})
    assert piece.rows["value"].to_list() == expected
    assert piece.unreadable == {}


def test_parquet_identifiers_that_floats_cannot_tell_apart(tmp_path):
    pl.DataFrame({"value": [1.0, 2.0**53 + 2]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"got 9007199254740994\.0 in row 2"):
        find_tables(tmp_path)["t"].whole({"value": "id"})


def test_folders_hidden_and_other_files_are_no_tables(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (".hidden.csv", "_SUCCESS", "readme.txt", ".csv", "a.csv.zip"):
        (tmp_path / name).touch()
    (tmp_path / "B.CSV.GZ").touch()
    assert list(find_tables(tmp_path)) == ["b"]


def test_keys_stated_once():
    rows = pl.DataFrame({"key": [1, 1, 2, None], "text": ["a", "a", "b", "c"]})
    assert once(rows, ["key"], "d.csv").rows() == [(1, "a"), (2, "b")]
    with pytest.raises(DataError, match="d.csv states key twice, and differently; got 1; expected each once"):
        once(rows.with_columns(text=pl.Series(["a", "x", "b", "c"])), ["key"], "d.csv")
