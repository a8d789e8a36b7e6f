"""Writes checkpoints, at once or in a thread during training.

A thread, not a process: it writes directly from the staged copy, and releases the GIL while it writes and hashes. Its
collectives use a process group of their own, so their order relative to training's collectives does not matter.
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
    """One rank's writer. Its methods, except `cpu_seconds` and `close`, are collectives."""

    def __init__(self, asynchronous: bool) -> None:
        self._asynchronous = asynchronous
        self._staging = Staging()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._group: Any = None
        self._clock: int | None = None
        """Clock of the thread's CPU time."""
        self._written: Future[None] | None = None
        """The running write, or a finished one whose result has not been read."""

    def run(self, contents: Contents, write: Write) -> None:
        """Write now, or copy the contents and start writing. Call `wait` before."""
        if not self._asynchronous:
            write(contents, None)
            return
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=this_job().timeout)
        self._staging.copy(contents)
        self._written = self._pool.submit(self._run, contents, write)

    def wait(self) -> None:
        """Return when no write is running. Raises the write's error."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def check(self) -> None:
        """Raise the write's error if it has failed on any rank. Does not wait for a running write."""
        if self._written is None:
            return
        ended = self._written.done()
        failed = ended and self._written.exception() is not None
        found = gather([(ended, failed)])
        if all(ended for ended, _ in found) or any(failed for _, failed in found):
            self.wait()

    def cpu_seconds(self) -> float:
        """CPU time of the thread so far; 0 on macOS, which can't read another thread's clock."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def close(self) -> None:
        """Wait for the running write; its error is not raised."""
        self._pool.shutdown()
        self._clock = None

    def _run(self, contents: Contents, write: Write) -> None:
        if sys.platform != "darwin":
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        write(contents, self._group)
