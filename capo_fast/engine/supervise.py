"""A server and all of its processes as one: they end with the process that started them, however that ends.

    python -m capo_fast.engine.supervise PARENT FOLDER COMMAND ...

    trainer (PARENT) -> this process -> COMMAND -> its workers

This process starts COMMAND and waits until it has ended, until PARENT has gone (SIGKILL included), or for SIGTERM. Then
it kills what is left, adopted orphans too, and removes their shared memory and FOLDER, which is their temporary folder.
Where COMMAND ended by itself, its exit status is in FOLDER/ended, and FOLDER stays as long as PARENT wants it. FOLDER
is locked as long as this process is there, and FOLDER/group has COMMAND's process group, for the case that this process
is killed. Linux alone. Imports neither torch nor vLLM.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from capo_fast.runtime.files import lock, replacing

ENDED, GROUP = "ended", "group"
POLL_S = 0.2
"""How often it looks whether PARENT is there: no signal says so for sure where PARENT has threads."""
REAP_S = 10.0
WAKING = (signal.SIGTERM, signal.SIGCHLD)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)


def main(arguments: Sequence[str]) -> int:
    parent, folder, command = int(arguments[0]), Path(arguments[1]), arguments[2:]
    held = lock(folder)
    keep(folder)
    started = folder.stat().st_ctime
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_in_child)
    note(folder / GROUP, server.pid)
    wait(parent, server)
    status = server.poll()
    end_all(started)
    if status is not None:
        note(folder / ENDED, status)
        wait(parent)
    shutil.rmtree(folder, ignore_errors=True)
    held.close()
    return 0


def keep(folder: Path) -> None:
    """Lock the folder itself, too, until this process ends: systemd-tmpfiles, which removes old temporary files, passes
    over what is in a locked one (tmpfiles.d(5))."""
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)


def _in_child() -> None:
    """Before COMMAND takes the place of the forked process: it is killed where this process is."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKING)


def wait(parent: int, server: subprocess.Popen[bytes] | None = None) -> None:
    """Until the server, if one is given, has ended, the parent has gone, or SIGTERM has come."""
    while os.getppid() == parent and (server is None or server.poll() is None):
        came = signal.sigtimedwait(WAKING, POLL_S)
        if came is not None and came.si_signo == signal.SIGTERM:
            return


def end_all(started: float) -> None:
    """Kill every descendant, and remove the shared memory that they have made since `started`, a file's time."""
    shared: set[int] = set()
    deadline = time.monotonic() + REAP_S
    while (found := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        shared |= shared_memory(found)
        kill([each for each in found if not is_tracker(each)])
        kill(psutil.wait_procs([each for each in found if is_tracker(each)], timeout=TRACKER_S)[1])
    for path in MEMORY.iterdir():
        with suppress(OSError):  # others come and go
            if (status := path.stat()).st_ino in shared and status.st_ctime >= started:  # a model may be there, too
                path.unlink()


def kill(processes: Sequence[psutil.Process]) -> None:
    """Returns when they have ended, or a second later."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=1.0)


TRACKER_S = 2.0


def is_tracker(process: psutil.Process) -> bool:
    """Whether it is Python's own, which removes what its clients have left and ends when the last of them has."""
    with suppress(psutil.Error):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


MEMORY = Path("/dev/shm")


def shared_memory(processes: Iterable[psutil.Process]) -> set[int]:
    """Inodes of the files in /dev/shm that these map. Not their names: the C library maps a semaphore's file under
    another, and a line has that one."""
    maps: list[str] = []
    for process in processes:
        with suppress(OSError):
            maps.append(Path(f"/proc/{process.pid}/maps").read_text())
    return {int(inode) for inode in re.findall(r" (\d+) +/dev/shm/", "\n".join(maps))}


def note(path: Path, number: int) -> None:
    with replacing(path) as file:
        file.write(b"%d" % number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
