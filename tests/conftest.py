"""Fixtures that several test files share."""

from __future__ import annotations

import os

import pytest
import torch

from capo_fast.runtime import ranks

# Small tensors, and other processes on the same cores: more threads only wait for each other. The variable is for the
# processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def one_rank():
    """A process group of one, as a run makes it."""
    with ranks():
        yield
