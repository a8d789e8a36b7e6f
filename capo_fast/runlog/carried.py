"""The section `carry` of a checkpoint: the groups that a step left open (`rollout.carry`).

carry.json          where each group was drawn; versions, requests and end of each of its rollouts
carry.safetensors   their tokens and log-probs, concatenated in the same order

The section `ahead` stores the open groups of its batch in the same form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from capo_fast.exchange.samples import TOKENS
from capo_fast.exchange.tensors import end_to_end
from capo_fast.policy.checkpoint import Checkpoint, Form
from capo_fast.rollout.carry import OpenGroup, Partial

CARRY = "carry"
COLUMNS = TOKENS | {"token_ids": torch.int64}
"""[T] each."""


def carried_json(groups: Sequence[OpenGroup]) -> list[dict[str, Any]]:
    return [vars(group) | {"rollouts": [_without_tokens(each) for each in group.rollouts]} for group in groups]


def carried_tensors(groups: Sequence[OpenGroup]) -> dict[str, torch.Tensor]:
    rollouts = _rollouts(groups)
    return {name: end_to_end([getattr(each, name) for each in rollouts], dtype) for name, dtype in COLUMNS.items()}


def carried_forms(groups: Sequence[OpenGroup]) -> dict[str, Form]:
    """Forms of the tensors of these groups."""
    tokens = sum(each.tokens for each in _rollouts(groups))
    return {name: (dtype, (tokens,)) for name, dtype in COLUMNS.items()}


def read_carried(found: Checkpoint) -> tuple[OpenGroup, ...]:
    """The open groups in a checkpoint; empty without such a section. Raises DamagedError."""
    if not found.manifest.of(CARRY):
        return ()
    groups = found.section(CARRY, tuple[OpenGroup, ...])
    return with_tokens(groups, found.tensors(CARRY, carried_forms(groups)))


def with_tokens(groups: Sequence[OpenGroup], tensors: Mapping[str, torch.Tensor]) -> tuple[OpenGroup, ...]:
    """The groups with the tensors of `carried_tensors` filled in."""
    columns = {name: iter(tensors[name].tolist()) for name in COLUMNS}

    def filled(rollout: Partial) -> Partial:
        ids, logprobs = (tuple(islice(columns[name], rollout.tokens)) for name in ("token_ids", "logprobs"))
        return replace(rollout, token_ids=ids, logprobs=logprobs)

    return tuple(replace(group, rollouts=tuple(map(filled, group.rollouts))) for group in groups)


def _rollouts(groups: Sequence[OpenGroup]) -> list[Partial]:
    return [rollout for group in groups for rollout in group.rollouts]


def _without_tokens(rollout: Partial) -> dict[str, Any]:
    return {name: value for name, value in vars(rollout).items() if name not in COLUMNS}
