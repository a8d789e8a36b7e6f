"""Speed of a step on the devices of a run: tokens and FLOPs per second, utilisation, peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch

from capo_fast.rollout.generator import Batch
from capo_fast.runtime.stages import Lap

NO_TRAINING = ("eval", "checkpoint")
"""Stages left out of the speed of training."""
GEMM = 1024
"""Rows and columns of the matrices in the measurement of a CPU."""
PEAKS = {
    "B200": (2250.0, 75.0),
    "H200": (989.4, 66.9),
    "GH200": (989.4, 66.9),
    "H100 PCIe": (756.0, 51.2),
    "H100 NVL": (835.5, 60.0),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "RTX 4090": (165.2, 82.6),
}
"""Dense TFLOP/s in bfloat16 with float32 sums, and in float32 without TF32, by a part of the device's name; the longest
match is used. From NVIDIA's data sheet of each GPU, where figures "with sparsity" are twice the dense ones; for the RTX
4090 from the white paper of its architecture (Ada)."""


class Memory(NamedTuple):
    """Peak memory of one rank so far, GiB."""

    host: float
    """Resident memory of this process alone."""
    device: float | None
    """PyTorch's on the GPU; None without one. Includes vLLM's allocations through PyTorch."""

    @property
    def largest(self) -> float:
        """The GPU's memory; the host's without a GPU."""
        return self.host if self.device is None else self.device


def peak_memory() -> Memory:
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    device = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return Memory(host, device)


def training_seconds(lap: Lap) -> float:
    """Seconds of the step's training, without evaluation and checkpoint."""
    return sum(seconds for stage, seconds in lap.wall.items() if stage not in NO_TRAINING)


def speed_metrics(
    batch: Batch, lap: Lap, updates: Mapping[str, float], peak: float | None, devices: int, learning: int
) -> dict[str, float]:
    """Rates of a step.

    Tokens are prompts and responses of all rollouts, also of those that are not trained on. The critic's prompts and
    answers are apart. `updates`: the learner's own metrics, with the FLOPs of its passes. `peak`: FLOP/s of a device;
    None if unknown: then there is no utilisation. `devices`: of the job; `learning`: those that learn.
    """
    tokens = sum(each.prompt_tokens + each.tokens for each in batch.figures)
    critic = batch.traffic.critique_prompt_tokens + batch.traffic.critique_tokens
    seconds = devices * training_seconds(lap)
    metrics = {
        "speed/tokens_per_s_per_device": tokens / seconds,
        "speed/critic_tokens_per_s_per_device": critic / seconds,
    }
    if spent := learning * lap.wall.get("learn", 0.0):
        rate = updates.get("learn/flops", 0.0) / spent
        metrics["speed/tflops_per_device"] = rate / 1e12
        if peak is not None:
            metrics["speed/mfu"] = rate / peak
    return metrics


def memory_metrics(ranks: list[Memory]) -> dict[str, float]:
    """The largest values over the ranks."""
    device = [each.device for each in ranks if each.device is not None]
    return {"memory/host_gb": max(each.host for each in ranks)} | ({"memory/device_gb": max(device)} if device else {})


@cache
def peak_flops(dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of this rank's device in this dtype.

    For a GPU from `PEAKS`, None if it is not listed. For a CPU the best of four matrix products with this process's
    threads: some hundredths of a second, once.
    """
    if torch.cuda.is_available():
        return named_peak(torch.cuda.get_device_name(), dtype)
    a, b = (torch.ones(GEMM, GEMM, dtype=dtype) for _ in range(2))
    return 2 * GEMM**3 / min(_seconds(a, b) for _ in range(4))


def named_peak(device: str, dtype: torch.dtype) -> float | None:
    """
    >>> named_peak("NVIDIA H100 PCIe", torch.bfloat16), named_peak("Tesla T4", torch.float32)
    (756000000000000.0, None)
    """
    names = [name for name in PEAKS if name.lower() in device.lower()]
    return PEAKS[max(names, key=len)][dtype == torch.float32] * 1e12 if names else None


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - start
