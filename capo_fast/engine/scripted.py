"""A deterministic double of the engine, for tests of the loop: answers come from a function, weights are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from capo_fast.engine.base import checksum
from capo_fast.records import Completion, Request


class ScriptedEngine:
    """Answers each request with `answer(request)`, one a step, in the order they came.

    `scorer(weights, sequence)` gives the log-probs of `score`; tests that need the canary pass a real model there.
    """

    pause_s = 0.0

    def __init__(
        self,
        answer: Callable[[Request], Completion],
        scorer: Callable[[dict[str, torch.Tensor], Sequence[int]], list[float]] | None = None,
    ) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.adapter: dict[str, bytes] = {}
        self._answer = answer
        self._scorer = scorer
        self._waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def step(self) -> list[Completion]:
        return [self._answer(self._waiting.popleft())] if self._waiting else []

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in weights}

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        self.adapter = dict(files)

    def checksums(self) -> dict[str, float]:
        return {name: checksum(weight) for name, weight in self.weights.items()}

    def score(self, sequences: Sequence[Sequence[int]], base: bool = False) -> list[list[float]]:
        if self._scorer is None:
            raise NotImplementedError("this scripted engine has no scorer")
        return [self._scorer(self.weights, sequence) for sequence in sequences]

    def close(self) -> None:
        self._waiting.clear()
