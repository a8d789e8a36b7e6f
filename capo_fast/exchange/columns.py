"""Credited rollouts as columns, from which a learner packs its micro-batches. 9 bytes per token, 13 with token credit,
and a few per step.

Letters: B rollouts, T their response tokens, S their steps, concatenated in one order. The columns have no prompts,
because every rank has the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

import torch

from capo_fast.exchange.figures import Figures, figures_of
from capo_fast.exchange.tensors import Exchange, end_to_end, table
from capo_fast.records import CreditedSample, Member, Prompt


@dataclass(frozen=True)
class Columns:
    """Columns of some rollouts of a step."""

    keys: torch.Tensor
    """int64 [B, 2], group and sample"""
    sizes: torch.Tensor
    """int64 [B, 3], numbers of response tokens, steps and advantages (the number of tokens, or 0)"""
    credit: torch.Tensor
    """float32 [B, 5], the factor of the outcome weight, and the four statistics of the group"""
    token_ids: torch.Tensor
    """int32 [T]"""
    logprobs: torch.Tensor
    """float32 [T], the engine's log-probs"""
    step_starts: torch.Tensor
    """bool [T], True on the first token of each step"""
    step_wrong: torch.Tensor
    """float32 [S], the factor of the process weight"""
    advantages: torch.Tensor
    """float32 [T] with token credit, [0] with step credit"""

    @classmethod
    def of(cls, credited: Sequence[CreditedSample]) -> Self:
        rollouts = [each.rollout for each in credited]
        advantages = [each.token_advantages or () for each in credited]
        sizes = [
            (len(each.rollout.token_ids), len(each.step_wrong), len(given))
            for each, given in zip(credited, advantages, strict=True)
        ]
        return cls(
            keys=table([(each.group, each.sample) for each in rollouts], torch.int64, 2),
            sizes=table(sizes, torch.int64, 3),
            credit=table([(each.outcome, *each.stats) for each in credited], torch.float32, 5),
            token_ids=end_to_end([each.token_ids for each in rollouts], torch.int32),
            logprobs=end_to_end([each.logprobs for each in rollouts], torch.float32),
            step_starts=end_to_end([each.steps.starts for each in rollouts], torch.bool),
            step_wrong=end_to_end([each.step_wrong for each in credited], torch.float32),
            advantages=end_to_end(advantages, torch.float32),
        )

    def __len__(self) -> int:
        """Number of rollouts."""
        return len(self.keys)

    def places(self) -> dict[Member, int]:
        """The row of each rollout."""
        return {(group, sample): place for place, (group, sample) in enumerate(self.keys.tolist())}

    def taken(self, places: Sequence[int]) -> Self:
        """Some rollouts, in the order of `places`."""
        rows, spans = torch.tensor(places, dtype=torch.int64), self._spans()
        columns = {}
        for name, axis in AXES.items():
            column = getattr(self, name)
            if axis is None:
                columns[name] = column[rows]
            else:
                parts = [column[slice(*spans[axis][place])] for place in places]
                columns[name] = torch.cat([column[:0], *parts])
        return type(self)(**columns)

    def _spans(self) -> list[list[tuple[int, int]]]:
        """Begin and end of each rollout's tokens, steps and advantages."""
        ends = [list(accumulate(sizes, initial=0)) for sizes in self.sizes.T.tolist()]
        return [list(pairwise(each)) for each in ends]

    def chosen(self, keys: Iterable[Member]) -> Self:
        """The rollouts with these keys, in their order; missing ones are skipped."""
        places = self.places()
        return self.taken([places[key] for key in keys if key in places])


@dataclass(frozen=True)
class Share:
    """One rank's data of the rollouts that a step trains on."""

    figures: Sequence[Figures]
    """Figures of all rollouts."""
    prompts: Mapping[int, Prompt]
    """Prompts by group."""
    columns: Columns
    """Columns of this rank's rollouts; each rollout is on one rank."""

    @classmethod
    def of(cls, credited: Sequence[CreditedSample]) -> Self:
        """The share of a rank that has all samples."""
        prompts = {each.rollout.group: each.rollout.prompt for each in credited}
        return cls(list(map(figures_of, credited)), prompts, Columns.of(credited))


AXES = {
    "keys": None,
    "sizes": None,
    "credit": None,
    "token_ids": 0,
    "logprobs": 0,
    "step_starts": 0,
    "step_wrong": 1,
    "advantages": 2,
}
"""For each column the column of `sizes` with its length per rollout; None: it has one row per rollout."""


def deal_columns(mine: Columns, wanted: Sequence[Sequence[Member]], exchange: Exchange) -> Columns:
    """The rollouts that this rank needs, from the ranks that have them, in the order of senders. A collective.

    wanted: the keys per receiver, the same on all ranks; several ranks may need one rollout.
    """
    parts = [mine.chosen(keys) for keys in wanted]
    dealt = {name: torch.cat(exchange.deal([getattr(part, name) for part in parts])) for name in AXES}
    return Columns(**dealt)
