"""All ranks of a job, in one role or two: ranks that learn come first, ranks that hold engines last.

The ranks of one role are torch's default process group. A collective "on all ranks" is therefore one on all ranks of a
role; FSDP shards over the ranks that learn, and vLLM forms its groups from the ranks that hold engines. The roles
communicate over a `Link`.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from capo_fast.runtime.hosts import Place

BETWEEN_MEETINGS = 4
"""A link's time-out, in time-outs of a role's own collectives: the other role may pass through several stages, each
with its own deadline."""


class LostRank:
    """This rank's finding of how another rank ended: killed, unreachable, failed or over its deadline."""

    def __init__(self) -> None:
        self.found, self.handled = threading.Event(), threading.Event()
        """Set when a lost rank is found, and when the main thread exits because of it."""
        self.text: str | None = None
        self.silent = False
        """Whether the host of the job's store does not respond."""
        self.line = threading.Lock()
        """Acquired, and never released, by the thread that prints the line."""

    def note(self, text: str) -> None:
        self.text = text
        self.found.set()

    def wait(self, seconds: float) -> str | None:
        """The finding, None if there is none after `seconds`."""
        self.found.wait(seconds)
        return self.text


@dataclass(frozen=True)
class Job:
    """All ranks of a job, and this rank's place in it."""

    store: Any
    """torch's key-value store, shared by all ranks; under torchrun it outlives them."""
    rank: int
    count: int
    engines: int
    """Number of ranks that hold engines and don't learn; 0: every rank does both."""
    timeout: timedelta
    """Time-out of a collective."""
    places: tuple[Place, ...] = ()
    """Places of all ranks."""
    lost: LostRank = field(default_factory=LostRank)

    @property
    def node_count(self) -> int:
        return len({place.node for place in self.places}) or 1

    @property
    def node(self) -> int:
        """This rank's node, named by its first rank."""
        return self.places[self.rank].node

    @property
    def mates(self) -> list[int]:
        """The ranks of this rank's role on its node."""
        role = range(self.learners, self.count) if self.only_generates else range(self.learners)
        return [rank for rank in role if self.places[rank].node == self.node]

    def name(self, rank: int) -> str:
        """A rank's name in messages, with its host if there are several nodes."""
        return f"rank {rank} on {self.places[rank].host}" if self.node_count > 1 else f"rank {rank}"

    @property
    def learners(self) -> int:
        return self.count - self.engines

    @property
    def only_generates(self) -> bool:
        return self.rank >= self.learners

    def in_role(self) -> tuple[str, int, int]:
        """The name of this rank's role, its rank in the role, and the role's number of ranks."""
        if self.only_generates:
            return "engines", self.rank - self.learners, self.engines
        return "learners", self.rank, self.learners


class Link:
    """Some ranks of a job, of any role, in the order of `members`. Its methods are collectives of all of them.

    Its process groups are not in torch's registry, because registered groups are subsets of the default group.
    """

    def __init__(self, job: Job, name: str, members: Sequence[int]) -> None:
        self.rank = members.index(job.rank)
        self._count = len(members)
        self._store = dist.PrefixStore(f"link/{name}", job.store)
        self._timeout = job.timeout * BETWEEN_MEETINGS
        self._groups: dict[str, Any] = {}

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Copy the tensor of the member `source` into everyone's; all have the same shape, dtype and device type."""
        self.group(tensor.device.type).broadcast(tensor, source).wait()

    def pass_bytes(self, data: bytes | None, source: int) -> bytes:
        """The bytes of the member `source`; the others pass None."""
        size = torch.tensor(len(data or b""))
        self.broadcast(size, source)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if data:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if size:
            self.broadcast(buffer, source)
        return buffer.numpy().tobytes()

    def share(self, value: Any, source: int) -> Any:
        """The picklable value of the member `source`; the values of the others are ignored."""
        if self.rank == source:
            self.pass_bytes(pickle.dumps(value), source)
            return value
        return pickle.loads(self.pass_bytes(None, source))

    def group(self, kind: str) -> Any:
        """The process group of these ranks for tensors of one device type."""
        if kind not in self._groups:
            self._groups[kind] = self._new_group(kind)
        return self._groups[kind]

    def _new_group(self, kind: str) -> Any:
        store = dist.PrefixStore(kind, self._store)
        if kind == "cpu":
            return dist.ProcessGroupGloo(store, self.rank, self._count, self._timeout)
        options = dist.ProcessGroupNCCL.Options()  # never run on several GPUs yet
        options._timeout = self._timeout
        return dist.ProcessGroupNCCL(store, self.rank, self._count, options)


_current: list[Job] = []


def this_job() -> Job:
    """The job of this process, inside `capo_fast.runtime.ranks.ranks`."""
    [job] = _current
    return job


def enter_job(job: Job) -> None:
    _current[:] = [job]


def leave_job() -> None:
    _current.clear()
