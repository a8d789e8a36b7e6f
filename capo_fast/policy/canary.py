"""The canary: compares trainer and engine after a push, and stops the run with both numbers if they differ.

It compares a checksum of every weight that the engine computes with, and the log-probs of a fixed probe batch. This
detects a reload of the base model after a sync (trl#5312), and a stale packed head in vLLM's CPU kernels if a tied head
is pushed only as the embedding.

Checksums are computed while the weights are pushed, and all are read at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from capo_fast.config.schema import Config
from capo_fast.engine.base import Engine
from capo_fast.engine.checksum import checksum_of_rows, row_sums
from capo_fast.errors import CapoError

CHECKSUM_TOLERANCE = 1e-9
"""Relative to the norm of a weight's row sums: both sides sum the same rounded numbers in float64."""

LOGPROB_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Mean |difference| of the probe's log-probs, in nats, by the coarser dtype of trainer and engine."""

Sums = dict[str, tuple[float, float]]
"""Checksum of each weight by name, and the norm of its `row_sums`."""


class SyncError(CapoError):
    """Trainer and engine have different weights."""


def allowed_gap(config: Config) -> float:
    """Largest mean |difference| of the probe's log-probs, nats."""
    coarser = "bfloat16" if "bfloat16" in (config.engine.dtype, config.policy.dtype) else "float32"
    return config.sync.max_logprob_gap or LOGPROB_TOLERANCE[coarser]


class Canary:
    """Compares the engine with the trainer."""

    def __init__(self, engine: Engine, probe: Sequence[tuple[int, ...]], config: Config) -> None:
        self._engine = engine
        self._probe = probe
        self._limit = allowed_gap(config)

    def check_weights(self, wanted: Sums) -> None:
        """Raises SyncError with the first weight that differs in the engine, or exists on one side only."""
        found = self._engine.checksums()
        for name in wanted | found:
            ours, norm = wanted.get(name, (math.nan, math.nan))
            if not abs(found.get(name, math.nan) - ours) <= CHECKSUM_TOLERANCE * norm:
                raise SyncError(
                    f"sync canary: {name} has checksum {ours:.9g} in the trainer and "
                    f"{found.get(name, math.nan):.9g} in the engine"
                )

    def check_probe(self, policy: torch.Tensor, base: torch.Tensor | None = None) -> None:
        """Raises SyncError if the engine's log-probs of the probe are too far from the trainer's.

        Policy and base are scored in one batch, like rollouts and critiques.
        """
        count = len(self._probe)
        if base is None:
            self._compare("", policy, self._engine.score(self._probe))
            return
        scores = self._engine.score([*self._probe, *self._probe], base=[i >= count for i in range(2 * count)])
        self._compare("", policy, scores[:count])
        self._compare(" under the base", base, scores[count:])

    def _compare(self, where: str, ours: torch.Tensor, scores: Sequence[Sequence[float]]) -> None:
        theirs = torch.tensor([logprob for sequence in scores for logprob in sequence])
        gap = (ours - theirs).abs().mean().item()
        if not gap <= self._limit:
            raise SyncError(
                f"sync canary: the probe's mean log-prob{where} is {ours.mean():.6f} in the trainer and "
                f"{theirs.mean():.6f} in the engine (mean difference {gap:.2g}, at most {self._limit:.2g} is allowed)"
            )


class Summed:
    """Iterates over weights by name, and computes their checksums on the way."""

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._weights = weights
        self._found: dict[str, torch.Tensor] = {}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        before, sums = None, torch.empty(0)
        for name, weight in self._weights:
            if weight is not before:  # a tied head comes right after its embedding and is the same tensor
                sums_N = row_sums(weight)
                sums = torch.stack([checksum_of_rows(sums_N), sums_N.norm()])
            before = weight
            self._found[name] = sums
            yield name, weight

    def sums(self) -> Sums:
        """Checksums of all weights so far, read from the device at once."""
        if not self._found:
            return {}
        rows = torch.stack(list(self._found.values())).tolist()
        return {name: (checksum, norm) for name, (checksum, norm) in zip(self._found, rows, strict=True)}


def sums_of(weights: Iterable[tuple[str, torch.Tensor]]) -> Sums:
    summed = Summed(weights)
    for _ in summed:
        pass
    return summed.sums()
