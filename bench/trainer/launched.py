"""Runs a benchmark's module under torchrun, one process per rank."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def on_ranks(module: str, ranks: int, words: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of JSON that `python -m module --worker WORDS` prints on the ranks. Raises CalledProcessError."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", module, "--worker"]
    done = subprocess.run([sys.executable, "-m", *launch, *words], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
