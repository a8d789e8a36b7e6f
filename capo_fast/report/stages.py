"""Time of the steps by stage: stacked bars, one chart per run, and totals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from capo_fast.report.charts import Series, as_json
from capo_fast.report.runs import Run
from capo_fast.runtime.files import finite

STAGES = {
    "rollout": "#3b82c4",
    "critique": "#dd7a2f",
    "learn": "#2c9c75",
    "eval": "#bf62a6",
    "sync": "#a88f14",
    "verify": "#7a70d6",
    "credit": "#b8556a",
    "checkpoint": "#2f9fbf",
}
OTHER_STAGE = "#87878f"
BARS = 100
"""Maximum number of bars in a chart of stage times."""


def stage_charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Stacked seconds of each step, one chart per run, all on one scale."""
    stacks = [_stack(run) for run in runs]
    highest = max((sum(times) for stack in stacks for times in zip(*stack[1].values(), strict=True)), default=0.0)
    return [
        as_json(
            f"Stage times, {run.name}", _stack_note(size), _stack_series(x, stack, place), top=highest * 1.05 or 1.0
        )
        for place, (run, (x, stack, size)) in enumerate(zip(runs, stacks, strict=True))
        if stack
    ]


def stage_names(runs: Sequence[Run]) -> list[str]:
    """All stages of the runs, the known ones first and in their order."""
    found = {
        key.removeprefix("time/") for run in runs for line in run.metrics for key in line if key.startswith("time/")
    }
    return [name for name in STAGES if name in found] + sorted(found - STAGES.keys())


def stage_seconds(run: Run) -> dict[str, float]:
    """Seconds of all steps by stage."""
    return {s: math.fsum(finite(line.get(f"time/{s}")) or 0.0 for line in run.metrics) for s in stage_names([run])}


def _stack(run: Run) -> tuple[list[float], dict[str, list[float]], int]:
    """The middle step of each bar, mean seconds by stage, and the steps per bar."""
    size = max(math.ceil(len(run.metrics) / BARS), 1)
    bars = [run.metrics[at : at + size] for at in range(0, len(run.metrics), size)]
    x = [(bar[0]["step"] + bar[-1]["step"]) / 2 for bar in bars]
    stages = stage_names([run])
    return (
        x,
        {s: [math.fsum(finite(n.get(f"time/{s}")) or 0.0 for n in bar) / len(bar) for bar in bars] for s in stages},
        size,
    )


def _stack_note(size: int) -> str:
    return "seconds per step" if size == 1 else f"seconds per step, a bar is the mean of {size} steps"


def _stack_series(x: Sequence[float], stack: dict[str, list[float]], place: int) -> list[Series]:
    return [Series(name, place, STAGES.get(name, OTHER_STAGE), "solid", x, seconds) for name, seconds in stack.items()]
