"""Tokens of rollouts that go on in the next step (`rollout.carry`): to the ranks of the engine that goes on with them.

Which engine that is follows from the open groups alone (`deal_begun`), so the tokens pass between ranks once, at the
end of the round that stopped them. Every rank has the rest: versions, requests, and how each rollout ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from capo_fast.exchange.samples import TOKENS
from capo_fast.exchange.tensors import Exchange, end_to_end
from capo_fast.rollout.carry import Member, OpenGroup, Partial, still_open
from capo_fast.rollout.dealing import deal_begun


def pass_on(
    groups: Mapping[int, OpenGroup],
    everything: Iterable[tuple[Member, Partial]],
    mine: Mapping[Member, Partial],
    engines: int,
    exchange: Exchange,
) -> tuple[OpenGroup, ...]:
    """The groups of a round that stay open, in their order: with the tokens of the rollouts that this rank's engine
    goes on with. A collective.

    everything: their rollouts without tokens. mine: those that this rank has sampled, on one rank of each engine.
    """
    carried = still_open(groups, ((member, mine.get(member, bare)) for member, bare in everything))
    running, ended = deal_begun(dict(enumerate(carried)), engines)
    ranks_of_engine = exchange.count // engines
    wanted = [[*running[rank // ranks_of_engine], *ended[rank // ranks_of_engine]] for rank in range(exchange.count)]
    return pass_tokens(carried, wanted, exchange)


def on_first(carried: tuple[OpenGroup, ...], exchange: Exchange) -> tuple[OpenGroup, ...]:
    """The same with all tokens on the first rank, and none on the others. A collective."""
    everything = [(place, sample) for place, each in enumerate(carried) for sample in range(len(each.rollouts))]
    return pass_tokens(carried, [everything, *([] for _ in range(exchange.count - 1))], exchange)


def pass_tokens(
    carried: tuple[OpenGroup, ...], wanted: Sequence[Sequence[Member]], exchange: Exchange
) -> tuple[OpenGroup, ...]:
    """The same, on each rank with the tokens that it wants. A collective.

    carried: on each rank with the tokens that it has. wanted: by rank, places in `carried` with samples.
    """
    if not carried:
        return ()
    parts = [[member for member in members if _partial(carried, member).token_ids] for members in wanted]
    sent = [torch.tensor(part, dtype=torch.int64).reshape(-1, 2) for part in parts]
    arrived = [(place, sample) for place, sample in torch.cat(exchange.deal(sent)).tolist()]
    lengths = [_partial(carried, member).tokens for member in arrived]
    columns = []
    for name, dtype in TOKENS.items():
        values = [end_to_end([getattr(_partial(carried, each), name) for each in part], dtype) for part in parts]
        columns.append(torch.cat(exchange.deal(values)).split(lengths))
    tokens = {member: tuple(map(_values, parts)) for member, *parts in zip(arrived, *columns, strict=True)}
    return tuple(_filled(place, group, tokens) for place, group in enumerate(carried))


def _filled(place: int, group: OpenGroup, tokens: Mapping[Member, tuple[Any, ...]]) -> OpenGroup:
    """With these tokens and log-probs, and no others."""
    found = ((each.bare, tokens.get((place, i), ((), ()))) for i, each in enumerate(group.rollouts))
    return replace(group, rollouts=tuple(replace(each, **dict(zip(TOKENS, has, strict=True))) for each, has in found))


def _values(column: torch.Tensor) -> tuple[Any, ...]:
    return tuple(column.tolist())


def _partial(carried: Sequence[OpenGroup], member: Member) -> Partial:
    place, sample = member
    return carried[place].rollouts[sample]
