import gzip
import io
import os
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.csv as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrsequencing.data.sources import csv_files
from ehrsequencing.data.sources.csv_files import BLOCK_BYTES
from ehrsequencing.data.sources.tables import Table, find_tables
from ehrsequencing.errors import DataError

PERSON = "person_id,gender_concept_id,year_of_birth\n" + "".join(f"{number},8507,1950\n" for number in range(2000))
LARGE = "key,value\n" + "".join(f"{number},{'x' * 100}\n" for number in range(4 * BLOCK_BYTES // 100))


@pytest.mark.parametrize(
    ("text", "encoding", "zipped", "message"),
    [
        ("key,value\n1,a\n1\n", "utf-8", False, "t.csv is malformed"),
        ("key,value\n1,a\n1,\u00e9\n", "latin-1", False, r"t\.csv is not in UTF-8; got another encoding in row 2"),
        ('key,value\n1,"a\n', "utf-8", False, "t.csv has a quotation mark that is never closed"),
        (LARGE + "1\n", "utf-8", False, "t.csv is malformed; got .* Row #335546"),
        (LARGE + "1\n", "utf-8", True, "t.csv.gz is malformed"),
        ("key,value\nx,a\n", "utf-8", False, "column key of .* whole numbers; got 'x' in row 1"),
        ("key,value\nx,a\n" + LARGE, "utf-8", False, "column key of .* whole numbers; got 'x' in row 1"),
    ],
    ids=["width", "encoding", "quote", "late", "late and compressed", "cell", "early cell of a large file"],
)
def test_a_file_is_refused(tmp_path, text, encoding, zipped, message):
    content = text.encode(encoding)
    file = tmp_path / ("t.csv.gz" if zipped else "t.csv")
    file.write_bytes(gzip.compress(content, 1) if zipped else content)
    threads = threading.active_count()
    with pytest.raises(DataError, match=message):
        find_tables(tmp_path)["t"].whole({"key": "id", "value": "text"})
    assert threading.active_count() == threads


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_reading_that_is_left_early_ends(tmp_path, encoding):
    (tmp_path / "t.csv").write_text(LARGE)
    table = Table("t", (tmp_path / "t.csv",), csv_files.Layout(encoding=encoding))
    threads = threading.active_count()
    pieces = table.read({"key": "id", "value": "text"})
    assert len(next(pieces).rows) > 1 and threading.active_count() > threads
    pieces.close()
    assert threading.active_count() == threads


CELLS = st.sampled_from(
    ["", "a", '"b"', '"c\nd"', '"e\r\n,f"', '"g""h"', '"""i"""', '""', '5" pipe', 'j""k', ' "l"', '"m"n', '"o" "p"']
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.booleans(),
    block=st.integers(12, 40),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
)
def test_a_file_in_blocks_is_read_as_a_whole_one(tmp_path, monkeypatch, rows, end, last, block, encoding):
    """Wherever a block ends: within a quoted cell, between two marks, between CR and LF, within a character."""
    text = end.join(["x,y", *map(",".join, rows)]) + (end if last else "")
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    kinds = dict.fromkeys("xy", pa.string())
    options = pc.ConvertOptions(column_types=kinds, strings_can_be_null=True, null_values=[""])
    try:
        whole = pc.read_csv(
            io.BytesIO(text.encode()), parse_options=pc.ParseOptions(newlines_in_values=True), convert_options=options
        ).to_pylist()
    except pa.ArrowInvalid:
        whole = None
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", block)
    layout = csv_files.PLAIN if encoding.startswith("utf-8") else csv_files.Layout(encoding=encoding)

    def read():
        frames = csv_files.csv_blocks(tmp_path / "t.csv", ["x", "y"], layout, None)
        return [row for frame in frames for row in frame.to_dicts()]

    if whole is None:
        with pytest.raises(DataError):
            read()
    else:
        assert read() == whole


def test_a_row_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "LONGEST_ROW", 1 << 20)
    (tmp_path / "t.csv").write_bytes(b"key,value\n1,a\n2," + b"x" * (3 << 20))
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1 << 20)
    with pytest.raises(DataError, match="t.csv is malformed; got row 2, which does not end within 1 MB"):
        find_tables(tmp_path)["t"].whole({"key": "id"})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_lines_end_in_any_of_three_ways(tmp_path, end, encoding):
    text = 'Key,Value\n1,a\n2,"b, ""c"""\n\n3,d'
    (tmp_path / "t.csv").write_bytes(text.replace("\n", end).encode(encoding))
    table = Table("t", (tmp_path / "t.csv",), csv_files.Layout(encoding=encoding))
    rows = table.whole({"key": "id", "value": "text"}).rows
    assert rows.rows() == [(1, 1, "a"), (2, 2, 'b, "c"'), (3, 3, "d")]


def test_a_file_larger_than_a_block_whose_lines_end_in_cr(tmp_path):
    (tmp_path / "t.csv").write_bytes(LARGE.replace("\n", "\r").encode())
    keys = find_tables(tmp_path)["t"].whole({"key": "id"}).rows
    assert (keys["key"] + 1 == keys["row"]).all() and len(keys) == LARGE.count("\n") - 1


def test_a_cr_inside_a_line_that_ends_in_lf_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"key,value\n1,a\rb\n")
    with pytest.raises(DataError, match=r"t\.csv is malformed; got .*Expected 2 columns, got 1: b"):
        find_tables(tmp_path)["t"].whole({"key": "id"})


@pytest.mark.parametrize("row", [b"1,2\n", b'1,"8507,1950\n', b"1,8507,\xe9\n"], ids=["width", "quote", "encoding"])
def test_the_command_ends_with_one_line_every_time(tmp_path, row):
    """A parser's thread that outlives the command aborts one run in some (134), after the message."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/person.csv").write_bytes(PERSON.encode() + row)
    code = (
        "import sys\nfrom pathlib import Path\nfrom ehrsequencing.data.sources import import_source\n"
        "from ehrsequencing.errors import EhrseqError\n"
        "try:\n    import_source('omop', Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except EhrseqError as problem:\n    print('error:', problem, file=sys.stderr)\n    sys.exit(2)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "raw"), str(tmp_path / "meds")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "person.csv" in done.stderr
