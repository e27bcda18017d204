from importlib.util import find_spec

import pytest

from ehrsequencing.data.sources import SOURCES, import_source
from ehrsequencing.errors import ConfigError, RunError


def test_sources_describe_themselves():
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.description and "\n" not in source.description


def test_uci_loader_is_there():
    assert callable(SOURCES["uci-diabetes"].load())


@pytest.mark.skipif(find_spec("ehrsequencing.data.synthetic") is None, reason="the synthetic module is not installed")
def test_synthetic_loader_is_there(tmp_path):
    dataset = import_source("synthetic", None, tmp_path / "d", subjects=20)
    assert dataset.manifest["counts"]["subjects"] == 20


def test_unknown_source(tmp_path):
    with pytest.raises(ConfigError, match="unknown source; got mimic; expected synthetic, uci-diabetes"):
        import_source("mimic", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("out", [".", "raw", "raw/out"])
def test_the_output_is_apart_from_the_raw_records(tmp_path, out):
    (tmp_path / "raw").mkdir()
    with pytest.raises(ConfigError, match=r"the output .* overlaps the input .*raw;"):
        import_source("uci-diabetes", tmp_path / "raw", tmp_path / out, overwrite=True)


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="mine exists already and is not a MEDS dataset of this program"):
        import_source("synthetic", None, tmp_path / "mine", subjects=5, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_unknown_option(tmp_path):
    with pytest.raises(ConfigError, match="source uci-diabetes has no option colour; expected strict"):
        import_source("uci-diabetes", tmp_path, tmp_path / "out", colour=1)


def test_input_where_none_is_read_and_the_reverse(tmp_path):
    with pytest.raises(ConfigError, match=r"source synthetic; got input .*; expected no input"):
        import_source("synthetic", tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="source uci-diabetes; got input None; expected the publisher's zip"):
        import_source("uci-diabetes", None, tmp_path / "out")
