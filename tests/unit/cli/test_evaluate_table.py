"""The table of `ehrseq evaluate` on narrow terminals."""

import re
import sys

import pytest

from ehrsequencing.cli.evaluate import print_table

METRICS = ("auroc", "auprc", "brier", "ece")
SEVERAL = (
    "next_visit_codes/auroc_macro", "next_visit_codes/recall_at_10", "next_visit_codes:new/recall_at_10",
    "next_visit_codes:seen/recall_at_10",
)  # fmt: skip
MODELS = ("behrt-medium-scratch", "logistic_regression", "oracle: attainable with this history", "xgboost")


def figures(keys):
    entry = {"value": 0.75321, "low": 0.70123, "high": 0.80456}
    return {model: dict.fromkeys(keys, entry) for model in MODELS}


def columns(text):
    """{column: text of all its lines, without spaces} of every row between rules."""
    rows, row = [], []
    for line in text.splitlines():
        if "\u2502" not in line:
            rows, row = [*rows, row] if row else rows, []
        else:
            row.append([cell.strip() for cell in line.strip("\u2502").split("\u2502")])
    return [["".join(parts).replace(" ", "") for parts in zip(*row, strict=True)] for row in rows]


@pytest.mark.parametrize("keys", [[f"onset@365/{name}" for name in METRICS], SEVERAL], ids=["binary", "several"])
@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut(monkeypatch, capsys, keys, width):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(figures(keys))
    text = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text
    head, *rows = columns(text)
    assert head[0] == "model" and all(re.sub("^.*/", "", key) in name for key, name in zip(keys, head[1:], strict=True))
    names = "".join(row[0] for row in rows)
    for model in MODELS:
        assert model.replace(" ", "") in names
    assert "0.753[0.701,0.805]" in "".join(rows[0][1:])


def test_what_has_no_figure_to_show_and_subgroups_are_left_out(capsys):
    metrics = figures(["onset@365/auroc"])
    print_table(metrics | {"floor": {"tuning:masked/mlm_loss": {"value": 1.0, "low": 1.0, "high": 1.0}}})
    text = capsys.readouterr().out
    assert "floor" not in text and "mlm_loss" not in text and "xgboost" in text
