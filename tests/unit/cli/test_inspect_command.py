"""`ehrseq inspect` as it prints into a pipe, its page, its JSON and its exit codes."""

import json
import re
import sys
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from ehrsequencing.cli.main import main
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import EVENT_SCHEMA

START = datetime(2015, 1, 1)


def write(folder: Path, rows: list[tuple]) -> Path:
    """A dataset of another tool; a row is subject, time, code, value, unit."""
    columns = ("subject_id", "time", "code", "numeric_value", "unit")
    schema = {column: EVENT_SCHEMA[column] for column in columns}
    (folder / "data" / "train").mkdir(parents=True)
    full = [(*row, *[None] * (5 - len(row))) for row in rows]
    pl.DataFrame(full, schema=schema, orient="row").write_parquet(folder / "data" / "train" / "0.parquet")
    return folder


def sound(subject: int) -> list[tuple]:
    """A subject with a sex, a birth and values over three years."""
    return [
        (subject, None, f"GENDER//{'FM'[subject % 2]}"),
        (subject, datetime(1960 + subject, 5, 1), "MEDS_BIRTH"),
        *(
            (subject, START + timedelta(days=10 * number + subject), "LOINC//2160-0", 1 + 0.1 * number, "mg/dL")
            for number in range(100)
        ),
    ]


@pytest.fixture
def meds(tmp_path):
    return write(tmp_path / "meds", [row for subject in range(1, 9) for row in sound(subject)])


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def failure(capsys, *arguments: object) -> str:
    """The one line of a command that must fail, printed nothing else."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    line = err.strip()
    assert "\n" not in line
    assert line.startswith("error: ")
    return line


def test_the_tables_tell_what_is_there(capsys, meds):
    code, out, _ = run(capsys, meds)
    assert code == 0
    assert out.isascii()
    assert "8 subjects with 808 events of 3 codes in 800 visits" in out
    assert re.search(r"\| train +\| +8 \| +808 \| +800 \| +8 \| +0 \|", out)
    assert re.search(r"\| LOINC +\| LOINC//2160-0 +\| +1 \| +800 \| 99.0 % \|", out)
    assert re.search(r"\| LOINC//2160-0 \| mg/dL \| +800 \| +1 \| +1.4 \| +3.4 \| +5.9 \|", out)
    assert "Findings: 1 warning." in out
    assert "no subject in tuning and held_out" in out


def test_json_is_the_document_and_nothing_else(capsys, meds):
    code, out, _ = run(capsys, meds, "--json", "--most", 1)
    document = json.loads(out)
    assert code == 0
    assert document["counts"]["events"] == 808
    assert len(document["codes"]) == 1
    assert document["findings"][0] == {
        "check": "splits", "severity": "warning", "what": "no subject in tuning and held_out", "count": 2, "of": 3,
        "unit": "splits", "amount": "2 of 3 splits (66.7 %)", "subjects": [], "details": [],
        "remedy": "add subjects, or leave out splits and split folders: subjects are then split by hash",
    }  # fmt: skip


def test_a_store_shows_its_tokens(capsys, meds, tmp_path):
    prepare(meds, tmp_path / "store")
    code, out, _ = run(capsys, tmp_path / "store", "--html", tmp_path / "page.html")
    assert code == 0
    assert "token store" in out
    assert "vocabulary: 11 tokens, 5 of them of values, for 1 codes; 1 tokens do not occur in train" in out
    assert re.search(r"\| demographic \| +8 \| +8 \| 100.0 % \|", out)
    assert "more than 512 tokens: 0 subjects (0.0 %)" in out
    assert "Value tokens" in (tmp_path / "page.html").read_text()


class Links(HTMLParser):
    """Tags that never close, and everything that a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        if tag == "script":
            self.outside.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_what_it_shows(capsys, tmp_path):
    hostile = "<script>alert(1)</script>//<b>&\"'"
    rows = [row for subject in range(1, 5) for row in sound(subject)]
    rows += [(4, START + timedelta(days=300 + day), hostile, float(day), "<i>") for day in range(30)]
    meds = write(tmp_path / "<meds>", rows)
    code, out, _ = run(capsys, meds, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert code == 0
    assert f"page: {tmp_path / 'page.html'}" in out
    parser = Links()
    parser.feed(text)
    assert parser.open == []
    assert parser.outside == []
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    for heading in ("Findings", "Splits", "Time and age", "Histories", "Codes", "Values"):
        assert f">{heading}</h2>" in text
    assert text.count("<svg") >= 4


def test_pages_are_only_replaced_when_asked_and_never_lie_in_the_data(capsys, meds, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "page.html exists already" in failure(capsys, meds, "--html", page)
    assert page.read_text() == "mine"
    assert run(capsys, meds, "--html", page, "--overwrite")[0] == 0
    assert page.read_text().startswith("<!doctype html>")
    assert "expected the name of a file that ends in .html" in failure(capsys, meds, "--html", tmp_path)
    assert "expected the name of a file that ends in .html" in failure(capsys, meds, "--html", tmp_path / "page.pdf")
    assert "overlaps the input" in failure(capsys, meds, "--html", meds / "page.html")


def test_strict_fails_on_errors_and_not_on_warnings(capsys, tmp_path):
    assert run(capsys, write(tmp_path / "fine", sound(1)), "--strict")[0] == 0
    wrong = [*sound(1), (1, datetime(1950, 1, 1), "A"), (1, START, "A", float("inf"))]
    meds = write(tmp_path / "wrong", wrong)
    assert run(capsys, meds)[0] == 0
    code, out, err = run(capsys, meds, "--strict")
    assert code == 2
    assert "events before birth" in out
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "has 2 findings of severity error; got events before birth; infinite values" in line


def test_bad_input_is_one_line(capsys, tmp_path, meds):
    assert "got no such folder" in failure(capsys, tmp_path / "nowhere")
    assert "got a file; expected a folder" in failure(capsys, meds / "data/train/0.parquet")
    (tmp_path / "empty").mkdir()
    assert "is not a MEDS dataset" in failure(capsys, tmp_path / "empty")
    assert "has no events" in failure(capsys, write(tmp_path / "none", []))
    shard = meds / "data/train/0.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    assert "0.parquet is not readable parquet" in failure(capsys, meds)
    pl.DataFrame({"subject_id": [1], "code": ["A"]}).write_parquet(shard)
    assert "0.parquet lacks time" in failure(capsys, meds)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/manifest.json").write_text("{}")
    assert "has another format" in failure(capsys, tmp_path / "store")
    (tmp_path / "store/manifest.json").write_text("{")
    assert "manifest.json is not readable JSON" in failure(capsys, tmp_path / "store")
    assert "--most" in failure(capsys, meds, "--most", 0)


def test_no_torch_is_needed(meds):
    import subprocess

    code = (
        "import sys\nfrom ehrsequencing.cli.main import main\n"
        f"try:\n    main(['inspect', {str(meds)!r}])\nexcept SystemExit as stop:\n    print(stop.code)\n"
        "print(sorted({'torch', 'sklearn', 'matplotlib', 'xgboost'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-2:] == ["0", "[]"]
