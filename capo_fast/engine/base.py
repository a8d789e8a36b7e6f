"""The interface of an engine, and of a server used as one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from capo_fast.errors import CapoError
from capo_fast.records import Completion, Request


class EngineError(CapoError):
    """The engine could not be started, or the server used as one failed."""


class Completer(Protocol):
    """Answers requests. `add` may be called at any time, also between two `step`s."""

    pause_s: float
    """Seconds to wait after a step in which no request ended: 0 if the step itself computes."""

    def add(self, request: Request) -> None: ...

    def step(self) -> list[Completion]:
        """The answers that ended since the last step. An engine computes one step; a server's client doesn't wait."""

    def close(self) -> None:
        """Release all resources; it can't be used afterwards."""


class Engine(Completer, Protocol):
    """A generation engine in this process, whose weights are pushed from outside."""

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights of these Hugging Face names, and drop every cached prefix.

        Weights that `fused_with` returns together must be given together.
        """

    def fused_with(self, names: Iterable[str]) -> set[str]:
        """These names, and the names of all weights that the engine keeps fused with them."""

    def checksums(self) -> dict[str, float]:
        """`checksum` of every weight the engine computes with, by its Hugging Face name."""

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Make this LoRA adapter, given as files in PEFT's format, the policy's: one version, under a name of its own.

        Requests and sequences of `score` with `base` don't use it. The previous version is dropped; none of its
        requests may be running.
        """

    def forget_prefixes(self) -> None:
        """Drop every cached prefix."""

    def sleep(self) -> None:
        """Free the accelerator's memory until the next `load` or `load_adapter`; no other method may be called until
        then. Does nothing on a CPU."""

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        """Abort these running requests and return their partial answers, which may be empty; none is `finished`. All
        ranks of an engine stop the same ones, in the same order, between the same two steps."""

    def score(self, sequences: Sequence[Sequence[int]], base: Sequence[bool] | None = None) -> list[list[float]]:
        """Log-prob of each token after the first, natural log, temperature 1; all in one batch.

        base: which sequences don't use the policy's adapter; None: all use it. Raises EngineError if a prefix of the
        first sequence is cached: no cached prefix may survive a push.
        """


def stream_requests(engine: Completer, requests: Iterable[Request]) -> Iterator[Completion]:
    """All answers, each as it ends. Requests are added in the given order: the same order gives the same answers."""
    waiting: set[str] = set()
    for request in requests:
        engine.add(request)
        waiting.add(request.id)
    while waiting:
        ended = engine.step()
        waiting -= {completion.id for completion in ended}
        yield from ended
        if not ended:
            time.sleep(engine.pause_s)


def run_requests(engine: Completer, requests: Iterable[Request]) -> dict[str, Completion]:
    """All answers, by request id."""
    return {completion.id: completion for completion in stream_requests(engine, requests)}
