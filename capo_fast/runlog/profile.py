"""A trace of one training step by torch.profiler (`train.profile`), in the run's folder.

<run>/profile/step_000003.json.gz    for Perfetto or chrome://tracing; stages are named capo/<stage>
<run>/profile/step_000003.txt        the operators that took longest
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from capo_fast.runtime.files import naming, replacing

ROWS = 40
"""Operators in the table."""


@contextmanager
def profiled(folder: Path, step: int, note: Callable[[str], None]) -> Iterator[None]:
    """Traces the block on this rank and writes both files; nothing is written if the block raises."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        yield
    trace = folder / "profile" / f"step_{step:06d}.json.gz"
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    with naming(trace):
        trace.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=trace.parent) as partial:
            profiler.export_chrome_trace(f"{partial}/{trace.name}")
            os.replace(f"{partial}/{trace.name}", trace)
    with replacing(trace.with_name(f"step_{step:06d}.txt")) as file:
        file.write(profiler.key_averages().table(sort_by=order, row_limit=ROWS).encode())
    note(f"step {step} is traced in {trace}")
