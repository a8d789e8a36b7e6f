"""The stages of a training step: their wall and CPU time, and the seams at which a run may be stopped."""

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
    """Of all threads of this process and of the processes that it started."""


def added(*laps: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage, of laps that need not have the same stages."""
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
        self.beside: dict[str, Callable[[], float]] = {}
        """CPU seconds so far of a thread of this process whose work belongs to a stage, whichever runs: by that one."""
        self._counted: dict[str, float] = {}
        """Of these, what earlier laps have."""

    @contextmanager
    def __call__(self, stage: str, seam: bool = False) -> Iterator[None]:
        """Add the time spent in the `with` block to `stage`.

        seam: the run may be stopped here, as nothing has changed since the last finished step. Then a collective, which
        raises Interrupted.
        """
        self._refuse_running(f"stage {stage!r} can't start")
        self._running = stage
        for call in self.on_entry:
            call(stage)
        wall, cpu = time.perf_counter(), cpu_seconds(self._descendants)
        beside = sum(self._beside().values())
        try:
            if seam:
                self.stop.check()
            with record_function(f"capo/{stage}"):  # its name in a trace (train.profile)
                yield
        finally:
            seconds = time.perf_counter() - wall
            # Looked for once a stage: that reads the entries of all processes of the machine.
            self._descendants = descendants()
            beside = sum(self._beside().values()) - beside  # before the process, which has spent no less
            self._add(stage, seconds, cpu_seconds(self._descendants) - cpu - beside)
            self._running = None

    def lap(self) -> Lap:
        """The seconds of each stage since the last lap."""
        self._refuse_running("a lap can't end")
        now = self._beside()
        for stage, seconds in now.items():
            if (spent := seconds - self._counted.get(stage, 0.0)) > 0:
                self._add(stage, 0.0, spent)
        self._counted = now
        lap, self._lap = self._lap, Lap({}, {})
        return lap

    def _beside(self) -> dict[str, float]:
        return {stage: seconds() for stage, seconds in self.beside.items()}

    def _add(self, stage: str, *seconds: float) -> None:
        for by_stage, spent in zip(self._lap, seconds, strict=True):
            by_stage[stage] = by_stage.get(stage, 0.0) + spent

    def _refuse_running(self, what: str) -> None:
        if self._running is not None:
            raise RuntimeError(f"{what} inside stage {self._running!r}")


def descendants() -> list[psutil.Process]:
    """The processes that this one, or one of these, has started."""
    return psutil.Process().children(recursive=True)


def cpu_seconds(living: Sequence[psutil.Process]) -> float:
    """CPU time of this process and of these descendants so far, seconds.

    A descendant that has ended counts if its parent waited for it. The process's own is exact, not in ticks: that of a
    thread is subtracted from it.
    """
    total = time.process_time() + sum(psutil.Process().cpu_times()[2:4])
    for child in living:
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:  # it ended meanwhile, and counts among its parent's
            continue
    return total
