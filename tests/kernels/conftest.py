"""Fixtures of the kernels' tests."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # lets tests import their helpers under every import mode of pytest

from implementations import judged, refusal


@pytest.fixture(scope="session", params=judged())
def impl(request) -> str:
    """Each implementation that runs here (implementations.py)."""
    return request.param


@pytest.fixture(scope="module", autouse=True)
def nan_in_new_tensors():
    """torch.empty is full of NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(config, items) -> None:
    """Leaves out what an implementation that runs here doesn't take: its narrow dtypes (test_kernel_contract.py)."""

    def taken(item) -> bool:
        params = getattr(item, "callspec", None) and item.callspec.params
        if not params or not {"impl", "dtype"} <= params.keys() or refusal(params["impl"]):
            return True
        return refusal(params["impl"], params["dtype"]) is None

    left_out = [item for item in items if not taken(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
