"""Every objective of pretraining through the library: it learns, starts from other runs, resumes, and refuses."""

import shutil

import numpy as np
import pytest
import torch

from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config, read_config
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, ConfigError, RunError, VocabularyMismatchError
from ehrsequencing.evaluation.next_visit import load_next_visit
from ehrsequencing.io import read_json, write_json
from ehrsequencing.models.behrt import BEHRT, last_visits
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain
from tests.integration.conftest import ADAPT, TINY
from tests.integration.test_objectives_edges import two_visits

WAYS = {
    "nvp": {"objective": "nvp", "loop.epochs": 5, "loop.token_budget": 1024},
    "nvp-prefix": {"objective": "nvp", "nvp.mode": "prefix", "loop.epochs": 3, "loop.token_budget": 1024},
    "joint": {"objective": "joint", "model.separators": True, "model.activation": "swiglu"},
    "joint-alternate": {
        "objective": "joint",
        "joint.mode": "alternate",
        "joint.lambda_nvp": 2.0,
        "loop.epochs": 6,
        "loop.token_budget": 1024,
    },
    "joint-prefix": {"objective": "joint", "nvp.mode": "prefix", "loop.epochs": 3, "loop.token_budget": 1024},
    "contrastive": {"objective": "contrastive", "contrastive.hide_ages": False, "model.position": "none"},
    "tte": {"objective": "tte", "tte.codes": 40, "model.age": "continuous", "model.calendar": True},
    "mlm-visit": {"mlm.strategy": "visit", "model.gaps": True, "model.attention": "visit_causal"},
    "mlm-kind": {"mlm.strategy": "kind", "mlm.rate": 0.3, "model.norm": "post", "model.age": "none"},
}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Runs by way, each made on first use."""
    root, made = tmp_path_factory.mktemp("objectives"), {}

    def run(way):
        if way not in made:
            config = load_config(PretrainConfig, overrides={**TINY, **WAYS[way]})
            pretrain(world.store, root / way, config)
            made[way] = root / way
        return made[way]

    return run


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_more_than_its_simplest_floor(trained, way):
    run = trained(way)
    metrics = read_json(run / "summary.json")["metrics"]
    own = metrics["behrt-small"]
    keys = [key for key in own if key.rpartition("/")[2] in ("ce", "nll", "mlm_loss")]
    assert keys
    floors = {name: entries for name, entries in metrics.items() if name.startswith("floor")}
    for key in keys:
        simplest = max(entries[key]["value"] for entries in floors.values() if key in entries)
        assert own[key]["low"] <= own[key]["value"] <= own[key]["high"]
        # With one question a subject 320 subjects teach little beyond what the head begins with.
        assert own[key]["value"] < simplest * (1.03 if "prefix" in way else 1)
    history = read_json(run / "logs" / "metrics_history.json")
    assert history["train_loss"][-1]["value"] < history["train_loss"][0]["value"]
    assert len(history["train_loss"]) == len(history["val_loss"]) == WAYS[way].get("loop.epochs", 2)
    assert (run / "report.html").exists() or read_json(run / "report_data.json")["title"]


def test_both_losses_of_a_joint_training_are_logged_apart(trained):
    for way in ("joint", "joint-alternate"):
        history = read_json(trained(way) / "logs" / "metrics_history.json")
        weight = 2.0 if way == "joint-alternate" else 1.0
        for name in ("train_mlm_loss", "train_nvp_loss", "val_mlm_loss", "val_nvp_loss"):
            assert len(history[name]) == WAYS[way].get("loop.epochs", 2)
        both = history["val_mlm_loss"][0]["value"] + weight * history["val_nvp_loss"][0]["value"]
        assert history["val_loss"][0]["value"] == pytest.approx(both)


def test_what_was_left_open_is_decided_in_the_configuration(trained):
    causal = read_config(PretrainConfig, trained("nvp") / "config.toml")
    assert (causal.nvp.mode, causal.model.attention, causal.model.times, causal.model.gaps) == (
        "causal", "visit_causal", False, True,
    )  # fmt: skip
    prefix = read_config(PretrainConfig, trained("nvp-prefix") / "config.toml")
    assert (prefix.nvp.mode, prefix.model.attention, prefix.model.times) == ("prefix", "bidirectional", True)


@pytest.mark.parametrize(
    ("way", "method"),
    [("nvp", "lora"), ("joint", "full"), ("contrastive", "probe"), ("tte", "lora"), ("mlm-visit", "probe")],
)
def test_every_objective_is_a_base_to_fine_tune(world, trained, tmp_path, way, method):
    config = load_config(FinetuneConfig, overrides={**ADAPT, "method": method, "loop.epochs": 1})
    finetune(world.store, world.labels, tmp_path / "run", config, from_run=trained(way))
    base, tuned = (read_json(run / "model" / "config.json")["config"] for run in (trained(way), tmp_path / "run"))
    for name in ("attention", "separators", "activation", "age", "gap_embedding", "calendar_embedding"):
        assert base[name] == tuned[name]


def test_objectives_follow_one_another(world, trained, tmp_path):
    """Next-visit prediction from a bidirectional run looks at prefixes, from a visit-causal one at every visit."""
    for base, mode in ((world.pretrained, "prefix"), (trained("mlm-visit"), "causal")):
        config = load_config(PretrainConfig, overrides={**ADAPT, "objective": "nvp", "loop.epochs": 1})
        pretrain(world.store, tmp_path / mode, config, from_run=base)
        assert read_config(PretrainConfig, tmp_path / mode / "config.toml").nvp.mode == mode
        first, then = (BEHRT.from_pretrained(run / "model") for run in (base, tmp_path / mode))
        assert first.config == then.config
        before, after = first.state_dict(), then.state_dict()
        moved = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
        assert len(moved) > len(after) / 2, "the encoder was not trained any further"


def test_a_base_that_does_not_fit_is_refused(world, trained, tmp_path):
    def attempt(base, **overrides):
        config = load_config(PretrainConfig, overrides={**ADAPT, **overrides})
        pretrain(world.store, tmp_path / "run", config, from_run=base)

    with pytest.raises(ConfigError, match="nvp.mode=causal needs .* visit-causal attention; got .*bidirectional"):
        attempt(world.pretrained, objective="nvp", **{"nvp.mode": "causal"})
    with pytest.raises(ConfigError, match="objective tte predicts from every visit; got .*bidirectional"):
        attempt(world.pretrained, objective="tte")
    with pytest.raises(ConfigError, match="model.gaps would have no effect"):
        attempt(trained("nvp"), objective="nvp", **{"model.gaps": False})
    for options, got, expected in (
        ({"tte.codes": 40, "tte.pieces": 4}, "tte.pieces=4", "tte.pieces=8"),
        ({"tte.codes": 30, "tte.rank": 16}, "tte.codes=30, tte.rank=16", "tte.codes=40, tte.rank=32"),
    ):
        message = f"tte was pretrained with other options of tte; got {got}; expected {expected}. Remedy: ask for those"
        with pytest.raises(ConfigError, match=message):
            attempt(trained("tte"), objective="tte", **options)
    with pytest.raises(
        ConfigError, match="other options of contrastive; got contrastive.projection_dim=32; expected .*=64"
    ):
        attempt(trained("contrastive"), objective="contrastive", **{"contrastive.projection_dim": 32})
    assert not (tmp_path / "run").exists()


def test_a_run_killed_under_code_with_another_head_is_not_taken_up(trained, world, tmp_path):
    """Next-visit heads of earlier versions had no table of codes seen, so that their checkpoints lack it."""
    run = tmp_path / "run"
    shutil.copytree(trained("nvp"), run)
    shutil.rmtree(run / "model")
    write_json(run / "metadata.json", read_json(run / "metadata.json") | {"status": "running"})
    latest = run / "checkpoints" / "latest.pt"
    state = torch.load(latest, weights_only=True)
    del state["model"]["seen.table"]
    torch.save(state, latest)
    config = load_config(PretrainConfig, overrides={**TINY, **WAYS["nvp"]})
    message = r"latest.pt holds another model than this version makes; got differing \['seen.table'\]. Remedy: start .*"
    with pytest.raises(CheckpointError, match=message):
        pretrain(world.store, run, config, resume=True)


def test_a_base_of_another_vocabulary_is_refused(trained, tmp_path):
    store = tmp_path / "store"
    prepare(two_visits(tmp_path / "meds"), store)
    config = load_config(PretrainConfig, overrides={**ADAPT, "objective": "nvp"})
    with pytest.raises(VocabularyMismatchError):
        pretrain(store, tmp_path / "run", config, from_run=trained("nvp"))


@pytest.fixture(scope="module")
def next_visits(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "next.parquet"
    write_labels(path, *build_labels(MedsDataset.open(world.meds), parse_task("next_visit_codes")))
    return path


@pytest.mark.parametrize("way", ["nvp", "joint-prefix"])
def test_a_head_of_next_visits_is_judged_as_it_is(world, trained, next_visits, way):
    before = read_json(trained(way) / "summary.json")
    summary = evaluate_run(trained(way), world.store, next_visits, baselines=(), resamples=100)
    own = summary["metrics"]["behrt-small"]
    for population in ("", ":new", ":seen"):
        for metric in ("auroc_micro", "auroc_macro", "auprc_micro", "auprc_macro", "recall_at_10", "recall_at_30"):
            entry = own[f"next_visit_codes{population}/{metric}"]
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert entry["categories"] > 0
    assert own["next_visit_codes/auroc_micro"]["value"] > 0.6
    assert own["next_visit_codes/f1_macro"]["value"] >= 0
    assert read_json(trained(way) / "summary.json") == before, "the pretraining's own figures stay"
    assert (trained(way) / "arms" / "next" / "report.html").is_file()


def test_next_visit_heads_need_labels_of_next_visits(world, trained, tmp_path):
    with pytest.raises(ConfigError, match="trained without labels.*next_visit_codes"):
        evaluate_run(trained("nvp"), world.store)
    with pytest.raises(RunError, match="predicts the codes of the next visit; got labels without categories"):
        evaluate_run(trained("nvp"), world.store, world.labels, baselines=())
    prepare(two_visits(tmp_path / "meds"), tmp_path / "store", vocabulary_from=world.store)
    with pytest.raises(ConfigError, match="trained without labels, so it is judged on its own store alone; got"):
        evaluate_run(trained("nvp"), tmp_path / "store", world.labels)
    with pytest.raises(RunError, match="not a fine-tuning run"):
        evaluate_run(trained("tte"), world.store, world.labels, baselines=())


def test_a_category_comes_where_any_of_its_tokens_does(world, trained):
    store = TokenStore.open(world.store)
    base = store.vocabulary.base_ids
    several = [code for code in range(len(store.vocabulary.base_codes)) if (base == code).sum() > 2][:2]
    model = load_next_visit(trained("nvp"), store, ["a", "both"], [(several[0], 0), (several[0], 1), (several[1], 1)])
    built = model.config
    split = store.split("tuning")
    source = BatchSource(split, Examples.whole_histories(split), store.values, max_length=built.max_length)
    batch = next(source.fixed())
    inputs = batch.inputs(built.input_names)
    with torch.no_grad():
        found = model(**inputs).logits.sigmoid()
        tokens = model.model(**inputs, visits=last_visits(batch.visit_ids, batch.mask)).logits.double().sigmoid()
    for column, codes in enumerate(([several[0]], several)):
        absent = 1.0
        for token in np.flatnonzero(np.isin(base, codes)):
            absent = absent * (1 - tokens[:, token])
        torch.testing.assert_close(found[:, column], 1 - absent)
