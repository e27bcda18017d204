import zipfile

import pytest
from test_mimic_iv_source import folder as mimic_folder
from test_omop_source import folder as omop_folder
from test_uci_source import encounters
from test_uci_source import folder as uci_folder
from tests.hostile import check_wrong_source

from ehrsequencing.data.sources import SOURCES, import_source
from ehrsequencing.data.sources.recognise import SIGNS, recognise
from ehrsequencing.errors import DataError

MAKE = {
    "mimic-iv": lambda path: mimic_folder(path, suffix=".csv.gz", upper=True),
    "omop": omop_folder,
    "uci-diabetes": lambda path: uci_folder(path, encounters((1, 1, {}))),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("other", MAKE)
def test_a_folder_of_another_source(tmp_path, kind, other):
    raw = MAKE[other](tmp_path / "raw")
    assert recognise(raw) == [other]
    if kind != other:
        check_wrong_source(kind, raw, other, tmp_path)


def test_a_zip_of_another_source(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("dataset_diabetes/diabetic_data.csv", "x")
    check_wrong_source("mimic-iv", tmp_path / "data.zip", "uci-diabetes", tmp_path)


def test_a_folder_that_holds_the_source(tmp_path):
    mimic_folder(tmp_path / "mimic-iv-demo")
    with pytest.raises(DataError, match="holds mimic-iv in mimic-iv-demo. Remedy: ehrseq import mimic-iv .*-demo "):
        import_source("mimic-iv", tmp_path, tmp_path.parent / "out")


def test_what_is_of_no_source_is_for_the_source_named_to_refuse(tmp_path):
    (tmp_path / "raw").mkdir()
    assert recognise(tmp_path / "raw") == recognise(tmp_path / "none") == []
    with pytest.raises(DataError, match="has no folder hosp"):
        import_source("mimic-iv", tmp_path / "raw", tmp_path / "out")


def test_every_source_with_a_layout_of_its_own_has_signs():
    assert set(SOURCES) - set(SIGNS) == {"synthetic", "table"}
