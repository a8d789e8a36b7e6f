"""What the trainer asks of an engine, and the checksum both sides of a weight push agree on.

Letters: N rows and K columns of a weight.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from capo_fast.records import Completion, Request

CHECKSUM_ROWS = 8192


class EngineError(RuntimeError):
    """The engine could not be started, or the server that stands for one gave out."""


class Generator(Protocol):
    """Answers requests. They enter with `add` at any time, also between two `step`s."""

    pause_s: float
    """What to wait after a step in which nothing ended: 0 where the step itself computes."""

    def add(self, request: Request) -> None: ...

    def step(self) -> list[Completion]:
        """The answers that ended since the last step. An engine computes for it; a server's client returns at once."""

    def close(self) -> None:
        """Give back what it holds; it can't be used afterwards."""


class Engine(Generator, Protocol):
    """A generation engine in this process, whose weights are pushed from outside."""

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights by one whole version, in Hugging Face names, and forget every cached prefix."""

    def checksums(self) -> dict[str, float]:
        """`checksum` of every weight the engine computes with, by its Hugging Face name."""

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Make this LoRA adapter, by the files of PEFT's format, the policy's: one version, under a name of its own.

        Requests with `base` and `score(..., base=True)` go without it; the version before is forgotten.
        """

    def score(self, sequences: Sequence[Sequence[int]], base: bool = False) -> list[list[float]]:
        """Log-prob of each token after the first, natural log, temperature 1."""


def stream_requests(engine: Generator, requests: Iterable[Request]) -> Iterator[Completion]:
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


def run_requests(engine: Generator, requests: Iterable[Request]) -> dict[str, Completion]:
    """All answers, by request id."""
    return {completion.id: completion for completion in stream_requests(engine, requests)}


def signs(size: int, device: torch.device | None = None) -> torch.Tensor:
    """float64 [size] of fixed, irregular +1 and -1."""
    return torch.sin(torch.arange(1, size + 1, dtype=torch.float64, device=device) ** 2).sign()


def checksum(weight: torch.Tensor) -> float:
    """`signs(N) . W . signs(K)` of a matrix, `signs(N) . w` of a vector, in float64.

    It depends on every entry and on its place; of bfloat16 and float32 weights it is exact to float64's rounding.
    """
    if weight.ndim == 1:
        return float(weight.double() @ signs(len(weight), weight.device))
    signs_K = signs(weight.shape[1], weight.device)
    response_N = torch.cat([rows.double() @ signs_K for rows in weight.split(CHECKSUM_ROWS)])
    return float(response_N @ signs(len(response_N), weight.device))
