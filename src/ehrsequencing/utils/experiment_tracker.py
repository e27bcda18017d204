"""The trackers at the path that the first users of the package import them from."""

from ehrsequencing.tracking.experiment import ExperimentTracker, load_checkpoint

__all__ = ["ExperimentTracker", "load_checkpoint"]
