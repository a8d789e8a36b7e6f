"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from capo_fast.runtime import start_ranks


@pytest.fixture
def one_rank():
    """A process group of one, as a run makes it."""
    start_ranks()
    yield
    dist.destroy_process_group()
