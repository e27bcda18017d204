"""Figures of a run in MLflow and TensorBoard, on this machine alone, also over a resumption."""

import json
import logging
import subprocess
import sys

import pytest

from ehrsequencing.errors import ConfigError
from ehrsequencing.tracking import mirrors
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.mirrors import Mirrors, check_mirrors

TWO_PROCESSES = """
import sys
from ehrsequencing.tracking.experiment import ExperimentTracker
out, resume, first, last = sys.argv[1], sys.argv[2] == "resume", int(sys.argv[3]), int(sys.argv[4])
tracker = ExperimentTracker("run", out, resume=resume, mirrors=[] if resume else sys.argv[5:])
if not resume:
    tracker.log_hyperparameters({"optim": {"lr": 0.001}})
else:
    tracker.truncate_history(first - 1)
for epoch in range(first, last):
    tracker.log_metrics({"val_loss": 10.0 * (1 + resume) + epoch, "bad": float("nan")}, epoch)
    tracker.save_state({"epoch": epoch}, is_best=True) if epoch < 2 else None
if not resume:
    import os
    os._exit(9)
tracker.set_status("completed")
"""


def two_processes(out, *names):
    """Three epochs, the last after its checkpoint; killed; taken up from epoch 2."""
    for arguments, code in ((["start", "0", "3"], 9), (["resume", "2", "4"], 0)):
        command = [sys.executable, "-c", TWO_PROCESSES, str(out), *arguments, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_one_run_in_a_local_file(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    two_processes(tmp_path, "mlflow")
    from mlflow.telemetry import get_telemetry_client
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(tmp_path.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run" and run.data.tags["status"] == "completed"
    assert run.data.params == {"optim.lr": "0.001"} and "bad" not in run.data.metrics
    history = {item.step: item.value for item in client.get_metric_history(run.info.run_id, "val_loss")}
    assert history == {0: 10.0, 1: 11.0, 2: 22.0, 3: 23.0}
    assert get_telemetry_client() is None
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_hides_what_was_done_again(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    two_processes(tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    seen.Reload()
    assert [(item.step, item.value) for item in seen.Scalars("val_loss")] == [(0, 10), (1, 11), (2, 22), (3, 23)]
    assert seen.Tags()["scalars"] == ["val_loss"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["wandb"], "a mirror of the run; got wandb; expected mlflow, mlflow=FILE or tensorboard"),
        (["tensorboard=x"], "got tensorboard=x"),
        (["mlflow="], "got mlflow="),
    ],
)
def test_what_is_no_mirror_is_refused_before_anything_is_written(tmp_path, asked, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentTracker("run", tmp_path, mirrors=asked)
    assert not any(tmp_path.iterdir())


def test_a_mirror_is_asked_for_once(monkeypatch):
    monkeypatch.setattr(mirrors, "PACKAGES", {"mlflow": (), "tensorboard": ()})
    with pytest.raises(ConfigError, match="asked for twice"):
        check_mirrors(["mlflow", "mlflow=a.db"])


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(mirrors, "PACKAGES", {"tensorboard": ("no_such_package",)})
    with pytest.raises(
        ConfigError, match=r"expected no_such_package. Remedy: pip install 'ehrsequencing\[tensorboard\]'"
    ):
        check_mirrors(["tensorboard"])


def test_a_mirror_that_fails_is_given_up_and_the_run_goes_on(tmp_path, caplog):
    """Its storage is full, say."""
    told = []

    class Full:
        def metrics(self, values, epoch):
            told.append(epoch)
            raise OSError("no space left")

        def hyperparameters(self, values):
            raise AssertionError("given up before")

        def close(self, status):
            raise AssertionError("given up before")

    found = Mirrors([], tmp_path, {}, -1)
    found._open["tensorboard"] = Full()
    with ExperimentTracker("run", tmp_path) as tracker, caplog.at_level(logging.WARNING):
        tracker._mirrors = found
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.log_metrics({"loss": 0.5}, 1)
        tracker.log_hyperparameters({"a": 1})
    assert told == [0] and "the mirror tensorboard is given up: OSError: no space left" in caplog.text
    assert len(json.loads((tmp_path / "run" / "logs" / "metrics_history.json").read_text())["loss"]) == 2
