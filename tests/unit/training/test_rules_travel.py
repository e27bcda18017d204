"""The rules of a store go into the model folder, and a store of other rules is refused."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.rules import RULES_FILE, Rules
from ehrsequencing.errors import VocabularyMismatchError
from ehrsequencing.evaluation.predict import load_classifier
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM, BEHRTForSequenceClassification
from ehrsequencing.training.runs import load_base, store_files


@pytest.fixture
def stores(tmp_path):
    times = [datetime(2020, 1, 1) + timedelta(hours=6 * number) for number in range(20)]
    frame = pl.DataFrame({"subject_id": [1] * 20, "time": times, "code": ["ICD10CM//E11.9"] * 20})
    (tmp_path / "meds" / "data" / "train").mkdir(parents=True)
    frame.write_parquet(tmp_path / "meds" / "data" / "train" / "0.parquet")
    plain = prepare(tmp_path / "meds", tmp_path / "plain")
    return plain, prepare(tmp_path / "meds", tmp_path / "gaps", visits="gap:12h")


def test_rules_travel_with_the_model_and_are_held_to(stores, tmp_path):
    plain, gaps = stores
    assert set(store_files(plain)) == {"vocabulary.json", "values.json"}
    assert plain.vocabulary.hash == gaps.vocabulary.hash, "the vocabulary does not tell the stores apart"
    config = BEHRTConfig.small(vocab_size=len(gaps.vocabulary))
    for kind in (BEHRTForMLM, BEHRTForSequenceClassification):
        folder = tmp_path / kind.__name__ / "model"
        kind(config).save_pretrained(folder, vocabulary_hash=gaps.vocabulary.hash, extra_files=store_files(gaps))
        assert Rules.of(folder) == Rules(visits="gap:12h") and (folder / RULES_FILE).exists()
    folder = tmp_path / "BEHRTForMLM" / "model"
    message = r"trained on a store with other rules: visits; got visit_id\+day; expected gap:12h. Remedy: prepare the"
    assert load_base(BEHRTForMLM, folder, gaps).config.vocab_size == len(gaps.vocabulary)
    with pytest.raises(VocabularyMismatchError, match=message):
        load_base(BEHRTForMLM, folder, plain)
    run = tmp_path / "BEHRTForSequenceClassification"
    load_classifier(run, gaps)
    with pytest.raises(VocabularyMismatchError, match=message):
        load_classifier(run, plain)
