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
        "train_behrt_finetune.py", "--realistic_data", "--num_patients", 1500, "--epochs", 1, "--batch_size", 64,
        "--output_dir", tmp_path, "--experiment_name", "again", "--embedding_path", tmp_path / "lora-pretrain",
    )  # fmt: skip
    assert json.loads((tmp_path / "again" / "metadata.json").read_text())["from_run"].endswith("lora-pretrain")
