"""One start of the command on both hosts: the stages of its ranks, and its exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.chaos.hosts import Host

POLL_S = 0.003
END_LIMIT_S = 120.0
"""Seconds within which a job must exit by itself after a kill."""
RUN_LIMIT_S = 600.0
"""Seconds within which a start must complete all remaining steps."""


class Place(NamedTuple):
    """A stage that a rank has entered."""

    step: int
    stage: str
    seconds: float
    """Time of entry, by the machine's monotonic clock."""


class Job:
    """The command with these settings, on two hosts of one rank each."""

    def __init__(self, hosts: Sequence[Host], folder: Path, settings: Sequence[str]) -> None:
        """folder: a new folder for logs and stages."""
        folder.mkdir(parents=True)
        self.hosts, self.folder = hosts, folder
        words = ["-m", "bench.chaos.rank", str(folder), *settings]
        self._ranks: dict[str, list[psutil.Process]] = {}
        self._launchers = [host.torchrun(self.log(host), words) for host in hosts]

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def stages(self, rank: int) -> list[Place]:
        """Stages that a rank has entered, in order."""
        path = self.folder / f"rank-{rank}"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [Place(int(step), stage, float(seconds)) for step, stage, seconds in map(str.split, lines)]

    def launcher(self, host: Host) -> psutil.Popen:
        return self._launchers[self.hosts.index(host)]

    def ranks(self, host: Host) -> list[psutil.Process]:
        """The process of its rank; empty if it has exited or not started."""
        with suppress(psutil.NoSuchProcess):
            found = self._ranks[host.name] = self._ranks.get(host.name) or self.launcher(host).children()
            return [each for each in found if each.is_running()]
        return []

    def is_running(self) -> bool:
        return any(launcher.poll() is None for launcher in self._launchers)

    def wait_for(self, true: Callable[[], bool], seconds: float = RUN_LIMIT_S) -> bool:
        """True once the condition is met; False if the job exits or the time is over first."""
        end = time.monotonic() + seconds
        while self.is_running() and time.monotonic() < end:
            if true():
                return True
            time.sleep(POLL_S)
        return False

    def end(self, seconds: float = RUN_LIMIT_S) -> float | None:
        """Seconds until no process is left on either host; None if some are left, which are then killed."""
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            if not self.is_running() and not any(host.processes() for host in self.hosts):
                return time.monotonic() - start
            time.sleep(10 * POLL_S)
        for host in self.hosts:
            host.kill()
        return None

    def statuses(self) -> list[int | None]:
        return [launcher.poll() for launcher in self._launchers]

    def own_lines(self, host: Host, label: str = "error") -> list[str]:
        """capo_fast's own lines on a host's standard output and error."""
        lines = self.log(host).read_text(errors="replace").splitlines()
        return [line for line in lines if line.startswith("capo_fast") and f": {label}: " in line]
