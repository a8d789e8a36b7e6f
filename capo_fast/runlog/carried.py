"""The section `carry` of a checkpoint: the groups that a step left open (`rollout.carry`).

carry.json          where each group was drawn, and of each of its rollouts the versions, requests and how it ended
carry.safetensors   their tokens and log-probs, end to end in the same order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.rollout.carry import OpenGroup, Partial
from capo_fast.runlog.columns import COLUMNS, read_columns

CARRY = "carry"


def carried_json(groups: Sequence[OpenGroup]) -> list[dict[str, Any]]:
    return [vars(group) | {"rollouts": [_without_tokens(each) for each in group.rollouts]} for group in groups]


def rollouts_of(groups: Sequence[OpenGroup]) -> list[Partial]:
    return [rollout for group in groups for rollout in group.rollouts]


def read_carried(found: Checkpoint) -> tuple[OpenGroup, ...]:
    """What a checkpoint holds; nothing where it has no such section. Raises DamagedError."""
    if not found.manifest.of(CARRY):
        return ()
    groups = found.section(CARRY, tuple[OpenGroup, ...])
    columns = read_columns(found, CARRY, [_length(each) for each in rollouts_of(groups)])
    return tuple(
        replace(group, rollouts=tuple(replace(each, **next(columns)) for each in group.rollouts)) for group in groups
    )


def _without_tokens(rollout: Partial) -> dict[str, Any]:
    return {name: value for name, value in vars(rollout).items() if name not in COLUMNS}


def _length(rollout: Partial) -> int:
    return sum(tokens for _, tokens in rollout.versions)
