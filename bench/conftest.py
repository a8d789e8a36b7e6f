"""`pytest bench/`: the suite for this machine. Options: --suite cuda | cpu | dry, --time-limit SECONDS, --figures FILE.

The providers of a case are timed in turns by bench/kernels/clocks.py (on a GPU: events). pytest-benchmark gets a clock
that replays the measured seconds, for its tables, comparisons and JSON.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import capo_kernels as ck
from bench.kernels.measure import Bench, Provider, Unavailable
from bench.kernels.suites import SUITES, Case
from capo_fast.runtime.software import versions

PACKAGES = ("torch", "triton", "liger-kernel", "trl", "transformers", "flash-attn", "quack-kernels", "numpy")


class Playback:
    """The clock for pytest-benchmark, which reads it twice per round."""

    def __init__(self) -> None:
        self._times: Iterator[float] = iter(())

    def load(self, seconds: list[float]) -> None:
        self._times = iter([time for each in seconds for time in (0.0, each)])

    def __call__(self) -> float:
        return next(self._times)


PLAYBACK = Playback()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("capo")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.addoption("--suite", default=default, choices=SUITES, help="default: %(default)s")
    group.addoption("--time-limit", type=float, metavar="SECONDS", help="start no case after this time")
    group.addoption("--figures", type=Path, metavar="FILE", help="append a line of JSON per provider after each case")


def pytest_configure(config: pytest.Config) -> None:
    config.started = time.monotonic()
    if results := config.option.benchmark_json:  # pytest-benchmark fails at the end if the folder is missing
        Path(getattr(results, "name", results)).parent.mkdir(parents=True, exist_ok=True)  # before 5.2 it is a file


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = SUITES[metafunc.config.option.suite].cases[metafunc.module.KERNEL]
    metafunc.parametrize("case", cases, ids=str, scope="module")
    metafunc.parametrize("provider", metafunc.module.PROVIDERS, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=PLAYBACK))


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest, case: Case) -> Bench:
    """The case, with the measurements of all selected providers."""
    options, module = request.config.option, request.module
    if options.time_limit and time.monotonic() - request.config.started > options.time_limit:
        pytest.skip(f"{case}: not started within the time limit of {options.time_limit:g} s")
    suite = SUITES[options.suite]
    problem = module.Problem(case, suite.device)
    bench = Bench(module.KERNEL, case, suite, problem, module.cost(problem))
    params = [item.callspec.params for item in request.session.items if item.module is module]
    bench.run([each["provider"] for each in params if each["case"] is case])
    if options.figures:
        write_figures(bench, options.figures)
    return bench


def write_figures(bench: Bench, file: Path) -> None:
    """Appends the measurement or the error of each provider."""
    with file.open("a", encoding="utf-8") as lines:
        for provider, found in bench.found.items():
            if isinstance(found, Exception):
                line = {"kernel": bench.kernel, "case": str(bench.case), "provider": provider.name, "error": str(found)}
            else:
                line = bench.figures(provider) | {"seconds": found.median}
            lines.write(json.dumps(line) + "\n")


@pytest.fixture
def record(benchmark, measured: Bench, provider: Provider):
    """Passes a provider's measurement to pytest-benchmark; skips or fails with the exception if there is none."""

    def run() -> None:
        found = measured.found[provider]
        if isinstance(found, Unavailable | torch.OutOfMemoryError):
            pytest.skip(f"{provider.name}: {str(found).splitlines()[0]}")
        if isinstance(found, Exception):
            raise found
        benchmark.group = f"{measured.kernel} {measured.case}"
        benchmark.extra_info.update(measured.figures(provider))
        PLAYBACK.load(found.seconds)
        benchmark.pedantic(lambda: None, rounds=len(found.seconds))

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Replaces the host's name by the device and the versions."""
    suite = config.option.suite
    for key in ("node", "release", "python_build"):
        machine_info.pop(key, None)
    machine_info |= {
        "suite": suite,
        "device": torch.cuda.get_device_name() if SUITES[suite].device == "cuda" else _processor(machine_info),
        "driver": _driver() if SUITES[suite].device == "cuda" else None,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "kernels": ck.status(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
    }


def _processor(machine_info: dict) -> str:
    cpu = machine_info.get("cpu", {})
    return f"{cpu.get('count', '?')} cores of {cpu.get('brand_raw', platform.machine())}"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
