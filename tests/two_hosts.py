"""Two hosts in one machine: each is a network namespace with a name of its own, and a cable joins them."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from forked import FORKS, output_to
from torch.distributed.run import main as torchrun

ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}
NEW_NETWORK, NEW_NAME = 0x40000000, 0x04000000
"""Of unshare(2)."""


class Host:
    """One of the two, on which torchrun can be started once."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self._orders, theirs = FORKS.Pipe()
        self._process = FORKS.Process(target=_launcher, args=(name, log, theirs))
        self._process.start()
        self.refused: str | None = self._orders.recv()
        """Why it is no host."""
        self.pid = self._process.pid
        # Held, as a namespace goes with its last process, and with it both ends of the cable.
        self.network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)

    def torchrun(self, *arguments: str) -> None:
        """Start this host's part of a job of one rank on each; `left` is rank 0."""
        place = ["--nnodes=2", "--nproc-per-node=1", f"--local-addr={ADDRESSES[self.name]}", "--rdzv-backend=c10d"]
        store = [f"--rdzv-endpoint={ADDRESSES['left']}:29500", f"--rdzv-conf=is_host={int(self.name == 'left')}"]
        self._orders.send([*place, *store, *arguments])

    def kill(self) -> None:
        """End the launcher and all that it has started, at once."""
        processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        for each in processes:
            each.kill()
        self._process.join()

    def cut(self) -> None:
        """Take its end of the cable down: nothing more comes from it, and nothing says so."""
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "link", "set", self.name, "down"], check=True
        )

    def join(self, seconds: float) -> int | None:
        """The launcher's exit status; None where it has not ended in time."""
        self._process.join(seconds)
        return self._process.exitcode

    def is_running(self) -> bool:
        return self._process.is_alive()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """`left` and `right`. Raises PermissionError where namespaces can't be made. At the end nothing is left of them."""
    hosts: list[Host] = []
    try:
        for name in ADDRESSES:
            hosts.append(Host(name, folder / f"{name}.log"))
            if reason := hosts[-1].refused or (not shutil.which("ip") and "there is no `ip`"):
                raise PermissionError(f"no network namespaces: {reason}")
        left, right = hosts
        ends = ["left", "netns", str(left.pid), "type", "veth", "peer", "name", "right", "netns", str(right.pid)]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        yield left, right
    finally:
        for host in hosts:
            os.close(host.network)
            if host.is_running():
                host.kill()


def _launcher(name: str, log: Path, orders: Connection) -> None:
    """A process that becomes a host, and torchrun when its arguments come."""
    output_to(log)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK | NEW_NAME):
        orders.send(os.strerror(ctypes.get_errno()))
        return
    socket.sethostname(name)
    orders.send(None)
    _run(name, orders.recv())


def _run(name: str, arguments: Sequence[str]) -> None:
    for command in ("link set lo up", f"addr add {ADDRESSES[name]}/24 dev {name}", f"link set {name} up"):
        subprocess.run(["ip", *command.split()], check=True)
    torchrun(arguments)
