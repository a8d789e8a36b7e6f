"""Fixtures of the kernels' tests."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # lets tests import their helpers under every import mode of pytest

from implementations import judged, judged_by_reference, refusal


@pytest.fixture(scope="session", params=judged())
def impl(request) -> str:
    """Each implementation that runs here (implementations.py)."""
    return request.param


@pytest.fixture(scope="session", params=judged_by_reference())
def fused(request) -> str:
    """Each implementation that runs here but `reference`: for tests on logits, which compare with `reference`."""
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
        impl = params and params.get("impl", params.get("fused"))
        if not impl or "dtype" not in params or refusal(impl):
            return True
        return refusal(impl, params["dtype"]) is None

    left_out = [item for item in items if not taken(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
