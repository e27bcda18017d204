"""Folders damaged as extracts are in the wild: refused in one line, or counted; see tests/hostile.py."""

from test_mimic_iv_source import folder as mimic_folder
from test_omop_source import folder as omop_folder
from test_table_source import EXAMPLE, written
from test_table_source import folder as table_folder
from test_uci_source import encounters
from test_uci_source import folder as uci_folder
from tests.hostile import check_source

STAYS = {
    "hosp/admissions": [("admittime", "dischtime"), ("edregtime", "edouttime")],
    "icu/icustays": [("intime", "outtime")],
    "icu/procedureevents": [("starttime", "endtime")],
    "icu/inputevents": [("starttime", "endtime")],
}
PERIODS = {
    "visit_occurrence": [("visit_start_date", "visit_end_date"), ("visit_start_datetime", "visit_end_datetime")],
    "drug_exposure": [("drug_exposure_start_date", "drug_exposure_end_date")],
    "observation_period": [("observation_period_start_date", "observation_period_end_date")],
}


def test_mimic_iv(tmp_path):
    check_source("mimic-iv", mimic_folder(tmp_path / "clean"), tmp_path, pairs=STAYS)


def test_omop(tmp_path):
    check_source("omop", omop_folder(tmp_path / "clean"), tmp_path, pairs=PERIODS)


def test_uci(tmp_path):
    rows = [(10 * n, 1 + n % 4, {"discharge_disposition_id": 11 if n == 7 else 1}) for n in range(1, 9)]
    check_source("uci-diabetes", uci_folder(tmp_path / "clean", encounters(*rows)), tmp_path, lists=["ids_mapping"])


def test_table(tmp_path):
    mapping = written(tmp_path / "mapping.toml", EXAMPLE)
    pairs = {"encounters": [("admitted", "discharged")]}
    check_source("table", table_folder(tmp_path / "clean"), tmp_path, pairs=pairs, mapping=mapping)
