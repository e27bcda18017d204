"""What `ehrseq runs list` reads of runs whose trainings lie in arms."""

import pytest

from ehrsequencing.cli.main import main
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.runs import find_runs, read_run

ENTRY = {"value": 0.7, "low": 0.6, "high": 0.8}
ARMS = (("lora", "small-lora", 40, 2), ("pretrain", "small", 900, 5), ("scratch", "small-scratch", 1000, 3))


def training(folder, name, model, trainable, epochs, **facts):
    with ExperimentTracker(name, folder) as tracker:
        tracker.log_metadata({"parameters": {"trainable": trainable, "total": 1000}, **facts})
        for epoch in range(epochs):
            tracker.log_metrics({"val_loss": 1.0 - 0.1 * epoch}, epoch)
        tracker.save_summary({model: {"t/auroc": ENTRY}})
        tracker.set_status("completed")
    return folder / name


def demonstration(folder, models):
    """A run that trained nothing itself, over arms that did."""
    with ExperimentTracker("demo", folder) as tracker:
        for name, model, trainable, epochs in models:
            arm = training(tracker.run_dir / "arms", name, model, trainable, epochs, kind="finetune", task="onset")
            (arm / "adapter").mkdir()
            (arm / "adapter" / "weights").write_bytes(b"x" * trainable)
        tracker.log_metadata({"kind": "demo"})
        tracker.save_summary({"small-lora": {"t/auroc": ENTRY}, "small-scratch": {"t/auroc": ENTRY}}, best={})
        tracker.set_status("completed")
    return folder / "demo"


def test_a_demonstration_shows_what_trained_its_first_model(tmp_path, capsys):
    found = read_run(demonstration(tmp_path, ARMS))
    assert (found.model, found.kind, found.task) == ("small-lora", "demo", "onset")
    assert (found.trainable, found.total, found.epochs, found.trained_bytes) == (40, 1000, 2, 40)
    assert "parameters" not in found.metadata
    with pytest.raises(SystemExit) as stop:
        main(["runs", "list", str(tmp_path), "--form", "csv"])
    row = capsys.readouterr().out.splitlines()[1]
    assert stop.value.code == 0 and row.startswith("demo,demo,onset,completed") and ",40,2" in row
    assert sorted(one.path.name for one in find_runs(tmp_path, arms=True)) == ["demo", "lora", "pretrain", "scratch"]


def test_arms_that_are_not_the_models_own_lend_it_nothing(tmp_path):
    """None of that model, and two of it: no figure is better than another run's."""
    other = demonstration(tmp_path / "other", [("scratch", "small-scratch", 1000, 3)])
    twice = demonstration(tmp_path / "twice", [*ARMS, ("again", "small-lora", 50, 1)])
    for run in (other, twice):
        assert read_run(run).trainable is None and read_run(run).epochs == 0


def test_a_run_with_parameters_of_its_own_keeps_them(tmp_path):
    run = training(tmp_path, "run", "small-lora", 70, 4)
    training(run / "arms", "elsewhere", "small-lora", 1, 1)
    assert (read_run(run).trainable, read_run(run).epochs) == (70, 4)
