"""Seconds and bytes of one call, on a CPU and on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class CpuClock:
    """Wall-clock time, and the rise of the process's peak of resident memory (Linux)."""

    def seconds(self, call: Call, cold: bool = True) -> float:
        """`cold` has no effect: the work before each call reads or writes more than fits the caches."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def host_seconds(self, call: Call) -> float | None:
        """None: on a CPU the host's time is the time of the call."""

    def extra_bytes(self, call: Call) -> int:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak to the current resident memory
        before = _kilobytes("VmRSS")
        call()
        return max(_kilobytes("VmHWM") - before, 0) * 1024


def _kilobytes(key: str) -> int:
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1])


class CudaClock:
    """Events on the stream. The host gets a head start, as in a training step; its time is measured separately."""

    HEAD_START = 10_000_000
    """Cycles that the GPU idles before a call: about 5 ms, in which the host launches all kernels of the call."""

    def __init__(self) -> None:
        self.flush = torch.empty(512 << 20, dtype=torch.int8, device="cuda")  # ten times an H200's L2

    def seconds(self, call: Call, cold: bool = True) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if cold:
            self.flush.zero_()
        torch.cuda._sleep(self.HEAD_START)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def host_seconds(self, call: Call) -> float | None:
        """Seconds of the host to launch the call, while the GPU idles."""
        torch.cuda.synchronize()
        torch.cuda._sleep(self.HEAD_START)
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return seconds

    def extra_bytes(self, call: Call) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


CLOCKS = {"cpu": CpuClock, "cuda": CudaClock}
