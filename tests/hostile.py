"""Folders of source files damaged as extracts are in the wild, and what an import of one may end in.

A test of a source is one call; `clean` is a folder that imports without a drop:

    def test_hostile_input(tmp_path):
        check_source("omop", omop_folder(tmp_path / "clean"), tmp_path, pairs={"visit_occurrence": [(start, end)]})
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import EhrseqError

SAME = ("shuffled columns", "extra column", "byte order mark", "CRLF", "CR", "blank lines", "no last newline")
"""Damage that changes nothing: the dataset must be the clean one, byte for byte."""
REFUSED = ("empty", "gzip cut short", "utf-16", "latin-1", "row too short", "row too long", "open quote")
"""Damage that can only be refused, unless it hits what the source does not read."""
COUNTED = ("column gone", "row twice", "text for a number", "far date", "no date", "start and stop swapped")
"""Damage that is refused, or counted in the manifest, or hits what the source does not read."""
ODD = ("odd cell", "row gone", "header only", "file gone")
"""Damage that may leave a smaller or another dataset, whose account must still add up."""
OF_TABLES = (
    "shuffled columns", "extra column", "row too short", "row too long", "column gone", "row twice", "row gone",
    "header only",
)  # fmt: skip
KINDS = (*SAME, *REFUSED, *COUNTED, *ODD)
MARKER = "zqhigh"
TIME = re.compile(r"^[12]\d{3}-\d\d-\d\d([ T].*)?$")
NUMBER = re.compile(r"^-?\d+(\.\d+)?$")
CELLS = (
    "", " ", "x", "-1", "0", "1", "6.0", "6.5", "1e30", "-1e30", "1e400", "nan", "inf", "NULL", "99999999999999999999",
    "1800-01-01", "2500-01-01 00:00:00", "2010-01-01", "01/02/2010", "2010-02-30", "é", "\x00", "a//b", "//", "'", ",",
    "x" * 3000,
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """One file's new content (None: the file is gone), and how it differs from the clean one."""

    kind: str
    file: str
    content: bytes | None
    detail: str = ""
    column: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.detail}".rstrip()

    def apply(self, clean: Path, raw: Path) -> None:
        """Make `raw` a damaged copy of the folder `clean`."""
        shutil.rmtree(raw, ignore_errors=True)
        shutil.copytree(clean, raw)
        if self.content is None:
            (raw / self.file).unlink()
        else:
            (raw / self.file).write_bytes(self.content)


def damages(
    clean: Path,
    pairs: Mapping[str, Iterable[tuple[str, str]]] | None = None,
    skip: Collection[str] = (),
    lists: Collection[str] = (),
) -> st.SearchStrategy[Damage]:
    """Strategy of damage to the CSV and CSV.gz files below a folder.

    Args:
        clean: The folder.
        pairs: Per file (lower case, without suffix, such as `hosp/admissions`) the columns that start and stop.
        skip: Files (same names) that are left alone.
        lists: Files that are no table with a header; their columns and rows stay as they are.
    """
    files = [
        str(path.relative_to(clean))
        for path in sorted(clean.rglob("*"))
        if path.name.lower().endswith((".csv", ".csv.gz")) and stem(str(path.relative_to(clean))) not in skip
    ]
    tables = {file: _read(clean / file) for file in files}

    @st.composite
    def draw_damage(draw: st.DrawFn) -> Damage:
        file = draw(st.sampled_from(files))
        kinds = [kind for kind in KINDS if kind != "gzip cut short" or file.endswith(".gz")]
        kind = draw(st.sampled_from([kind for kind in kinds if stem(file) not in lists or kind not in OF_TABLES]))
        return _damage(draw, kind, file, tables[file], list((pairs or {}).get(stem(file), ())))

    return draw_damage()


def stem(file: str) -> str:
    """`hosp/admissions` of `hosp/ADMISSIONS.csv.gz`."""
    return re.sub(r"\.csv(\.gz)?$", "", file.lower())


def _read(path: Path) -> list[list[str]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.name.endswith(".gz") else content).decode("utf-8-sig")
    return list(csv.reader(io.StringIO(text)))


