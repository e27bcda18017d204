"""Med2Vec, skip-gram and a stranger's vectors through the library: learn, resume, export, read back, judge."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ehrsequencing.benchmarks.compare import compare
from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.benchmarks.med2vec import med2vec_arm
from ehrsequencing.cli.main import app
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config, read_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import CheckpointError, ConfigError, RunError
from ehrsequencing.evaluation.visit_vectors import history_vectors, load_med2vec
from ehrsequencing.io import read_json
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.models.med2vec import Med2Vec, SkipGram
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.training.callbacks import Observer
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain
from ehrsequencing.training.third_party import export_code_vectors
from tests.integration.conftest import TINY

LOOP = {"loop.epochs": 5, "loop.threads": 1, "loop.device": "cpu", "loop.token_budget": 2048}
SMALL = {"code_dim": 24, "visit_dim": 16}


def options(kind: str, **more):
    width = {f"{kind}.{name}": value for name, value in SMALL.items() if kind == "med2vec" or name == "code_dim"}
    return load_config(PretrainConfig, overrides={"architecture": kind, **LOOP, **width, **more})


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("vectors")
    pretrain(world.store, root / "med2vec", options("med2vec", **{"med2vec.code_term": "mean"}))
    pretrain(world.store, root / "skipgram", options("skipgram"))
    return root


@pytest.mark.parametrize(
    ("kind", "metric", "sign", "floor"),
    [
        ("med2vec", "tuning:neighbour_visits/recall_at_10", 1, "floor: neighbouring visits, prevalence"),
        ("skipgram", "tuning:visit_codes/ce", -1, "floor: codes of a visit, unigram"),
    ],
)
def test_it_learns_more_than_frequencies(runs, kind, metric, sign, floor):
    metrics = read_json(runs / kind / "summary.json")["metrics"]
    assert sign * metrics[kind][metric]["value"] > sign * metrics[floor][metric]["value"]
    assert metrics[kind][metric]["subjects"] > 20
    metadata = read_json(runs / kind / "metadata.json")
    assert metadata["status"] in ("completed", "early_stopped")
    config = (runs / kind / "config.toml").read_text()
    assert "[model]" not in config
    assert "objective" not in config
    assert read_config(PretrainConfig, runs / kind / "config.toml").architecture == kind


class Killer(Observer):
    """Stops a run after some batches, as a lost machine would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, epoch: int, batch: int, batches: int, loss: float) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["med2vec", "skipgram"])
def test_a_killed_run_ends_bit_for_bit_like_a_whole_one(world, tmp_path, kind):
    config = options(kind, **{"loop.epochs": 2, "loop.checkpoint_seconds": 0.0})
    pretrain(world.store, tmp_path / "whole", config)
    for after in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            pretrain(world.store, tmp_path / "killed", config, resume=after > 3, observer=Killer(after))
    pretrain(world.store, tmp_path / "killed", config, resume=True)
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    first, second = (read_json(tmp_path / name / "logs" / "metrics_history.json") for name in ("whole", "killed"))
    assert first == second


def test_vectors_leave_as_a_strangers_file_and_come_back(world, runs, tmp_path):
    vocabulary = TokenStore.open(world.store).vocabulary
    for kind, of_codes in (("med2vec", Med2Vec), ("skipgram", SkipGram)):
        table = export_code_vectors(runs / kind, tmp_path / f"{kind}.txt")
        assert table.codes == vocabulary.tokens[5:]
        own = of_codes.from_pretrained(runs / kind / "model").code_vectors().detach().numpy()
        assert np.array_equal(table.vectors, own[5:])
    assert (export_code_vectors(runs / "med2vec", tmp_path / "again.bin").vectors >= 0).all()
    config = load_config(
        PretrainConfig,
        overrides={**TINY, "embeddings.file": str(tmp_path / "med2vec.txt"), "embeddings.dimension": "random",
                   "embeddings.train": False, "loop.epochs": 1},
    )  # fmt: skip
    pretrain(world.store, tmp_path / "frozen", config)
    model = BEHRTForMLM.from_pretrained(tmp_path / "frozen" / "model")
    kept = model.behrt.embeddings.code.weight[5:].detach().numpy()
    found = read_json(tmp_path / "frozen" / "metadata.json")["embeddings"]
    vectors = table_of(tmp_path / "med2vec.txt") * found["factor"]
    assert kept @ kept.T == pytest.approx(vectors @ vectors.T, rel=1e-2, abs=1e-3)
    assert model.decoder_weight is model.behrt.embeddings.code.weight
    assert found["coverage"][0]["exact"] == 1.0
    assert found["projection"] == "random orthonormal"
    assert read_json(tmp_path / "frozen" / "metadata.json")["parameters"]["frozen"] == kept.size + 5 * 64
    export_code_vectors(tmp_path / "frozen", tmp_path / "behrt.npz")
    (tmp_path / "med2vec.txt").write_text((tmp_path / "med2vec.txt").read_text().replace("0.", "0.1", 1))
    with pytest.raises(CheckpointError, match="was started with another embeddings"):
        pretrain(world.store, tmp_path / "frozen", config, resume=True)


