"""A run killed with SIGKILL at random moments and resumed ends bit for bit like one that was never killed."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ehrsequencing.cli.main import main
from ehrsequencing.errors import CheckpointError, ConfigError

FLAGS = [
    "--epochs", "3", "--device", "cpu", "--set", "loop.token_budget=1024",
    "--set", "loop.threads=1", "--set", "loop.checkpoint_seconds=0", "--lr", "0.003",
]  # fmt: skip

SHORT = ["--set", "model.max_length=64"]


def command(verb: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "ehrsequencing", verb, *map(str, arguments)]


def uninterrupted(verb: str, *arguments: object) -> None:
    """The same command in this process, writing states once a minute: what a killed run must equal."""
    with pytest.raises(SystemExit) as ended:
        main([verb, *map(str, arguments), "--set", "loop.checkpoint_seconds=60"])
    assert not ended.value.code


def run_until_done(args: list[str], kills: list[float]) -> int:
    """Run to the end, killed and taken up as `run_and_kill` does; returns kills that struck."""
    struck = run_and_kill(args, kills)
    subprocess.run([*args, "--resume"], check=True, capture_output=True)
    return struck


def run_and_kill(args: list[str], kills: list[float]) -> int:
    """Run, killing the process after each of the given delays past its first checkpoint; returns kills that struck."""
    struck = 0
    out = Path(args[args.index("--out") + 1])
    for delay in kills:
        process = subprocess.Popen([*args, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = (out / "checkpoints" / "latest.pt").stat().st_mtime_ns if struck else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            latest = out / "checkpoints" / "latest.pt"
            if latest.exists() and latest.stat().st_mtime_ns > before:
                time.sleep(delay)
                break
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            struck += 1
        process.wait()
    return struck


def same_run(a: Path, b: Path) -> None:
    first, second = load_file(a / "model" / "model.safetensors"), load_file(b / "model" / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    history = [json.loads((run / "logs" / "metrics_history.json").read_text()) for run in (a, b)]
    assert history[0] == history[1]
    traces = [json.loads((run / "logs" / "trace.json").read_text())["rows"] for run in (a, b)]
    for row in (*traces[0], *traces[1]):
        del row["seconds"], row["waiting_seconds"]
    assert traces[0] == traces[1]


def test_pretraining_killed_and_resumed_is_bit_identical(world, tmp_path):
    generator = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted("pretrain", world.store, "--out", whole, *SHORT, *FLAGS)
    struck = run_until_done(
        command("pretrain", world.store, "--out", killed, *SHORT, *FLAGS), [generator.uniform(0, 0.6) for _ in range(3)]
    )
    assert struck >= 1, "no kill struck a running process, so nothing was tested"
    same_run(whole, killed)
    assert json.loads((killed / "metadata.json").read_text())["status"] in ("completed", "early_stopped")


def test_lora_killed_and_resumed_is_bit_identical(world, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = (world.store, world.labels, "--from", world.pretrained, "--method", "lora")
    uninterrupted("finetune", *arguments, "--out", whole, *FLAGS)
    struck = run_until_done(command("finetune", *arguments, "--out", killed, *FLAGS), [0.05, 0.3])
    assert struck >= 1
    same_run(whole, killed)


def test_resuming_with_other_options_or_data_is_refused(world, tmp_path):
    from ehrsequencing.config import PretrainConfig, load_config
    from ehrsequencing.data.prepare import prepare
    from ehrsequencing.training.pretrain import pretrain
    from tests.integration.conftest import TINY

    config = load_config(PretrainConfig, overrides={**TINY, "loop.epochs": 1})
    pretrain(world.store, tmp_path / "run", config)
    with pytest.raises(ConfigError, match=r"loop\.epochs \(1 -> 5\)"):
        pretrain(
            world.store,
            tmp_path / "run",
            load_config(PretrainConfig, overrides={**TINY, "loop.epochs": 5}),
            resume=True,
        )
    prepare(world.meds, tmp_path / "other", value_bins=3)
    with pytest.raises(CheckpointError, match="was started with another store"):
        pretrain(tmp_path / "other", tmp_path / "run", config, resume=True)
