"""Tokens of rollouts carried to the next step (`rollout.carry`): sent to the ranks of the engine that continues them.

That engine depends only on the open groups (`deal_begun`), so the tokens are sent between ranks once, at the end of the
round that stopped them. Every rank has the rest: versions, requests, and the end of each rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from capo_fast.exchange.samples import Tokens, deal_tokens
from capo_fast.exchange.tensors import Exchange, table
from capo_fast.records import Member
from capo_fast.rollout.carry import OpenGroup, Partial, still_open
from capo_fast.rollout.dealing import deal_begun


def pass_on(
    groups: Mapping[int, OpenGroup],
    everything: Iterable[tuple[Member, Partial]],
    mine: Mapping[Member, Partial],
    engines: int,
    exchange: Exchange,
) -> tuple[OpenGroup, ...]:
    """The groups of a round that stay open, in order, with the tokens of the rollouts that this rank's engine
    continues. A collective.

    everything: their rollouts without tokens. mine: those sampled by this rank, on one rank per engine.
    """
    carried = still_open(groups, ((member, mine.get(member, bare)) for member, bare in everything))
    running, ended = deal_begun(dict(enumerate(carried)), engines)
    ranks_of_engine = exchange.count // engines
    wanted = [[*running[rank // ranks_of_engine], *ended[rank // ranks_of_engine]] for rank in range(exchange.count)]
    return pass_tokens(carried, wanted, exchange)


def on_first(carried: tuple[OpenGroup, ...], exchange: Exchange) -> tuple[OpenGroup, ...]:
    """The groups with all tokens on the first rank, and none on the others. A collective.

    carried: on each rank with its own tokens.
    """
    everything = [(place, sample) for place, each in enumerate(carried) for sample in range(len(each.rollouts))]
    return pass_tokens(carried, [everything, *([] for _ in range(exchange.count - 1))], exchange)


def pass_tokens(
    carried: tuple[OpenGroup, ...], wanted: Sequence[Sequence[Member]], exchange: Exchange
) -> tuple[OpenGroup, ...]:
    """The groups, on each rank with the tokens in `wanted`. A collective.

    carried: on each rank with its own tokens. wanted: by rank, places in `carried` with samples.
    """
    if not carried:
        return ()
    parts = [[member for member in members if _partial(carried, member).token_ids] for members in wanted]
    arrived = torch.cat(exchange.deal([table(part, torch.int64, 2) for part in parts])).tolist()
    tokens = deal_tokens([[_partial(carried, member) for member in part] for part in parts], exchange)
    found = {(place, sample): each for (place, sample), each in zip(arrived, tokens, strict=True)}
    return tuple(_filled(place, group, found) for place, group in enumerate(carried))


def _filled(place: int, group: OpenGroup, tokens: Mapping[Member, Tokens]) -> OpenGroup:
    """The group with exactly these token ids and log-probs."""
    found = ((each.bare, tokens.get((place, sample), ((), ()))) for sample, each in enumerate(group.rollouts))
    return replace(group, rollouts=tuple(replace(each, token_ids=ids, logprobs=lps) for each, (ids, lps) in found))


def _partial(carried: Sequence[OpenGroup], member: Member) -> Partial:
    place, sample = member
    return carried[place].rollouts[sample]
