"""What a run shows while it trains and when it ends, and `summary.json`.

On a terminal: one line a step above one live row (bar, stage, rates, time left). Elsewhere: the lines alone.

    console = open_console(total_steps, rank)
    console.stage("rollout")              # each stage, as it starts
    console.step(1, metrics)              # each step, when it is done
    console.finish(summary, folder)       # the table of before and after
    console.close()                       # whatever happens: gives the terminal back

The live region is a single row on purpose: drawing it again never moves the cursor up, so what other libraries (vLLM,
also from C++) write straight to the terminal can share a line with it but is never overwritten.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as Terminal
from rich.live import Live
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text

from capo_fast.runlog.recorder import Metrics
from capo_fast.runtime.files import finite, json_line, replacing

RATES = {
    "pass_rate": ".3f",
    "reward_mean": ".3f",
    "wrong_step_rate": ".3f",
    "eval/pass@1": ".3f",
    "tokens_per_s": ".0f",
}
"""Shown in every line where the step has them."""
TROUBLES = ("critic/failed", "critic/out_of_range", "verify/timeouts", "groups/dropped", "updates_skipped")
"""Counts, shown only where they are not 0."""
REQUIRED = ("pass@1_before", "pass@1_after", "steps", "wall_seconds", "seconds_by_stage")
"""What every summary has."""

_BAR = 16


class Console:
    """Shows nothing: what every rank but 0 holds."""

    def stage(self, name: str) -> None:
        """A stage of the running step starts."""

    def step(self, step: int, metrics: Metrics) -> None:
        """Step `step` (the first is 1) is done."""

    def close(self) -> None:
        """Nothing more to show of the steps; gives the terminal back."""

    def finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Show before and after, the time by stage, and where everything lies."""


class LineConsole(Console):
    """One line a step, for a file or a pipe."""

    def __init__(self, total_steps: int, done: int = 0, out: Terminal | None = None) -> None:
        """`done`: steps behind a resumed run."""
        self._out = out or Terminal()
        self._total, self._done = total_steps, done
        self._pace: deque[float] = deque(maxlen=10)
        self._rates = ""

    def step(self, step: int, metrics: Metrics) -> None:
        self._done = step
        self._pace.append(math.fsum(seconds_by_stage([metrics]).values()))
        self._rates = " ".join(_fields(metrics))
        timing = f"seconds={self._pace[-1]:.1f} eta={self._eta()}"
        self._say(f"step {step}/{self._total} {self._rates} {timing}")

    def finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        self.close()
        self._out.print(_before_and_after(summary), _stages(summary))
        for line in _places(folder):
            self._say(line)

    def _say(self, line: str) -> None:
        self._out.print(Text(line), soft_wrap=True)  # Text: brackets in a path are no markup

    def _eta(self) -> str:
        """Time left at the mean pace of the last steps."""
        left = math.fsum(self._pace) / len(self._pace) * (self._total - self._done) if self._pace else None
        return "?" if left is None else _clock(left)


class LiveConsole(LineConsole):
    """The lines, and below them one row that lives."""

    def __init__(self, total_steps: int, done: int = 0, out: Terminal | None = None) -> None:
        super().__init__(total_steps, done, out)
        self._stage, self._since = "starting", time.monotonic()
        self._live = Live(
            get_renderable=self._row,
            console=self._out,
            refresh_per_second=2,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # `2> file` goes on going to the file
        )
        self._live.start()

    def stage(self, name: str) -> None:
        self._stage, self._since = name, time.monotonic()
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()

    def _row(self) -> Text:
        """The bar, the step in work, its stage and age, the last step's rates, the time left: cut to one row."""
        stage = f" {self._stage} {_clock(time.monotonic() - self._since)}"
        step = f" step {min(self._done + 1, self._total)}/{self._total}"
        filled = _BAR * self._done // max(self._total, 1)
        sign = "━" if self._out.encoding.startswith("utf") else "="
        row = Text(no_wrap=True, overflow="crop", end="")
        row.append(sign * filled, "green").append(sign * (_BAR - filled), "bright_black")
        row.append(step, "bold").append(stage, "cyan").append(f" eta={self._eta()} {self._rates}")
        return row


