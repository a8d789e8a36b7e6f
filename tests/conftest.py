"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
from capo_fast.runtime import ranks


@pytest.fixture
def one_rank():
    """A process group of one, as a run makes it."""
    with ranks():
        yield
