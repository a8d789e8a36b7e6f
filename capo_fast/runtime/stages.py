"""The stages of a training step: their wall and CPU time, and the points at which a run may be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import psutil
from torch.profiler import record_function

from capo_fast.runtime.failures import Deadline
from capo_fast.runtime.ranks import StopSignal


class Lap(NamedTuple):
    """Seconds by stage."""

    wall: dict[str, float]
    cpu: dict[str, float]
    """Includes all threads of this process and the processes that it started."""


def added(*laps: Mapping[str, float]) -> dict[str, float]:
    """The sum of several laps by stage; they need not have the same stages."""
    return {stage: sum(lap.get(stage, 0.0) for lap in laps) for stage in dict.fromkeys(chain(*laps))}


class Stages:
    """Times the stages of a step: `with stages("rollout"): ...`. Stages don't nest, so no second counts twice."""

    def __init__(self, stop: StopSignal, deadline: Deadline, *on_entry: Callable[[str], object]) -> None:
        self.stop = stop
        self.deadline = deadline
        self.on_entry = [deadline.start, *on_entry]
        """Called with a stage's name when it starts."""
        self._lap = Lap({}, {})
        self._running: str | None = None
        self._descendants = descendants()
        self.background: dict[str, Callable[[], float]] = {}
        """CPU seconds so far of a background thread of this process, by the stage that they are counted in."""
        self._counted: dict[str, float] = {}
        """The part of `background` that earlier laps contain."""

    @contextmanager
    def __call__(self, stage: str, seam: bool = False) -> Iterator[None]:
        """Add the time spent in the `with` block to `stage`.

        seam: the run may be stopped here, because nothing has changed since the last finished step. The call is then a
        collective and may raise Interrupted.
        """
        self._refuse_running(f"stage {stage!r} can't start")
        self._running = stage
        for call in self.on_entry:
            call(stage)
        wall, cpu = time.perf_counter(), cpu_seconds(self._descendants)
        background = sum(self._background().values())
        try:
            if seam:
                self.stop.check()
            with record_function(f"capo/{stage}"):  # its name in a trace (train.profile)
                yield
        finally:
            seconds = time.perf_counter() - wall
            # Once per stage: it reads the entries of all processes of the machine.
            self._descendants = descendants()
            background = sum(self._background().values()) - background  # before the process's, so not larger
            self._add(stage, seconds, cpu_seconds(self._descendants) - cpu - background)
            self._running = None

    def lap(self) -> Lap:
        """The seconds of each stage since the last lap."""
        self._refuse_running("a lap can't end")
        now = self._background()
        for stage, seconds in now.items():
            if (spent := seconds - self._counted.get(stage, 0.0)) > 0:
                self._add(stage, 0.0, spent)
        self._counted = now
        lap, self._lap = self._lap, Lap({}, {})
        return lap

    def _background(self) -> dict[str, float]:
        return {stage: seconds() for stage, seconds in self.background.items()}

    def _add(self, stage: str, *seconds: float) -> None:
        for by_stage, spent in zip(self._lap, seconds, strict=True):
            by_stage[stage] = by_stage.get(stage, 0.0) + spent

    def _refuse_running(self, what: str) -> None:
        if self._running is not None:
            raise RuntimeError(f"{what} inside stage {self._running!r}")


def descendants() -> list[psutil.Process]:
    """All processes that this process started, directly or indirectly."""
    return psutil.Process().children(recursive=True)


def cpu_seconds(living: Sequence[psutil.Process]) -> float:
    """CPU time of this process and of these descendants so far, seconds.

    A descendant that has exited is counted if its parent waited for it. The time of this process is exact, not in
    ticks, because a thread's time is subtracted from it.
    """
    total = time.process_time() + sum(psutil.Process().cpu_times()[2:4])
    for child in living:
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:  # it exited meanwhile; its parent's children time includes it
            continue
    return total
