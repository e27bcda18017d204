"""A run directory: its layout, its history, how it resumes and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ehrsequencing.errors import CheckpointError, ConfigError, MetricError, RunError
from ehrsequencing.utils.experiment_tracker import ExperimentTracker


def state(epoch: int) -> dict:
    return {"epoch": epoch, "model": {"weight": torch.full((4, 3), float(epoch))}}


def on_disk(run: Path, name: str = "metadata.json"):
    return json.loads((run / name).read_text())


def test_a_finished_run_has_the_layout_of_the_design(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    with ExperimentTracker("behrt_small_mlm", tmp_path) as tracker:
        tracker.log_hyperparameters({"lr": 1e-4, "out": Path("runs/x"), "betas": (0.9, np.float64(0.98))})
        for epoch in range(3):
            tracker.log_metrics({"train_loss": 7.0 - epoch, "val_loss": 7.5 - epoch, "val_accuracy": 0.1}, epoch)
            tracker.save_checkpoint(model, optimiser, epoch, {"val_loss": 7.5 - epoch}, is_best=True)
        tracker.save_state(state(3), is_best=True, lora_state={"lora_A": torch.zeros(2)})
        tracker.plot_training_curves()
        tracker.plot_confusion_matrix([0, 1, 1, 0], [0, 1, 0, 0], ["no", "yes"])
        tracker.save_summary({"behrt": {"mlm/mlm_loss": {"value": 4.5, "n": 900}}})
    files = {str(path.relative_to(tracker.run_dir)) for path in tracker.run_dir.rglob("*") if path.is_file()}
    assert files == {
        ".lock",
        "checkpoints/best_model.pt",
        "checkpoints/best_lora.pt",
        "checkpoints/latest.pt",
        "plots/loss_curve.png",
        "plots/accuracy_curve.png",
        "plots/confusion_matrix.png",
        "logs/metrics_history.json",
        "hyperparameters.json",
        "metadata.json",
        "summary.json",
        "SUMMARY.txt",
    }
    for plot in (tracker.run_dir / "plots").iterdir():
        assert plot.read_bytes().startswith(b"\x89PNG")
    assert on_disk(tracker.run_dir, "hyperparameters.json") == {"lr": 1e-4, "out": "runs/x", "betas": [0.9, 0.98]}
    assert on_disk(tracker.run_dir)["status"] == "completed"


def test_history_has_the_form_of_the_seeds(tmp_path):
    tracker = ExperimentTracker("a", tmp_path)
    tracker.log_metrics({"train_loss": 7.0}, epoch=0)
    tracker.log_metrics({"train_loss": torch.tensor(6.5), "val_loss": np.float32(6.75)}, epoch=1)
    assert on_disk(tracker.run_dir, "logs/metrics_history.json") == {
        "train_loss": [{"epoch": 0, "value": 7.0}, {"epoch": 1, "value": 6.5}],
        "val_loss": [{"epoch": 1, "value": 6.75}],
    }


def test_the_snippet_of_the_troubleshooting_guide_runs(tmp_path, monkeypatch):
    tracker = ExperimentTracker("behrt_large_mlm", tmp_path / "experiments")
    for epoch, value in enumerate([7.0, 15.32, float("nan")]):
        tracker.log_metrics({"train_loss": value, "val_loss": value}, epoch)
    monkeypatch.chdir(tmp_path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open("experiments/behrt_large_mlm/logs/metrics_history.json") as f:
        metrics = json.load(f)
    train_loss = [m["value"] for m in metrics["train_loss"]]
    val_loss = [m["value"] for m in metrics["val_loss"]]
    plt.plot(train_loss, label="Train")
    plt.plot(val_loss, label="Val")
    plt.legend()
    plt.xlabel("Epoch")
    plt.ylabel("Loss")
    plt.title("Loss Curves")
    plt.savefig("loss_analysis.png")
    plt.close()
    assert train_loss == [7.0, 15.32, None]
    assert Path("loss_analysis.png").stat().st_size > 1000


def test_a_loss_of_nan_is_recorded_as_null_with_a_note(tmp_path):
    tracker = ExperimentTracker("a", tmp_path)
    tracker.log_metrics({"train_loss": 7.0}, 0)
    tracker.log_metrics({"train_loss": float("nan"), "val_loss": float("inf")}, 1)
    assert on_disk(tracker.run_dir, "logs/metrics_history.json")["train_loss"][1] == {"epoch": 1, "value": None}
    assert on_disk(tracker.run_dir)["non_finite"] == [
        {"metric": "train_loss", "epoch": 1, "value": "nan"},
        {"metric": "val_loss", "epoch": 1, "value": "inf"},
    ]
    tracker.set_status("failed")
    assert "train_loss at epoch 1: nan" in (tracker.run_dir / "SUMMARY.txt").read_text()
    tracker.truncate_history(0)
    assert "non_finite" not in on_disk(tracker.run_dir)
    assert on_disk(tracker.run_dir, "logs/metrics_history.json") == {"train_loss": [{"epoch": 0, "value": 7.0}]}


@pytest.mark.parametrize("value", ["7", True, None, torch.zeros(2), [1.0]])
def test_what_is_no_number_is_refused_by_name(tmp_path, value):
    tracker = ExperimentTracker("a", tmp_path)
    with pytest.raises(MetricError, match="val_loss"):
        tracker.log_metrics({"train_loss": 1.0, "val_loss": value}, 0)
    assert tracker.history == {}


@pytest.mark.parametrize("epoch", [0, 1, -1, 1.0, True])
def test_an_epoch_is_logged_once_and_forwards(tmp_path, epoch):
    tracker = ExperimentTracker("a", tmp_path)
    tracker.log_metrics({"train_loss": 1.0}, 1)
    with pytest.raises(MetricError):
        tracker.log_metrics({"train_loss": 2.0}, epoch)
    tracker.log_metrics({"val_loss": 2.0}, 1)


def test_best_metrics_come_from_one_epoch(tmp_path):
    with ExperimentTracker("a", tmp_path) as tracker:
        for epoch, (loss, accuracy) in enumerate([(3.0, 0.2), (1.0, 0.3), (2.0, 0.9)]):
            tracker.log_metrics({"val_loss": loss, "val_accuracy": accuracy}, epoch)
            tracker.save_state(state(epoch), is_best=epoch < 2)
        tracker.save_summary({})
    best = on_disk(tracker.run_dir, "summary.json")["best"]
    assert best == {"epoch": 1, "metrics": {"val_loss": 1.0, "val_accuracy": 0.3}}


def test_an_existing_run_is_neither_overwritten_nor_mixed_with(tmp_path):
    ExperimentTracker("a", tmp_path).log_metrics({"train_loss": 7.0}, 0)
    with pytest.raises(RunError, match=r"--resume.*another name.*--overwrite"):
        ExperimentTracker("a", tmp_path)
    assert "train_loss" in on_disk(tmp_path / "a", "logs/metrics_history.json")


def test_an_empty_folder_and_what_a_failed_start_left_are_no_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / ".metadata.json.partial-0123abcd").write_text("{")
    assert ExperimentTracker("a", tmp_path).status == "running"


def test_overwriting_starts_anew_and_keeps_what_no_run_wrote(tmp_path):
    with ExperimentTracker("a", tmp_path) as first:
        first.log_metrics({"train_loss": 7.0}, 0)
        first.save_state(state(0), is_best=True, lora_state={"a": torch.zeros(1)})
    (tmp_path / "a" / "notes.md").write_text("mine")
    with ExperimentTracker("a", tmp_path, exist_ok=True) as second:
        assert second.history == {} and second.best() == {}
        assert not list((tmp_path / "a" / "checkpoints").iterdir())
    assert (tmp_path / "a" / "notes.md").read_text() == "mine"


def test_overwriting_refuses_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "a" / "model" / "weights").write_text("precious")
    with pytest.raises(RunError, match="no run directory"):
        ExperimentTracker("a", tmp_path, exist_ok=True)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "a",
        "a/model",
        "a/model/weights",
    ]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_name_is_one_folder(tmp_path, name):
    with pytest.raises(ConfigError):
        ExperimentTracker(name, tmp_path)


def test_resume_needs_a_run_and_excludes_overwriting(tmp_path):
    with pytest.raises(RunError, match="no run to resume"):
        ExperimentTracker("a", tmp_path, resume=True)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError):
        ExperimentTracker("a", tmp_path, resume=True, exist_ok=True)


def test_resume_after_a_kill_says_so_and_clears_what_was_half_written(tmp_path):
    killed = ExperimentTracker("a", tmp_path)
    killed.log_hyperparameters({"lr": 0.1})
    for epoch in range(3):
        killed.log_metrics({"train_loss": 7.0 - epoch}, epoch)
    partial = tmp_path / "a" / "checkpoints" / ".latest.pt.partial-0123abcd"
    partial.write_bytes(b"half")
    with ExperimentTracker("a", tmp_path, resume=True) as tracker:
        assert tracker.previous_status == "running"
        assert not partial.exists()
        tracker.truncate_history(0)
        tracker.log_metrics({"train_loss": 6.0}, 1)
    metadata = on_disk(tmp_path / "a")
    assert metadata["status"] == "completed"
    assert [item["previous_status"] for item in metadata["resumed"]] == ["running"]
    assert [item["epoch"] for item in tracker.history["train_loss"]] == [0, 1]
    assert on_disk(tmp_path / "a", "hyperparameters.json") == {"lr": 0.1}


@pytest.mark.parametrize("content", ["{", "[]", '{"status": "asleep"}'])
def test_damaged_metadata_is_refused(tmp_path, content):
    ExperimentTracker("a", tmp_path).close()
    (tmp_path / "a" / "metadata.json").write_text(content)
    with pytest.raises(RunError, match=r"metadata\.json"):
        ExperimentTracker("a", tmp_path, resume=True)


def test_a_run_in_use_by_another_process_is_refused(tmp_path):
    script = (
        "import sys; from ehrsequencing.tracking.experiment import ExperimentTracker\n"
        f"tracker = ExperimentTracker('a', {str(tmp_path)!r}); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as other:
        assert other.stdout.readline() == b"ready\n"
        for options in ({"resume": True}, {"exist_ok": True}):
            with pytest.raises(RunError, match="another process"):
                ExperimentTracker("a", tmp_path, **options)
        other.kill()
    assert ExperimentTracker("a", tmp_path, resume=True).previous_status == "running"


@pytest.mark.parametrize(
    ("problem", "status"),
    [(ValueError("no\nsuch column"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(2), "failed")],
)
def test_an_exception_becomes_the_final_status(tmp_path, problem, status):
    with pytest.raises(type(problem)), ExperimentTracker("a", tmp_path):
        raise problem
    metadata = on_disk(tmp_path / "a")
    assert metadata["status"] == status
    assert metadata["error"].startswith(type(problem).__name__) and "\n" not in metadata["error"]
    assert "ended" in metadata


def test_a_status_set_inside_stays(tmp_path):
    with ExperimentTracker("a", tmp_path) as tracker:
        tracker.set_status("early_stopped")
    assert on_disk(tmp_path / "a")["status"] == "early_stopped"
    with pytest.raises(ConfigError, match="done"):
        tracker.set_status("done")


def test_settings_and_metadata_that_json_cannot_hold_are_refused_by_place(tmp_path):
    tracker = ExperimentTracker("a", tmp_path)
    with pytest.raises(ConfigError, match=r"hyperparameters\.optim\.clip.*inf"):
        tracker.log_hyperparameters({"optim": {"clip": float("inf")}})
    with pytest.raises(ConfigError, match=r"metadata\.device.*object"):
        tracker.log_metadata({"device": object()})
    with pytest.raises(ConfigError, match="status"):
        tracker.log_metadata({"status": "completed"})
    tracker.log_metadata({"fingerprint": "abc"})
    assert on_disk(tmp_path / "a")["fingerprint"] == "abc"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"value": float("nan")}, "finite"),
        ({"value": None}, "no value"),
        ({"low": 0.1}, "no value"),
        ({"value": 0.5, "low": 0.6, "high": 0.4}, "reversed"),
        ({"value": 0.5, "higher_is_better": False}, "contradicted"),
        ({"value": 0.5, "median": 0.4}, "median"),
    ],
)
def test_a_summary_refuses_what_no_table_should_show(tmp_path, entry, message):
    tracker = ExperimentTracker("a", tmp_path)
    with pytest.raises(MetricError, match=message):
        tracker.save_summary({"behrt": {"hf/auroc": entry}})
    assert not (tmp_path / "a" / "summary.json").exists()
    with pytest.raises(MetricError, match="direction"):
        tracker.save_summary({"behrt": {"hf/own_score": {"value": 0.5}}})


def test_the_summary_text_names_status_metrics_best_epoch_and_settings(tmp_path):
    with ExperimentTracker("a", tmp_path) as tracker:
        tracker.log_hyperparameters({"optim": {"lr": 0.001}})
        tracker.log_metrics({"val_loss": 2.5}, 0)
        tracker.save_state(state(0), is_best=True)
        entry = {"value": 0.7, "low": 0.65, "high": 0.75, "n": 1200, "seeds": (0, 1)}
        tracker.save_summary({"behrt": {"hf/auroc": entry}}, notes=["few\npositives"])
    text = (tmp_path / "a" / "SUMMARY.txt").read_text()
    for expected in (
        r"Status +completed",
        r"hf/auroc +0\.700 \[0\.650, 0\.750\] +\(higher is better, n = 1,200\)",
        r"Best epoch: 0",
        r"val_loss +2\.5000",
        r"optim\.lr +0\.001",
        r"- few positives",
    ):
        assert re.search(expected, text), expected


def test_curves_need_a_loss_or_an_accuracy_and_leave_pyplot_alone(tmp_path):
    tracker = ExperimentTracker("$a_b", tmp_path)
    tracker.log_metrics({"learning_rate": 0.1}, 0)
    with pytest.raises(MetricError, match="no curve"):
        tracker.plot_training_curves()
    tracker.log_metrics({"val_$x_loss": float("nan"), "train_loss": 1.0}, 0)
    assert tracker.plot_training_curves() == [tmp_path / "$a_b" / "plots" / "loss_curve.png"]
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("true", "predicted"), [([], []), ([0], [0, 1]), ([2], [0]), ([0], [-1]), ([0.5], [0.0]), ([[0]], [[0]])]
)
def test_a_confusion_matrix_refuses_rows_without_a_class(tmp_path, true, predicted):
    with pytest.raises(MetricError):
        ExperimentTracker("a", tmp_path).plot_confusion_matrix(true, predicted, ["no", "yes"])


def test_a_checkpoint_state_names_its_epoch(tmp_path):
    tracker = ExperimentTracker("a", tmp_path)
    for wrong in ({"model": {}}, {"epoch": 1.0}, {"epoch": None}):
        with pytest.raises(CheckpointError, match="epoch"):
            tracker.save_state(wrong, is_best=False)


def test_the_trackers_import_without_torch_or_matplotlib():
    script = (
        "import sys; from ehrsequencing.utils.experiment_tracker import ExperimentTracker, BenchmarkTracker\n"
        "from ehrsequencing.tracking.report import write_report\n"
        "print(sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
