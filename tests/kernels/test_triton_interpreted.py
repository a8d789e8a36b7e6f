"""The Triton kernels under Triton's interpreter: the comparison with float64."""

from __future__ import annotations

import interpreted
import pytest

from capo_kernels import status

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.slow
@pytest.mark.skipif(status()["triton"] == "available", reason="Triton runs in this process: the common tests check it")
def test_the_common_tests_under_the_interpreter() -> None:
    interpreted.check("test_against_float64")
