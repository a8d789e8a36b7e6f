"""Packs credited rollouts into the micro-batches of one rank.

A plan lists the rollouts of each micro-batch of an update. Every rank makes the same plan, from the figures of all
rollouts. So all ranks agree on the number of micro-batches (FSDP's collectives need that) and on every denominator, and
gradients summed over micro-batches and ranks are those of one big batch. After that, tokens are sent to the rank that
packs them.

Letters: N packed tokens, T response tokens, B sequences, S steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import torch

import capo_kernels as ck
from capo_fast.config.schema import Config
from capo_fast.credit.assign import credit_settings, offsets
from capo_fast.exchange.columns import Columns, Share
from capo_fast.exchange.figures import Figures
from capo_fast.records import CreditedSample, Member, PackedBatch, Prompt, TokenBatch


@dataclass(frozen=True)
class UpdatePlan:
    """The micro-batches of one optimizer update on all ranks."""

    bins: Sequence[Sequence[Member]]
    """Rollouts per micro-batch. Rank r has every `world`-th micro-batch from r on; an empty one gets the filler."""
    filler: Member
    """A rollout with weights of 0, so that all ranks have equally many micro-batches."""
    denominator: float

    def of(self, rank: int, world: int) -> list[tuple[Sequence[Member], float | None]]:
        """A rank's micro-batches, each with its denominator."""
        return [(keys or [self.filler], self.denominator if keys else None) for keys in self.bins[rank::world]]


def plan_updates(
    figures: Sequence[Figures], prompts: Mapping[int, Prompt], config: Config, world: int
) -> list[UpdatePlan]:
    """The plan of each minibatch."""
    return [plan_update(each, prompts, config, world) for each in split_minibatches(figures, config.train.minibatches)]


def plan_update(figures: Sequence[Figures], prompts: Mapping[int, Prompt], config: Config, world: int) -> UpdatePlan:
    """The plan of one update. Denominators count every trained rollout; rollouts without a gradient are not packed."""

    def parts(each: Figures) -> Parts:
        return each.group, prompts[each.group].token_ids, each.tokens

    learned = [each for each in figures if has_gradient(each, config)]
    bins = deal(learned, config.train.micro_tokens, world, parts)
    filler = min(figures, key=lambda each: each.prompt_tokens + each.tokens)
    denominator = loss_denominator([each for each in figures if each.trained], config)
    return UpdatePlan([[each.key for each in bin_] for bin_ in bins], filler.key, denominator)


def keys_of(plans: Sequence[UpdatePlan], rank: int, world: int) -> list[Member]:
    """The rollouts that a rank packs, each once."""
    return list(dict.fromkeys(key for plan in plans for keys, _ in plan.of(rank, world) for key in keys))


def pack_update(samples: Sequence[CreditedSample], config: Config, rank: int, world: int) -> list[PackedBatch]:
    """A rank's micro-batches of one update, from all samples."""
    share = Share.of(samples)
    return pack_plan(plan_update(share.figures, share.prompts, config, world), share, config, rank, world)


def pack_plan(plan: UpdatePlan, share: Share, config: Config, rank: int, world: int) -> list[PackedBatch]:
    """This rank's micro-batches. share: contains the rollouts that this rank packs."""
    places = share.columns.places()
    return [
        pack_columns(share.columns.taken([places[key] for key in keys]), share.prompts, denominator, config)
        for keys, denominator in plan.of(rank, world)
    ]


def has_gradient(figures: Figures, config: Config) -> bool:
    """False if the rollout is not trained, or its advantages are all 0 and the loss has only the policy term."""
    other_terms = config.loss.kl_coef > 0 or config.loss.entropy_coef > 0
    return figures.trained and (other_terms or figures.has_advantage)


def split_minibatches(figures: Sequence[Figures], count: int) -> list[list[Figures]]:
    """Whole groups, dealt in order into `count` updates of nearly equal size, without empty updates."""
    groups: dict[int, list[Figures]] = {}
    for each in figures:
        groups.setdefault(each.group, []).append(each)
    dealt = [[each for group in list(groups.values())[i::count] for each in group] for i in range(count)]
    return [minibatch for minibatch in dealt if any(each.trained for each in minibatch)]


T = TypeVar("T")
Parts = tuple[int, Sequence[int], int]
"""Of a sample to pack: its group, whose members have the same prompt, the prompt's tokens, and the number of response
tokens."""


def loss_denominator(trained: Sequence[Figures], config: Config) -> float:
    """The denominator of `ck.token_weights` over the whole update: sequences, tokens, or rollouts x max_tokens."""
    match config.loss.aggregation:
        case "sequence-mean":
            return len(trained)
        case "token-mean":
            return sum(each.tokens for each in trained)
        case _:
            return len(trained) * config.rollout.max_tokens


