"""Fixtures of the kernels' tests."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # makes helpers importable in every import mode of pytest

from implementations import implementations, implementations_but_reference, refusal


@pytest.fixture(scope="session", params=implementations())
def impl(request) -> str:
    """Each implementation that runs here (implementations.py)."""
    return request.param


@pytest.fixture(scope="session", params=implementations_but_reference())
def fused(request) -> str:
    """Each implementation that runs here except `reference`, for tests on logits that compare with `reference`."""
    return request.param


@pytest.fixture(scope="module", autouse=True)
def nan_in_new_tensors():
    """torch.empty is filled with NaN, so that entries that a kernel does not write show."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(config, items) -> None:
    """Deselects dtypes that an implementation does not support (test_kernel_contract.py)."""

    def is_supported(item) -> bool:
        params = getattr(item, "callspec", None) and item.callspec.params
        impl = params and params.get("impl", params.get("fused"))
        if not impl or "dtype" not in params or refusal(impl):
            return True
        return refusal(impl, params["dtype"]) is None

    deselected = [item for item in items if not is_supported(item)]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]
