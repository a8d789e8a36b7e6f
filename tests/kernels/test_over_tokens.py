"""The kernels over T against PyTorch: credit, sums over sequences, and sums of the results."""

from __future__ import annotations

import over_tokens
import pytest


@pytest.mark.parametrize("check", over_tokens.CHECKS, ids=lambda check: check.__name__)
def test_over_tokens(check, fused: str) -> None:
    check(fused)
