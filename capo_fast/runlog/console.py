"""Console output of a run, an evaluation or a report: plain lines, and one live row on a terminal.

    console = open_console(total_steps, rank)
    console.stage("rollout")              # each stage, as it starts
    console.step(1, metrics)              # each step, when it is done
    console.close()                       # always: restores the terminal
    console.finish(summary, folder)       # the tables of before and after and of the time by stage

Ranks other than 0 have the same objects with output off. The live region is a single row on purpose: redrawing it never
moves the cursor up, so text that other libraries (vLLM, also from C++) write directly to the terminal may share a line
with it but is never overwritten.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    track,
)
from rich.text import Text

from capo_fast.runlog.recorder import Metrics
from capo_fast.runlog.shown import PACE_STEPS, clock, shown_metrics, step_seconds, time_left
from capo_fast.runlog.summary import before_and_after, places, time_by_stage
from capo_fast.terminal import printable


class Console:
    """One line per step and, if `live`, one live row below them."""

    def __init__(self, total_steps: int, done: int = 0, out: Terminal | None = None, live: bool = False) -> None:
        """`done`: finished steps of a resumed run."""
        self._out = out or Terminal()
        self._total, self._done = total_steps, done
        self._pace: deque[float] = deque(maxlen=PACE_STEPS)
        self._rates = ""
        self._stage, self._since = "starting", time.monotonic()
        self._row = Progress(
            BarColumn(16, style="bright_black", complete_style="green", finished_style="green"),
            _StepColumn(self.status),
            console=self._out,
            refresh_per_second=2,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # `2> file` still writes to the file
            disable=not live,
        )
        self._task = self._row.add_task("", total=total_steps, completed=done)
        self._row.start()

    def stage(self, name: str) -> None:
        """Start a stage of the running step."""
        self._stage, self._since = name, time.monotonic()
        self._row.refresh()

    def step(self, step: int, metrics: Metrics) -> None:
        """Show the finished step `step` (the first is 1)."""
        self._done = step
        self._pace.append(step_seconds(metrics))
        self._rates = shown_metrics(metrics)
        timing = f"seconds={self._pace[-1]:.1f} eta={self._eta()}"
        self._print(f"step {step}/{self._total} {self._rates} {timing}")
        self._row.update(self._task, completed=step)

    def note(self, line: str) -> None:
        """Show a line outside the steps."""
        self._print(line)

    def close(self) -> None:
        """Stop showing steps and restore the terminal."""
        self._row.stop()

    def finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Show the evaluation before and after, the time by stage, and the contents of the run's folder."""
        self.close()
        self._out.print(before_and_after(summary), time_by_stage(summary))
        for line in places(folder):
            self._print(line)

    def status(self) -> Text:
        """The running step, its stage with elapsed time, the time left, the last step's rates."""
        row = Text(f"step {min(self._done + 1, self._total)}/{self._total}", style="bold")
        age = clock(time.monotonic() - self._since)
        return Text.assemble(row, (f" {self._stage} {age}", "cyan"), f" eta={self._eta()} {self._rates}")

    def _print(self, line: str) -> None:
        self._out.print(Text(printable(line)), soft_wrap=True)  # Text: brackets in a path are not markup

    def _eta(self) -> str:
        return time_left(self._pace, self._total - self._done)


class _StepColumn(ProgressColumn):
    def __init__(self, status: Callable[[], Text]) -> None:
        super().__init__(TextColumn("").get_table_column())
        self._status = status

    def render(self, task: Task) -> Text:
        return self._status()


def open_console(total_steps: int, rank: int = 0, done: int = 0) -> Console:
    """The console for the rank and standard output. `done`: finished steps of a resumed run."""
    terminal = Terminal(quiet=rank != 0)
    return Console(total_steps, done, terminal, live=rank == 0 and _is_live(terminal, sys.stdout.isatty()))


def _is_live(terminal: Terminal, isatty: bool) -> bool:
    """With FORCE_COLOR rich treats any pipe as a terminal, so the file's own isatty counts too."""
    return terminal.is_interactive and isatty


PAUSE_S = 5.0
"""Least time between two lines of `AnswerDisplay`."""


class AnswerDisplay:
    """Progress of `total` answers on standard error: a live row on a terminal, at most ten lines elsewhere."""

    def __init__(self, what: str, total: int, rank: int = 0) -> None:
        self._out = Terminal(stderr=True, quiet=rank != 0)
        self._what, self._total = printable(what), total
        self._done = self._tokens = 0
        self._start = self._shown = time.monotonic()
        self._live = rank == 0 and total > 0 and _is_live(self._out, sys.stderr.isatty())
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        rate = TextColumn("{task.fields[rate]}")
        self._row = Progress(*columns, rate, console=self._out, transient=True, disable=not self._live)
        self._task = self._row.add_task(escape(self._what), total=total, rate="")

    def advance(self, tokens: int) -> None:
        """Count one finished answer and its tokens."""
        self._done += 1
        self._tokens += tokens
        rate = f"{self._tokens / max(time.monotonic() - self._start, 1e-6):.0f} tokens/s"
        self._row.update(self._task, advance=1, rate=rate)
        if not self._live and self._is_due():
            self._shown = time.monotonic()
            line = f"{self._what}: {self._done}/{self._total} answers, {rate}"
            self._out.print(line, soft_wrap=True, markup=False, highlight=False)

    def _is_due(self) -> bool:
        """True at each tenth of the answers, but only PAUSE_S after the last line, and at the end."""
        tenth = self._done * 10 // self._total > (self._done - 1) * 10 // self._total
        return self._done == self._total or (tenth and time.monotonic() - self._shown >= PAUSE_S)

    def __enter__(self) -> Self:
        self._row.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._row.stop()


def progress(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """Wraps an iterable with a transient progress bar on a terminal's standard error."""
    terminal = Terminal(stderr=True)
    quiet = not terminal.is_terminal
    return lambda things: track(things, escape(printable(what)), console=terminal, transient=True, disable=quiet)
