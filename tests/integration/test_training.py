"""Pretraining and fine-tuning through the library: what is trained, saved, reported and refused."""

import json

import pytest
import torch

from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import AdapterError, ConfigError, RunError, VocabularyMismatchError
from ehrsequencing.models.behrt import BEHRTForMLM, BEHRTForSequenceClassification
from ehrsequencing.models.lora import load_lora_weights
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain
from tests.integration.conftest import ADAPT, TINY


@pytest.fixture(scope="module")
def adapted(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": "lora"})
    summary = finetune(world.store, world.labels, out, config, from_run=world.pretrained)
    return out, summary


def test_pretraining_writes_the_whole_run_directory(world):
    for name in (
        "checkpoints/best_model.pt", "checkpoints/latest.pt", "plots/loss_curve.png", "plots/accuracy_curve.png",
        "logs/metrics_history.json", "hyperparameters.json", "metadata.json", "summary.json", "SUMMARY.txt",
        "config.toml", "model/model.safetensors", "model/config.json", "model/vocabulary.json", "model/values.json",
    ):  # fmt: skip
        assert (world.pretrained / name).is_file(), name


def test_floors_stand_beside_the_mlm_figures(world):
    metrics = json.loads((world.pretrained / "summary.json").read_text())["metrics"]
    assert {name for name in metrics if name.startswith("floor")} == {
        "floor: uniform over used codes", "floor: unigram", "floor: copy from own other codes",
    }  # fmt: skip
    own = metrics["behrt-small"]["mlm/mlm_loss"]
    assert own["low"] < own["value"] < own["high"]
    assert own["value"] < metrics["floor: uniform over used codes"]["mlm/mlm_loss"]["value"]


def test_the_model_folder_gives_the_logged_loss_again(world):
    """Reloading and validating again gives the best epoch's tuning loss, bit for bit."""
    from ehrsequencing.data.sequences import Examples
    from ehrsequencing.training.plans import MLMPlan
    from ehrsequencing.training.runs import batch_source

    torch.set_num_threads(1)
    store = TokenStore.open(world.store)
    model = BEHRTForMLM.from_pretrained(world.pretrained / "model", vocabulary_hash=store.vocabulary.hash).eval()
    config = load_config(PretrainConfig, world.pretrained / "config.toml")
    source = batch_source(store, "tuning", Examples.whole_histories(store.split("tuning")), config.loop, model.config)
    plan = MLMPlan(model.config, source, source, store.vocabulary, rate=config.mlm.rate, seed=config.loop.seed)
    best = json.loads((world.pretrained / "summary.json").read_text())["best"]
    assert plan.validate(model, torch.device("cpu"))["loss"] == best["metrics"]["val_loss"]


def test_lora_run_keeps_adapter_and_merged_model(world, adapted):
    out, _ = adapted
    store = TokenStore.open(world.store)
    base = BEHRTForSequenceClassification.from_pretrained(world.pretrained / "model").eval()
    loaded = load_lora_weights(base, out / "adapter").eval()
    merged = BEHRTForSequenceClassification.from_pretrained(out / "model", vocabulary_hash=store.vocabulary.hash).eval()
    codes = torch.randint(5, len(store.vocabulary), (4, 20))
    inputs = {
        "codes": codes, "ages": torch.full_like(codes, 60), "visit_ids": torch.ones_like(codes),
        "mask": torch.ones_like(codes, dtype=torch.bool), "kinds": torch.ones_like(codes),
        "times": torch.zeros(codes.shape),
    }  # fmt: skip
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(loaded(**inputs).logits, merged(**inputs).logits, rtol=1e-4, atol=1e-5)
    size = sum(path.stat().st_size for path in (out / "adapter").iterdir())
    assert size < (out / "model" / "model.safetensors").stat().st_size / 2


def test_an_adapter_refuses_another_base(world, adapted):
    out, _ = adapted
    other = BEHRTForSequenceClassification.from_pretrained(world.pretrained / "model")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(AdapterError, match="base"):
        load_lora_weights(other, out / "adapter")


def test_a_run_says_what_is_pretrained_learned_frozen_and_received_a_gradient(adapted):
    out, _ = adapted
    parameters = json.loads((out / "report_data.json").read_text())["parameters"]
    text = json.dumps(parameters)
    for part in ("pretrained", "scratch", "frozen", "gradient"):
        assert part in text


def test_lora_without_pretraining_warns(world, tmp_path):
    config = load_config(FinetuneConfig, overrides={**TINY, "method": "lora", "loop.epochs": 1})
    summary = finetune(world.store, world.labels, tmp_path / "run", config)
    assert any("no pretrained weights" in note for note in summary["notes"])


def test_methods_and_bases_must_fit(world, tmp_path):
    for method, base, message in (
        ("full", None, "starts from a pretrained run"),
        ("probe", None, "starts from a pretrained run"),
        ("scratch", world.pretrained, "starts from nothing"),
    ):
        config = load_config(FinetuneConfig, overrides={**TINY, "method": method})
        with pytest.raises(ConfigError, match=message):
            finetune(world.store, world.labels, tmp_path / "run", config, from_run=base)
    with pytest.raises(RunError, match="holds no trained model"):
        finetune(
            world.store, world.labels, tmp_path / "run", load_config(FinetuneConfig, overrides=TINY), from_run=tmp_path
        )
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused(world, tmp_path):
    from ehrsequencing.data.prepare import prepare

    prepare(world.meds, tmp_path / "store", value_bins=3)
    config = load_config(FinetuneConfig, overrides=ADAPT)
    with pytest.raises(VocabularyMismatchError, match="vocabulary"):
        finetune(tmp_path / "store", world.labels, tmp_path / "run", config, from_run=world.pretrained)


def test_an_existing_run_is_never_overwritten_unasked(world):
    before = (world.pretrained / "summary.json").read_bytes()
    with pytest.raises(RunError, match="--resume"):
        pretrain(world.store, world.pretrained, load_config(PretrainConfig, overrides=TINY))
    assert (world.pretrained / "summary.json").read_bytes() == before


def test_a_loss_that_is_not_finite_fails_the_run_with_a_remedy(world, tmp_path):
    config = load_config(
        PretrainConfig, overrides={**ADAPT, "optim.lr": 1.0, "optim.clip": 1e6, "optim.warmup_share": 0}
    )
    base = BEHRTForMLM.from_pretrained(world.pretrained / "model")
    with torch.no_grad():
        base.behrt.embeddings.code.weight.mul_(float("inf"))
    store = TokenStore.open(world.store)
    from ehrsequencing.training.runs import store_files

    base.save_pretrained(
        tmp_path / "broken" / "model", vocabulary_hash=store.vocabulary.hash, extra_files=store_files(store)
    )
    with pytest.raises(RunError, match="not finite.*lower optim.lr"):
        pretrain(world.store, tmp_path / "run", config, from_run=tmp_path / "broken")
    assert json.loads((tmp_path / "run" / "metadata.json").read_text())["status"] == "failed"


def test_labels_of_unknown_subjects_are_refused(world, tmp_path):
    import polars as pl

    from ehrsequencing.errors import LabelError

    labels = pl.read_parquet(world.labels)
    stranger = labels.head(1).with_columns(subject_id=pl.lit(999, dtype=pl.Int64))
    pl.concat([labels, stranger]).sort("subject_id", "prediction_time").write_parquet(tmp_path / "labels.parquet")
    config = load_config(FinetuneConfig, overrides={**TINY, "method": "scratch"})
    with pytest.raises(LabelError, match="1 labels are of subjects that .* does not hold.*subject 999"):
        finetune(world.store, tmp_path / "labels.parquet", tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_new_site_extends_the_vocabulary(world, tmp_path):
    """New codes are appended, old embeddings stay, and fine-tuning goes on from the grown model."""
    import polars as pl

    from ehrsequencing.data.dataset import MedsDataset, MedsWriter
    from ehrsequencing.data.prepare import prepare

    dataset = MedsDataset.open(world.meds)
    renamed = pl.col("code").str.replace("^ICD10CM//I10$", "SITE2//HYPERTENSION")
    with MedsWriter(tmp_path / "meds") as writer:
        for split in ("train", "tuning", "held_out"):
            events = pl.concat([frame.collect() for frame in dataset.frames(split)]).with_columns(renamed)
            writer.write_events(split, 0, events)
        writer.finish(dataset.codes().with_columns(renamed).unique("code"), source="site2", options={}, notes=[])
    model_folder = world.pretrained / "model"
    prepare(tmp_path / "meds", tmp_path / "store", vocabulary_from=model_folder, extend_vocabulary=True)
    store = TokenStore.open(tmp_path / "store")
    old = BEHRTForMLM.from_pretrained(model_folder)
    assert "SITE2//HYPERTENSION" in store.vocabulary.tokens[old.config.vocab_size :]
    labels = pl.read_parquet(world.labels)
    labels.write_parquet(tmp_path / "labels.parquet")
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": "full", "loop.epochs": 1})
    summary = finetune(
        tmp_path / "store", tmp_path / "labels.parquet", tmp_path / "run", config, from_run=world.pretrained
    )
    assert any("are new to" in note for note in summary["notes"])
    grown = BEHRTForSequenceClassification.from_pretrained(
        tmp_path / "run" / "model", vocabulary_hash=store.vocabulary.hash
    )
    assert grown.config.vocab_size == len(store.vocabulary) > old.config.vocab_size
