"""Seconds of the cuda loss for each block shape of `CAPO_CUDA_SHAPE`: `python -m bench.gpu.shapes`.

Prints a line of JSON per shape: best and median time of calls in place, and the blocks of a launch, which is the number
that the GPU can hold at once. Without a GPU the same calls run on the CPU kernel, which has no shapes.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from bench.kernels.bench_policy_loss import in_place
from bench.kernels.clocks import CLOCKS
from bench.kernels.problems import LogitsProblem
from bench.kernels.suites import USUAL, Case

SHAPES = ("192x4", "192x5", "352x2")
REPEATS = 15


def main() -> None:
    device, impl = ("cuda", "cuda") if torch.cuda.is_available() else ("cpu", "cpu")
    case = Case("qwen2.5-7b", 4_096, "bfloat16", USUAL) if device == "cuda" else Case("toy", 64, "bfloat16", USUAL)
    call = in_place(impl, "ppo", LogitsProblem(case, device))
    clock = CLOCKS[device]()
    seconds: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(REPEATS + 1):  # interleaved, so that the GPU's clock rate is the same for all
        for shape, found in seconds.items():
            os.environ["CAPO_CUDA_SHAPE"] = shape
            found.append(clock.seconds(call))
    for shape, found in seconds.items():
        os.environ["CAPO_CUDA_SHAPE"] = shape
        line = {"shape": shape, "case": str(case), "best_s": min(found[1:]), "median_s": statistics.median(found[1:])}
        print(json.dumps(line | {"blocks": blocks_of(call) if device == "cuda" else None}), flush=True)


def blocks_of(call: Callable[[], object]) -> int | None:
    """Blocks of the row kernel's launch, from the profiler's trace."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        trace.export_chrome_trace(file.name)
        events = json.load(file)["traceEvents"]
    return next((event["args"]["grid"][0] for event in events if "stream_rows" in event["name"]), None)


if __name__ == "__main__":
    main()
