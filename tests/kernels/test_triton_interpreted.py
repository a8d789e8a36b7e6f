"""The common tests that interpreted.py names, for the Triton kernels under Triton's interpreter."""

from __future__ import annotations

import interpreted
import pytest

from capo_kernels import status

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.slow
@pytest.mark.skipif(status()["triton"] == "available", reason="Triton runs in this process: the common tests judge it")
@pytest.mark.parametrize(
    "shard", [pytest.param(name, marks=pytest.mark.xdist_group(f"interpreted-{name}")) for name in interpreted.SHARDS]
)
def test_the_common_tests_under_the_interpreter(shard: str) -> None:
    ended = interpreted.run(interpreted.SHARDS[shard])
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout
