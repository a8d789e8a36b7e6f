"""Credited samples -> packed micro-batches of one rank.

The same function runs on every rank over the same samples and takes its own share, so all ranks agree on the number of
micro-batches (FSDP's collectives need that) and on every denominator: gradients summed over micro-batches and ranks are
those of one big batch.

Letters: N packed tokens, T response tokens, B sequences, S steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

import torch

import capo_kernels as ck
from capo_fast.config.schema import Config
from capo_fast.credit.assign import offsets, packed_advantages, packed_credit
from capo_fast.records import CreditedSample, PackedBatch, TokenBatch


def pack_update(samples: Sequence[CreditedSample], config: Config, rank: int, world: int) -> list[PackedBatch]:
    """This rank's micro-batches of one optimizer update over `samples` (of all ranks).

    Denominators count every trained rollout. Those without a gradient are then left out.
    """
    denominator = loss_denominator([sample for sample in samples if sample.trained], config)
    bins = deal([sample for sample in samples if has_gradient(sample, config)], config.train.micro_tokens, world)
    filler = min(samples, key=sequence_length)
    return [pack(bin_ or [filler], denominator if bin_ else None, config) for bin_ in bins[rank::world]]


def has_gradient(sample: CreditedSample, config: Config) -> bool:
    """False: the sample is not trained, or all its advantages are 0 and the loss has no term besides the policy's."""
    other_terms = config.loss.kl_coef > 0 or config.loss.entropy_coef > 0
    return sample.trained and (other_terms or any(sample.step_advantages))


def split_minibatches(samples: Sequence[CreditedSample], count: int) -> list[list[CreditedSample]]:
    """Whole groups, dealt in their order into `count` updates of nearly equal size; an empty update is left out."""
    groups: dict[int, list[CreditedSample]] = {}
    for sample in samples:
        groups.setdefault(sample.rollout.group, []).append(sample)
    dealt = [[s for group in list(groups.values())[i::count] for s in group] for i in range(count)]
    return [minibatch for minibatch in dealt if any(sample.trained for sample in minibatch)]


T = TypeVar("T")
Parts = tuple[int, Sequence[int], Sequence[int]]
"""Of what is packed: its group, whose members have the same prompt, the prompt's tokens, and those after it."""


def parts_of(sample: CreditedSample) -> Parts:
    rollout = sample.rollout
    return rollout.group, rollout.prompt.token_ids, rollout.token_ids


def sequence_length(sample: CreditedSample) -> int:
    rollout = sample.rollout
    return len(rollout.prompt.token_ids) + len(rollout.token_ids)


def loss_denominator(trained: Sequence[CreditedSample], config: Config) -> float:
    """What `ck.token_weights` divides by, over the whole update: sequences, tokens, or rollouts x max_tokens."""
    match config.loss.aggregation:
        case "sequence-mean":
            return len(trained)
        case "token-mean":
            return sum(len(sample.rollout.token_ids) for sample in trained)
        case _:
            return len(trained) * config.rollout.max_tokens


def deal(
    samples: Sequence[T], micro_tokens: int, world: int, parts: Callable[[Any], Parts] = parts_of
) -> list[list[T]]:
    """Bins of at most `micro_tokens` computed tokens (a longer sequence has a bin of its own), a multiple of `world`.

    Samples are laid out group by group and cut into as few bins as do, the fullest of which holds as little as can
    be. So a cut repeats one prompt at most, and ranks get nearly equal work. parts: of a sample.
    """
    found = [(parts(sample), sample) for sample in samples]
    ordered = sorted(found, key=lambda each: (each[0][0], -len(each[0][1]) - len(each[0][2])))
    count = world * max(1, -(-len(_fill(ordered, micro_tokens)) // world))
    capacity = bisect_left(range(micro_tokens), True, key=lambda tokens: len(_fill(ordered, tokens)) <= count)
    bins = [[sample for _, sample in bin_] for bin_ in _fill(ordered, capacity)]
    return [*bins, *([] for _ in range(count - len(bins)))]


def _fill(ordered: Sequence[tuple[Parts, T]], capacity: int) -> list[list[tuple[Parts, T]]]:
    """Bins in this order, each begun where the one before has no room for the next."""
    bins: list[list[tuple[Parts, T]]] = []
    room = 0
    for each in ordered:
        added = _added_tokens(each[0], bins[-1][-1][0] if bins else None)
        if not bins or added > room:
            bins.append([])
            room, added = capacity, _added_tokens(each[0], None)
        bins[-1].append(each)
        room -= added
    return bins


def _added_tokens(parts: Parts, before: Parts | None) -> int:
    """Packed tokens that a sample adds behind another."""
    _, prompt, rest = parts
    return max(0, len(rest) - 1) + (0 if before and before[1] == prompt else len(prompt))


def pack(samples: Sequence[CreditedSample], denominator: float | None, config: Config) -> PackedBatch:
    """One micro-batch. `denominator=None` gives every token weight 0: a filler that only keeps ranks in step."""
    rollouts = [sample.rollout for sample in samples]
    tokens = pack_tokens([(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts])
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    by_token = samples[0].token_advantages is not None
    cu_seqlens, mask_T = offsets(lengths), torch.full((sum(lengths),), denominator is not None)
    return PackedBatch(
        **vars(tokens),
        weights=ck.token_weights(cu_seqlens, mask_T, config.loss.aggregation, denominator=denominator or 1.0),
        cu_seqlens=cu_seqlens,
        credit=None if by_token else packed_credit(samples, config),
        advantages=packed_advantages(samples) if by_token else None,
        rollout_logprobs=torch.tensor([x for r in rollouts for x in r.logprobs], dtype=torch.float32),
    )


def pack_tokens(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TokenBatch:
    """Pairs of prompt and response ids, end to end; neighbours share a prompt that is the same. A prompt has at least
    one token."""
    row = _Row()
    for prompt, pairs in groupby(sequences, key=itemgetter(0)):
        responses = [response for _, response in pairs]
        if len(responses) == 1:
            row.add_whole(prompt, responses[0])
        else:
            row.add_group(prompt, responses)
    return TokenBatch(
        input_ids=torch.tensor(row.ids),
        position_ids=torch.tensor(row.positions),
        lengths=tuple(row.lengths),
        prefix=tuple(row.prefix),
        rows=torch.tensor(row.rows),
        targets=torch.tensor([token for _, response in sequences for token in response]),
    )


@dataclass
class _Row:
    """A packed row as it grows; the fields are those of TokenBatch."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    prefix: list[int | None] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def add_whole(self, prompt: Sequence[int], response: Sequence[int]) -> None:
        first = len(self.ids) + len(prompt) - 1
        self._add([*prompt, *response[:-1]], 0, None)
        self.rows += range(first, first + len(response))

    def add_group(self, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> None:
        index = len(self.lengths)
        self._add(prompt, 0, None)
        last = len(self.ids) - 1
        for response in responses:
            start = len(self.ids)
            self.rows += [last, *range(start, start + len(response) - 1)][: len(response)]
            self._add(response[:-1], len(prompt), index)

    def _add(self, tokens: Sequence[int], position: int, prefix: int | None) -> None:
        if tokens:
            self.ids += tokens
            self.positions += range(position, position + len(tokens))
            self.lengths.append(len(tokens))
            self.prefix.append(prefix)
