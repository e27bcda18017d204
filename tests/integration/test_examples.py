"""The example scripts, run as a newcomer would."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "pretrain_finetune"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True, check=True
    )


def status(run_folder: Path) -> str:
    return json.loads((run_folder / "metadata.json").read_text())["status"]


def test_random_mode_warns_and_stays_at_its_floor(tmp_path):
    done = run(
        "train_behrt_demo.py", "--num_patients", 200, "--epochs", 2, "--output_dir", tmp_path,
        "--experiment_name", "control",
    )  # fmt: skip
    assert "no model can beat the unigram floor" in done.stderr
    metrics = json.loads((tmp_path / "control" / "summary.json").read_text())["metrics"]
    own, floor = metrics["behrt-small"]["mlm/mlm_loss"]["value"], metrics["floor: unigram"]["mlm/mlm_loss"]["value"]
    assert own > floor - 0.02, "independent random codes cannot be predicted better than by their frequency"
    assert metrics["behrt-small"]["mlm/mlm_accuracy"]["value"] < 0.02, "what is shown unchanged does not count"


def refused(script: str, *arguments: object) -> str:
    """Run a script that must fail as the command line does; returns its last line."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_behrt_finetune.py", ["--embedding_path", "nope"], "nope holds no trained model"),
        ("train_behrt_finetune.py", ["--embedding_path", "x", "--model_size", "small"], "--model_size would have no"),
        ("train_behrt_demo.py", ["--lora_rank", "4"], "--lora_rank would have no effect"),
        ("train_behrt_demo.py", ["--experiment_name", "../../evil"], "the experiment name is no folder name"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, script, arguments, message):
    folder = tmp_path / "a" / "b"
    assert message in refused(script, "--output_dir", folder, "--num_patients", 50, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_corrected_retry_follows_a_failed_start(tmp_path):
    same = ("train_behrt_demo.py", "--output_dir", tmp_path, "--experiment_name", "x", "--epochs", 1)
    line = refused(*same, "--realistic_data", "--use_lora", "--num_patients", 20)
    assert "onset_heart_failure" in line or "I50" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-data"], "no pretraining for labels that fail"
    run(*same, "--num_patients", 100)
    assert status(tmp_path / "x") == "completed"
    assert "x holds a finished run" in refused(*same, "--num_patients", 100)


@pytest.mark.slow
def test_lora_pretrains_fully_then_adapts(tmp_path):
    run(
        "train_behrt_demo.py", "--realistic_data", "--use_lora", "--num_patients", 1500, "--epochs", 2,
        "--batch_size", 64, "--output_dir", tmp_path, "--experiment_name", "lora",
    )  # fmt: skip
    assert status(tmp_path / "lora") == "completed"
    assert status(tmp_path / "lora-pretrain") == "completed"
    assert (tmp_path / "lora" / "checkpoints" / "best_lora.pt").is_file()
    run(
        "train_behrt_finetune.py", "--realistic_data", "--use_lora", "--num_patients", 1500, "--epochs", 1,
        "--batch_size", 64, "--output_dir", tmp_path, "--experiment_name", "again",
        "--embedding_path", tmp_path / "lora-pretrain",
    )  # fmt: skip
    assert json.loads((tmp_path / "again" / "metadata.json").read_text())["from_run"].endswith("lora-pretrain")


def test_the_embedding_benchmark_runs_from_records_to_words(tmp_path):
    done = run(
        "benchmark_pretrained_embeddings.py", "--realistic_data", "--num_patients", 300, "--epochs", 1,
        "--batch_size", 8, "--output_dir", tmp_path, "--experiment_name", "vectors",
    )  # fmt: skip
    assert "vectors of a third party, frozen, are" in " ".join(done.stdout.split())
    assert len((tmp_path / "vectors/comparison/embeddings.md").read_text().splitlines()) == 8