def open_console(total_steps: int, rank: int = 0, done: int = 0) -> Console:
    """The console that fits the rank and standard output. `done`: steps behind a resumed run."""
    if rank != 0:
        return Console()
    # FORCE_COLOR and its like make rich call any pipe a terminal: ask the file as well.
    live = Terminal().is_interactive and sys.stdout.isatty()
    return (LiveConsole if live else LineConsole)(total_steps, done)


def progress(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """Passes things on and shows on a terminal's standard error how far it is; gone at the end."""
    terminal = Terminal(stderr=True)
    quiet = not terminal.is_terminal
    return lambda things: track(things, escape(what), console=terminal, transient=True, disable=quiet)


def write_summary(folder: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write `summary.json`, whole or not at all. pass@1 is None where there was nothing to evaluate on."""
    if missing := [key for key in REQUIRED if key not in summary]:
        raise ValueError(f"the summary lacks {', '.join(missing)}")
    path = Path(folder) / "summary.json"
    with replacing(path) as file:
        file.write(json_line({key: finite(v) if isinstance(v, float) else v for key, v in summary.items()}))
    return path


def seconds_by_stage(lines: Iterable[Metrics]) -> dict[str, float]:
    """The `time/<stage>` of these lines of metrics, summed: over a whole file, a resumed run's earlier steps count."""
    total: dict[str, float] = {}
    for line in lines:
        for key, seconds in line.items():
            if key.startswith("time/") and seconds is not None:
                stage = key.removeprefix("time/")
                total[stage] = total.get(stage, 0.0) + seconds
    return total


def _fields(metrics: Metrics) -> list[str]:
    """`key=value` for the rates the step has, the critic's abstentions, and what went wrong."""
    numbers = {key: finite(value) for key, value in metrics.items()}
    fields = [f"{key}={numbers[key]:{form}}" for key, form in RATES.items() if numbers.get(key) is not None]
    if critiques := numbers.get("critic/critiques"):
        fields.append(f"critic/abstained={numbers.get('critic/abstained')}/{critiques}")
    return fields + [f"{key}={numbers[key]}" for key in TROUBLES if numbers.get(key)]


def _before_and_after(summary: Mapping[str, Any]) -> Table | Text:
    before, after = summary["pass@1_before"], summary["pass@1_after"]
    if before is None or after is None:
        return Text("pass@1 was not measured: there is no held-out data (eval.path)")
    problems = summary.get("heldout_problems")
    table = Table("", "before", "after", box=SIMPLE_HEAD)
    name = f"pass@1 on {problems} held-out problems" if problems else "pass@1"
    table.add_row(name, _with_error("pass@1_before", summary), _with_error("pass@1_after", summary))
    return table


def _with_error(key: str, summary: Mapping[str, Any]) -> str:
    """`0.300 +- 0.023`: the rate and its standard error; the binomial one unless the summary has `<key>_stderr`."""
    rate, problems = summary[key], summary.get("heldout_problems")
    error = summary.get(f"{key}_stderr")
    if error is None and problems:
        error = math.sqrt(rate * (1 - rate) / problems)
    return f"{rate:.3f}" if error is None else f"{rate:.3f} +- {error:.3f}"


def _stages(summary: Mapping[str, Any]) -> Table:
    """Seconds and share of each stage, the largest first; what no stage covers (start-up, the end) is `other`."""
    wall = summary["wall_seconds"]
    seconds = dict(summary["seconds_by_stage"])
    seconds["other"] = max(wall - math.fsum(seconds.values()), 0.0)
    table = Table("stage", box=SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = f"{summary['steps']} steps"
    table.add_column("time", _clock(wall), justify="right")
    table.add_column("share", justify="right")
    for stage, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{spent:.1f} s", f"{spent / wall:.0%}" if wall else "")
    return table


def _places(folder: Path) -> list[str]:
    """A line for each thing that the run has left."""
    names = ("metrics.jsonl", "rollouts", "checkpoints", "model", "summary.json")
    found = [f"{name:<14} {folder / name}" for name in names if (folder / name).exists()]
    return [f"{'run':<14} {folder}", *found, f"{'TensorBoard':<14} tensorboard --logdir {folder / 'tensorboard'}"]


def _clock(seconds: float) -> str:
    """`1:05`, `1:01:05`"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
