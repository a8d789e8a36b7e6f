"""The hosts of a job: where each rank runs, its network interface, and which ranks must be on one host."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed import DistStoreError

from capo_fast.errors import CapoError, ConfigError
from capo_fast.terminal import print_line


@dataclass(frozen=True)
class Place:
    """The host, node and address of a rank."""

    host: str
    """Host name."""
    node: int
    """The first rank of its node. Ranks started by the same launcher are one node."""
    address: str
    """IP address of the host, as others reach it."""


def find_places(store: Any, rank: int, count: int) -> tuple[Place, ...]:
    """The places of all ranks, by rank; each rank publishes its own. A collective. Raises CapoError on every rank if
    one is missing after `MEET_S`: torchrun does not stop the ranks of one host when those of another fail to start."""
    mine = (socket.gethostname(), rank - int(os.environ["LOCAL_RANK"]), own_address(os.environ["MASTER_ADDR"]))
    store.set(f"{PLACE}/{rank}", json.dumps(mine))
    names = [f"{PLACE}/{each}" for each in range(count)]
    missing: list[int] = []
    try:
        store.wait(names, timedelta(seconds=MEET_S))
    except DistStoreError:
        missing = [each for each, name in enumerate(names) if not store.check([name])]
    # The first rank whose wait ends decides for all, including ranks that start later.
    if late := json.loads(store.compare_set(LATE, "", json.dumps(missing))):
        raise _late(late, rank)
    return tuple(Place(*json.loads(each)) for each in store.multi_get(names))


def _late(ranks: Sequence[int], rank: int) -> CapoError:
    """The error for the given missing ranks; one rank per host prints it."""
    which = f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} have"
    others = ("others", "they have exited") if rank in ranks else ("this one", "the reason is in another host's output")
    error = CapoError(f"{which} not started {MEET_S} s after {others[0]}: {others[1]}")
    error.quiet = os.environ["LOCAL_RANK"] != "0"
    return error


PLACE, LATE = "capo_fast/place", "capo_fast/late"
MEET_S = 900
"""Longest wait between the first rank's start and the last's, seconds. Ranks import Python packages meanwhile, often on
many hosts from one slow disk."""


def own_address(peer: str) -> str:
    """The source address of packets from this machine to `peer`. Nothing is sent."""
    for family, kind, _, _, address in socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM):
        with suppress(OSError), socket.socket(family, kind) as probe:  # a name may have addresses without a route
            probe.connect(address)
            return str(probe.getsockname()[0])
    raise CapoError(f"{peer}, the host of rank 0, can't be reached from {socket.gethostname()}: no address has a route")


def choose_interface(places: Sequence[Place], rank: int) -> None:
    """Make gloo use the interface by which this rank reaches another host, unless the user has named one.

    By default gloo uses the address of the host's own name, which is 127.0.1.1 on many systems (Debian). The address
    that rank 0's host has found for itself may be 127.0.1.1, too: its ranks use the route to another host instead.
    """
    mine, last = places[rank], places[-1]
    if last.node == 0 or GLOO in os.environ:  # last.node == 0: there is one node
        return
    address = mine.address if mine.node else own_address(last.address)
    interfaces = psutil.net_if_addrs().items()
    names = [name for name, found in interfaces if address in [each.address.partition("%")[0] for each in found]]
    if names:
        os.environ[GLOO] = names[0]
    else:
        print_line(
            "warning",
            f"no interface of {mine.host} has its address {address}: gloo uses its default; if ranks can't connect, "
            f"name an interface in {GLOO}",
        )


GLOO = "GLOO_SOCKET_IFNAME"


def check_engines(places: Sequence[Place], first: int, tensor_parallel: int) -> None:
    """Raises ConfigError if the ranks of one engine are on several nodes. first: the first rank with an engine."""
    for start in range(first, len(places), tensor_parallel):
        group = places[start : start + tensor_parallel]
        if len({place.node for place in group}) > 1:
            hosts = " and ".join(dict.fromkeys(place.host for place in group))
            raise ConfigError(
                f"engine.tensor_parallel: found {tensor_parallel}, wanted engines of ranks on one host: ranks {start} "
                f"to {start + tensor_parallel - 1} are on {hosts}, and each layer would wait for their network"
            )
