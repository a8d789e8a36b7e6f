"""The lock of a run's folder: one holder at a time; reading the lock does not block a run."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from types import SimpleNamespace

import pytest

from capo_fast.runtime import files
from capo_fast.runtime.files import (
    LOCK,
    LOCKED,
    NEW,
    RecordError,
    free_folder,
    is_locked,
    lock,
    passing_folder,
    sweep,
    temporary_folder,
)


def test_one_process_locks_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_TRIES", 3)
    assert not is_locked(tmp_path)
    with lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(RecordError, match="another process is running this run"):
            lock(tmp_path)
    assert not is_locked(tmp_path)
    lock(tmp_path).close()


def test_reading_the_lock_does_not_block_a_run(tmp_path, monkeypatch):
    lock(tmp_path).close()
    with (tmp_path / LOCK).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)  # as is_locked does, paused there by the scheduler
        monkeypatch.setattr(time, "sleep", lambda seconds: reader.close())
        lock(tmp_path).close()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    names = [free_folder(tmp_path / "runs" / "grpo-1").name for _ in range(3)]
    assert names == ["grpo-1", "grpo-1-2", "grpo-1-3"]


def test_a_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path):
    abandoned(tmp_path)
    with temporary_folder(tmp_path) as mine, temporary_folder(tmp_path) as other:
        assert is_locked(mine) and is_locked(other)
        assert set(tmp_path.iterdir()) == {mine, other}
    assert not list(tmp_path.iterdir())


def abandoned(parent, begin=LOCKED, host=None):
    """A folder of a killed process; the kernel has released its lock."""
    folder = parent / f"{begin}{host or socket.gethostname()}+abandoned"
    folder.mkdir()
    (folder / LOCK).touch()
    return folder


def test_only_abandoned_folders_of_this_host_are_removed(tmp_path):
    """Hosts may share the parent folder but not its locks."""
    other, new, old = abandoned(tmp_path, host="other"), abandoned(tmp_path, NEW), abandoned(tmp_path, NEW, "*")
    abandoned(tmp_path)
    (tmp_path / f"{LOCKED}{socket.gethostname()}+file").touch()
    sweep(tmp_path)
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {other.name, new.name, old.name}
    os.utime(new, (0, 0))
    sweep(tmp_path)
    assert not new.exists()


def test_a_file_system_without_locks_is_a_one_line_error(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RecordError, match=r"^can't write .*: Function not implemented"), temporary_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_shared_memory_of_a_killed_process_is_freed(tmp_path, monkeypatch):
    memory = tmp_path / "memory"
    memory.mkdir()
    left = abandoned(memory, host="the-container-before")
    monkeypatch.setattr(files, "MEMORY", memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0 if left.exists() else 2**40))
    with passing_folder(2**30) as folder:
        assert folder.parent == memory


def test_full_shared_memory_is_a_one_line_error_that_names_it(monkeypatch):
    def full(*, prefix, dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with (
        pytest.raises(RecordError, match=r"can't write /dev/shm: No space left on device \(\S+ GiB free"),
        passing_folder(1),
    ):
        pass
