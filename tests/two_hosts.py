"""torchrun on the two hosts of bench/chaos/hosts.py, forked from a process that has imported everything."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked import FORKS, output_to
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from bench.chaos.hosts import Host, two_hosts


class ForkedHost:
    """One of the two hosts, on which torchrun can be started once."""

    def __init__(self, host: Host, log: Path) -> None:
        self.host, self.name, self.log = host, host.name, log
        self._process: Any = None

    def torchrun(self, main: Callable[..., Any], *arguments: str) -> None:
        """Start this host's rank of a job that runs `main(*arguments)` with one rank per host; `left` has rank 0."""
        place = (self.host.pid, self.host.options(), self.log)
        self._process = FORKS.Process(target=_launcher, args=(*place, main, arguments))
        self._process.start()

    def kill(self) -> None:
        """Kill the launcher and all its descendants at once."""
        self.host.kill()
        self._process.join()

    def cut(self) -> None:
        """Disconnect the host's end of the cable: it sends no packet and no error any more."""
        self.host.call(f"ip link set {self.name} down")

    def join(self, seconds: float) -> int | None:
        """The launcher's exit status; None if it has not exited in time."""
        self._process.join(seconds)
        return self._process.exitcode

    def is_running(self) -> bool:
        return self._process.is_alive()


@contextmanager
def two_forked_hosts(folder: Path) -> Iterator[tuple[ForkedHost, ForkedHost]]:
    """The hosts `left` and `right`, removed at the end. Raises HostError."""
    with two_hosts() as (left, right):
        yield ForkedHost(left, folder / "left.log"), ForkedHost(right, folder / "right.log")


def _launcher(pid: int, options: Sequence[str], log: Path, main: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Move this process to a host and run torchrun there; the ranks are forked from this process."""
    output_to(log)
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("net", "uts"):
        with open(f"/proc/{pid}/ns/{kind}") as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns of {kind}")
    config, _, _ = config_from_args(parse_args([*options, "--start-method=fork", "forked"]))
    elastic_launch(config, main)(*arguments)