def _write(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _damage(draw: st.DrawFn, kind: str, file: str, clean: list[list[str]], pairs: list[tuple[str, str]]) -> Damage:
    rows = [list(row) for row in clean]
    header = rows[0]
    body = [number for number in range(1, len(rows)) if len(rows[number]) == len(header)]
    detail, column, encoding, prefix = "", "", "utf-8", b""

    def cell(wanted: Callable[[str], bool]) -> tuple[int, int] | None:
        places = [(row, place) for row in body for place, value in enumerate(rows[row]) if wanted(value)]
        return draw(st.sampled_from(places)) if places else None

    def put(place: tuple[int, int] | None, value: str) -> str:
        if place is None:
            return "nowhere"
        before, rows[place[0]][place[1]] = rows[place[0]][place[1]], value
        return f"row {place[0]}, {header[place[1]]}: {before!r} -> {value!r}"[:300]

    if kind == "shuffled columns":
        order = draw(st.permutations(range(len(header))))
        rows = [[row[place] for place in order] if len(row) == len(header) else row for row in rows]
    elif kind == "extra column":
        place = draw(st.integers(0, len(header)))
        rows = [
            [*row[:place], "our_own" if not number else draw(st.sampled_from(["", "x", "7"])), *row[place:]]
            if len(row) == len(header)
            else row
            for number, row in enumerate(rows)
        ]
    elif kind == "byte order mark":
        prefix = b"\xef\xbb\xbf"
    elif kind == "latin-1":
        detail, encoding = put(cell(lambda value: True), "é"), "latin-1"
    elif kind == "utf-16":
        encoding = "utf-16"
    elif kind in ("row too short", "row too long") and body:
        row = draw(st.sampled_from(body))
        rows[row] = rows[row][:-1] if kind == "row too short" else [*rows[row], "x"]
        detail = f"row {row}"
    elif kind == "column gone":
        place = draw(st.integers(0, len(header) - 1))
        column = header[place].lower()
        rows = [[*row[:place], *row[place + 1 :]] if len(row) == len(header) else row for row in rows]
        detail = column
    elif kind in ("row twice", "row gone") and body:
        row = draw(st.sampled_from(body))
        rows[row : row + 1] = [rows[row]] * (2 if kind == "row twice" else 0)
        detail = f"row {row}"
    elif kind == "text for a number":
        detail = put(cell(lambda value: bool(NUMBER.match(value))), MARKER)
    elif kind in ("far date", "no date"):
        far = ["1800-01-01", "2500-01-01", "1800-01-01 10:00:00", "2500-12-31 10:00:00"]
        none = ["2010-02-30", "0000-00-00 00:00:00", "2010-01-01 25:00:00", MARKER]
        place = cell(lambda value: bool(TIME.match(value)))
        detail = put(place, draw(st.sampled_from(far if kind == "far date" else none)))
    elif kind == "start and stop swapped" and pairs:
        names = [name.lower() for name in header]
        starts, stops = draw(st.sampled_from([(names.index(start), names.index(stop)) for start, stop in pairs]))
        if apart := [row for row in body if "" != rows[row][starts] < rows[row][stops]]:
            row = rows[draw(st.sampled_from(apart))]
            row[starts], row[stops] = row[stops], row[starts]
            detail = f"{header[starts]} and {header[stops]}: {row}"
    elif kind == "odd cell":
        detail = put(cell(lambda value: True), draw(st.sampled_from(CELLS)))
    elif kind == "header only":
        rows = rows[:1]
    text = _write(rows)
    if kind == "CRLF":
        text = text.replace("\n", "\r\n")
    elif kind == "CR":
        text = text.replace("\n", "\r")
    elif kind == "blank lines":
        text = text.replace("\n", "\n\n")
    elif kind == "no last newline":
        text = text.removesuffix("\n")
    elif kind == "open quote" and body:
        lines = text.splitlines()
        row = draw(st.sampled_from(body))
        before, _, last = lines[row].rpartition(",")
        lines[row] = f'{before},"{last}'
        text, detail = "\n".join(lines) + "\n", f"row {row}"
    content: bytes | None = prefix + text.encode(encoding)
    assert content is not None
    if file.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    if kind == "gzip cut short":
        content = content[: draw(st.integers(1, len(content) - 1))]
    if kind == "empty":
        content = b""
    if kind == "file gone":
        content = None
    return Damage(kind, file, content, detail, column)


def check_source(
    kind: str,
    clean: Path,
    tmp_path: Path,
    *,
    pairs: Mapping[str, Iterable[tuple[str, str]]] | None = None,
    skip: Collection[str] = (),
    lists: Collection[str] = (),
    examples: int = 10,
    **options: Any,
) -> None:
    """Import `examples` damaged copies of `clean`, and hold each result to `check_damaged`.

    Args:
        kind: Source.
        clean: Folder of CSV or CSV.gz files.
        tmp_path: Where copies and datasets go.
        pairs, skip, lists: As in `damages`.
        examples: How many.
        options: Of the import.
    """
    sound = import_source(kind, clean, tmp_path / "sound", **options)
    check_account(sound)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damages(clean, pairs, skip, lists))
    def check(damage: Damage) -> None:
        note(str(damage))
        damage.apply(clean, tmp_path / "raw")
        check_damaged(kind, tmp_path / "raw", damage, sound, tmp_path, **options)

    check()


