"""The section `ahead` of a checkpoint: the batch of the next step, sampled beside the last one (`engine.ranks`).

ahead.json          its prompts by id, its samples with their credit, which of them are kept, and what it cost
ahead.safetensors   the samples' tokens and log-probs, end to end in the same order
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any

from pydantic import ConfigDict, NonNegativeInt, TypeAdapter
from pydantic.dataclasses import dataclass

from capo_fast.policy.checkpoint import Checkpoint
from capo_fast.policy.manifest import DamagedError
from capo_fast.records import CreditedSample, Prompt
from capo_fast.rollout.carry import OpenGroup
from capo_fast.rollout.generator import Batch
from capo_fast.rollout.stream import Traffic
from capo_fast.runlog.columns import read_columns
from capo_fast.runtime.stages import Lap

AHEAD = "ahead"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Saved:
    """A batch without its tokens, and with each prompt once."""

    prompts: dict[str, Prompt]
    """By id, without the columns that reward functions have read."""
    sampled: list[CreditedSample]
    """With prompts of an id alone."""
    lengths: list[NonNegativeInt]
    """Tokens of each."""
    kept: list[NonNegativeInt]
    """Places in `sampled`."""
    traffic: Traffic
    cursor: NonNegativeInt
    carried: tuple[OpenGroup, ...]
    """With their tokens: they are few."""
    carry_metrics: dict[str, float]
    beside: Lap
    credit_metrics: dict[str, float] = field(default_factory=dict)


SAVED = TypeAdapter(Saved)


def batch_json(batch: Batch) -> Any:
    prompts = {each.rollout.prompt.id: replace(each.rollout.prompt, columns={}) for each in batch.sampled}
    places = {(each.rollout.group, each.rollout.sample): place for place, each in enumerate(batch.sampled)}
    bare = {id: Prompt(id, "", "", None, ()) for id in prompts}
    saved = Saved(
        prompts=prompts,
        sampled=[_with_rollout(e, prompt=bare[e.rollout.prompt.id], token_ids=(), logprobs=()) for e in batch.sampled],
        lengths=[len(each.rollout.token_ids) for each in batch.sampled],
        kept=[places[each.rollout.group, each.rollout.sample] for each in batch.kept],
        traffic=batch.traffic,
        cursor=batch.cursor,
        carried=batch.carried,
        carry_metrics=dict(batch.carry_metrics),
        beside=batch.beside,
        credit_metrics=dict(batch.credit_metrics),
    )
    return SAVED.dump_python(saved, mode="json")


def read_batch(found: Checkpoint) -> Batch | None:
    """What a checkpoint holds; None where it has no such section. Raises DamagedError."""
    if not found.manifest.of(AHEAD):
        return None
    saved: Saved = found.section(AHEAD, Saved)
    try:
        sampled = list(_filled(saved, found))
        kept = [sampled[place] for place in saved.kept]
    except (LookupError, ValueError) as error:
        raise DamagedError(f"{found.folder / AHEAD}: its parts don't fit: {error}") from None
    rest = (saved.traffic, saved.cursor, saved.carried, saved.carry_metrics, saved.beside, saved.credit_metrics)
    return Batch(kept, sampled, *rest)


def _filled(saved: Saved, found: Checkpoint) -> Iterator[CreditedSample]:
    for each, columns in zip(saved.sampled, read_columns(found, AHEAD, saved.lengths), strict=True):
        yield _with_rollout(each, prompt=saved.prompts[each.rollout.prompt.id], **columns)


def _with_rollout(credited: CreditedSample, **changes: Any) -> CreditedSample:
    sample = credited.sample
    return replace(credited, sample=replace(sample, rollout=replace(sample.rollout, **changes)))
