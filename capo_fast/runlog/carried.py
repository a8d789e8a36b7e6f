"""The section `carry` of a checkpoint: the groups that a step left open (`rollout.carry`).

carry.json          where each group was drawn, and of each of its rollouts the versions, requests and how it ended
carry.safetensors   their tokens and log-probs, end to end in the same order
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.policy.manifest import DamagedError
from capo_fast.rollout.carry import OpenGroup, Partial

CARRY = "carry"
TENSORS = {"token_ids": torch.int64, "logprobs": torch.float64}
"""Their fields of `Partial`, [T]: an engine's log-probs are Python floats, and come back bit for bit."""


def carried_json(groups: Sequence[OpenGroup]) -> list[dict[str, Any]]:
    return [vars(group) | {"rollouts": [_without_tokens(each) for each in group.rollouts]} for group in groups]


def carried_tensors(groups: Sequence[OpenGroup]) -> dict[str, torch.Tensor]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        name: torch.tensor([value for each in rollouts for value in getattr(each, name)], dtype=dtype)
        for name, dtype in TENSORS.items()
    }


def read_carried(found: Checkpoint) -> tuple[OpenGroup, ...]:
    """What a checkpoint holds; nothing where it has no such section. Raises DamagedError."""
    if not found.manifest.of(CARRY):
        return ()
    groups, tensors = found.section(CARRY, tuple[OpenGroup, ...]), found.tensors(CARRY)
    wanted = sum(_length(rollout) for group in groups for rollout in group.rollouts)
    columns = []
    for name, dtype in TENSORS.items():
        column = tensors.get(name, torch.empty(0, dtype=dtype))
        if (column.dtype, tuple(column.shape)) != (dtype, (wanted,)):
            shape = f"{column.dtype} {list(column.shape)}, wanted {dtype} [{wanted}]"
            raise DamagedError(f"{found.folder / CARRY}.safetensors: {name}: found {shape}")
        columns.append(iter(column.tolist()))
    return tuple(replace(group, rollouts=tuple(_filled(group.rollouts, *columns))) for group in groups)


def _filled(rollouts: Iterable[Partial], ids: Iterator[int], logprobs: Iterator[float]) -> Iterator[Partial]:
    for each in rollouts:
        places = range(_length(each))
        yield replace(each, token_ids=tuple(next(ids) for _ in places), logprobs=tuple(next(logprobs) for _ in places))


def _without_tokens(rollout: Partial) -> dict[str, Any]:
    return {name: value for name, value in vars(rollout).items() if name not in TENSORS}


def _length(rollout: Partial) -> int:
    return sum(tokens for _, tokens in rollout.versions)
