"""A rank of bench/trainer/loading.py: loads as a run does; rank 0 prints the results of all ranks as JSON.

It runs with the code of any commit that has `load_learner`, so it imports nothing from bench/.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from capo_fast.config import load_config
from capo_fast.config.paths import resolve_model
from capo_fast.policy import loading
from capo_fast.runtime.ranks import gather, ranks

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TINY = "pkg://capo_fast.tiny/model"
RESET_PEAK = "5"
SAMPLED_S = 0.002


@dataclass
class Loaded:
    """Replaces the learner, whose optimizer would take memory that is not part of loading."""

    policy: Any
    reference: Any
    config: Any


def memory(key: str) -> int:
    """Bytes of an entry of /proc/self/status: VmRSS is the current resident set, VmHWM its peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


@contextmanager
def watched_peak() -> Iterator[list[int]]:
    """The list gets the block's peak of resident bytes: from the kernel, or sampled if its peak can't be reset."""
    found: list[int] = []
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        yield from _sampled(found)
        return
    yield found
    found.append(memory("VmHWM"))


def _sampled(found: list[int]) -> Iterator[list[int]]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLED_S):
            found[:] = [max(*found, memory("VmRSS"))]

    found.append(memory("VmRSS"))
    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()


def held_bytes(loaded: Loaded) -> int:
    """Bytes of this rank's shards of policy and reference."""
    modules = [each for each in (loaded.policy, loaded.reference) if isinstance(each, torch.nn.Module)]
    tensors = [each for module in modules for each in module.parameters()]
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in tensors)


def main() -> None:
    config = load_config(sys.argv[1:])
    path = resolve_model(config.model.path)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))  # imports its class
    loading.Learner = Loaded
    with ranks() as device:
        dist.barrier()  # connects the ranks
        loading.load_learner(resolve_model(TINY), config, device, [], swaps=False)  # imports everything else
        gc.collect()
        before, start = memory("VmRSS"), time.perf_counter()
        with watched_peak() as peak:
            loaded, _ = loading.load_learner(path, config, device, [], swaps=False)
        seconds = time.perf_counter() - start
        gc.collect()
        mine = {"peak": peak[0] - before, "after": memory("VmRSS") - before, "s": f"{seconds:.1f}"}
        found = gather([{"holds": held_bytes(loaded), **mine}])
        if dist.get_rank() == 0:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
