"""The parent's handle on a worker process; `worker.py` is the process itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Pipe
from typing import Any

START_LIMIT_S = 120.0
"""Time limit of a worker's start, which imports its function."""
# Ctrl-C is ignored from the first moment: it reaches the whole process group, and the parent decides.
_BOOT = """\
import signal
signal.signal(2, signal.SIG_IGN)
from capo_fast.terminal import standard_streams
from capo_fast.verify.worker import main
with standard_streams(output_optional=True):  # a function that prints is not wrong because the output is full
    main()
"""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
Setup = tuple[str, dict[str, Any], int | None, bool]
"""The first message of `worker.py`: function, settings, most bytes to map, True if it returns verdicts."""


class WorkerProcess:
    """The parent's handle on a worker."""

    def __init__(self, setup: Setup) -> None:
        self.connection, theirs = Pipe()
        self.work: list[int] = []
        """Indices of its running items."""
        self.ready = self.dead = self.batch = False
        self.deadline = time.monotonic() + START_LIMIT_S
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
            )
        with suppress(OSError):  # it died at once: the round handles that
            self.connection.send(setup)

    @property
    def idle(self) -> bool:
        return self.ready and not self.work and not self.dead

    def resident(self) -> int:
        """Resident bytes; 0 if /proc has no entry."""
        try:
            with open(f"/proc/{self.process.pid}/statm") as file:
                return int(file.read().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def kill(self) -> None:
        self.dead, self.work = True, []
        self.process.kill()
        self.process.wait()
        self.connection.close()
