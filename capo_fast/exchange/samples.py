"""Sends samples to the rank that computes the credit of their group.

Several engines may have sampled the rollouts of a group. Consecutive groups are sent to one rank, so that the ranks'
rows of the rollouts file are in the order of groups. Tokens are sent as tensors; the rest of a sample, texts and
verdicts, as bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from capo_fast.exchange.tensors import Exchange, bytes_of, bytes_tensor
from capo_fast.records import Prompt, Sample

TOKENS = {"token_ids": torch.int32, "logprobs": torch.float64}
"""[T] each. An engine's log-probs are Python floats; float64 preserves their bits."""
Tokens = tuple[tuple[int, ...], tuple[float, ...]]
"""Token ids and log-probs of a rollout."""
NO_PROMPT = Prompt("", "", "", None, ())


def whole_groups(
    mine: Sequence[Sample], prompts: Mapping[int, Prompt], ranks: Sequence[int], exchange: Exchange
) -> list[Sample]:
    """The whole groups whose credit this rank computes, in the order of groups and samples. A collective.

    prompts: of all groups. ranks: the ranks that receive groups, in order; each gets nearly the same number.
    """
    found = exchange.share(torch.tensor([each.rollout.group for each in mine], dtype=torch.int64))
    groups = found.unique().tolist()
    target = {group: ranks[place * len(ranks) // len(groups)] for place, group in enumerate(groups)}
    parts = [[each for each in mine if target[each.rollout.group] == rank] for rank in range(exchange.count)]
    kept, parts[exchange.rank] = parts[exchange.rank], []
    arrived = deal_samples(parts, prompts, exchange)
    return sorted([*kept, *arrived], key=lambda each: (each.rollout.group, each.rollout.sample))


def deal_samples(parts: Sequence[Sequence[Sample]], prompts: Mapping[int, Prompt], exchange: Exchange) -> list[Sample]:
    """The samples that other ranks send to this one. A collective. parts: samples per receiver."""
    rollouts = [[each.rollout for each in part] for part in parts]
    tokens = deal_tokens(rollouts, exchange)
    starts = exchange.deal_rows([[each.steps.starts for each in part] for part in rollouts], torch.bool)
    rest = exchange.deal([_bare(part) for part in parts])
    samples = [sample for data in rest if len(data) for sample in pickle.loads(bytes_of(data))]
    return [
        _filled(sample, prompts[sample.rollout.group], *each, tuple(begun.tolist()))
        for sample, each, begun in zip(samples, tokens, starts, strict=True)
    ]


class WithTokens(Protocol):
    """A rollout, or a part of a rollout."""

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def logprobs(self) -> tuple[float, ...]: ...


def deal_tokens(parts: Sequence[Sequence[WithTokens]], exchange: Exchange) -> list[Tokens]:
    """Token ids and log-probs that each rank sends to this one, in the order of senders. A collective. parts: rollouts
    per receiver."""
    ids, logprobs = (
        exchange.deal_rows([[getattr(each, name) for each in part] for part in parts], dtype)
        for name, dtype in TOKENS.items()
    )
    return [(tuple(one.tolist()), tuple(other.tolist())) for one, other in zip(ids, logprobs, strict=True)]


def _bare(part: Sequence[Sample]) -> torch.Tensor:
    """The samples as bytes, without prompts and per-token data."""
    return bytes_tensor(pickle.dumps([_filled(each, NO_PROMPT, (), (), ()) for each in part]) if part else b"")


def _filled(sample: Sample, prompt: Prompt, token_ids: Any, logprobs: Any, starts: Any) -> Sample:
    rollout = sample.rollout
    steps = replace(rollout.steps, starts=starts)
    return replace(sample, rollout=replace(rollout, prompt=prompt, token_ids=token_ids, logprobs=logprobs, steps=steps))