def deal(samples: Sequence[T], micro_tokens: int, world: int, parts: Callable[[T], Parts]) -> list[list[T]]:
    """Bins of at most `micro_tokens` computed tokens (a longer sequence has a bin of its own), a multiple of `world`.

    Samples are ordered by group and cut into as few bins as possible, with the smallest possible maximum. So each cut
    repeats at most one prompt, and ranks get nearly equal work. parts: returns a sample's `Parts`.
    """
    found = [(parts(sample), sample) for sample in samples]
    ordered = sorted(found, key=lambda each: (each[0][0], -len(each[0][1]) - each[0][2]))
    count = world * max(1, -(-len(_fill(ordered, micro_tokens)) // world))
    capacity = bisect_left(range(micro_tokens), True, key=lambda tokens: len(_fill(ordered, tokens)) <= count)
    bins = [[sample for _, sample in bin_] for bin_ in _fill(ordered, capacity)]
    return [*bins, *([] for _ in range(count - len(bins)))]


def _fill(ordered: Sequence[tuple[Parts, T]], capacity: int) -> list[list[tuple[Parts, T]]]:
    """Bins in this order; a new bin starts when the next sample does not fit."""
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
    """Packed tokens that a sample adds after the sample `before`."""
    _, prompt, rest = parts
    return max(0, rest - 1) + (0 if before and before[1] == prompt else len(prompt))


def pack_columns(
    columns: Columns, prompts: Mapping[int, Prompt], denominator: float | None, config: Config
) -> PackedBatch:
    """One micro-batch. `denominator=None` gives every token weight 0: a filler that only keeps ranks in step."""
    lengths = columns.sizes[:, 0].tolist()
    groups = columns.keys[:, 0].tolist()
    responses = columns.token_ids.long().split(lengths)
    tokens = pack_tokens([(prompts[group].token_ids, each) for group, each in zip(groups, responses, strict=True)])
    by_token = len(columns.advantages) > 0
    cu_seqlens, mask_T = offsets(lengths), torch.full((len(tokens.targets),), denominator is not None)
    return PackedBatch(
        **vars(tokens),
        weights=ck.token_weights(cu_seqlens, mask_T, config.loss.aggregation, denominator=denominator or 1.0),
        cu_seqlens=cu_seqlens,
        credit=None if by_token else credit_of_columns(columns, groups, lengths, config),
        advantages=columns.advantages if by_token else None,
        rollout_logprobs=columns.logprobs,
    )


def credit_of_columns(columns: Columns, groups: Sequence[int], lengths: Sequence[int], config: Config) -> ck.Credit:
    """The kernel's credit inputs; statistics are of whole groups, even if the micro-batch has a part of a group."""
    places = {group: place for place, group in enumerate(groups)}
    rows = {group: row for row, group in enumerate(places)}
    return ck.Credit(
        step_starts=columns.step_starts,
        step_wrong=columns.step_wrong,
        outcome=columns.credit[:, 0].contiguous(),
        group=torch.tensor([rows[group] for group in groups]),
        cu_seqlens=offsets(lengths),
        **credit_settings(config),
        stats=columns.credit[list(places.values()), 1:].contiguous(),
    )


Tokens = Sequence[int] | torch.Tensor


def pack_tokens(sequences: Sequence[tuple[Sequence[int], Tokens]]) -> TokenBatch:
    """Concatenated pairs of prompt and response ids; consecutive pairs with the same prompt share it. A prompt has at
    least one token."""
    row = _Row()
    for prompt, pairs in groupby(sequences, key=itemgetter(0)):
        ids, responses = _ids(prompt), [_ids(response) for _, response in pairs]
        if len(responses) == 1:
            row.add_whole(ids, responses[0])
        else:
            row.add_group(ids, responses)
    return TokenBatch(
        input_ids=torch.cat(row.ids),
        position_ids=torch.cat(row.positions),
        lengths=tuple(row.lengths),
        prefix=tuple(row.prefix),
        rows=torch.cat(row.rows),
        targets=torch.cat([_ids(response) for _, response in sequences]),
    )


def _ids(tokens: Tokens) -> torch.Tensor:
    return torch.as_tensor(tokens, dtype=torch.int64)


@dataclass
class _Row:
    """A packed row under construction; the fields are those of TokenBatch."""

    ids: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    prefix: list[int | None] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    end: int = 0
    """Tokens so far."""

    def add_whole(self, prompt: torch.Tensor, response: torch.Tensor) -> None:
        first = self.end + len(prompt) - 1
        self._add(torch.cat([prompt, response[:-1]]), 0, None)
        self.rows.append(torch.arange(first, first + len(response)))

    def add_group(self, prompt: torch.Tensor, responses: Sequence[torch.Tensor]) -> None:
        index = len(self.lengths)
        self._add(prompt, 0, None)
        last = torch.tensor([self.end - 1])
        for response in responses:
            inner = torch.arange(self.end, self.end + max(0, len(response) - 1))
            self.rows.append(torch.cat([last, inner])[: len(response)])
            self._add(response[:-1], len(prompt), index)

    def _add(self, tokens: torch.Tensor, position: int, prefix: int | None) -> None:
        if len(tokens):
            self.ids.append(tokens)
            self.positions.append(torch.arange(position, position + len(tokens)))
            self.lengths.append(len(tokens))
            self.prefix.append(prefix)
            self.end += len(tokens)
