"""Resources of the compiled CUDA row kernels: registers, stack and instructions per element of each variant.

They are counted in the built library with the cuobjdump of the Triton wheel; no GPU is needed.

    python -m bench.kernels.cuda_resources                 # the table, and the share of the bound that follows
    python -m bench.kernels.cuda_resources --keep          # also writes cuda_resources.txt, which a test compares
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench.kernels.sass import Kernel, Loop, kernels

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "kernels/capo_kernels/lib/libcapo_cuda.so"
KEPT = Path(__file__).with_suffix(".txt")

DTYPES = ("float32", "bfloat16", "float16")
RESULTS = {"Loss": "loss", "Logprobs": "logprobs", "Slopes": "dlogits"}
NAME = re.compile(r"stream_rows\w*5ShapeILi(\d)EEELi(\d)ELb(\d)ELb(\d)ENS\w*_\d+(Loss|Logprobs|Slopes)E")

WARP, SCHEDULERS, MULTIPROCESSORS = 32, 4, 132
CLOCKS = 1.75e9, 1.95e9
"""Hz, the range of an H100's or H200's clock rate."""
MEMORY = {"H100": 3.0e12, "H200": 4.3e12}
"""Bytes per second of a copy."""


class Variant(NamedTuple):
    kernel: str
    dtype: str
    rows: str
    """even: whole aligned vectors; any; softcap."""
    shape: str
    """Consumers x vectors per consumer."""
    registers: int
    stack: int
    """Bytes per thread, at least the spilled registers."""
    sums: float
    """Instructions per element of the pass for the sums, in full chunks."""
    gradient: float
    """Instructions per element of the gradient; 0 if the kernel has none."""
    entropy: float
    """Instructions per element of the gradient with an entropy term."""
    row: int
    """Instructions per thread and row outside full chunks, including a last chunk that is not full."""

    @property
    def name(self) -> str:
        return " ".join(self[:4])


def variants(library: Path = LIBRARY) -> list[Variant]:
    cuobjdump, shapes = _cuobjdump(), _shapes()
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", library], capture_output=True, text=True, check=True)
    sass = subprocess.run([cuobjdump, "-sass", library], capture_output=True, text=True, check=True)
    used = {name: rest for name, rest in re.findall(r"Function (\w+):\n\s*(REG:.*)", usage.stdout)}
    found = [(match, name, kernel) for name, kernel in kernels(sass.stdout).items() if (match := NAME.search(name))]
    return sorted(_variant(match, kernel, used[name], shapes) for match, name, kernel in found)


def table(rows: list[Variant]) -> str:
    texts = [Variant._fields, *(tuple(map(_text, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts) + "\n"


def kept() -> list[Variant]:
    """The committed table."""
    lines = KEPT.read_text(encoding="utf-8").splitlines()[1:]
    return [Variant(*line.split()[:4], *map(float, line.split()[4:])) for line in lines]  # type: ignore[arg-type]


def issue_share(variant: Variant, vocab: int, blocks: int, item: int, bandwidth: float, clock: float) -> float:
    """Time to issue a row's instructions over the time to read and write it; above 1: bound by instructions."""
    consumers, per_thread = map(int, variant.shape.split("x"))
    width = 16 // item
    full = vocab // width // blocks // (consumers * per_thread)
    instructions = variant.row + full * per_thread * width * (variant.sums + variant.gradient)
    cycles = blocks * instructions * consumers / WARP / SCHEDULERS / MULTIPROCESSORS
    return cycles / clock / ((2 if variant.gradient else 1) * vocab * item / bandwidth)


def _cuobjdump() -> str:
    import triton

    return triton.knobs.nvidia.cuobjdump.path


def _shapes() -> list[str]:
    source = (ROOT / "csrc/cuda_device.cuh").read_text(encoding="utf-8")
    listed = re.search(r"SHAPES\[\d\]\[2\] = \{(.*)\};", source)
    assert listed
    return [f"{consumers}x{vectors}" for consumers, vectors in re.findall(r"\{(\d+), (\d+)\}", listed[1])]


def _variant(match: re.Match[str], kernel: Kernel, usage: str, shapes: list[str]) -> Variant:
    shape, dtype, softcap, even, result = match.groups()
    rows = "softcap" if softcap == "1" else "even" if even == "1" else "any"
    name = shapes[int(shape)]
    width = 4 if dtype == "0" else 8
    loops = [loop for loop in kernel.loops if loop.computes]
    around = loops.pop()
    chunks = [loop for loop in loops if not any(loop.blocks < other.blocks for other in loops)]
    sums = [loop for loop in chunks if _has(kernel, loop, "SYNCS.PHASECHK")]
    writing = [loop for loop in chunks if _has(kernel, loop, "STG")]
    costs = sorted(_cost(loop, loops, width, int(name.split("x")[1])) for loop in writing)
    registers, stack = (int(value) for value in re.findall(r"(?:REG|STACK):(\d+)", usage))
    return Variant(
        RESULTS[result], DTYPES[int(dtype)], rows, name, registers, stack,
        min(_cost(loop, loops, width, int(name.split("x")[1])) for loop in sums),
        costs[0] if costs else 0.0, costs[-1] if costs else 0.0, around.path.instructions,
    )  # fmt: skip


def _has(kernel: Kernel, loop: Loop, name: str) -> bool:
    return any(each.name.startswith(name) for block in loop.blocks for each in kernel.blocks[block])


def _cost(loop: Loop, loops: list[Loop], width: int, per_thread: int) -> float:
    """Instructions per element. If an inner loop takes a chunk's vectors one by one, the sum of its instructions and of
    its share of the chunk's."""
    inside = [other for other in loops if other.blocks < loop.blocks]
    if loop.path.loads or not inside:
        return round(loop.path.instructions / (max(loop.path.loads, 1) * width), 2)
    one = max(inside, key=lambda other: other.path.rank)
    return round(
        one.path.instructions / (max(one.path.loads, 1) * width) + loop.path.instructions / (per_thread * width), 2
    )


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _shares(rows: list[Variant], vocab: int = 152064) -> str:
    lines = [f"instructions' time over memory's, bfloat16, V = {vocab}, even rows, a prediction (1.95 to 1.75 GHz):"]
    for row in rows:
        if row.dtype == "bfloat16" and row.rows == "even" and row.kernel in ("loss", "logprobs"):
            of = {
                device: [issue_share(row, vocab, 4, 2, speed, clock) for clock in reversed(CLOCKS)]
                for device, speed in MEMORY.items()
            }
            shares = ", ".join(f"{device} {low:.2f} to {high:.2f}" for device, (low, high) in of.items())
            lines.append(f"  {row.kernel} {row.shape}: {shares}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, nargs="?", default=LIBRARY)
    parser.add_argument("--keep", action="store_true", help=f"write the table to {KEPT.name}")
    options = parser.parse_args()
    rows = variants(options.library)
    print(table(rows))
    print(_shares(rows))
    if options.keep:
        KEPT.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
