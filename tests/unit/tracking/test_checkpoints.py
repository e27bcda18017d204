"""Checkpoints under full disks, kills and damage."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ehrsequencing.errors import CheckpointError, RunError
from ehrsequencing.tracking.checkpoints import load_checkpoint, save_together
from ehrsequencing.tracking.experiment import ExperimentTracker

NAMES = ("best_lora.pt", "best_model.pt", "latest.pt")


def state(epoch: int, size: int = 64) -> dict:
    return {"epoch": epoch, "model": {"weight": torch.full((size, 16), float(epoch))}, "rng": torch.get_rng_state()}


def save(tracker: ExperimentTracker, epoch: int, size: int = 64) -> None:
    tracker.save_state(state(epoch, size), is_best=True, lora_state={"lora_A": torch.full((2,), float(epoch))})


def epochs(run: Path) -> list[int]:
    latest, best = (load_checkpoint(run / "checkpoints" / name) for name in ("latest.pt", "best_model.pt"))
    adapter = load_checkpoint(run / "checkpoints" / "best_lora.pt")
    assert torch.equal(latest["model"]["weight"], torch.full_like(latest["model"]["weight"], latest["epoch"]))
    return [int(adapter["lora_A"][0]), best["epoch"], latest["epoch"]]


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(5, 4)).square().sum().backward()
    optimiser.step()
    tracker = ExperimentTracker("a", tmp_path)
    tracker.save_checkpoint(model, optimiser, 7, {"val_loss": torch.tensor(0.25)}, is_best=True)
    loaded = tracker.load_checkpoint(tracker.checkpoint_dir / "best_model.pt")
    assert loaded["epoch"] == 7 and loaded["metrics"] == {"val_loss": 0.25}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded["model"][name], tensor)
    torch.testing.assert_close(loaded["optimizer"], optimiser.state_dict(), rtol=0, atol=0)
    assert not (tracker.checkpoint_dir / "best_lora.pt").exists()


def test_an_adapted_model_also_gets_what_trains_alone(tmp_path):
    model = torch.nn.ModuleDict({"base": torch.nn.Linear(4, 4), "lora_A": torch.nn.Linear(4, 2, bias=False)})
    model["base"].weight.requires_grad = False
    tracker = ExperimentTracker("a", tmp_path)
    tracker.save_checkpoint(model, None, 0, {}, is_best=True)
    adapter = load_checkpoint(tracker.checkpoint_dir / "best_lora.pt")
    assert sorted(adapter) == ["base.bias", "lora_A.weight"]


def test_many_epochs_leave_three_files(tmp_path):
    tracker = ExperimentTracker("a", tmp_path)
    for epoch in range(40):
        tracker.save_state(state(epoch), is_best=epoch == 30, lora_state={"lora_A": torch.full((2,), float(epoch))})
    assert sorted(path.name for path in tracker.checkpoint_dir.iterdir()) == list(NAMES)
    assert epochs(tracker.run_dir) == [30, 30, 39]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.float64(1.0), "numpy.float64"), (np.zeros(2), "numpy.ndarray"), (Path("x"), "Path"), (object(), "object")],
)
def test_what_would_not_load_again_is_refused_when_it_is_saved(tmp_path, value, kind):
    tracker = ExperimentTracker("a", tmp_path)
    save(tracker, 0)
    with pytest.raises(CheckpointError, match=rf"latest\.loop\[1\]\.x.*{kind}"):
        tracker.save_state({"epoch": 1, "loop": [0, {"x": value}]}, is_best=False)
    assert epochs(tracker.run_dir) == [0, 0, 0]


def test_everything_that_is_accepted_loads(tmp_path):
    rich = {
        "epoch": 0,
        "plain": [None, True, 1, 2.5, "x", b"y", (1, 2)],
        3: torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "states": torch.nn.Linear(1, 1).state_dict(),
        "nan": float("nan"),
    }
    save_together({tmp_path / "a.pt": rich})
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert list(loaded) == list(rich) and loaded["plain"] == rich["plain"] and loaded[3] is torch.float16


class _FullDisk(io.FileIO):
    """A file on a disk with `room` bytes left."""

    room = 0

    def write(self, data):
        if len(data) > _FullDisk.room:
            super().write(bytes(data)[: _FullDisk.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _FullDisk.room -= len(data)
        return super().write(data)


@pytest.mark.parametrize("room", [0, 1_000, 9_000, 14_000])
def test_a_disk_that_fills_up_keeps_all_earlier_checkpoints(tmp_path, monkeypatch, room):
    tracker = ExperimentTracker("a", tmp_path)
    save(tracker, 0)
    _FullDisk.room = room
    plain_open = io.open

    def open_on_full_disk(file, mode="r", *args, **kwargs):
        return _FullDisk(file, mode.replace("b", "")) if mode == "wb" else plain_open(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", open_on_full_disk)
    monkeypatch.setattr(builtins, "open", open_on_full_disk)
    with pytest.raises(RunError, match=r"latest\.pt.*full disk.*earlier checkpoints are whole.*--resume"):
        save(tracker, 1)
    monkeypatch.undo()
    assert epochs(tracker.run_dir) == [0, 0, 0]
    assert sorted(path.name for path in tracker.checkpoint_dir.iterdir()) == list(NAMES)
    assert tracker.metadata["best_epoch"] == 0


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 512 KiB, where the machine lets one be mounted."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no mount here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_keeps_all_earlier_checkpoints(tiny_disk):
    tracker = ExperimentTracker("a", tiny_disk)
    save(tracker, 0)
    with pytest.raises(RunError, match="full disk"):
        save(tracker, 1, size=4000)
    assert epochs(tracker.run_dir) == [0, 0, 0]
    save(tracker, 2)
    assert epochs(tracker.run_dir) == [2, 2, 2]


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_kill_between_the_renames_is_finished_by_the_resume(tmp_path, monkeypatch, renames):
    tracker = ExperimentTracker("a", tmp_path)
    tracker.log_metrics({"val_loss": 2.0}, 0)
    save(tracker, 0)
    tracker.log_metrics({"val_loss": 1.0}, 1)
    done = []
    plain_replace = Path.replace

    def replace(self, target):
        if Path(target).suffix == ".pt":
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(Path(target).name)
        return plain_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    if renames < 3:
        with pytest.raises(KeyboardInterrupt):
            save(tracker, 1)
    else:
        save(tracker, 1)
    monkeypatch.undo()
    assert done == list(NAMES[:renames])
    tracker.close()
    resumed = ExperimentTracker("a", tmp_path, resume=True)
    adapter, best, latest = epochs(resumed.run_dir)
    # The best epoch on record, the best weights and the state to go on from always agree.
    assert best == latest == resumed.metadata["best_epoch"] == (1 if renames >= 2 else 0)
    assert adapter == (1 if renames >= 1 else 0)


# Forks a writer per line of input, so that torch is imported once; every writer is a process of its own.
WRITERS = """
import os, sys
import torch
from ehrsequencing.tracking.experiment import ExperimentTracker

