"""Fixtures that several test files share."""

from __future__ import annotations

import os

import forked
import pytest
import torch

from capo_fast.runtime.ranks import ranks

# Tensors are small and other processes use the same cores, so more threads only wait for each other. The variable is
# for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items) -> None:
    """Run files with slow tests first, so that neither of two processes is left with a long file at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def fork_server():
    """A process that has imported everything, from which others fork (tests/forked.py)."""
    forked.start_server()


@pytest.fixture
def one_rank():
    """A process group of one, like a run's."""
    with ranks():
        yield
