"""Model folders give back what they were given, and refuse what does not fit."""

import json

import pytest
import torch
from small_models import make_config, make_inputs, mlm_labels

from ehrsequencing.errors import AdapterError, CheckpointError, ConfigError, RunError, VocabularyMismatchError
from ehrsequencing.models.behrt import (
    BEHRT,
    BEHRTForMLM,
    BEHRTForNextVisitPrediction,
    BEHRTForSequenceClassification,
)
from ehrsequencing.models.folder import state_hash
from ehrsequencing.models.lora import apply_lora_to_behrt, save_lora_weights

ALL = (BEHRT, BEHRTForMLM, BEHRTForNextVisitPrediction, BEHRTForSequenceClassification)


@pytest.fixture
def mlm_folder(tmp_path):
    model = BEHRTForMLM(make_config())
    model.save_pretrained(tmp_path / "mlm", vocabulary_hash="v1", extra_files={"vocabulary.json": b"{}"})
    return model, tmp_path / "mlm"


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("tie_weights", [True, False])
def test_round_trip(architecture, tie_weights, tmp_path):
    model = architecture(make_config(tie_weights=tie_weights, pooling="attention")).eval()
    model.save_pretrained(tmp_path / "model")
    torch.manual_seed(9)
    loaded = architecture.from_pretrained(tmp_path / "model").eval()
    assert state_hash(loaded) == state_hash(model)
    assert loaded.config == model.config
    assert loaded.pretrained_parameters == {name for name, _ in model.named_parameters()}
    if architecture is BEHRTForMLM:
        embedding = loaded.behrt.embeddings.code.weight
        assert (loaded.decoder_weight.data_ptr() == embedding.data_ptr()) == tie_weights
        inputs = make_inputs()
        labels = mlm_labels(inputs)
        assert torch.equal(loaded(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss)


def test_a_folder_that_is_no_model_is_never_replaced(mlm_folder, tmp_path):
    model, folder = mlm_folder
    model.save_pretrained(folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    with pytest.raises(RunError, match="mine exists already and is not a model folder"):
        model.save_pretrained(mine)
    with pytest.raises(RunError, match="mine exists already and is not an adapter folder"):
        save_lora_weights(apply_lora_to_behrt(model, rank=2, freeze_base=False), mine)
    assert (mine / "config.json").read_text() == "{}"


def test_files_of_a_folder(mlm_folder):
    model, folder = mlm_folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocabulary.json"]
    manifest = json.loads((folder / "config.json").read_text())
    assert manifest["architecture"] == "BEHRTForMLM" and manifest["vocabulary_hash"] == "v1"
    # The tied decoder is not stored a second time.
    assert (folder / "model.safetensors").stat().st_size < 4 * model.count_parameters() + 10_000
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(ConfigError, match="extra_files"):
        model.save_pretrained(folder, extra_files={"config.json": b""})


@pytest.mark.parametrize("head", [BEHRTForSequenceClassification, BEHRTForNextVisitPrediction])
def test_a_head_takes_the_encoder_of_another(head, mlm_folder):
    pretrained, folder = mlm_folder
    model = head.from_pretrained(folder, vocabulary_hash="v1")
    assert state_hash(model.behrt) == state_hash(pretrained.behrt)
    assert model.vocabulary_hash == "v1"
    assert model.pretrained_parameters == {f"behrt.{name}" for name, _ in pretrained.behrt.named_parameters()}


def test_base_and_head_exchange_weights(mlm_folder, tmp_path):
    pretrained, folder = mlm_folder
    base = BEHRT.from_pretrained(folder)
    assert state_hash(base) == state_hash(pretrained.behrt)
    assert base.pretrained_parameters == {name for name, _ in base.named_parameters()}
    base.save_pretrained(tmp_path / "base")
    again = BEHRTForMLM.from_pretrained(tmp_path / "base")
    assert state_hash(again.behrt) == state_hash(base)
    assert not any(name.startswith("head.") for name in again.pretrained_parameters)
    assert json.loads((tmp_path / "base" / "config.json").read_text())["vocabulary_hash"] == "v1"


def test_options_of_the_head_are_kept_and_overridden(mlm_folder, tmp_path):
    _, folder = mlm_folder
    model = BEHRTForSequenceClassification.from_pretrained(folder, num_labels=3, pooling="mean", dropout=0.3)
    assert (model.num_labels, model.config.pooling, model.config.dropout) == (3, "mean", 0.3)
    assert model.classifier.out_features == 3
    model.save_pretrained(tmp_path / "classifier")
    again = BEHRTForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert (again.num_labels, again.problem_type, again.config.pooling) == (3, "single_label", "mean")
    with pytest.raises(ConfigError, match="num_layer"):
        BEHRTForSequenceClassification.from_pretrained(folder, num_layer=3)
    with pytest.raises(CheckpointError, match="differing"):
        BEHRTForSequenceClassification.from_pretrained(folder, num_layers=3)
    with pytest.raises(CheckpointError, match=r"embeddings\.code\.weight"):
        BEHRTForMLM.from_pretrained(folder, vocab_size=99)


def test_another_vocabulary_is_refused(mlm_folder):
    _, folder = mlm_folder
    with pytest.raises(VocabularyMismatchError, match="got v2; expected v1"):
        BEHRTForMLM.from_pretrained(folder, vocabulary_hash="v2")


def test_damage_is_refused(mlm_folder):
    _, folder = mlm_folder
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, manifest = weights.read_bytes(), config.read_text()
    for content in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            BEHRTForMLM.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        BEHRTForMLM.from_pretrained(folder)
    weights.write_bytes(whole)
    for content in ("{", "[]", '{"architecture": "BEHRTForMLM"}', manifest.replace("BEHRTForMLM", "GPT")):
        config.write_text(content)
        with pytest.raises(CheckpointError):
            BEHRTForMLM.from_pretrained(folder)
    config.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        BEHRTForMLM.from_pretrained(folder)


def test_a_failed_save_leaves_the_old_folder(mlm_folder):
    model, folder = mlm_folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        model.save_pretrained(folder, extra_files={"broken": object()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["mlm"]


def test_adapted_models_are_not_saved_as_plain_ones(tmp_path):
    model = BEHRTForMLM(make_config())
    model.mark_pretrained()
    with pytest.raises(AdapterError, match="merge_lora"):
        apply_lora_to_behrt(model, rank=2).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_state_hash_sees_names_types_shapes_and_values():
    model = BEHRT(make_config())
    first = state_hash(model)
    with torch.no_grad():
        model.encoder.layers[0].linear1.bias[3] += 1e-7
    assert state_hash(model) != first
    assert state_hash(BEHRT(make_config()).to(torch.bfloat16)) != first
