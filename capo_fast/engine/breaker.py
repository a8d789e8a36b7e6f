"""Whether a server is there, judged by all requests to it together.

    up -> [one is given up, and nothing was heard meanwhile] -> in doubt -> [a probe: a single try] -> up, or a pause

In doubt, requests wait for the tries under way: anything heard from the server ends the doubt, and they go on. Where
nothing is heard, one of them becomes the probe. A probe that fails turns away all others for a pause, after which the
next request is a probe again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio


class GivenUp(Exception):
    """There will be no answer to this request: what `endpoint.on_failure` is about."""


class Breaker:
    """Lives in one event loop. No method but `admit` and `ever_answered` gives way to others."""

    def __init__(self, pause_s: float) -> None:
        self.answered = False
        """Whether any request ever was."""
        self._pause_s, self._doubt, self._down_until = pause_s, "", -math.inf
        self._heard_at = -math.inf
        self._trying, self._ended = 0, anyio.Event()

    @contextmanager
    def trying(self) -> Iterator[None]:
        self._trying += 1
        try:
            yield
        finally:
            self._trying -= 1
            self._ended.set()
            self._ended = anyio.Event()

    async def admit(self) -> bool:
        """Whether the next try is a probe, once there is one to make. Raises GivenUp during the pause."""
        while self._doubt and self._trying:
            await self._ended.wait()
        if self._doubt and time.monotonic() < self._down_until:
            raise GivenUp(self._doubt)
        return bool(self._doubt)

    async def ever_answered(self) -> bool:
        """The same as `answered`, but where nothing was answered yet the tries under way have their say first."""
        while not self.answered and self._trying:
            await self._ended.wait()
        return self.answered

    def heard(self) -> None:
        """The server is there: it answered or refused a request."""
        self._heard_at, self._doubt = time.monotonic(), ""

    def given_up(self, start: float, final: bool, reason: str) -> None:
        """A request that began at `start` was not answered: its own fault, where the server was heard since.

        `final`: no doubt is left, as after a probe, so that the pause begins.
        """
        if final or self._heard_at < start:
            self._doubt = reason
            self._down_until = time.monotonic() + self._pause_s if final else -math.inf
