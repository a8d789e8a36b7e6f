"""The section `ahead` of a checkpoint: the batch of the next step, sampled beside the last one (`engine.ranks`).

ahead.json          the numbers of its rollouts, where their prompts are in the data, and what it cost
ahead.safetensors   what the learner packs of them (`Columns`), of all ranks, and their rows of the rollouts file
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter
from pydantic.dataclasses import dataclass

from capo_fast.exchange.columns import AXES, Columns, deal_columns
from capo_fast.exchange.figures import Figures
from capo_fast.exchange.tensors import Exchange, bytes_of, bytes_tensor
from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.policy.manifest import DamagedError
from capo_fast.rollout.carried_tokens import on_first
from capo_fast.rollout.carry import OpenGroup
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.stream import Traffic
from capo_fast.runtime.stages import Lap

AHEAD, ROWS = "ahead", "rows"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Saved:
    """A batch without its columns and rows."""

    figures: list[Figures]
    kept: list[NonNegativeInt]
    draws: list[tuple[NonNegativeInt, NonNegativeInt]]
    """Groups with the places of their prompts in the data's order."""
    advantages: NonNegativeInt
    """How many tokens have one of their own (token credit)."""
    rows: list[NonNegativeInt]
    """Bytes of each part of the rollouts file."""
    traffic: Traffic
    cursor: NonNegativeInt
    carried: tuple[OpenGroup, ...]
    """With their tokens: they are few."""
    carry_metrics: dict[str, float]
    beside: Lap
    credit_metrics: dict[str, float] = field(default_factory=dict)


SAVED = TypeAdapter(Saved)


def batch_on_first(batch: Batch) -> Batch:
    """The same with all that ranks have of it on the first one. A collective."""
    exchange = Exchange()
    keys = [each.key for each in batch.figures]
    wanted = [keys, *([] for _ in range(exchange.count - 1))]
    rows = [b"".join(exchange.bytes_to_first(part)) for part in batch.rows]
    columns, carried = deal_columns(batch.columns, wanted, exchange), on_first(batch.carried, exchange)
    return replace(batch, columns=columns, rows=rows, carried=carried)


def batch_json(batch: Batch) -> Any:
    saved = Saved(
        figures=batch.figures,
        kept=sorted(batch.kept),
        draws=sorted(batch.draws.items()),
        advantages=len(batch.columns.advantages),
        rows=list(map(len, batch.rows)),
        traffic=batch.traffic,
        cursor=batch.cursor,
        carried=batch.carried,
        carry_metrics=dict(batch.carry_metrics),
        beside=batch.beside,
        credit_metrics=dict(batch.credit_metrics),
    )
    return SAVED.dump_python(saved, mode="json")


def batch_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return vars(batch.columns) | {ROWS: bytes_tensor(b"".join(batch.rows))}


def read_batch(found: Checkpoint) -> Batch | None:
    """What a checkpoint holds; None where it has no such section. Every rank has its numbers, the first all the rest.
    Raises DamagedError."""
    if not found.manifest.of(AHEAD):
        return None
    saved: Saved = found.section(AHEAD, Saved)
    columns, rows = _read_tensors(found, saved)
    return Batch(
        saved.figures,
        frozenset(saved.kept),
        dict(saved.draws),
        columns if dist.get_rank() == 0 else columns.taken([]),
        rows if dist.get_rank() == 0 else [b""] * len(rows),
        saved.traffic,
        saved.cursor,
        saved.carried,
        saved.carry_metrics,
        saved.beside,
        saved.credit_metrics,
    )


def _read_tensors(found: Checkpoint, saved: Saved) -> tuple[Columns, list[bytes]]:
    kept = [each for each in saved.figures if each.group in saved.kept]
    tokens, steps = sum(each.tokens for each in kept), sum(len(each.votes) for each in kept)
    sizes = {None: len(kept), 0: tokens, 1: steps, 2: saved.advantages}
    lengths = {name: sizes[axis] for name, axis in AXES.items()} | {ROWS: sum(saved.rows)}
    tensors, empty = found.tensors(AHEAD), vars(Columns.of([])) | {ROWS: bytes_tensor(b"")}
    for name, like in empty.items():
        column = tensors.setdefault(name, like)  # one without an entry is not stored
        wanted = (like.dtype, (lengths[name], *like.shape[1:]))
        if (column.dtype, tuple(column.shape)) != wanted:
            shape = f"{column.dtype} {list(column.shape)}, wanted {wanted[0]} {list(wanted[1])}"
            raise DamagedError(f"{found.folder / AHEAD}.safetensors: {name}: found {shape}")
    parts = tensors.pop(ROWS).split(saved.rows)
    return Columns(**{name: tensors[name] for name in AXES}), list(map(bytes_of, parts))
