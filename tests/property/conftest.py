"""Every property is tried from the same random state, whatever ran before it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Banks, heads and draws of a loss begin at torch's generator."""
    torch.manual_seed(0)
