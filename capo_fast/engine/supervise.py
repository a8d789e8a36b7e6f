"""Supervisor of a server and all of its processes: it ends them when the process that started it exits or is killed.

    python -m capo_fast.engine.supervise PARENT FOLDER COMMAND ...

    trainer (PARENT) -> this process -> COMMAND -> its workers

This process starts COMMAND and waits until COMMAND exits, PARENT exits (also by SIGKILL), or SIGTERM comes. Then it
kills the remaining processes, adopted orphans too, and removes their shared memory and their temporary folder FOLDER.
If COMMAND exited by itself, its exit status is in FOLDER/ended, and FOLDER is kept until PARENT ends this process.
FOLDER is locked while this process runs. FOLDER/group contains COMMAND's process group, in case this process is killed.
Linux only. Imports neither torch nor vLLM.
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
"""Seconds between checks that PARENT runs: no signal is reliable if PARENT has threads."""
REAP_S = 10.0
WAKING = (signal.SIGTERM, signal.SIGCHLD)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)


def main(arguments: Sequence[str]) -> int:
    parent, folder, command = int(arguments[0]), Path(arguments[1]), arguments[2:]
    held = lock(folder)
    protect(folder)
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


def protect(folder: Path) -> None:
    """Lock the folder itself, too, until this process exits: systemd-tmpfiles deletes old temporary files, but none in
    a locked folder (tmpfiles.d(5))."""
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)


def _in_child() -> None:
    """In the forked process, before it executes COMMAND: kill it when this process is killed."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKING)


def wait(parent: int, server: subprocess.Popen[bytes] | None = None) -> None:
    """Return when the server, if one is given, exits, the parent exits, or SIGTERM comes."""
    while os.getppid() == parent and (server is None or server.poll() is None):
        received = signal.sigtimedwait(WAKING, POLL_S)
        if received is not None and received.si_signo == signal.SIGTERM:
            return


def end_all(started: float) -> None:
    """Kill every descendant, and remove the shared memory that they created since `started` (a file's ctime)."""
    shared: set[int] = set()
    deadline = time.monotonic() + REAP_S
    while (found := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        shared |= shared_memory(found)
        kill([each for each in found if not is_tracker(each)])
        kill(psutil.wait_procs([each for each in found if is_tracker(each)], timeout=TRACKER_S)[1])
    for path in MEMORY.iterdir():
        with suppress(OSError):  # other processes create and delete files
            if (status := path.stat()).st_ino in shared and status.st_ctime >= started:  # a model may be there, too
                path.unlink()


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill these processes; returns when they have exited, or after a second."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=1.0)


TRACKER_S = 2.0


def is_tracker(process: psutil.Process) -> bool:
    """Whether it is Python's resource tracker, which cleans up after its clients and exits after the last of them."""
    with suppress(psutil.Error):
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    return False


MEMORY = Path("/dev/shm")


def shared_memory(processes: Iterable[psutil.Process]) -> set[int]:
    """Inodes of the files in /dev/shm that these processes map. Inodes, because the map's line has another name for a
    semaphore's file, under which the C library mapped it."""
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
