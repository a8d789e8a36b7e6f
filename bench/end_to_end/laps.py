"""A stopwatch for nested stages."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Laps:
    """Wall seconds by stage. Stages nest: an inner one pauses the outer one; time outside all stages is "rest"."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._stages = ["rest"]
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = clock()

    def enter(self, stage: str) -> None:
        self._note()
        self._stages.append(stage)

    def leave(self) -> None:
        self._note()
        self._stages.pop()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.enter(stage)
        try:
            yield
        finally:
            self.leave()

    def lap(self) -> dict[str, float]:
        """The seconds of each stage since the last lap."""
        self._note()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return dict(seconds)

    def _note(self) -> None:
        now = self._clock()
        self._seconds[self._stages[-1]] += now - self._since
        self._since = now
