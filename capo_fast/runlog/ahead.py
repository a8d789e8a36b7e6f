"""The section `ahead` of a checkpoint: the batch of the next step, sampled during the last one (`engine.ranks`).

ahead.json          figures of its rollouts, positions of their prompts in the data, its cost, its open groups
ahead.safetensors   the rollouts' tensors for the learner (`Columns`), of all ranks, their rows of the rollouts file,
                    and the tokens and log-probs of the open groups so far
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
from capo_fast.policy.checkpoint import Checkpoint, Form
from capo_fast.rollout.carried_tokens import on_first
from capo_fast.rollout.carry import OpenGroup
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.carried import carried_forms, carried_tensors, with_tokens
from capo_fast.runtime.stages import Lap

AHEAD, ROWS, CARRIED = "ahead", "rows", "carried."


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Saved:
    """A batch without its columns and rows."""

    figures: list[Figures]
    kept: list[NonNegativeInt]
    draws: list[tuple[NonNegativeInt, NonNegativeInt]]
    """Groups with the places of their prompts in the data's order."""
    advantages: NonNegativeInt
    """Number of tokens with an advantage of their own (token credit)."""
    rows: list[NonNegativeInt]
    """Bytes of each part of the rollouts file."""
    traffic: Traffic
    cursor: NonNegativeInt
    carried: tuple[OpenGroup, ...]
    """Without their tokens."""
    carry_metrics: dict[str, float]
    beside: Lap
    credit_metrics: dict[str, float] = field(default_factory=dict)


SAVED = TypeAdapter(Saved)


def batch_on_first(batch: Batch) -> Batch:
    """The batch with the parts of all ranks gathered on the first one. A collective."""
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
        carried=tuple(each.bare for each in batch.carried),
        carry_metrics=dict(batch.carry_metrics),
        beside=batch.beside,
        credit_metrics=dict(batch.credit_metrics),
    )
    return SAVED.dump_python(saved, mode="json")


def batch_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    carried = {CARRIED + name: each for name, each in carried_tensors(batch.carried).items()}
    return vars(batch.columns) | {ROWS: bytes_tensor(b"".join(batch.rows))} | carried


def read_batch(found: Checkpoint) -> Batch | None:
    """The batch in a checkpoint; None without such a section. Every rank gets its figures and open groups, the first
    also the rest. Raises DamagedError."""
    if not found.manifest.of(AHEAD):
        return None
    saved: Saved = found.section(AHEAD, Saved)
    tensors = found.tensors(AHEAD, _forms(saved))
    columns, is_first = Columns(**{name: tensors[name] for name in AXES}), dist.get_rank() == 0
    carried = {name.removeprefix(CARRIED): each for name, each in tensors.items() if name.startswith(CARRIED)}
    return Batch(
        figures=saved.figures,
        kept=frozenset(saved.kept),
        draws=dict(saved.draws),
        columns=columns if is_first else columns.taken([]),
        rows=[bytes_of(part) if is_first else b"" for part in tensors[ROWS].split(saved.rows)],
        traffic=saved.traffic,
        cursor=saved.cursor,
        carried=with_tokens(saved.carried, carried),
        carry_metrics=saved.carry_metrics,
        beside=saved.beside,
        credit_metrics=saved.credit_metrics,
    )


def _forms(saved: Saved) -> dict[str, Form]:
    """Forms of the tensors that belong to these figures."""
    kept = [each for each in saved.figures if each.group in saved.kept]
    tokens, steps = sum(each.tokens for each in kept), sum(len(each.votes) for each in kept)
    lengths = {None: len(kept), 0: tokens, 1: steps, 2: saved.advantages}
    columns = {
        name: (each.dtype, (lengths[AXES[name]], *each.shape[1:])) for name, each in vars(Columns.of([])).items()
    }
    carried = {CARRIED + name: form for name, form in carried_forms(saved.carried).items()}
    return columns | {ROWS: (torch.uint8, (sum(saved.rows),))} | carried
