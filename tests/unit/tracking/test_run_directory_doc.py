"""docs/run-directory.md describes what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ehrsequencing.tracking import rundir
from ehrsequencing.tracking.experiment import STATUSES
from ehrsequencing.tracking.report_data import ReportData
from ehrsequencing.tracking.summary import METRIC_FIELDS, check_metrics

DOC = (Path(__file__).parents[3] / "docs" / "run-directory.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = _blocks("python")
    exec(compile(code, "docs/run-directory.md", "exec"), {})
    assert json.loads(Path("experiments/behrt_small_mlm/metadata.json").read_text())["status"] == "completed"


def test_the_summary_shown_is_a_valid_one():
    (text,) = _blocks("json")
    metrics = json.loads(text)["metrics"]
    assert check_metrics(metrics) == metrics
    assert {field for entries in metrics.values() for entry in entries.values() for field in entry} == set(
        METRIC_FIELDS
    )


def test_every_file_status_and_section_is_described():
    for name in (*rundir.FILES, *rundir.FOLDERS, rundir.LOCK):
        assert name in DOC, name
    for status in STATUSES:
        assert f"`{status}`" in DOC
    rows = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", DOC, re.MULTILINE))))
    assert set(ReportData.model_fields) <= rows
    nested = json.dumps(ReportData.model_json_schema())
    for definition in json.loads(nested)["$defs"].values():
        for field in definition["properties"]:
            assert re.search(rf"\b{field}\b", DOC), field
