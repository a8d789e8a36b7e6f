"""A deterministic test double of the engine: a function gives its answers, and it stores the weights."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from safetensors.torch import load

from capo_fast.engine.checksum import checksum
from capo_fast.records import Completion, Request


class ScriptedEngine:
    """Answers one request per step with `answer(request)`, in order of arrival.

    scorer: `scorer(weights, sequence)` returns the log-probs of `score`; tests of the canary pass a real model.
    weights: those of the base, for tests with an adapter.
    """

    pause_s = 0.0

    def __init__(
        self,
        answer: Callable[[Request], Completion],
        scorer: Callable[[dict[str, torch.Tensor], Sequence[int]], list[float]] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.weights: dict[str, torch.Tensor] = dict(weights or {})
        self.adapter: dict[str, torch.Tensor] = {}
        """By PEFT's names, B times alpha / R."""
        self._answer = answer
        self._scorer = scorer
        self._waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def step(self) -> list[Completion]:
        return [self._answer(self._waiting.popleft())] if self._waiting else []

    def stop(self, ids: Sequence[str]) -> list[Completion]:
        self._waiting = deque(request for request in self._waiting if request.id not in ids)
        return [Completion(name, (), (), "", False) for name in ids]

    def load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.weights = self.weights | {name: weight.detach().clone() for name, weight in weights}

    def fused_with(self, names: Iterable[str]) -> set[str]:
        return set(names)

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        config = json.loads(files["adapter_config.json"])
        scaling = {"lora_A": 1.0, "lora_B": config["lora_alpha"] / config["r"]}
        self.adapter = {
            name.removeprefix("base_model.model."): weight * scaling[name.split(".")[-2]]
            for name, weight in load(files["adapter_model.safetensors"]).items()
        }

    def forget_prefixes(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def checksums(self) -> dict[str, float]:
        return {name: checksum(weight) for name, weight in (self.weights | self.adapter).items()}

    def score(self, sequences: Sequence[Sequence[int]], base: Sequence[bool] | None = None) -> list[list[float]]:
        if self._scorer is None:
            raise NotImplementedError("this scripted engine has no scorer")
        merged = self._merged()
        bare = base or [False] * len(sequences)
        pairs = zip(sequences, bare, strict=True)
        return [self._scorer(self.weights if is_base else merged, sequence) for sequence, is_base in pairs]

    def close(self) -> None:
        self._waiting.clear()

    def _merged(self) -> dict[str, torch.Tensor]:
        merged = dict(self.weights)
        for name, lora_A in self.adapter.items():
            layer, _, which = name.removesuffix(".weight").rpartition(".")
            if which == "lora_A":
                merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + self.adapter[f"{layer}.lora_B.weight"] @ lora_A
        return merged
