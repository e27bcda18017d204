"""The trackers at the path that the first users of the package import them from."""

from ehrsequencing.tracking.benchmark import BenchmarkTracker
from ehrsequencing.tracking.experiment import ExperimentTracker

__all__ = ["BenchmarkTracker", "ExperimentTracker"]
