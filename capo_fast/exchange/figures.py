"""Numbers of each rollout of a step, on every rank: the inputs of the log, dynamic sampling, the packing plan and the
loss's denominators. They contain no tokens and no texts.

They are sent as four tables: a row of numbers per rollout, its numbers of rewards and steps, all rewards, and a row per
step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from capo_fast.exchange.tensors import Exchange, table
from capo_fast.records import CreditedSample, Member

REPLACED = "\ufffd"
"""Replaces invalid bytes, halves of surrogate pairs, and NUL in texts."""


@dataclass(frozen=True)
class Figures:
    """Numbers of one rollout."""

    group: int
    sample: int
    version: int
    """`Rollout.version`."""
    prompt_tokens: int
    tokens: int
    """Tokens of the response."""
    written: int
    """Sum over its tokens of the policy version that sampled each."""
    steps: int
    finished: bool
    replaced_chars: int
    outcome: float | None
    """The verdict, or None."""
    trained: bool
    reward: float
    """The factor of the outcome weight."""
    has_advantage: bool
    """Whether any advantage is not 0."""
    by_token: bool
    """Whether it has token credit."""
    critiques: int
    parsed: int
    dropped: int
    truncated: int
    failed: int
    critique_replaced_chars: int
    rewards: tuple[float | None, ...]
    """`Sample.rewards`."""
    votes: tuple[float, ...]
    """[S], the vote on each step."""
    named: tuple[int, ...]
    """[S], number of critiques that name the step as wrong."""
    judged: tuple[int, ...]
    """[S], number of critiques that judge the step."""

    @property
    def key(self) -> Member:
        """Its identity in its step."""
        return self.group, self.sample


NUMBERS = [each.name for each in fields(Figures) if each.name not in ("rewards", "votes", "named", "judged")]
FLAGS = ("finished", "trained", "has_advantage", "by_token")


def figures_of(credited: CreditedSample) -> Figures:
    sample, rollout = credited.sample, credited.rollout
    parsed = [critique for critique in sample.critiques if not critique.abstained]
    return Figures(
        group=rollout.group,
        sample=rollout.sample,
        version=rollout.version,
        prompt_tokens=len(rollout.prompt.token_ids),
        tokens=len(rollout.token_ids),
        written=sum(version * tokens for version, tokens in rollout.versions),
        steps=len(rollout.steps.texts),
        finished=rollout.finished,
        replaced_chars=rollout.text.count(REPLACED),
        outcome=sample.outcome,
        trained=credited.trained,
        reward=credited.outcome,
        has_advantage=any(credited.step_advantages),
        by_token=credited.token_advantages is not None,
        critiques=len(sample.critiques),
        parsed=len(parsed),
        dropped=sum(critique.dropped for critique in sample.critiques),
        truncated=sum(critique.truncated for critique in sample.critiques),
        failed=sum(critique.failed for critique in sample.critiques),
        critique_replaced_chars=sum(critique.text.count(REPLACED) for critique in sample.critiques),
        rewards=sample.rewards,
        votes=sample.step_wrong,
        named=tuple(sum(k in each.wrong_steps for each in parsed) for k in range(len(sample.step_wrong))),
        judged=tuple(sum(each.judges(k) for each in parsed) for k in range(len(sample.step_wrong))),
    )


def share_figures(mine: Sequence[Figures], exchange: Exchange) -> list[Figures]:
    """The figures of all ranks, in the order of groups and samples. A collective."""
    numbers = [[_number(getattr(each, name)) for name in NUMBERS] for each in mine]
    rewards = [list(map(_number, each.rewards)) for each in mine]
    sizes = [[len(each.rewards), len(each.votes)] for each in mine]
    steps = [row for each in mine for row in zip(each.votes, each.named, each.judged, strict=True)]
    shared = (
        exchange.share(table(numbers, torch.float64, len(NUMBERS))).tolist(),
        exchange.share(table(sizes, torch.int64, 2)).tolist(),
        exchange.share(torch.tensor([value for row in rewards for value in row], dtype=torch.float64)).tolist(),
        exchange.share(table(steps, torch.float64, 3)).tolist(),
    )
    return sorted(_read(*shared), key=lambda each: each.key)


def _read(
    numbers: list[list[float]], sizes: list[list[int]], rewards: list[float], steps: list[list[float]]
) -> list[Figures]:
    values, rows, found = iter(rewards), iter(steps), []
    for row, (count, length) in zip(numbers, sizes, strict=True):
        named: dict[str, Any] = {name: _typed(name, value) for name, value in zip(NUMBERS, row, strict=True)}
        of_steps = [next(rows) for _ in range(length)]
        found.append(
            Figures(
                **named,
                rewards=tuple(_or_none(next(values)) for _ in range(count)),
                votes=tuple(vote for vote, _, _ in of_steps),
                named=tuple(int(count) for _, count, _ in of_steps),
                judged=tuple(int(count) for _, _, count in of_steps),
            )
        )
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _typed(name: str, value: float) -> float | None:
    match name:
        case "outcome":
            return _or_none(value)
        case "reward":
            return value
        case _:
            return bool(value) if name in FLAGS else int(value)
