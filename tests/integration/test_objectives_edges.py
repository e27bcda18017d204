"""Objectives of pretraining at their edges: single visits, long histories, weights, options without effect, kills."""

import json
from datetime import datetime

import polars as pl
import pytest
import torch

from ehrsequencing.config import PretrainConfig, load_config
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.options import ContrastiveOptions
from ehrsequencing.training.contrastive import ContrastivePlan
from ehrsequencing.training.objectives import OBJECTIVES
from ehrsequencing.training.pretrain import pretrain
from ehrsequencing.training.runs import batch_source, model_config
from tests.integration.conftest import TINY
from tests.integration.test_resume import command, run_until_done, same_run, uninterrupted


def test_options_without_effect_are_refused():
    for overrides, message in (
        ({"objective": "nvp", "mlm.rate": 0.2}, "objective nvp does not read this table"),
        ({"tte.codes": 9}, "objective mlm does not read this table"),
        ({"objective": "joint", "contrastive.temperature": 0.2}, "objective joint does not read"),
        ({"objective": "nvp", "nvp.gamma": 5.0}, "with loss=bce it would have no effect"),
        ({"model.attention": "visit_causal", "model.times": True}, "must not know"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(PretrainConfig, overrides=overrides)


def two_visits(folder, subjects: int = 40, second: str = "ICD10CM//E11.9"):
    """Subjects of whom every fourth has one visit only; the second visit holds `second`."""
    rows = []
    for subject in range(subjects):
        rows.append((subject, datetime(1950, 1, 1), "MEDS_BIRTH"))
        for day, codes in ((1, ("ICD10CM//I10", "RXNORM//860975")), (20, (second, "ICD10CM//I10"))):
            if day == 1 or subject % 4:
                rows += [(subject, datetime(2020, 1, day), code) for code in codes]
    path = folder / "data" / "all.parquet"
    path.parent.mkdir(parents=True)
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
    frame.with_columns(numeric_value=pl.lit(None, pl.Float32)).write_parquet(path)
    return folder


def test_subjects_with_one_visit_take_no_part_and_are_counted(tmp_path):
    prepare(two_visits(tmp_path / "meds"), tmp_path / "store")
    config = load_config(PretrainConfig, overrides={**TINY, "objective": "nvp"})
    summary = pretrain(tmp_path / "store", tmp_path / "run", config)
    assert any("subjects of train have fewer than two visits and take no part" in note for note in summary["notes"])
    ce = summary["metrics"]["behrt-small"]["tuning:next_visit/ce"]
    assert ce["subjects"] > 0


def test_a_store_of_single_visits_has_nothing_to_predict(tmp_path):
    frame = pl.read_parquet(two_visits(tmp_path / "meds") / "data" / "all.parquet")
    frame.filter(pl.col("time") < datetime(2020, 1, 5)).write_parquet(tmp_path / "meds" / "data" / "all.parquet")
    prepare(tmp_path / "meds", tmp_path / "store")
    for objective in ("nvp", "joint", "contrastive", "tte"):
        config = load_config(PretrainConfig, overrides={**TINY, "objective": objective})
        with pytest.raises(DataError, match="no subject of train has two visits.*--objective mlm"):
            pretrain(tmp_path / "store", tmp_path / objective, config)
        assert not (tmp_path / objective).exists()


def test_segments_without_another_to_be_mistaken_for_are_refused(world, tmp_path):
    for name, overrides in (("budget", {"loop.token_budget": 64}), ("examples", {"loop.max_examples": 1})):
        config = load_config(PretrainConfig, overrides={**TINY, "objective": "contrastive", **overrides})
        with pytest.raises(DataError, match="no batch of tuning has segments of two subjects.*raise loop.token_budget"):
            pretrain(world.store, tmp_path / name, config)
        assert not (tmp_path / name).exists()


def test_lengths_do_not_name_the_partner(tmp_path):
    """On random codes, whose only trace of a subject is how many there are: matching by what lacks to the whole."""
    synthesise(tmp_path / "meds", subjects=1500, seed=0, mode="random", workers=1)
    prepare(tmp_path / "meds", tmp_path / "store")
    split = TokenStore.open(tmp_path / "store").split("train")
    values = TokenStore.open(tmp_path / "store").values
    source = BatchSource(split, Examples.whole_histories(split), values, max_length=64, token_budget=2048, seed=0)
    plan = ContrastivePlan(BEHRTConfig.small(vocab_size=10), source, source, ContrastiveOptions(), seed=0)
    right, chance, spread = 0, 0.0, 0.0
    for batch in source.fixed():
        earlier, later, rows = plan.segments(batch, 0)
        if len(rows) < 2:
            continue
        own, other = (side["mask"].sum(1).float() for side in (earlier, later))
        away = (own[:, None] + other[None, :] - (own + other).median()).abs() + 1e-3 * torch.rand(len(rows), len(rows))
        right += int((away.argmin(dim=1) == torch.arange(len(rows))).sum())
        chance += 1.0
        spread += 1.0 - 1.0 / len(rows)
    assert chance > 20 and abs(right - chance) < 4 * spread**0.5


def test_a_base_that_times_other_codes_is_refused(world):
    store = TokenStore.open(world.store)
    config = load_config(PretrainConfig, overrides={**TINY, "objective": "tte", "tte.codes": 4})
    objective = OBJECTIVES["tte"]
    built = model_config(config.model, len(store.vocabulary), causal=True)
    model = objective.model(built, **objective.head(config, store.vocabulary))
    model.asked.copy_(torch.tensor([7, 8, 9, 10]))
    model.mark_pretrained()
    source = batch_source(store, "tuning", objective.examples(store.split("tuning"), []), config.loop, built)
    with pytest.raises(
        ConfigError, match=r"the base times other codes than this store's most frequent ones; got \d that"
    ):
        objective.plan(model, source, source, store.vocabulary, config)


def test_histories_longer_than_the_model_keep_their_last_transitions(world, tmp_path):
    for objective in ("nvp", "tte", "contrastive"):
        overrides = {**TINY, "objective": objective, "model.max_length": 12, "loop.epochs": 1}
        summary = pretrain(world.store, tmp_path / objective, load_config(PretrainConfig, overrides=overrides))
        assert summary["metrics"]["behrt-small"]


def test_weighted_and_focal_losses_rank_what_comes_next(world, tmp_path):
    overrides = {**TINY, "objective": "nvp", "nvp.loss": "focal", "nvp.balance": 0.3}
    metrics = pretrain(world.store, tmp_path / "run", load_config(PretrainConfig, overrides=overrides))["metrics"]
    recall = "tuning:next_visit/recall_at_10"
    assert metrics["behrt-small"][recall]["value"] > metrics["floor: prevalence"][recall]["value"] * 0.9
    history = read_json(tmp_path / "run" / "logs" / "metrics_history.json")
    assert history["val_loss"][0]["value"] != history["val_cross_entropy"][0]["value"]


@pytest.mark.parametrize("objective", ["joint", pytest.param("tte", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bit_identical(world, tmp_path, objective):
    flags = [
        "--objective", objective, "--epochs", "2", "--device", "cpu", "--set", "loop.token_budget=2048",
        "--set", "loop.threads=1", "--set", "loop.checkpoint_seconds=0", "--set", "model.max_length=32",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted("pretrain", world.store, "--out", whole, *flags)
    struck = run_until_done(command("pretrain", world.store, "--out", killed, *flags), [0.1])
    assert struck >= 1, "no kill struck a running process, so nothing was tested"
    same_run(whole, killed)
    assert json.loads((killed / "metadata.json").read_text())["status"] in ("completed", "early_stopped")
