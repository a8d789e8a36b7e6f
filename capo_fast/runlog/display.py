"""How far the sampling is: one live row on a terminal, a line each tenth elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Shows nothing: what every rank but 0 holds, and what stands where all answers are there already."""

    def advance(self, tokens: int) -> None:
        """One more answer of so many tokens is done."""

    def close(self) -> None:
        """Give the terminal back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LineDisplay(Display):
    """`math500: 50/500 answers, 2130 tokens/s`, ten times."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = self._tokens = 0
        self._start = time.monotonic()

    def advance(self, tokens: int) -> None:
        self._done += 1
        self._tokens += tokens
        if self._done * 10 // self._total > (self._done - 1) * 10 // self._total:
            print(f"{self._what}: {self._done}/{self._total} answers, {self.rate()}", file=sys.stderr, flush=True)

    def rate(self) -> str:
        return f"{self._tokens / max(time.monotonic() - self._start, 1e-6):.0f} tokens/s"


class LiveDisplay(LineDisplay):
    """One row that lives, and goes when all is done."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, total)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._row = Progress(*columns, TextColumn("{task.fields[rate]}"), console=_terminal(), transient=True)
        self._task = self._row.add_task(what, total=total, rate="")
        self._row.start()

    def advance(self, tokens: int) -> None:
        self._tokens += tokens
        self._row.update(self._task, advance=1, rate=self.rate())

    def close(self) -> None:
        self._row.stop()


def open_display(what: str, total: int, rank: int) -> Display:
    """The display that fits the rank and standard error."""
    if rank != 0 or total == 0:
        return Display()
    live = _terminal().is_interactive and sys.stderr.isatty()
    return (LiveDisplay if live else LineDisplay)(what, total)


def _terminal() -> Terminal:
    return Terminal(stderr=True)
