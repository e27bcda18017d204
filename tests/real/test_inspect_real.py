"""Inspections of imported real data: the figures that publishers state, and the faults that are there."""

import os
from pathlib import Path

import pytest

from ehrsequencing.data.inspect import inspect
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sources import import_source
from ehrsequencing.tracking.inspection import inspection_page

RAW = Path(os.environ.get("EHRSEQ_DATA", ""))


def imported(kind: str, folder: str, out: Path) -> Path:
    if not os.environ.get("EHRSEQ_DATA") or not (RAW / folder).exists():
        pytest.skip(f"EHRSEQ_DATA does not name a folder with {folder}")
    import_source(kind, RAW / folder, out)
    return out


def checks(found) -> dict[str, str]:
    return {finding.what: finding.severity for finding in found.findings}


def test_mimic_iv(tmp_path):
    meds = imported("mimic-iv", "mimic_iv_demo", tmp_path / "meds")
    found = inspect(meds)
    document = found.document
    assert document["counts"]["subjects"] == 100
    assert document["sexes"] == {"M": 57, "F": 43}
    systems = {row["system"]: row["events"] for row in document["systems"]}
    assert (systems["LAB"], systems["DRUG"]) == (107_727, 18_087)
    assert systems["ICD9CM"] + systems["ICD10CM"] == 4506
    sodium = next(row for row in document["values"] if row["code"] == "LAB//50983//mEq/L")
    assert dict(sodium["percentiles"])[50] == 138
    assert found.errors == 0
    assert checks(found)["dates are shifted into the future, so events in the future cannot be told"] == "note"
    doses = next(finding for finding in found.findings if finding.check == "units")
    assert doses.severity == "warning"
    assert all(line.startswith("DRUG//") for line in doses.details)
    prepare(meds, tmp_path / "store")
    store = inspect(tmp_path / "store").document
    assert store["counts"]["events"] == document["counts"]["events"]
    assert store["counts"]["visits"] == document["counts"]["visits"]
    assert store["tokens"]["longer"] > 0


def test_gibleed(tmp_path):
    found = inspect(imported("omop", "omop_gibleed", tmp_path / "meds"))
    document = found.document
    assert document["counts"]["subjects"] == 2694
    assert document["counts"]["events_with_number"] == document["pairs"] == 0
    assert {row["kind"]: row["events"] for row in document["kinds"]}["diagnosis"] == 65_332
    assert checks(found) == {"events that repeat another in every column": "note"}
    assert "Percentiles" not in inspection_page(document)


def test_uci(tmp_path):
    found = inspect(imported("uci-diabetes", "uci_diabetes130", tmp_path / "meds"))
    document = found.document
    assert document["counts"]["subjects"] == 71_518
    assert document["counts"]["visits"] == 101_766
    assert document["distributions"]["visits_per_subject"]["bins"][0] == [1, 1, 54_745]
    stay = next(row for row in document["values"] if row["code"] == "UCI_TIME_IN_HOSPITAL")
    assert (stay["unit"], stay["n"], stay["mean"]) == ("d", 101_766, pytest.approx(4.396, abs=0.001))
    assert found.findings == ()
