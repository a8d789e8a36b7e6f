"""Engines on other ranks: the ranks that learn send orders to the ranks that hold engines, and broadcast the weights.

    learning ranks                          ranks with an engine
    caller.order("load")                    name, arguments = host.next_order()
    send_weights(caller.lane, weights)      engine.load(receive_weights(host.lane, device))
    caller.order("score", probe)            host.answer(engine.score(probe))
    caller.reply()

All ranks of the job take part in every order and answer. The first rank that learns sends the weights to all engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from capo_fast.engine.base import Engine, EngineError
from capo_fast.runtime.job import Job, Link
from capo_fast.runtime.ranks import gather

BUCKET = 2**28
"""Bytes of weights per broadcast; a larger tensor has its own broadcast."""


class Crossing:
    """The links between ranks that learn and ranks with engines, for both roles."""

    def __init__(self, job: Job) -> None:
        everyone = range(job.count)
        self.job = job
        self.all = Link(job, "all", everyone)
        self.first_engine = job.learners
        members = [0, *everyone[job.learners :]]
        self.lane = Link(job, "weights", members) if job.rank in members else None
        """Link of the first rank that learns and all engines."""

    def order(self, name: str, *arguments: Any) -> None:
        """Send the ranks with engines an order; called on every rank that learns."""
        self.all.share((name, arguments), 0)

    def reply(self) -> Any:
        """The answer to the last order."""
        return self.all.share(None, self.first_engine)

    def next_order(self) -> tuple[str, tuple[Any, ...]]:
        """The next order of the learning ranks; called on every rank with an engine."""
        return self.all.share(None, 0)

    def answer(self, value: Any) -> None:
        """Answer an order; the answer of the first rank with an engine counts."""
        self.all.share(value, self.first_engine)


def send_weights(lane: Link, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    for bucket in _buckets(weights):
        tensors = [weight for _, weight in bucket]
        lane.share((tensors[0].dtype, [(name, tuple(weight.shape)) for name, weight in bucket]), 0)
        lane.broadcast(torch.cat([weight.reshape(-1) for weight in tensors]), 0)
    lane.share(None, 0)


def receive_weights(lane: Link, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """The receiving end of `send_weights`; it must be read to its end."""
    while (header := lane.share(None, 0)) is not None:
        dtype, parts = header
        sizes = [math.prod(shape) for _, shape in parts]
        flat = torch.empty(sum(sizes), dtype=dtype, device=device)
        lane.broadcast(flat, 0)
        for (name, shape), part in zip(parts, flat.split(sizes), strict=True):
            yield name, part.view(shape)


def _buckets(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The weights in their order, in buckets of one dtype and at most BUCKET bytes, or of a single tensor."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, weight in weights:
        if bucket and (size + weight.nbytes > BUCKET or weight.dtype != bucket[0][1].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append((name, weight))
        size += weight.nbytes
    if bucket:
        yield bucket


class RemoteEngines:
    """All engines, seen from a rank that learns: the methods of `Engine` that `capo_fast.policy.sync` calls. They are
    collectives on all ranks that learn."""

    def __init__(self, crossing: Crossing, max_gap: float) -> None:
        """max_gap: largest mean |difference| of two engines' log-probs of the same sequences, nats."""
        self._crossing, self._max_gap = crossing, max_gap

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._crossing.order("load")
        if self._crossing.lane is not None:
            send_weights(self._crossing.lane, weights)
        for _ in weights:  # gathering one is a collective of the ranks that learn
            pass

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        self._crossing.order("load_adapter", list(files))
        if self._crossing.lane is not None:
            for data in files.values():
                self._crossing.lane.pass_bytes(data, 0)

    def fused_with(self, names: Iterable[str]) -> set[str]:
        return self._call("fused_with", list(names))[0]

    def forget_prefixes(self) -> None:
        self._crossing.order("forget_prefixes")

    def sleep(self) -> None:
        """Does nothing: engines on ranks of their own keep their memory."""

    def checksums(self) -> dict[str, float]:
        """Raises EngineError if two engines have different weights."""
        first, *others = self._call("checksums")
        for other in others:
            if differing := [name for name in first | other if first.get(name) != other.get(name)]:
                name = differing[0]
                raise EngineError(f"two engines differ: {name} has checksum {first.get(name)} and {other.get(name)}")
        return first

    def score(self, sequences: Sequence[Sequence[int]], base: Sequence[bool] | None = None) -> list[list[float]]:
        """Raises EngineError if two engines compute different log-probs."""
        first, *others = self._call("score", list(map(tuple, sequences)), base)
        for other in others:
            gaps = [abs(a - b) for x, y in zip(first, other, strict=True) for a, b in zip(x, y, strict=True)]
            if not sum(gaps) <= self._max_gap * len(gaps):
                raise EngineError(
                    f"two engines differ: the probe's log-probs by {sum(gaps) / len(gaps):.2g} in the mean"
                )
        return first

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        """Order a method call; returns each engine's answer."""
        self._crossing.order(name, *arguments)
        return self._crossing.reply()


@dataclass(frozen=True)
class EngineHost:
    """The side of `RemoteEngines` on a rank with an engine: one method per order."""

    engine: Engine
    crossing: Crossing
    device: torch.device

    def load(self) -> None:
        weights = receive_weights(self._lane, self.device)
        self.engine.load(weights)
        for _ in weights:  # weights left unread would be taken for the next order
            pass

    def load_adapter(self, names: Sequence[str]) -> None:
        self.engine.load_adapter({name: self._lane.pass_bytes(None, 0) for name in names})

    def forget_prefixes(self) -> None:
        self.engine.forget_prefixes()

    def fused_with(self, names: Iterable[str]) -> None:
        self.crossing.answer(gather([self.engine.fused_with(names)]))

    def checksums(self) -> None:
        self.crossing.answer(gather([self.engine.checksums()]))

    def score(self, sequences: Sequence[Sequence[int]], base: Sequence[bool] | None) -> None:
        self.crossing.answer(gather([self.engine.score(sequences, base)]))

    @property
    def _lane(self) -> Link:
        assert self.crossing.lane is not None  # every rank with an engine is a member
        return self.crossing.lane
