"""Two hosts in one machine: network namespaces with their own host names, joined by a pair of virtual interfaces.

Each has its own /dev/shm and its own folder for temporary files, so that every file a job leaves behind is found. Needs
root and Linux.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from capo_fast.errors import CapoError

ADDRESSES = {"left": "10.78.0.1", "right": "10.78.0.2"}
BECOME_HOST = "hostname {name} && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo ready && exec cat"
"""`cat` exits with this process, because its standard input closes then."""
KEPT = ("torchinductor_",)
"""Prefixes of temporary files that may stay: torch's compile cache."""


class HostError(CapoError):
    """Hosts cannot be made on this machine."""


KILL_S = 5.0
TOOLS = ("unshare", "nsenter", "ip")


class Host:
    """One of the two hosts."""

    def __init__(self, name: str, temporary: Path) -> None:
        self.name, self.temporary = name, temporary
        temporary.mkdir()
        words = ["unshare", "--net", "--uts", "--mount", "sh", "-c", BECOME_HOST.format(name=name)]
        self._holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise HostError(f"can't make a host: {self._holder.stderr.read().decode().strip()}; wanted root, on Linux")
        self.pid = self._holder.pid
        self._network = os.readlink(f"/proc/{self.pid}/ns/net")
        self._inside = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "env", f"--chdir={Path.cwd()}"]

    def call(self, command: str) -> None:
        """Run a command on this host. Raises HostError."""
        _run([*self._inside, *command.split()])

    def connect(self) -> None:
        """Give this host's end of the cable, which has the host's name, its address."""
        self.call(f"ip addr add {ADDRESSES[self.name]}/24 dev {self.name}")
        self.call(f"ip link set {self.name} up")

    def options(self) -> list[str]:
        """Options of torchrun for a job of one rank per host; `left` is rank 0."""
        store = [f"--rdzv-endpoint={ADDRESSES['left']}:29500", f"--rdzv-conf=is_host={int(self.name == 'left')}"]
        place = ["--nnodes=2", "--nproc-per-node=1", f"--local-addr={ADDRESSES[self.name]}", "--rdzv-backend=c10d"]
        return [*place, *store]

    def torchrun(self, log: Path, words: Sequence[str]) -> psutil.Popen:
        """Start this host's part of a job."""
        # At a lower priority than this process, which must not miss a stage of milliseconds.
        command = [*self._inside, "nice", sys.executable, "-m", "torch.distributed.run", *self.options()]
        own = {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # A killed torchrun leaves its folder of logs among the temporary files.
        logs = f"--log-dir={log.with_suffix('.torchrun')}"
        with log.open("ab") as file:
            return psutil.Popen([*command, logs, *words], stdout=file, stderr=file, env=os.environ | own)

    def processes(self) -> list[psutil.Process]:
        """All processes on this host, whatever their current parent."""
        found = []
        for pid in psutil.pids():
            with suppress(OSError, psutil.NoSuchProcess):  # it has exited meanwhile
                if pid != self.pid and os.readlink(f"/proc/{pid}/ns/net") == self._network:
                    found.append(psutil.Process(pid))
        return found

    def files(self) -> list[str]:
        """Names of files in /dev/shm and in the temporary folder."""
        shared = Path(f"/proc/{self.pid}/root/dev/shm")
        found = [path.name for folder in (shared, self.temporary) for path in folder.iterdir()]
        return sorted(name for name in found if not name.startswith(KEPT))

    def kill(self) -> None:
        """Kill every process on this host."""
        found = self.processes()
        for each in found:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(found, KILL_S)

    def close(self) -> None:
        self.kill()
        self._holder.kill()
        self._holder.wait()


def _run(words: Sequence[str]) -> None:
    """Raises HostError where the command fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"can't make a host: {shlex.join(words)} failed: {done.stderr.strip() or done.stdout.strip()}")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """`left` and `right`; both are removed at the end. Raises HostError."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise HostError(f"can't make a host without {', '.join(missing)}")
    hosts: list[Host] = []
    with TemporaryDirectory(prefix="chaos-") as folder:
        try:
            for name in ADDRESSES:
                hosts.append(Host(name, Path(folder, name)))
            left, right = hosts
            ends = f"left netns {left.pid} type veth peer name right netns {right.pid}"
            _run(["ip", "link", "add", *ends.split()])
            left.connect()
            right.connect()
            yield left, right
        finally:
            for host in hosts:
                host.close()
