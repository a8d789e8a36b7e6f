"""Synthetic result files of `pytest bench/`, and readers of the tables made from them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import bench.report.__main__ as report
from bench.report.runs import Measured, machines, read_run

CASE = "qwen2.5-0.5b-512-float32"
LOGITS = 512 * 151_936 * 4


def entry(provider: str, *ms: float, bound: float | None = None, tokens: int = 512, **more: Any) -> dict[str, Any]:
    """A provider's entry in a result file. bound: its lower bound, ms."""
    median = statistics.median(ms)
    figures = {
        "kernel": "policy_loss",
        "provider": provider,
        "kind": "ppo",
        "less": "",
        "case": f"qwen2.5-0.5b-{tokens}-float32",
        "model": "qwen2.5-0.5b",
        "tokens": tokens,
        "hidden": 896,
        "vocab": 151_936,
        "dtype": "float32",
        "regime": "a usual micro-batch",
        "bytes_per_second": 2 * LOGITS / (1e-3 * median),
        "flops_per_second": 0.0,
        "share_of_bound": bound / median if bound else None,
        "hot_seconds": None,
        "host_seconds": None,
        "extra_bytes": 0,
        "error": 2.5e-7,
    }
    assert more.keys() <= figures.keys()
    return {"extra_info": figures | more, "stats": {"data": [1e-3 * each for each in ms]}}


BOUND = entry("in-place multiply", 10.0, bound=10.0, kind="bound", error=None)


def content(*entries: dict[str, Any], day: int = 1, **machine: Any) -> dict[str, Any]:
    about = {"suite": "cpu", "device": "2 cores of a CPU", "driver": None, "cuda": None, "threads": 2}
    return {
        "machine_info": about | {"versions": {"torch": "2.13.0"}} | machine,
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "benchmarks": list(entries),
        "datetime": f"2026-11-{day:02}T12:00:00+00:00",
    }


def write(folder: Path, name: str, found: Any) -> Path:
    path = folder / "results/cpu" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def make(folder: Path) -> tuple[str, str]:
    """The report page and the terminal output."""
    out = folder / "BENCHMARKS.md"
    lines = report.write_report(folder / "results", out)
    return out.read_text(), "\n".join(lines)


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """Cells by column by provider, from all tables with providers."""
    found, titles = {}, []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| provider"):
            titles = cells
        elif line.startswith("|") and titles and not line.startswith("| -"):
            found[cells[0]] = dict(zip(titles, cells, strict=True))
        elif not line:
            titles = []
    return found


def measured(*runs: dict[str, Any]) -> Measured:
    """The only case of these runs; the order of the runs is irrelevant."""
    (machine,) = machines([read_run(Path(f"cpu/{i}.json"), run) for i, run in enumerate(runs)])
    ((case,),) = machine.kernels().values()
    return case
