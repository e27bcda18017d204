"""Models side by side: directions, order, and results that survive a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ehrsequencing.errors import ConfigError, MetricError, RunError
from ehrsequencing.utils.experiment_tracker import BenchmarkTracker


def interval(value: float, half: float) -> dict:
    return {"value": value, "low": value - half, "high": value + half}


@pytest.fixture
def tracker(tmp_path):
    tracker = BenchmarkTracker("model_sizes", tmp_path)
    tracker.add_result("small", {"hf/auroc": interval(0.80, 0.03), "mlm/mlm_loss": 2.5}, parameters=500_000, seconds=60)
    tracker.add_result("large", {"hf/auroc": interval(0.82, 0.03), "mlm/mlm_loss": 2.1}, parameters=12_000_000)
    tracker.add_result("logistic", {"hf/auroc": interval(0.70, 0.03)}, seconds=2, seeds=[0, 1])
    return tracker


def test_the_best_model_knows_the_direction_of_each_metric(tracker):
    assert tracker.best_model("hf/auroc") == "large"
    assert tracker.best_model("mlm/mlm_loss") == "large"
    tracker.add_result("worse", {"mlm/mlm_loss": 9.0, "hf/auroc": 0.1})
    assert tracker.best_model("mlm/mlm_loss") == "large"
    with pytest.raises(MetricError, match="hf/auprc"):
        tracker.best_model("hf/auprc")


def test_the_table_is_ordered_by_the_first_metric(tracker):
    rows = tracker.comparison_table()
    assert [row["model"] for row in rows] == ["large", "small", "logistic"]
    assert rows[2] == {
        "model": "logistic",
        "hf/auroc": 0.70,
        "mlm/mlm_loss": None,
        "parameters": None,
        "seconds": 2.0,
        "bytes": None,
        "epoch": None,
    }


def test_a_table_of_losses_starts_with_the_lowest(tmp_path):
    tracker = BenchmarkTracker("a", tmp_path)
    for model, loss in (("b", 2.0), ("c", 1.0), ("d", 3.0)):
        tracker.add_result(model, {"val_error": {"value": loss, "higher_is_better": False}})
    assert [row["model"] for row in tracker.comparison_table()] == ["c", "b", "d"]


def test_an_unknown_direction_is_given_once_and_never_contradicted(tmp_path):
    tracker = BenchmarkTracker("a", tmp_path)
    with pytest.raises(MetricError, match="direction"):
        tracker.add_result("x", {"own": 1.0})
    tracker.add_result("x", {"own": {"value": 1.0, "higher_is_better": False}})
    tracker.add_result("y", {"own": 0.5})
    assert tracker.best_model("own") == "y"
    with pytest.raises(MetricError, match="contradicted"):
        tracker.add_result("z", {"own": {"value": 1.0, "higher_is_better": True}})
    with pytest.raises(MetricError, match="contradicted"):
        tracker.add_result("z", {"auroc": {"value": 1.0, "higher_is_better": False}})


@pytest.mark.parametrize("metrics", [{}, {"auroc": float("nan")}, {"auroc": None}, {"auroc": "0.8"}])
def test_what_is_no_figure_is_refused(tmp_path, metrics):
    tracker = BenchmarkTracker("a", tmp_path)
    with pytest.raises(MetricError):
        tracker.add_result("x", metrics)
    assert tracker.results == {} and not tracker.directory.exists()


def test_results_are_on_disk_after_each_and_a_second_start_goes_on(tracker, tmp_path):
    again = BenchmarkTracker("model_sizes", tmp_path)
    assert again.results == tracker.results == json.loads((tracker.directory / "benchmark.json").read_text())["results"]
    with pytest.raises(RunError, match="already"):
        again.add_result("small", {"hf/auroc": np.float64(0.9)})
    again.add_result("small", {"hf/auroc": np.float64(0.9)}, overwrite=True)
    assert BenchmarkTracker("model_sizes", tmp_path).best_model("hf/auroc") == "small"


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_results_are_refused(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "benchmark.json").write_text(content)
    with pytest.raises(RunError, match=r"benchmark\.json"):
        BenchmarkTracker("a", tmp_path)
    with pytest.raises(ConfigError):
        BenchmarkTracker("../a", tmp_path)


def test_the_report_is_markdown_with_intervals_best_models_and_a_plot(tracker):
    report = tracker.save_report()
    text = report.read_text()
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "AUROC (higher is better)" in table[0] and "Loss (nats) (lower is better)" in table[0]
    assert table[2].startswith("| large | **0.820 [0.790, 0.850]** | **2.100** | 12,000,000 | n/a |")
    assert "- AUROC: large, 0.820 [0.790, 0.850]. The intervals of small overlap with its own" in text
    assert "logistic overlap" not in text
    assert (tracker.directory / "plots" / "performance_vs_size.png").read_bytes().startswith(b"\x89PNG")
    assert "plots/performance_vs_size.png" in text


def test_hostile_names_do_not_break_the_table(tmp_path):
    tracker = BenchmarkTracker("a", tmp_path)
    tracker.add_result("x | y\n# $z <b>", {"auroc": 0.5}, parameters=10)
    table = [line for line in tracker.save_report().read_text().splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert table[2] == "| x \\| y # $z &lt;b> | 0.500 | 10 |"


def test_a_plot_needs_sizes_and_a_report_needs_results(tmp_path):
    tracker = BenchmarkTracker("a", tmp_path)
    with pytest.raises(MetricError, match="no results"):
        tracker.save_report()
    tracker.add_result("x", {"auroc": 0.5})
    with pytest.raises(MetricError, match="number of parameters"):
        tracker.plot_performance_vs_size("auroc")
    assert "plots/" not in tracker.save_report().read_text()
