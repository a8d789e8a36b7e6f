"""Tokens and log-probs of rollouts in a checkpoint, end to end in the order of their JSON (`carry`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from capo_fast.exchange.tensors import end_to_end
from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.policy.manifest import DamagedError
from capo_fast.rollout.carry import Partial

COLUMNS = {"token_ids": torch.int64, "logprobs": torch.float64}
"""[T] each: an engine's log-probs are Python floats, and come back bit for bit."""


def columns_of(rollouts: Sequence[Partial]) -> dict[str, torch.Tensor]:
    return {name: end_to_end([getattr(each, name) for each in rollouts], dtype) for name, dtype in COLUMNS.items()}


def read_columns(found: Checkpoint, section: str, lengths: Sequence[int]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Those of one rollout after another, whose numbers of tokens are `lengths`. Raises DamagedError."""
    tensors, wanted = found.tensors(section), sum(lengths)
    values = {}
    for name, dtype in COLUMNS.items():
        column = tensors.get(name, torch.empty(0, dtype=dtype))  # one without an entry is not stored
        if (column.dtype, tuple(column.shape)) != (dtype, (wanted,)):
            shape = f"{column.dtype} {list(column.shape)}, wanted {dtype} [{wanted}]"
            raise DamagedError(f"{found.folder / section}.safetensors: {name}: found {shape}")
        values[name] = iter(column.tolist())
    for length in lengths:
        yield {name: tuple(islice(column, length)) for name, column in values.items()}
