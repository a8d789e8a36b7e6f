"""Writes checkpoints, at once or in a thread beside training.

A thread, not a process: it writes from the staged copy itself, and lets go of the GIL while it writes and hashes. Its
collectives have a process group of their own, so that their order among those of training does not matter.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch.distributed as dist

from capo_fast.policy.state import Contents, Staging
from capo_fast.runtime.job import this_job
from capo_fast.runtime.ranks import gather

Write = Callable[[Contents, Any], None]
"""Writes contents, with the process group of its collectives (None: the default one)."""


class Writer:
    """Of one rank. Its methods, but `cpu_seconds` and `close`, are collectives."""

    def __init__(self, asynchronous: bool) -> None:
        self._asynchronous = asynchronous
        self._staging = Staging()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._group: Any = None
        self._clock: int | None = None
        """Of the thread's CPU time."""
        self._written: Future[None] | None = None
        """The write that is under way, or whose end has not been looked at."""

    def run(self, contents: Contents, write: Write) -> None:
        """Write now, or copy the contents and begin. One that is under way must have been waited for."""
        if not self._asynchronous:
            write(contents, None)
            return
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=this_job().timeout)
        self._staging.copy(contents)
        self._written = self._pool.submit(self._run, contents, write)

    def wait(self) -> None:
        """Return when nothing is under way. Raises what the write has raised."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def check(self) -> None:
        """Raise what the write has raised, as soon as it has on any rank; nothing waits for one that goes well."""
        if self._written is None:
            return
        ended = self._written.done()
        failed = ended and self._written.exception() is not None
        found = gather([(ended, failed)])
        if all(ended for ended, _ in found) or any(failed for _, failed in found):
            self.wait()

    def cpu_seconds(self) -> float:
        """CPU time of the thread so far. 0 on macOS, which has no clock of another thread."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def close(self) -> None:
        """Wait for the write that is under way; its error is not raised."""
        self._pool.shutdown()
        self._clock = None

    def _run(self, contents: Contents, write: Write) -> None:
        if sys.platform != "darwin":
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        write(contents, self._group)
