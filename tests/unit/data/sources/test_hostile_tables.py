"""Cells, lines and columns spoiled at random: a clear error, or every row accounted for."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_tables import events_of
from test_mimic_iv_source import TABLES as MIMIC
from test_mimic_iv_source import folder as mimic_folder
from test_omop_source import TABLES as OMOP
from test_omop_source import folder as omop_folder

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sources import import_source
from ehrsequencing.errors import DataError

EVENTS_PER_ROW = {"icu/icustays": 2, "icu/procedureevents": 2}
SEVERAL = ("hosp/patients", "hosp/admissions", "hosp/labevents", "hosp/omr", "person", "visit_occurrence")
CELLS = st.sampled_from(
    ["", " ", "x", "-1", "0", "1", "6.0", "6.5", "1e400", "nan", "1800-01-01", "2500-01-01 00:00:00", "2010-01-01",
     "01/02/2010", "99999999999999999999", "\"quoted", "é", "\x00", "a//b", "NULL"]
)  # fmt: skip


@st.composite
def spoiled(draw, tables):
    """Which table, and its text with a cell, a line or a column spoiled."""
    name = draw(st.sampled_from(sorted(tables)))
    lines = [
        [cell.strip() for cell in line.split(",")] for line in tables[name].strip().replace("\\\n", "").splitlines()
    ]
    row, column = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines[0]) - 1))
    how = draw(st.sampled_from(["cell", "cell", "cell", "repeat", "drop", "column"]))
    if how == "cell":
        lines[row][min(column, len(lines[row]) - 1)] = draw(CELLS)
    elif how == "repeat":
        lines.insert(row, lines[row])
    elif how == "drop":
        del lines[row]
    else:
        lines = [[cell for place, cell in enumerate(line) if place != column] for line in lines]
    return name, "".join(",".join(line) + "\n" for line in lines)


@pytest.mark.parametrize(
    ("kind", "make", "tables"),
    [("mimic-iv", mimic_folder, MIMIC), ("omop", omop_folder, OMOP)],
    ids=["mimic-iv", "omop"],
)
def test_a_spoiled_table(tmp_path, kind, make, tables):
    clean = make(tmp_path / "clean")

    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(spoiled(tables))
    def check(case):
        name, text = case
        raw, meds = tmp_path / "raw", tmp_path / "meds"
        shutil.rmtree(raw, ignore_errors=True)
        shutil.copytree(clean, raw)
        (raw / f"{name}.csv").write_text(text)
        try:
            dataset = import_source(kind, raw, meds, overwrite=True)
        except DataError as problem:
            assert len(str(problem).splitlines()) == 1
            assert name in str(problem) or f"{name.split('/')[-1]}.csv" in str(problem)
            return
        accounts = dataset.manifest["tables"]
        for table, account in accounts.items():
            if table not in SEVERAL:
                made = account["events"] + sum(account.get("dropped", {}).values())
                assert made == account["rows"] * EVENTS_PER_ROW.get(table, 1), table
        further = dataset.manifest["conflicts"].get("further_deaths_of_a_person", 0)
        taken = sum(account["events"] for account in accounts.values())
        assert len(events_of(dataset)) == dataset.manifest["counts"]["events"] == taken - further
        prepare(meds, tmp_path / "store", min_count=1, overwrite=True)

    check()
