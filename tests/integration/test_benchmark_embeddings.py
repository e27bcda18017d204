"""`ehrseq benchmark embeddings`: five starts of the code vectors, everything else the same."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ehrsequencing.benchmarks.configuration import EmbeddingsConfig
from ehrsequencing.benchmarks.embeddings import ARMS, PAIRS, benchmark_embeddings, in_words, refuse_judged
from ehrsequencing.benchmarks.few_labels import keep_share
from ehrsequencing.config import load_config
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.data.vocabulary import NUM_SPECIAL
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.models.embedding_files import read_embeddings
from ehrsequencing.training.callbacks import Observer
from tests.integration.conftest import TINY

SMALL = {
    "seeds": 1,
    **{f"finetune.{name}": value for name, value in TINY.items()},
    "finetune.loop.epochs": 1,
    "pretrain.loop.epochs": 1,
    "pretrain.loop.threads": 1,
    "pretrain.med2vec.code_dim": 80,
    "pretrain.med2vec.visit_dim": 16,
}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A store of subjects that are nobody here, with a vocabulary of its own."""
    root = tmp_path_factory.mktemp("others")
    synthesise(root / "meds", subjects=150, seed=9, workers=1)
    prepare(root / "meds", root / "store")
    return root / "store"


def run(world, out, trained=None, **more):
    @contextmanager
    def observed(name):
        (trained if trained is not None else []).append(name)
        yield Observer()

    sources = {key: more.pop(key, None) for key in ("others", "third_party")}
    return benchmark_embeddings(
        world.store, world.labels, out, load_config(EmbeddingsConfig, overrides={**SMALL, **more}),
        **sources, say=lambda _: None, bars=lambda: nullcontext(lambda *_: None), observed=observed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(world, others, tmp_path_factory):
    out, trained = tmp_path_factory.mktemp("embeddings") / "out", []
    return out, run(world, out, trained, others=others), trained


def weights(out, arm):
    return load_file(out / "arms" / arm.replace(", ", "-").replace(" ", "-") / "arms/seed-0000/model/model.safetensors")


def test_every_arm_is_judged_with_pairs_costs_and_words(done):
    out, summary, trained = done
    assert set(summary["metrics"]) == {*ARMS, "logistic_regression"}
    assert trained == ["med2vec", *(f"{arm} seed 0" for arm in ARMS)]
    assert {(row["a"], row["b"]) for row in summary["differences"]} == set(PAIRS)
    for row in summary["differences"]:
        one, other = (summary["metrics"][row[side]][row["metric"]]["value"] for side in ("a", "b"))
        assert row["value"] == pytest.approx(one - other)
    costs = summary["costs"]
    assert costs["from scratch"]["trainable_percent"] == 100 > costs["third party, trained"]["trainable_percent"]
    assert costs["third party, trained"]["trainable_percent"] > costs["third party, frozen"]["trainable_percent"]
    assert costs["own, frozen"]["bytes"] < costs["from scratch"]["bytes"]
    assert len(summary["notes"]) == 3 and summary["dataset"] in summary["notes"][0]
    table = (out / "comparison" / "embeddings.md").read_text().splitlines()
    assert len(table) == 2 + len(ARMS) + 1
    assert (out / "comparison" / "report.html").is_file() and (out / "comparison" / "embeddings.tex").is_file()


def test_arms_differ_in_code_vectors_and_in_nothing_else_at_the_start(world, done):
    """Feed-forward matrices of the frozen encoder are as they were drawn; vectors are whose they should be."""
    out, _, _ = done
    frozen = {arm: weights(out, arm) for arm in ARMS if arm != "from scratch"}
    names = [name for name in frozen["own, frozen"] if "linear" in name or ("norm" in name and "encoder" in name)]
    assert names
    for name in names:
        for arm in frozen:
            torch.testing.assert_close(frozen[arm][name], frozen["own, frozen"][name], rtol=0, atol=0)
    (key,) = (name for name in frozen["own, frozen"] if name.endswith("code.weight"))
    first = weights(out, "from scratch")[key][NUM_SPECIAL:]
    own = frozen["own, frozen"][key][NUM_SPECIAL:]
    # One factor brings vectors to the model's scale.
    ratio = own / first
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=1e-4)
    stranger, trained_on = (frozen[f"third party, {how}"][key] for how in ("frozen", "trained"))
    assert not torch.equal(stranger, trained_on) and not torch.equal(stranger[NUM_SPECIAL:], own)
    table = read_embeddings(out / "third_party.txt")
    assert table.vectors.shape[1] == 80 and set(table.codes) & set(TokenStore.open(world.store).vocabulary.tokens)
    metadata = read_json(out / "arms/third-party-frozen/arms/seed-0000/metadata.json")
    assert metadata["embeddings"]["projection"] and not metadata["embeddings"]["train"]