def check_damaged(
    kind: str, raw: Path, damage: Damage, sound: MedsDataset, tmp_path: Path, **options: Any
) -> MedsDataset | None:
    """Import a damaged folder: one line that says what is wrong, or a dataset that is right about what it lost.

    Returns:
        The dataset, None where the import was refused.
    """
    try:
        dataset = import_source(kind, raw, tmp_path / "meds", overwrite=True, **options)
    except EhrseqError as problem:
        assert len(str(problem).splitlines()) == 1, problem
        assert damage.kind not in SAME, f"{damage} was refused: {problem}"
        if damage.kind not in ("row gone", "header only", "file gone"):
            name = Path(stem(damage.file)).name
            assert name in str(problem).lower(), f"{damage}: the message does not name the file: {problem}"
        assert "row" in str(problem).lower() or "line" in str(problem) or damage.kind not in ("latin-1", "no date")
        return None
    check_account(dataset, raw)
    if dataset.fingerprint != sound.fingerprint:
        assert damage.kind not in SAME, f"{damage} changed the dataset"
        assert damage.kind not in REFUSED, f"{damage} was taken, with {_counts(dataset)}"
        if damage.kind in COUNTED:
            told = _counts(dataset) != _counts(sound) or MARKER in _text(dataset)
            assert told, f"{damage} changed events in silence"
    if (dataset.subject_splits()["split"] == "train").any():
        prepare(tmp_path / "meds", tmp_path / "store", min_count=1, overwrite=True)
    return dataset


def check_account(dataset: MedsDataset, raw: Path | None = None) -> None:
    """Every row read made events, was dropped for a stated reason, or makes none by a stated rule; so every event.

    Args:
        dataset: Just imported.
        raw: Its input; then the rows counted are compared with the lines of its CSV files.
    """
    accounts = dataset.manifest["tables"]
    lines = {} if raw is None else _lines(raw)
    for name, account in accounts.items():
        dropped, without = account.get("rows_dropped", {}), account.get("rows_without_events", {})
        rest = sum(dropped.values()) + sum(without.values())
        assert account["rows"] == account["rows_with_events"] + rest, (name, account)
        assert all(reason and count > 0 for reason, count in {**dropped, **without}.items())
        assert sum(account.get("dropped", {}).values()) >= sum(dropped.values())
        assert bool(account.get("dropped")) or not dropped
        if name in lines:
            assert account["rows"] == lines[name], f"{name}: {account['rows']} rows of {lines[name]} lines"
    events = pl.concat([dataset.scan(split) for split in SPLITS]).collect()
    taken = sum(account["events"] for account in accounts.values())
    assert len(events) == dataset.manifest["counts"]["events"] == taken - dataset.manifest["events_merged"]
    assert events["time"].drop_nulls().is_between(datetime(1850, 1, 1), datetime(2300, 1, 1)).all()
    assert events["numeric_value"].drop_nulls().is_finite().all()
    assert not events["code"].str.strip_chars().is_in([""]).any()
    assert dataset.manifest["events_by_kind"] and sum(dataset.manifest["events_by_kind"].values()) == len(events)


def check_wrong_source(kind: str, raw: Path, looks_like: str, tmp_path: Path, **options: Any) -> None:
    """A folder of another source is refused, and the message names that source and the command to use."""
    with pytest.raises(EhrseqError) as raised:
        import_source(kind, raw, tmp_path / "wrong", **options)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert f"looks like {looks_like}" in message and f"ehrseq import {looks_like}" in message, message
    assert not (tmp_path / "wrong").exists()


def _lines(raw: Path) -> dict[str, int]:
    """Rows of every CSV file of UTF-8 by `stem`: lines that are not blank, less the header."""
    found = {}
    for path in raw.rglob("*"):
        if path.name.lower().endswith((".csv", ".csv.gz")):
            try:
                found[stem(str(path.relative_to(raw)))] = len([row for row in _read(path) if row]) - 1
            except (EOFError, OSError, UnicodeDecodeError, csv.Error):
                continue
    return found


def _counts(dataset: MedsDataset) -> str:
    """What the manifest counts apart from rows and events as such."""
    kept = {}
    for name, account in dataset.manifest["tables"].items():
        kept[name] = {key: value for key, value in account.items() if key not in ("rows", "events", "rows_with_events")}
    further = [dataset.manifest.get(key) for key in ("conflicts", "events_repeated", "events_merged", "labels_dropped")]
    return json.dumps([kept, *further], sort_keys=True)


def _text(dataset: MedsDataset) -> str:
    """Codes, units, texts and descriptions, in lower case."""
    events = pl.concat([dataset.scan(split) for split in SPLITS]).collect()
    parts = [events[name].drop_nulls().unique() for name in ("code", "unit", "text_value")]
    return "\n".join(pl.concat([*parts, dataset.codes()["description"].drop_nulls()]).str.to_lowercase())
