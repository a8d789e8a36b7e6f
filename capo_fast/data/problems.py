"""The training and held-out problems of a run, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from capo_fast.records import Prompt


@dataclass(frozen=True)
class PromptOrder:
    """The endless order in which `size` problems are drawn: a new permutation per epoch, derived from (seed, epoch).

    A cursor is the number of problems drawn so far; a resumed run needs nothing else.

    >>> order = PromptOrder(size=3, seed=0)
    >>> first, cursor = order.take(0, 2)
    >>> then, cursor = order.take(cursor, 1)
    >>> sorted(first + then), cursor
    ([0, 1, 2], 3)
    """

    size: int
    seed: int

    def epoch(self, number: int) -> list[int]:
        """The permutation of one epoch."""
        return _permutation(self.seed, number, self.size).tolist()

    def at(self, place: int) -> int:
        """The index at one place, counted from the start of the run."""
        return int(_permutation(self.seed, place // self.size, self.size)[place % self.size])

    def take(self, cursor: int, count: int) -> tuple[list[int], int]:
        """The next `count` indices and the cursor after them; a batch may reach into the next epochs."""
        end = cursor + count
        epochs = range(cursor // self.size, -(-end // self.size))
        order = np.concatenate([np.empty(0, int), *(_permutation(self.seed, number, self.size) for number in epochs)])
        start = cursor % self.size
        return order[start : start + count].tolist(), end


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Cached for all steps of an epoch: a permutation of two million takes a tenth of a second."""
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclass(frozen=True)
class Problems:
    """The training and held-out problems of a run."""

    prompts: Sequence[Prompt]
    heldout: Sequence[Prompt]
    order: PromptOrder
    """Order of `prompts`."""
    overlong: int = 0
    """Number of problems dropped because their prompts are too long."""
    heldout_overlong: int = 0
    repeated: int = 0
    """Number of held-out problems that are in the training data as well."""

    def take(self, cursor: int, count: int) -> tuple[list[Prompt], int]:
        """The next `count` prompts and the cursor after them."""
        indices, cursor = self.order.take(cursor, count)
        return [self.prompts[index] for index in indices], cursor

    def at(self, draws: Mapping[int, int]) -> dict[int, Prompt]:
        """The prompts at some places in the order in which problems are drawn, by the same keys."""
        return {key: self.prompts[self.order.at(place)] for key, place in draws.items()}

    def notes(self) -> list[str]:
        """Lines about unexpected properties of the data."""
        lines = []
        for what, dropped, kept in (
            ("training", self.overlong, self.prompts),
            ("held-out", self.heldout_overlong, self.heldout),
        ):
            if dropped:
                total = dropped + len(kept)
                lines.append(f"{dropped:,} of {total:,} {what} problems are dropped: their prompts are too long")
        if self.repeated:
            lines.append(f"{self.repeated:,} of {len(self.heldout):,} held-out problems are training problems as well")
        return lines
