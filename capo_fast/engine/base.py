"""The interface of an engine, and of a server in an engine's place."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from capo_fast.errors import CapoError
from capo_fast.records import Completion, Request


class EngineError(CapoError):
    """The engine could not be started, or the server that stands for one gave out."""


class Completer(Protocol):
    """Answers requests. They enter with `add` at any time, also between two `step`s."""

    pause_s: float
    """What to wait after a step in which nothing ended: 0 where the step itself computes."""

    def add(self, request: Request) -> None: ...

    def step(self) -> list[Completion]:
        """The answers that ended since the last step. An engine computes for it; a server's client returns at once."""

    def close(self) -> None:
        """Give back what it holds; it can't be used afterwards."""


class Engine(Completer, Protocol):
    """A generation engine in this process, whose weights are pushed from outside."""

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights of these Hugging Face names, and forget every cached prefix.

        Of weights that `fused_with` gives together, all must come.
        """

    def fused_with(self, names: Iterable[str]) -> set[str]:
        """These names, and those of all weights that the engine keeps in one piece with theirs."""

    def checksums(self) -> dict[str, float]:
        """`checksum` of every weight the engine computes with, by its Hugging Face name."""

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Make this LoRA adapter, by the files of PEFT's format, the policy's: one version, under a name of its own.

        Requests and sequences of `score` with `base` go without it; the version before is forgotten, and none of its
        requests may be under way.
        """

    def forget_prefixes(self) -> None:
        """Drop every cached prefix."""

    def sleep(self) -> None:
        """Give the accelerator's memory back until the next `load` or `load_adapter`: until then nothing else may be
        asked. On a CPU nothing happens."""

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        """End these requests, all of them under way, and return what each has so far, which may be nothing; none is
        `finished`. All ranks of an engine stop the same ones, in the same order, between the same two steps."""

    def score(self, sequences: Sequence[Sequence[int]], base: Sequence[bool] | None = None) -> list[list[float]]:
        """Log-prob of each token after the first, natural log, temperature 1; all in one batch.

        base: which sequences go without the policy's adapter; None: none of them. Raises EngineError where a prefix of
        the first sequence is cached: none outlives a push.
        """


def stream_requests(engine: Completer, requests: Iterable[Request]) -> Iterator[Completion]:
    """All answers, each as it ends. Requests enter in the order given: the same order repeats the same answers."""
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
