"""Atomic file writes, locks and temporary folders: a run's files survive a kill at any point and a full disk."""

from __future__ import annotations

import fcntl
import glob
import json
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

from capo_fast.errors import CapoError


class RecordError(CapoError):
    """A record of the run can't be written or read (full disk, damaged file). One line names the file and the fault."""


def finite(value: float | int | None) -> float | int | None:
    """The number as valid JSON: an int stays an int, NaN ("unused") and infinities become None.

    >>> [finite(3), finite(0.5), finite(float("nan")), finite(None)]
    [3, 0.5, None, None]
    """
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line of a JSONL file, newline included."""
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty if there is none. Raises RecordError if it is no mapping."""
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"{path}: found {type(found).__name__}, wanted a mapping")
    return found


def free_folder(path: Path) -> Path:
    """Make a new folder of this name, or of the first free name among `name-2`, `name-3`, ...: two runs may start in
    the same second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in chain([path], numbered(path, 2)):
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def free_name(paths: Iterable[Path]) -> Path:
    """The first path that does not exist."""
    return next(path for path in paths if not os.path.lexists(path))


def numbered(path: Path, start: int = 1) -> Iterator[Path]:
    """`path-1`, `path-2`, ..., starting at the number `start`."""
    return (path.with_name(f"{path.name}-{number}") for number in count(start))


LOCK = ".lock"
LOCK_TRIES, LOCK_PAUSE_S = 100, 0.01
"""`lock` retries, because `is_locked` of another process (`capo status`) holds the lock for a moment."""


def lock(folder: Path) -> BinaryIO:
    """Lock the folder until the returned file is closed or this process exits. Raises RecordError if it is locked."""
    file = (folder / LOCK).open("wb")
    for _ in range(LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(LOCK_PAUSE_S)
    file.close()
    raise RecordError(f"{folder}: another process is running this run")


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all bytes, unbuffered. Loops because a disk that fills up accepts a part first and rejects the rest."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def append(path: Path, data: bytes) -> None:
    """Append `data` to the file, unbuffered and either completely or not at all."""
    with naming(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            write_all(file, data)
        except BaseException:
            with suppress(OSError):  # the error to report is the failed write
                file.truncate(size)
            raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` once it is complete and on disk; it is deleted after an error."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with naming(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


TEMPORARY = ".tmp"


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that is deleted at the end or, if the process is killed, by the next `sweep` of its parent on this host.

    parent: None means the system's folder for temporary files; its file system must have `flock`. Raises RecordError.
    """
    parent = parent or Path(tempfile.gettempdir())
    sweep(parent)
    with naming(parent):
        made = Path(tempfile.mkdtemp(prefix=f"{NEW}{_host()}+", dir=parent))
    folder = made.with_name(made.name.replace(NEW, LOCKED, 1))
    try:
        with naming(made):
            held = lock(made)
        with held:
            made.rename(folder)  # it never has this name without a lock
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)  # still there if it could not be locked


NEW, LOCKED = "capo_fast-new-", "capo_fast-locked-"
"""Prefixes of the names of temporary folders; the host's name and `+` follow."""
MEMORY = Path("/dev/shm")
ABANDONED_S = 86400.0
"""Age, seconds, at which a folder that was never locked counts as left by a killed process."""


def _host() -> str:
    return socket.gethostname()


def sweep(parent: Path) -> None:
    """Delete the temporary folders that killed processes of this user left in `parent`.

    Folders of other hosts are kept: on a file system that hosts share, locks may be visible on one host only.
    """
    host = "*" if parent == MEMORY else glob.escape(_host())  # a container's name may change at each start
    for prefix in (NEW, LOCKED):
        for left in parent.glob(f"{prefix}{host}+*"):
            with suppress(OSError):  # it was deleted meanwhile, is no folder, or its file system has no locks
                if left.lstat().st_uid == os.getuid() and not _in_use(left):
                    shutil.rmtree(left, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    if folder.name.startswith(NEW):
        return time.time() - folder.stat().st_mtime < ABANDONED_S
    return is_locked(folder)


def sweep_all() -> None:
    """Sweep both places of temporary folders."""
    for parent in (MEMORY, Path(tempfile.gettempdir())):
        sweep(parent)


@contextmanager
def passing_folder(size: int) -> Iterator[Path]:
    """A folder for `size` bytes of files that another process reads at once; it is deleted at the end.

    It is in memory (/dev/shm) if there is room, else in the folder for temporary files. Containers often have a small
    /dev/shm.
    """
    sweep_all()  # first: abandoned folders take room
    room = shutil.disk_usage(MEMORY).free if os.access(MEMORY, os.W_OK) else 0
    parent = MEMORY if room > size + SPARE else Path(tempfile.gettempdir())
    with temporary_folder(parent) as folder:
        yield folder


def sync(paths: Iterable[Path]) -> None:
    """Return when the files and folders are on disk. In parallel: a file system writes its journal once for many."""
    with ThreadPoolExecutor(SYNCS) as pool:
        list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


SYNCS = 16
SPARE = 2**24
"""Headroom to leave free in /dev/shm, bytes."""


@contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an OSError of a write into one line with the file, its size if known, and the free space."""
    try:
        yield
    except OSError as error:
        place = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
        wanted = "" if size is None else f"{size:,} bytes wanted, "
        free = f"{shutil.disk_usage(place).free / 2**30:.2f} GiB free there"
        raise RecordError(f"can't write {path}: {error.strerror or error} ({wanted}{free})") from error