def test_a_second_call_trains_nothing_and_another_start_is_refused(world, done, others, tmp_path):
    out, summary, _ = done
    trained = []
    assert run(world, out, trained, others=others)["metrics"] == summary["metrics"] and trained == []
    with pytest.raises(ConfigError, match="begun with another configuration: finetune differ"):
        run(world, out, others=others, **{"finetune.loop.epochs": 5})
    with pytest.raises(ConfigError, match="another configuration: others, third_party differ"):
        run(world, out, third_party=out / "third_party.txt")


def test_a_strangers_file_needs_no_other_subjects(world, done, tmp_path):
    trained = []
    frame, manifest = read_labels(world.labels)
    few = keep_share(TokenStore.open(world.store), frame, 0.3, seed=0)
    write_labels(tmp_path / "labels" / "onset.parquet", few, manifest)
    world = SimpleNamespace(**{**vars(world), "labels": tmp_path / "labels" / "onset.parquet"})
    summary = run(world, tmp_path / "out", trained, third_party=done[0] / "third_party.txt")
    assert "med2vec" not in trained and len(trained) == len(ARMS) and summary is not None


def test_wrong_requests_are_refused(world, others, tmp_path):
    with pytest.raises(ConfigError, match="where the third party's vectors come from; got neither"):
        run(world, tmp_path / "out")
    with pytest.raises(ConfigError, match="got two sources"):
        run(world, tmp_path / "out", others=others, third_party=tmp_path / "x.txt")
    with pytest.raises(ConfigError, match="the arms are of a behrt"):
        run(world, tmp_path / "out", others=others, **{"finetune.architecture": "lstm"})
    assert not (tmp_path / "out").exists()


def test_subjects_that_are_judged_teach_the_stranger_nothing(world, tmp_path):
    """The same records under another split rule: some whom we judge are of train there."""
    store = TokenStore.open(world.store)
    refuse_judged(store, store)
    synthesise(tmp_path / "meds", subjects=400, seed=3, workers=1)
    splits = tmp_path / "meds" / "metadata" / "subject_splits.parquet"
    import polars as pl

    frame = pl.read_parquet(splits)
    names = {"held_out": "train", "train": "held_out"}
    frame.with_columns(pl.col("split").replace(names)).write_parquet(splits)
    for name in names:
        (tmp_path / "meds" / "data" / name).rename(tmp_path / "meds" / "data" / f"was-{name}")
    for name, new in names.items():
        (tmp_path / "meds" / "data" / f"was-{name}").rename(tmp_path / "meds" / "data" / new)
    prepare(tmp_path / "meds", tmp_path / "store")
    judged = len(np.asarray(store.split("held_out").subject_id))
    with pytest.raises(RunError, match=rf"{judged} subjects that are judged are among the train subjects"):
        refuse_judged(store, TokenStore.open(tmp_path / "store"))


def test_words_say_what_intervals_allow():
    metrics = {name: {"t/auroc": {"value": 0.6 + 0.01 * n}} for n, name in enumerate([*ARMS, "logistic_regression"])}
    differences = [
        {"a": a, "b": b, "metric": "t/auroc", "value": 0.1 * sign, "low": 0.1 * sign - 0.05, "high": 0.1 * sign + 0.05}
        for (a, b), sign in zip(PAIRS, (1, -1, 0, 1, -1, 0), strict=True)
    ]
    facts = {name: {"trainable_percent": 5.0, "bytes": 1000.0} for name in ARMS}
    text = " ".join(in_words(metrics, differences, facts, "t", "abc", 12))
    assert "frozen, are not told apart from random, frozen (+0.000, -0.050 to +0.050)" in text
    assert "better than own, frozen (+0.100" in text and "worse than third party, frozen (-0.100" in text
    assert (
        "scratch is better than own, frozen" in text and "highest AUROC of the arms is that of random, frozen" in text
    )
