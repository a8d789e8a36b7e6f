"""The examples of each update: the epochs' orders concatenated, cut by number or by tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capo_fast.config.sft import SftTrainConfig
from capo_fast.data import PromptOrder


@dataclass(frozen=True)
class Batches:
    """All updates of a run; a batch may extend into the next epoch.

    >>> import numpy as np
    >>> train = SftTrainConfig(epochs=2, batch_tokens=10)
    >>> batches = plan_batches(np.array([4, 4, 4]), train, seed=0)
    >>> batches.count, sorted(batches.cuts.tolist())
    (3, [0, 2, 4, 6])
    """

    order: PromptOrder
    cuts: np.ndarray
    """int64 [updates + 1], examples drawn before each update, and in total."""

    @property
    def count(self) -> int:
        """Updates."""
        return len(self.cuts) - 1

    def of(self, step: int) -> list[int]:
        """The examples of an update; the first update is 1."""
        start, stop = self.cuts[step - 1 : step + 1].tolist()
        return self.order.take(start, stop - start)[0]


def plan_batches(lengths: np.ndarray, train: SftTrainConfig, seed: int) -> Batches:
    """lengths: int64 [E], tokens of each example."""
    order, total = PromptOrder(len(lengths), seed), len(lengths) * train.epochs
    if train.batch_tokens is None:
        return Batches(order, np.append(np.arange(0, total, train.batch), total))
    ends = np.concatenate([lengths[order.epoch(number)] for number in range(train.epochs)]).cumsum()
    cuts = [0]
    while cuts[-1] < total:
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + train.batch_tokens, side="right"))))
    return Batches(order, np.array(cuts))
