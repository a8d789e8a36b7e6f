"""Detects lost ranks: each rank keeps an idle connection to rank 0, and the kernel reports how the connection ends.

    rank 1, 2, ...  -> rank 0    token and rank, then nothing
    either          -> either    BYE, before an orderly exit

A process that is killed closes its connections at once. If its host or the network is lost, TCP's keep-alive probes
are not answered. The kernel answers these probes, so a rank that is busy, or whose threads can't run, does not count as
lost. `capo_fast.runtime.failures` handles orderly exits, with an error or without.
"""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from capo_fast.runtime.job import Job

IDLE_S, PROBES = 10, 5
"""Seconds between probes, and the number of unanswered probes after which a connection is closed."""
SILENCE_S = IDLE_S * (PROBES + 1)
"""Seconds after which a host that answers no probe is lost. Longer than usual pauses of networks and of VMs."""
if sys.platform == "darwin":
    IDLE_OPTION = socket.TCP_KEEPALIVE
else:
    IDLE_OPTION = socket.TCP_KEEPIDLE
KEY = "capo_fast/watch"
HELLO_BYTES = 20
"""16 bytes of token, 4 bytes of rank."""
BYE = b"."


class Watch:
    """This rank's connections: rank 0 is connected to all others, every other rank to rank 0.

    Calls `lost` in a thread of its own, with one line per rank that was lost without an error message.
    """

    def __init__(self, job: Job, lost: Callable[[str], None]) -> None:
        """A collective in which the others wait for rank 0, and rank 0 for nobody."""
        self._job, self._lost = job, lost
        self._waker, self._stop = socket.socketpair()
        self._peers: dict[socket.socket, int] = {}
        self._hellos: dict[socket.socket, bytes] = {}
        """Bytes received so far from connections that have not yet identified themselves as a rank."""
        self._server: socket.socket | None = None
        if job.rank == 0:
            self._token, self._awaited = secrets.token_bytes(16), set(range(1, job.count))
            self._server = _open_server(job)
            job.store.set(KEY, f"{self._server.getsockname()[1]} {self._token.hex()}")
        else:
            self._peers[_connect(job)] = 0
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send BYE, and stop watching."""
        self._job.lost.handled.set()
        self._waker.send(BYE)
        self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in (self._stop, self._server, *self._peers):
                if each is not None:
                    selector.register(each, selectors.EVENT_READ)
            while not self._closing(selector):
                pass
            self._close_server(selector)
        for peer in self._peers:
            with suppress(OSError):  # it may have exited before
                peer.send(BYE)
            peer.close()
        self._stop.close()

    def _closing(self, selector: selectors.BaseSelector) -> bool:
        """Wait for the next events and handle them; returns whether `close` was called."""
        ready = [key.fileobj for key, _ in selector.select()]
        for each in ready:
            if each is self._server:
                self._accept(selector)
            elif each in self._hellos:
                self._read_hello(each, selector)
            elif each in self._peers:
                selector.unregister(each)
                self._read_end(each)
        return self._stop in ready

    def _accept(self, selector: selectors.BaseSelector) -> None:
        assert self._server is not None
        peer, _ = self._server.accept()
        peer.setblocking(False)
        self._hellos[peer] = b""
        selector.register(peer, selectors.EVENT_READ)

    def _read_hello(self, peer: Any, selector: selectors.BaseSelector) -> None:
        """Add a rank, which sends its token and number first. Closes any other connection, and the server after the
        last rank."""
        hello, part = self._hellos[peer], b""
        with suppress(OSError):
            part = peer.recv(HELLO_BYTES - len(hello))
        self._hellos[peer] = hello = hello + part
        if part and len(hello) < HELLO_BYTES:
            return
        del self._hellos[peer]
        token, rank = hello[:-4], int.from_bytes(hello[-4:])
        if secrets.compare_digest(token, self._token) and rank in self._awaited:
            self._peers[_kept_alive(peer)] = rank
            self._awaited.remove(rank)
        else:
            selector.unregister(peer)
            peer.close()
        if not self._awaited:
            self._close_server(selector)

    def _close_server(self, selector: selectors.BaseSelector) -> None:
        """Close the server, and connections that have not identified themselves."""
        for each in (self._server, *self._hellos):
            if each is not None:
                selector.unregister(each)
                each.close()
        self._server, self._hellos = None, {}

    def _read_end(self, peer: Any) -> None:
        """Report a connection that ended without BYE."""
        name = self._job.name(self._peers.pop(peer))
        try:
            if peer.recv(1) != BYE:
                self._lost(f"{name} died without an error message, as if killed")
        except OSError as error:
            if error.errno in (errno.ECONNRESET, errno.EPIPE):
                self._lost(f"{name} died without an error message, as if killed")
            else:
                self._lost(f"{name} has not answered for {SILENCE_S} s: its host or the network is lost")
        peer.close()


def _open_server(job: Job) -> socket.socket:
    """A server on every address of this host if the job has several hosts, else on the loopback."""
    if job.node_count == 1:
        return socket.create_server((LOOPBACK, 0), backlog=job.count)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=job.count, dualstack_ipv6=both)


LOOPBACK = "127.0.0.1"


def _connect(job: Job) -> socket.socket:
    """Connect to rank 0. If it is on another host, that host also has the job's store and is reached by its name."""
    port, token = job.store.get(KEY).decode().split()
    host = os.environ["MASTER_ADDR"] if job.node_count > 1 else LOOPBACK
    peer = socket.create_connection((host, int(port)), timeout=job.timeout.total_seconds())
    peer.sendall(bytes.fromhex(token) + job.rank.to_bytes(4))
    return _kept_alive(peer)


def _kept_alive(peer: socket.socket) -> socket.socket:
    """The same socket with keep-alive; no other connection of this package is idle for so long."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((IDLE_OPTION, IDLE_S), (socket.TCP_KEEPINTVL, IDLE_S), (socket.TCP_KEEPCNT, PROBES)):
        peer.setsockopt(socket.IPPROTO_TCP, option, value)
    return peer
