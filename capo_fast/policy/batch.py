"""Credited samples -> packed micro-batches of one rank.

The same function runs on every rank over the same samples and takes its own share, so all ranks agree on the number of
micro-batches (FSDP's collectives need that) and on every denominator: gradients summed over micro-batches and ranks are
those of one big batch.

Letters: N packed tokens, T response tokens, B sequences, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import torch

import capo_kernels as ck
from capo_fast.config.schema import Config
from capo_fast.credit.assign import credit_of
from capo_fast.records import CreditedSample, PackedBatch, TokenBatch

T = TypeVar("T")


def pack_update(samples: Sequence[CreditedSample], config: Config, rank: int, world: int) -> list[PackedBatch]:
    """This rank's micro-batches of one optimizer update over `samples` (of all ranks)."""
    trained = [sample for sample in samples if sample.trained]
    denominator = loss_denominator(trained, config)
    bins = deal(trained, config.train.micro_tokens, world)
    filler = min(samples, key=sequence_length)
    return [pack(bin_ or [filler], denominator if bin_ else None, config) for bin_ in bins[rank::world]]


def split_minibatches(samples: Sequence[CreditedSample], count: int) -> list[list[CreditedSample]]:
    """Whole groups, dealt in their order into `count` updates of nearly equal size; an empty update is left out."""
    groups: dict[int, list[CreditedSample]] = {}
    for sample in samples:
        groups.setdefault(sample.rollout.group, []).append(sample)
    dealt = [[s for group in list(groups.values())[i::count] for s in group] for i in range(count)]
    return [minibatch for minibatch in dealt if any(sample.trained for sample in minibatch)]


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
    """Bins of at most `micro_tokens` (a longer sequence has a bin of its own): as few as do, a multiple of `world`.

    Longest first into the emptiest bin, so ranks get nearly equal work. parts: of a sample.
    """
    sized = [(sum(map(len, parts(sample)[1:])), sample) for sample in samples]
    ordered = sorted(sized, key=itemgetter(0), reverse=True)
    count = world
    while True:
        bins: list[list[T]] = [[] for _ in range(count)]
        loads = [0] * count
        for size, sample in ordered:
            emptiest = loads.index(min(loads))
            bins[emptiest].append(sample)
            loads[emptiest] += size
        if all(load <= micro_tokens or len(bin_) == 1 for load, bin_ in zip(loads, bins, strict=True)):
            return bins
        count += world


def pack(samples: Sequence[CreditedSample], denominator: float | None, config: Config) -> PackedBatch:
    """One micro-batch. `denominator=None` gives every token weight 0: a filler that only keeps ranks in step."""
    rollouts = [sample.rollout for sample in samples]
    tokens = pack_tokens([(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts])
    wrong, outcomes = [sample.step_wrong for sample in samples], [sample.outcome for sample in samples]
    # Statistics of whole groups, of which a micro-batch may hold a part.
    stats = {sample.rollout.group: sample.stats for sample in samples}
    credit = credit_of(rollouts, wrong, outcomes, config, torch.tensor(list(stats.values()), dtype=torch.float32))
    mask_T = torch.full((len(tokens.targets),), denominator is not None)
    return PackedBatch(
        **vars(tokens),
        weights=ck.token_weights(credit.cu_seqlens, mask_T, config.loss.aggregation, denominator=denominator or 1.0),
        credit=credit,
        rollout_logprobs=torch.tensor([x for r in rollouts for x in r.logprobs], dtype=torch.float32),
    )


def pack_tokens(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TokenBatch:
    """Pairs of prompt and response ids, end to end. A prompt has at least one token."""
    prompt_B = torch.tensor([len(prompt) for prompt, _ in sequences])
    response_B = torch.tensor([len(response) for _, response in sequences])
    ends_B = (prompt_B + response_B).cumsum(0)
    starts_B = ends_B - prompt_B - response_B
    position_N = torch.arange(int(ends_B[-1]))
    first_B = response_B.cumsum(0) - response_B
    offset_T = torch.arange(int(response_B.sum())) - first_B.repeat_interleave(response_B)
    return TokenBatch(
        input_ids=torch.tensor([token for prompt, response in sequences for token in (*prompt, *response)]),
        position_ids=position_N - starts_B.repeat_interleave(prompt_B + response_B),
        sequence_lengths=tuple((prompt_B + response_B).tolist()),
        rows=(starts_B + prompt_B - 1).repeat_interleave(response_B) + offset_T,
        targets=torch.tensor([token for _, response in sequences for token in response]),
    )
