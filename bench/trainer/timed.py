"""The training loop with a clock around each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capo_fast.runtime.stages import cpu_seconds, descendants
from capo_fast.trainer import Trainer


@dataclass
class TimedTrainer(Trainer):
    """The unchanged loop with timing: `TimedTrainer(**vars(trainer))`."""

    seconds: list[np.ndarray] = field(default_factory=list)
    """Seconds per step without evaluation and checkpoint: wall, CPU of this process, and CPU including the processes
    that it started, such as verifier workers."""
    aside: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def step(self, step: int) -> None:
        start, before = now(), self.aside
        super().step(step)
        self.seconds.append(now() - start - (self.aside - before))

    def evaluate(self) -> Any:
        return self._aside(super().evaluate)

    def save(self) -> None:
        self._aside(super().save)

    def _aside(self, work: Callable[[], Any]) -> Any:
        start = now()
        found = work()
        self.aside = self.aside + now() - start
        return found


def now() -> np.ndarray:
    """Seconds: wall clock, CPU time of all threads of this process, and CPU time including its descendants."""
    return np.array([time.perf_counter(), time.process_time(), cpu_seconds(descendants())])
