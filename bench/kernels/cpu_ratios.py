"""`python -m bench.kernels.cpu_ratios`: loss and gradient on a CPU against an in-place multiply and eager torch.

Prints the processor, then the minimum and the median time of each call, and their ratios to those of the multiply, in
float32 at V = 151,936. Then it prints the ratio of eager to the loss out of place for every order of the calls. All
calls take turns in one process; the logits are restored before each. `--base FOLDER` adds another build of libcapo_cpu,
made by `python csrc/libraries.py FOLDER` in another checkout. Each number of tokens takes twice `--seconds`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from bench.kernels.bench_policy_loss import eager, in_place, multiply, out_of_place
from bench.kernels.problems import LogitsProblem
from bench.kernels.suites import Case
from bench.machine import processor
from capo_kernels.fused import native
from capo_kernels.fused.custom_ops import KERNELS

Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="a folder with another libcapo_cpu.so")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 128, 32])
    parser.add_argument("--seconds", type=float, default=15, help="per number of tokens (default: %(default)s)")
    options = parser.parse_args()
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for tokens in options.tokens:
        problem = LogitsProblem(Case("qwen2.5-0.5b", tokens, "float32", "ratios"), "cpu")
        ratios(problem, libraries(options.base), options.seconds)
        orderings(problem, options.seconds)


def libraries(base: Path | None) -> dict[str, native.CpuRows]:
    found = {"": native.CpuRows()}
    if base is not None:
        found[" (base)"] = native.CpuRows(base)
    return found


def ratios(problem: LogitsProblem, builds: dict[str, native.CpuRows], seconds: float) -> None:
    calls: dict[str, Call] = {"in-place multiply": multiply(problem)}
    for build, rows in builds.items():
        calls |= {
            f"{kind}, in place{build}": partial(on, rows, in_place("cpu", kind, problem))
            for kind in ("ppo", "ppo + entropy")
        }
        calls[f"ppo, out of place{build}"] = partial(on, rows, out_of_place("cpu", problem))
    taken = timed(problem, calls, list(calls), seconds)
    KERNELS["cpu"] = builds[""]
    bound = taken["in-place multiply"]
    print(f"\nT = {problem.tokens}: ms least, median; of the multiply's least, median ({len(bound)} rounds)")
    for name, times in taken.items():
        least, median = min(times), statistics.median(times)
        shares = f"{least / min(bound):6.2f} {median / statistics.median(bound):6.2f}"
        print(f"  {name:32}{least * 1e3:8.2f} {median * 1e3:8.2f} {shares}")


def orderings(problem: LogitsProblem, seconds: float) -> None:
    calls = {"ours": out_of_place("cpu", problem), "eager": eager(0.0, problem), "multiply": multiply(problem)}
    for order in itertools.permutations(calls):
        taken = timed(problem, calls, list(order), seconds / 6)
        least, median = (f(taken["eager"]) / f(taken["ours"]) for f in (min, statistics.median))
        print(f"  eager / out of place, {' -> '.join(order):28} least {least:5.2f}, median {median:5.2f}")


def on(rows: native.CpuRows, call: Call) -> object:
    KERNELS["cpu"] = rows
    return call()


def timed(
    problem: LogitsProblem, calls: Mapping[str, Call], order: list[str], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each call in each round after the first; at least three rounds."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + seconds
    while len(taken[order[0]]) < 4 or time.monotonic() < end:
        for name in order:
            problem.restore()
            start = time.perf_counter()
            result = calls[name]()
            taken[name].append(time.perf_counter() - start)
            del result
    return {name: times[1:] for name, times in taken.items()}


if __name__ == "__main__":
    main()
