"""Credited rollouts as columns: what a learner packs its micro-batches of. 9 bytes per token, 13 with token
credit, and a few per step.

Letters: B rollouts, T their response tokens, S their steps, end to end in one order. Prompts are not among the columns:
every rank has the data.
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
    """Of some rollouts of a step."""

    keys: torch.Tensor
    """int64 [B, 2], group and sample"""
    sizes: torch.Tensor
    """int64 [B, 3], response tokens, steps, and advantages: as many as tokens, or none"""
    credit: torch.Tensor
    """float32 [B, 5], what the outcome weight multiplies, and the four statistics of its group"""
    token_ids: torch.Tensor
    """int32 [T]"""
    logprobs: torch.Tensor
    """float32 [T], the engine's"""
    step_starts: torch.Tensor
    """bool [T], True on the first token of each step"""
    step_wrong: torch.Tensor
    """float32 [S], what the process weight multiplies"""
    advantages: torch.Tensor
    """float32 [T] of token credit, [0] of step credit"""

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
        """Rollouts."""
        return len(self.keys)

    def places(self) -> dict[Member, int]:
        """Where each rollout is."""
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
        """Where each rollout's tokens, steps and advantages begin and end."""
        ends = [list(accumulate(sizes, initial=0)) for sizes in self.sizes.T.tolist()]
        return [list(pairwise(each)) for each in ends]

    def chosen(self, keys: Iterable[Member]) -> Self:
        """The rollouts of these keys that are here, in their order."""
        places = self.places()
        return self.taken([places[key] for key in keys if key in places])


@dataclass(frozen=True)
class Share:
    """The rollouts that a step trains on, as one rank has them."""

    figures: Sequence[Figures]
    """Of all of them."""
    prompts: Mapping[int, Prompt]
    """By group."""
    columns: Columns
    """Of those that are here; each is on one rank."""

    @classmethod
    def of(cls, credited: Sequence[CreditedSample]) -> Self:
        """Of samples that are all here."""
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
"""Of each column, the column of `sizes` that has its length; None: it has one row for each rollout."""


def deal_columns(mine: Columns, wanted: Sequence[Sequence[Member]], exchange: Exchange) -> Columns:
    """Those that this rank wants, from the ranks that have them. A collective.

    wanted: the keys for each rank, the same on all; a rollout may be wanted by several. The order is by sender.
    """
    parts = [mine.chosen(keys) for keys in wanted]
    dealt = {name: torch.cat(exchange.deal([getattr(part, name) for part in parts])) for name in AXES}
    return Columns(**dealt)
