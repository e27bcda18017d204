"""Fixtures of the trainings that the doctor is tried on."""

from tests.unit.diagnostics.clinic import adapted, clinic, healthy, slow

__all__ = ["adapted", "clinic", "healthy", "slow"]
