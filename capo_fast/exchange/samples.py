"""Samples -> the rank that computes the credit of their group.

Rollouts of a group may have been sampled by several engines. Neighbouring groups go to one rank, so that the ranks'
rows of the rollouts file are in the order of groups. Tokens travel as tensors; the rest of a sample, which is texts and
verdicts, as bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from capo_fast.exchange.tensors import Exchange, bytes_of, bytes_tensor, end_to_end
from capo_fast.records import Prompt, Sample

TOKENS = {"token_ids": torch.int32, "logprobs": torch.float64}
"""[T] each: an engine's log-probs are Python floats, and arrive bit for bit."""
NO_PROMPT = Prompt("", "", "", None, ())


def whole_groups(
    mine: Sequence[Sample], prompts: Mapping[int, Prompt], homes: Sequence[int], exchange: Exchange
) -> list[Sample]:
    """The whole groups that this rank computes the credit of, in the order of groups and samples. A collective.

    prompts: of all groups. homes: the ranks that groups may go to, in order; nearly as many groups go to each.
    """
    found = exchange.share(torch.tensor([each.rollout.group for each in mine], dtype=torch.int64))
    groups = found.unique().tolist()
    home = {group: homes[place * len(homes) // len(groups)] for place, group in enumerate(groups)}
    parts = [[each for each in mine if home[each.rollout.group] == rank] for rank in range(exchange.count)]
    kept, parts[exchange.rank] = parts[exchange.rank], []
    arrived = deal_samples(parts, prompts, exchange)
    return sorted([*kept, *arrived], key=lambda each: (each.rollout.group, each.rollout.sample))


def deal_samples(parts: Sequence[Sequence[Sample]], prompts: Mapping[int, Prompt], exchange: Exchange) -> list[Sample]:
    """The samples that other ranks have for this one. A collective. parts: for each rank."""
    columns = zip(*map(_columns, parts), strict=True)
    lengths, ids, logprobs, starts, rest = (exchange.deal(list(column)) for column in columns)
    arrived = []
    for sender in range(exchange.count):
        bare = pickle.loads(bytes_of(rest[sender])) if len(rest[sender]) else []
        spans = [each[sender].split(lengths[sender].tolist()) for each in (ids, logprobs, starts)]
        for sample, *tokens in zip(bare, *spans, strict=True):
            values = (tuple(each.tolist()) for each in tokens)
            arrived.append(_filled(sample, prompts[sample.rollout.group], *values))
    return arrived


def _columns(part: Sequence[Sample]) -> tuple[torch.Tensor, ...]:
    rollouts = [each.rollout for each in part]
    return (
        torch.tensor([len(each.token_ids) for each in rollouts], dtype=torch.int64),
        *(end_to_end([getattr(each, name) for each in rollouts], dtype) for name, dtype in TOKENS.items()),
        end_to_end([each.steps.starts for each in rollouts], torch.bool),
        bytes_tensor(pickle.dumps([_filled(each, NO_PROMPT, (), (), ()) for each in part]) if part else b""),
    )


def _filled(sample: Sample, prompt: Prompt, token_ids: Any, logprobs: Any, starts: Any) -> Sample:
    rollout = sample.rollout
    steps = replace(rollout.steps, starts=starts)
    return replace(sample, rollout=replace(rollout, prompt=prompt, token_ids=token_ids, logprobs=logprobs, steps=steps))