def table_of(path):
    from ehrsequencing.models.embedding_files import read_embeddings

    return read_embeddings(path).vectors


@pytest.mark.parametrize("train", [True, False])
def test_a_classifier_starts_from_vectors_and_med2vec_stands_beside_it(world, runs, tmp_path, train):
    export_code_vectors(runs / "skipgram", tmp_path / "v.npz")
    config = load_config(
        FinetuneConfig,
        overrides={**TINY, "method": "lora", "loop.epochs": 1, "embeddings.file": str(tmp_path / "v.npz"),
                   "embeddings.dimension": "random", "embeddings.train": train},
    )  # fmt: skip
    summary = finetune(world.store, world.labels, tmp_path / "run", config)
    assert any("100.0% of" in note and ("trained on" if train else "frozen") in note for note in summary["notes"])
    adapted = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert "behrt.embeddings.age.embedding.weight" in adapted, "what the vectors do not bring is trained"
    sections = read_json(tmp_path / "run" / "report_data.json")["data"]
    assert any(name.startswith("code vectors, ICD10CM") for name in sections)
    if train:
        return
    judged = evaluate_run(tmp_path / "run", world.store, baselines=[], med2vec=runs / "med2vec", resamples=100)
    assert 0.3 < next(v["value"] for k, v in judged["metrics"]["med2vec_lr"].items() if k.endswith("/auroc")) <= 1
    with pytest.raises(RunError, match="is no Med2Vec; got SkipGram"):
        evaluate_run(tmp_path / "run", world.store, baselines=[], med2vec=runs / "skipgram", resamples=100)


def test_med2vec_features_are_of_binary_tasks_and_of_their_own_store(world, runs, tmp_path):
    store = TokenStore.open(world.store)
    several = Examples(np.zeros(1, int), np.zeros(1, int), np.ones((1, 2), bool), np.zeros(1, int), ("a", "b"))
    with pytest.raises(ConfigError, match=r"Med2Vec \+ LR is of binary tasks; got 2 categories"):
        med2vec_arm(runs / "med2vec", store, {"train": several})
    labels = tmp_path / "next.parquet"
    write_labels(labels, *build_labels(MedsDataset.open(world.meds), parse_task("next_visit_codes")))
    with pytest.raises(ConfigError, match="of binary tasks of its own store; got a multi-label task.*--med2vec"):
        compare([], world.store, labels, med2vec=runs / "med2vec")
    prepare(world.meds, tmp_path / "other", value_bins=3)
    with pytest.raises(RunError, match="med2vec was trained with another store"):
        load_med2vec(runs / "med2vec", TokenStore.open(tmp_path / "other"))


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_histories_are_pooled_over_their_visits_and_nothing_after_counts(world, runs, pooling):
    store = TokenStore.open(world.store)
    model, split = load_med2vec(runs / "med2vec", store), store.split("tuning")
    examples = Examples.whole_histories(split)
    whole = history_vectors(model, store, "tuning", examples, pooling=pooling)
    again = history_vectors(model, store, "tuning", examples, pooling=pooling, token_budget=600)
    assert np.allclose(whole, again, atol=1e-5, equal_nan=True)
    early = np.full(len(split), split.time[split.visit >= 0].min() - 1)
    before = history_vectors(
        model, store, "tuning", Examples(examples.index, early, None, examples.subject_id), pooling=pooling
    )
    assert np.isnan(before).all(), "no visit yet is no vector, and no zero"
    with pytest.raises(ConfigError, match="pooling of visits; got sum; expected mean, last, max"):
        history_vectors(model, store, "tuning", examples, pooling="sum")


def test_the_command_line(world, runs, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(item) for item in arguments])
        return result.exit_code, result.output, result.exception

    flags = ("--epochs", 1, "--device", "cpu", "--set", "loop.threads=1", "--set", "skipgram.code_dim=8")
    code, output, problem = run("pretrain", world.store, "--out", tmp_path / "run", "--model", "skipgram", *flags)
    assert code == 0, problem
    assert "floor: codes of a visit, unigram" in output
    *_, problem = run(
        "pretrain", world.store, "--out", tmp_path / "x", "--model", "med2vec", "--from", world.pretrained
    )
    assert "--model med2vec starts from nothing; got --from" in str(problem)
    *_, problem = run("pretrain", world.store, "--out", tmp_path / "y", "--from", runs / "med2vec")
    assert "holds a model of another family; got Med2Vec" in str(problem)
    *_, problem = run("finetune", world.store, world.labels, "--out", tmp_path / "z", "--from", runs / "med2vec")
    assert "--embeddings" in str(problem)
    assert not any((tmp_path / name).exists() for name in "xyz")
