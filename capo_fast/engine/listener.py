"""The users whose processes listen on a port of this machine (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENS = "0A"


def is_mine(port: int) -> bool:
    """Whether a process of this user listens on the port, and none of another user."""
    return set(_owners(port)) == {os.getuid()}


def _owners(port: int) -> Iterator[int]:
    """The user ids of all listeners on the port, on any address."""
    for table in TABLES:
        with suppress(FileNotFoundError):  # a system without IPv6
            for line in table.read_text().splitlines()[1:]:
                _, address, _, state, _, _, _, user, *_ = line.split()
                if state == LISTENS and int(address.rpartition(":")[2], 16) == port:
                    yield int(user)
