"""Named hardware: the figures that a plan needs, each with its source."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from capo_fast.errors import ConfigError
from capo_fast.runlog.speed import PEAKS, peak_flops

GIB = 2**30
GEMMS, MEMORY, LINK = 0.3, 0.7, 0.7
"""[us] Fractions of the peak that a step reaches: in matrix products, in memory traffic, between devices. Published
runs on H100 reach 0.11 to 0.38 of the model FLOPs with recomputation, least with short sequences."""
FREE = 0.95
"""[us] Fraction of a device's memory that a plan may fill, because of fragmentation."""


@dataclass(frozen=True)
class Hardware:
    """One device, with its links and the devices per host."""

    name: str
    memory: float
    """Bytes of memory as PyTorch reports them"""
    bandwidth: float
    """Bytes per second of its memory"""
    link: float
    """Bytes per second to another device of the host, in one direction"""
    host_link: float
    """Bytes per second to the host's memory, in one direction"""
    network: float
    """Bytes per second of each device to other hosts, in one direction"""
    per_host: int
    """Devices in a host"""
    engine_step_s: float
    """[us] Seconds of overhead per engine step"""
    peaks: tuple[float, float]
    """FLOP/s in bfloat16 and in float32"""
    source: str

    @property
    def on_cpu(self) -> bool:
        return self.name == "cpu"

    def flops(self, dtype: str) -> float:
        return self.peaks[dtype == "float32"]


def find_hardware(name: str) -> Hardware:
    """Hardware by name; `cpu` is this machine, measured in a tenth of a second. Raises ConfigError."""
    if name == "cpu":
        return this_cpu()
    if name not in NVIDIA:
        raise ConfigError(f"--device: found {name}, wanted one of {', '.join([*NVIDIA, 'cpu'])}")
    return NVIDIA[name]


def this_cpu() -> Hardware:
    """This machine; its ranks share it (see `Job`)."""
    speed = copy_speed()
    narrow, wide = (peak_flops(dtype) or 0.0 for dtype in (torch.bfloat16, torch.float32))
    return Hardware("cpu", usable_memory(), speed, speed / 4, speed, 1e9, 64, 0.02, (narrow, wide), "measured here")


CGROUPS = Path("/sys/fs/cgroup")


def usable_memory() -> int:
    """Bytes of memory of this machine, or the limit of this process's cgroups, as in a container."""
    found = [psutil.virtual_memory().total]
    for file in _limit_files():
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(file.read_text()))
    return min(found)


def _limit_files() -> list[Path]:
    """The limit files of cgroups v2, from this process's up, and of a container's v1 cgroup."""
    lines: list[str] = []
    with suppress(OSError):  # exists only on Linux
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    inside = CGROUPS / own
    folders = [each for each in (inside, *inside.parents) if each.is_relative_to(CGROUPS)]
    return [*(folder / "memory.max" for folder in folders), CGROUPS / "memory/memory.limit_in_bytes"]


def copy_speed() -> float:
    """Bytes per second, read plus written, of a copy of 64 MiB; the best of four."""
    from time import perf_counter

    source, target, best = torch.ones(2**24), torch.empty(2**24), float("inf")
    for _ in range(4):
        start = perf_counter()
        target.copy_(source)
        best = min(best, perf_counter() - start)
    return 2 * source.nbytes / best


def _nvidia(
    name: str, key: str, gib: float, terabytes: float, link: float, host: float, network: float, source: str
) -> Hardware:
    bfloat16, float32 = PEAKS[key]
    peaks = bfloat16 * 1e12, float32 * 1e12
    speeds = terabytes * 1e12, link * 1e9, host * 1e9, network * 1e9
    return Hardware(name, gib * GIB, *speeds, 8, 0.002, peaks, source)


NVIDIA = {
    each.name: each
    for each in (
        _nvidia(
            *("h100", "H100", 79.1, 3.35, 450, 64, 50),
            "H100 SXM 80 GB data sheet: 3.35 TB/s, NVLink 900 GB/s both ways, PCIe Gen5 128 GB/s both ways; "
            "network: DGX H100, 400 Gb/s per GPU",
        ),
        _nvidia(
            *("h200", "H200", 139.8, 4.8, 450, 64, 50),
            "H200 SXM 141 GB data sheet: 4.8 TB/s, NVLink 900 GB/s both ways, PCIe Gen5 128 GB/s both ways; "
            "network: DGX H200, 400 Gb/s per GPU",
        ),
        _nvidia(
            *("a100", "A100", 79.1, 2.039, 300, 32, 25),
            "A100 SXM 80 GB data sheet: 2,039 GB/s, NVLink 600 GB/s both ways, PCIe Gen4 64 GB/s both ways; "
            "network: DGX A100, 200 Gb/s per GPU",
        ),
        _nvidia(
            *("l40s", "L40S", 44.4, 0.864, 32, 32, 12.5),
            "L40S data sheet: 48 GB, 864 GB/s, PCIe Gen4 64 GB/s both ways, no NVLink; network [us]: 100 Gb/s per GPU",
        ),
        _nvidia(
            *("rtx4090", "RTX 4090", 23.6, 1.008, 32, 32, 1.25),
            "RTX 4090 data sheet: 24 GB, 1,008 GB/s, PCIe Gen4 64 GB/s both ways, no NVLink; network [us]: 10 Gb/s",
        ),
    )
}
"""Memory is in GiB as PyTorch reports it; FLOP/s are from `runlog/speed.py`."""
