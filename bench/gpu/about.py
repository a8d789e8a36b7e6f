"""Prints machine, driver and versions as a line of JSON: `python -m bench.gpu.about`."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import torch

import capo_kernels as ck
from bench.machine import about

FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,memory.total,temperature.gpu"


def nvidia_smi() -> dict[str, str]:
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader"], capture_output=True, text=True
    )
    first = done.stdout.splitlines()[:1]
    return dict(zip(FIELDS.split(","), first[0].split(", "), strict=True)) if first else {"error": done.stderr}


def device() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    found = torch.cuda.get_device_properties(0)
    return {
        "capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "memory_bytes": found.total_memory,
    }


if __name__ == "__main__":
    here = about(torch.get_num_threads()) | {"cuda": torch.version.cuda, "kernels": ck.status()}
    print(json.dumps({"part": "about", **here, "gpu": nvidia_smi(), **device()}), flush=True)
