"""One table in four forms, with cells that would break each."""

import csv
import io

import pytest

from ehrsequencing.errors import ConfigError
from ehrsequencing.tracking.tables import Strong, Table

HOSTILE = Table(
    "50 % of a_b & c",
    ["Model", "AUROC"],
    [["a | b\n<script>", Strong("0.9 [0.8, 1.0]")], ['x_1 ~ {y} "q", \\z', "[0.1, 0.2] #1 $5 ^"]],
)


def test_markdown_keeps_its_cells():
    lines = HOSTILE.written("markdown").splitlines()
    assert lines[:3] == ["| Model | AUROC |", "|---|---:|", "| a \\| b &lt;script> | **0.9 [0.8, 1.0]** |"]
    assert len(lines) == 4


def test_csv_reads_back_as_it_was():
    rows = list(csv.reader(io.StringIO(HOSTILE.written("csv"))))
    assert rows == [list(row) for row in (HOSTILE.head, *HOSTILE.rows)]


def test_latex_escapes_what_tex_takes_as_a_command():
    text = HOSTILE.written("latex")
    assert r"\caption{50 \% of a\_b \& c}" in text
    assert r"a \textbar{} b \textless{}script\textgreater{} & \textbf{0.9 [0.8, 1.0]} \\" in text
    assert r"x\_1 \textasciitilde{} \{y\} " in text and r"\textbackslash{}z" in text
    # After a line break of TeX a bracket would be its argument.
    assert r"{}[0.1, 0.2] \#1 \$5 \textasciicircum{}" in text


def test_html_escapes_and_stands_alone():
    page = HOSTILE.written("html")
    assert "<script>" not in page and "&lt;script&gt;" in page and "<strong>0.9 [0.8, 1.0]</strong>" in page
    assert page.startswith("<!doctype html>") and "http" not in page


def test_another_form_is_refused():
    with pytest.raises(ConfigError, match="unknown form of a table; got word; expected markdown, html, csv, latex"):
        HOSTILE.written("word")
