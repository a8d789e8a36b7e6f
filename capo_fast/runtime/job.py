"""All ranks of a job, of one role or of two: those that learn come first, those that hold engines last.

The ranks of a role are torch's default process group, as if they were all there are: a collective "on all ranks" is
one of a role's, FSDP shards over the ranks that learn, and vLLM makes its groups of the ranks that hold engines. What
passes between the roles goes over a `Link`.
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
"""How many time-outs of a role's own collectives a link waits: the other role may be in several stages, each of which
has a deadline of its own."""


class LostRank:
    """How another rank has ended, as this one has found: killed, silent, after an error or over its deadline."""

    def __init__(self) -> None:
        self.found, self.handled = threading.Event(), threading.Event()
        """Set when something is found, and when the main thread ends because of it."""
        self.text: str | None = None
        self.silent = False
        """Whether the host of the job's store is silent."""
        self.line = threading.Lock()
        """Taken, and never given back, by the thread that shows the line."""

    def note(self, text: str) -> None:
        self.text = text
        self.found.set()

    def wait(self, seconds: float) -> str | None:
        """What is found in that time."""
        self.found.wait(seconds)
        return self.text


@dataclass(frozen=True)
class Job:
    """All ranks, and this one among them."""

    store: Any
    """What all of them share; under torchrun it outlives them."""
    rank: int
    count: int
    engines: int
    """How many hold engines and don't learn; 0: every rank does both."""
    timeout: timedelta
    """Of a collective."""
    places: tuple[Place, ...] = ()
    """Of all ranks."""
    lost: LostRank = field(default_factory=LostRank)

    @property
    def node_count(self) -> int:
        return len({place.node for place in self.places}) or 1

    @property
    def node(self) -> int:
        """This rank's: the first rank of it."""
        return self.places[self.rank].node

    @property
    def mates(self) -> list[int]:
        """The ranks of this one's role on its node."""
        role = range(self.learners, self.count) if self.only_generates else range(self.learners)
        return [rank for rank in role if self.places[rank].node == self.node]

    def name(self, rank: int) -> str:
        """A rank in words, with its host where there are several."""
        return f"rank {rank} on {self.places[rank].host}" if self.node_count > 1 else f"rank {rank}"

    @property
    def learners(self) -> int:
        return self.count - self.engines

    @property
    def only_generates(self) -> bool:
        return self.rank >= self.learners

    def in_role(self) -> tuple[str, int, int]:
        """The name of this rank's role, its rank there, and how many have the role."""
        if self.only_generates:
            return "engines", self.rank - self.learners, self.engines
        return "learners", self.rank, self.learners


class Link:
    """Some ranks of a job, whatever their role, in the order of `members`. Its methods are collectives of all of them.

    Its groups are not among those that torch has a register of, which are all made of the default one.
    """

    def __init__(self, job: Job, name: str, members: Sequence[int]) -> None:
        self.rank = members.index(job.rank)
        self._count = len(members)
        self._store = dist.PrefixStore(f"link/{name}", job.store)
        self._timeout = job.timeout * BETWEEN_MEETINGS
        self._groups: dict[str, Any] = {}

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Fill the tensor with that of the member `source`: of the same shape, dtype and kind of device on each."""
        self.group(tensor.device.type).broadcast(tensor, source).wait()

    def pass_bytes(self, data: bytes | None, source: int) -> bytes:
        """The bytes that the member `source` gives; the others give None."""
        size = torch.tensor(len(data or b""))
        self.broadcast(size, source)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if data:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if size:
            self.broadcast(buffer, source)
        return buffer.numpy().tobytes()

    def share(self, value: Any, source: int) -> Any:
        """The value that the member `source` gives, of the kinds that pickle takes; what the others give is ignored."""
        if self.rank == source:
            self.pass_bytes(pickle.dumps(value), source)
            return value
        return pickle.loads(self.pass_bytes(None, source))

    def group(self, kind: str) -> Any:
        """The process group of these ranks for tensors of one kind of device."""
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
    """That of this process, inside `capo_fast.runtime.ranks.ranks`."""
    [job] = _current
    return job


def enter_job(job: Job) -> None:
    _current[:] = [job]


def leave_job() -> None:
    _current.clear()
