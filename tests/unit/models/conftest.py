"""Fixtures of the model tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Weights drawn in a test do not depend on the tests before it."""
    torch.manual_seed(0)