for line in sys.stdin:
    writer = os.fork()
    if writer:
        os.waitpid(writer, 0)
        print("gone", flush=True)
        continue
    tracker = ExperimentTracker("a", sys.argv[1], resume=line.strip() == "resume")
    epoch = 0
    while True:
        weight = torch.full((160, 200), float(epoch))
        lora = {"lora_A": torch.full((2,), float(epoch))}
        tracker.save_state({"epoch": epoch, "model": {"weight": weight}}, is_best=epoch % 3 == 0, lora_state=lora)
        if epoch == 0:
            print(os.getpid(), flush=True)
        epoch += 1
"""


def test_a_killed_process_leaves_a_latest_that_loads(tmp_path):
    draw = random.Random(0)
    folder = tmp_path / "a" / "checkpoints"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    reached = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        bufsize=1,
    ) as writers:
        for start in ("new", *["resume"] * 4):
            writers.stdin.write(start + "\n")
            writer = int(writers.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.15))
            os.kill(writer, signal.SIGKILL)
            assert writers.stdout.readline() == "gone\n"
            latest = load_checkpoint(folder / "latest.pt")
            assert torch.equal(latest["model"]["weight"], torch.full((160, 200), float(latest["epoch"])))
            assert load_checkpoint(folder / "best_model.pt")["epoch"] % 3 == 0
            reached.append(latest["epoch"])
        writers.stdin.close()
    assert len(set(reached)) > 1
    tracker = ExperimentTracker("a", tmp_path, resume=True)
    assert [item["previous_status"] for item in tracker.metadata["resumed"]] == ["running"] * 5
    assert not list((tmp_path / "a").rglob(".*.partial-*"))


def test_a_missing_checkpoint_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(tmp_path / "latest.pt")


def test_damage_anywhere_is_found_or_harmless(tmp_path):
    path = tmp_path / "latest.pt"
    good = state(3, size=8)
    save_together({path: good})
    whole = path.read_bytes()
    draw = random.Random(0)
    damaged = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for _ in range(150):
        at = draw.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
    damaged += [b"not a checkpoint", b"PK\x03\x04" + whole[100:], whole[::-1]]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as problem:
            refused += 1
            assert str(path) in str(problem) and "\n" not in str(problem)
        else:
            torch.testing.assert_close(loaded, good, rtol=0, atol=0)
    assert refused > len(damaged) // 4


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"epoch": 0, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_file_without_a_state_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="Tensor"):
        load_checkpoint(tmp_path / "tensor.pt")
