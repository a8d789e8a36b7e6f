"""Our losses against TRL's and Liger's on two ranks with different batches, and a head under FSDP2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trl_world import SETTINGS, save_model

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each rank."""
    folder, script = tmp_path_factory.mktemp("ranks"), Path(__file__).parent / "adapter_ranks.py"
    model, out = save_model(folder / "model"), folder / "rank"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), model, str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}  # covering.py
    subprocess.run([sys.executable, *command], check=True, timeout=300, env=environment)
    return [json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in range(2)]


def test_trl_under_ddp(found: list[dict[str, Any]]) -> None:
    for setting, *ranks in zip(SETTINGS, *(each["trl"] for each in found), strict=True):
        assert ranks[0]["grad"] == ranks[1]["grad"]
        for rank in ranks:
            assert rank["setting"] == str(setting)
            assert all(rank[name] < TOLERANCE for name in ("loss", "gradient", "metrics")), setting


def test_liger_divides_by_the_tokens_of_all_ranks(found: list[dict[str, Any]]) -> None:
    for each in found:
        for ours, theirs in each["liger"]:
            difference = torch.tensor(ours) - torch.tensor(theirs)
            assert difference.norm() < TOLERANCE * torch.tensor(theirs).norm()


def test_a_head_that_is_an_fsdp2_unit(found: list[dict[str, Any]]) -> None:
    """A sharded head is refused by name. After the call that the message names, gradients are the mean over ranks."""
    for each in found:
        assert re.match(r"weight: got a DTensor, want a plain tensor \(FSDP2: .*unshard\(\)", each["head"]["message"])
        assert len(each["head"]["errors"]) == 8 and max(each["head"]["errors"]) < 1e-6
