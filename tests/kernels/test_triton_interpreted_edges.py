"""The Triton kernels under Triton's interpreter: the other common tests that interpreted.py lists."""

from __future__ import annotations

import interpreted
import pytest

from capo_kernels import status

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.slow
@pytest.mark.skipif(status()["triton"] == "available", reason="Triton runs in this process: the common tests check it")
def test_the_common_tests_under_the_interpreter() -> None:
    interpreted.check(*sorted(interpreted.TESTS.keys() - {"test_against_float64"}))
