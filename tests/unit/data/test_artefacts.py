import json

import pytest

from ehrsequencing.data.artefacts import refuse_in_data, refuse_labels_in_data
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import ConfigError


@pytest.fixture(scope="module")
def meds(tmp_path_factory):
    return synthesise(tmp_path_factory.mktemp("artefacts") / "meds", subjects=30, workers=1)


def test_nothing_is_made_inside_a_dataset_or_store(meds, tmp_path):
    before = sorted(meds.rglob("*"))
    for inside in (meds / "data" / "train" / "more", meds / "labels" / "more"):
        with pytest.raises(ConfigError, match=f"the output {inside} lies in {meds}, which is a MEDS dataset. Remedy"):
            synthesise(inside, subjects=10, workers=1)
    store = prepare(meds, tmp_path / "store").path
    with pytest.raises(ConfigError, match=f"lies in {store}, which is a token store"):
        prepare(meds, store / "train" / "again")
    assert sorted(meds.rglob("*")) == before


def test_an_output_that_holds_or_is_its_input_is_refused(meds):
    for output in (meds, meds.parent):
        with pytest.raises(ConfigError, match="overlaps the input"):
            refuse_in_data(output, meds)
    refuse_in_data(meds.with_name("meds2"), meds)


def test_labels_have_their_own_place_in_their_dataset(meds, tmp_path):
    for allowed in (meds / "labels" / "a.parquet", meds / "labels" / "x" / "a.parquet", tmp_path / "a.parquet"):
        refuse_labels_in_data(allowed, meds)
    for refused in ("data/train/z.parquet", "z.parquet", "labels/../z.parquet", "labels"):
        with pytest.raises(ConfigError, match="overlaps the input"):
            refuse_labels_in_data(meds / refused, meds)


def test_another_tools_dataset_is_known_by_its_metadata(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "dataset.json").write_text(json.dumps({"meds_version": "0.4.0"}))
    with pytest.raises(ConfigError, match="a MEDS dataset"):
        refuse_in_data(tmp_path / "data" / "run")
    with pytest.raises(ConfigError, match="a MEDS dataset"):
        refuse_labels_in_data(tmp_path / "data" / "z.parquet", tmp_path / "other")
