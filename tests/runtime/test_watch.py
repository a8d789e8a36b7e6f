"""A rank that exits without notice is named; an orderly exit or a connection of another process is not."""

from __future__ import annotations

import socket
from contextlib import closing
from datetime import timedelta
from queue import Queue

import pytest
import torch.distributed as dist

from capo_fast.runtime.hosts import Place
from capo_fast.runtime.job import Job
from capo_fast.runtime.watch import KEY, Watch

PLACES = (Place("left", 0, "127.0.0.1"), Place("right", 1, "127.0.0.1"), Place("right", 1, "127.0.0.1"))


@pytest.fixture
def jobs(monkeypatch):
    """The three ranks of a job, all in this process."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    return [Job(store, rank, len(PLACES), 0, timedelta(seconds=20), PLACES) for rank in range(len(PLACES))]


def connected(job: Job, hello: bytes) -> socket.socket:
    """A connection to rank 0 that sends `hello` first."""
    connection = socket.create_connection(("127.0.0.1", int(job.store.get(KEY).decode().split()[0])))
    connection.sendall(hello)
    return connection


def test_a_lost_rank_is_named_and_a_foreign_connection_is_not(jobs):
    lost = Queue()
    with closing(Watch(jobs[0], lost.put)):
        token = bytes.fromhex(jobs[0].store.get(KEY).decode().split()[1])
        for hello in (b"", bytes(16) + (1).to_bytes(4), token + (7).to_bytes(4)):
            connected(jobs[0], hello).close()
        slow = connected(jobs[0], token[:5])  # the rest of its token never follows
        with closing(slow), closing(Watch(jobs[1], lost.put)):
            connected(jobs[0], token + (2).to_bytes(4)).close()
            assert lost.get(timeout=20) == "rank 2 on right died without an error message, as if killed"
            assert slow.recv(1) == b"", "all ranks are connected: no other connection is accepted"
    assert lost.empty()


def test_a_lost_rank_0_is_named(jobs):
    lost = Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        jobs[0].store.set(KEY, f"{server.getsockname()[1]} {bytes(16).hex()}")
        with closing(Watch(jobs[1], lost.put)):
            server.accept()[0].close()
            assert lost.get(timeout=20) == "rank 0 on left died without an error message, as if killed"
