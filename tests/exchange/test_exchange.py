"""Rollouts between ranks: they arrive unchanged and complete, on the ranks that use them."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from credited_samples import credited

from capo_fast.config.schema import Config, LossConfig, TrainConfig
from capo_fast.exchange.columns import Columns, Share, deal_columns
from capo_fast.exchange.figures import figures_of, share_figures
from capo_fast.exchange.samples import whole_groups
from capo_fast.exchange.tensors import Exchange
from capo_fast.policy.batch import keys_of, pack_plan, pack_update, plan_updates
from capo_fast.records import Critique
from capo_fast.rollout.carried_tokens import on_first, pass_on
from capo_fast.rollout.carry import OpenGroup, Partial
from capo_fast.rollout.dealing import deal_open


def on_ranks(world, work):
    """The results of `work(exchange)` on each rank; each rank is a thread."""
    store, found = dist.HashStore(), [None] * world

    def run(rank):
        found[rank] = work(Exchange(dist.ProcessGroupGloo(store, rank, world)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def dealt(samples, rank, world):
    """One engine's samples: the rollouts of a group are spread over all engines."""
    return samples[rank::world][::-1]


def critiques_with(text):
    return Critique(False, frozenset({0, 2}), 1, text), Critique.absent(truncated=True)


CREDITED = [credited(2, 3 + (group + i) % 4, group, i, trained=i != 3) for group in range(5) for i in range(4)]
SAMPLES = [
    replace(
        each.sample,
        critiques=critiques_with(f"{i} \ud800"),
        rewards=(0.1 * i, None),
        rollout=replace(each.rollout, text="é"),
    )
    for i, each in enumerate(CREDITED)
]
PROMPTS = {each.rollout.group: each.rollout.prompt for each in SAMPLES}


def test_whole_groups_arrive_bit_for_bit_in_the_order_of_ranks():
    def work(exchange):
        return whole_groups(dealt(SAMPLES, exchange.rank, 3), PROMPTS, range(3), exchange)

    found = on_ranks(3, work)
    assert [sample for part in found for sample in part] == SAMPLES
    assert [len(part) for part in found] == [8, 8, 4]
    assert all(type(each.rollout.logprobs[0]) is float and each.rollout.prompt.token_ids for each in found[2])


def test_groups_go_only_to_the_ranks_that_judge():
    def work(exchange):
        mine = dealt(SAMPLES, exchange.rank // 2, 2) if exchange.rank % 2 == 0 else []
        return whole_groups(mine, PROMPTS, range(0, 4, 2), exchange)

    assert [len(part) for part in on_ranks(4, work)] == [12, 0, 8, 0]


def test_every_rank_gets_the_figures_of_all_samples():
    mine = [replace(each, sample=sample) for each, sample in zip(CREDITED, SAMPLES, strict=True)]
    odd = replace(SAMPLES[1], outcome=None, step_wrong=(math.nan, 1 / 3))
    mine[1] = replace(CREDITED[1], sample=odd, outcome=0.1)

    def work(exchange):
        return share_figures([figures_of(each) for each in dealt(mine, exchange.rank, 2)], exchange)

    first, second = on_ranks(2, work)
    assert repr(first) == repr(second) == repr([figures_of(each) for each in mine]), (
        "compared by repr, as nan is not equal to itself"
    )
    assert type(first[1].trained) is bool and first[1].outcome is None and first[1].named == (1, 0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_rank_packs_the_same_as_one_with_all_samples(world):
    config = Config(loss=LossConfig(kl_coef=0.0), train=TrainConfig(micro_tokens=15, minibatches=2))
    samples = [replace(each, step_advantages=(0.0,)) if each.rollout.group == 2 else each for each in CREDITED]
    figures = [figures_of(each) for each in samples]

    def work(exchange):
        plans = plan_updates(figures, PROMPTS, config, world)
        expected = [keys_of(plans, rank, world) for rank in range(world)]
        columns = deal_columns(Columns.of(dealt(samples, exchange.rank, world)), expected, exchange)
        share = Share(figures, PROMPTS, columns)
        return [micro for plan in plans for micro in pack_plan(plan, share, config, exchange.rank, world)]

    halves = [[s for s in samples if s.rollout.group % 2 == half] for half in (0, 1)]
    for rank, found in enumerate(on_ranks(world, work)):
        expected = [micro for half in halves for micro in pack_update(half, config, rank, world)]
        assert len(found) == len(expected) > 1
        torch.testing.assert_close(
            [flat(micro) for micro in found], [flat(micro) for micro in expected], rtol=0, atol=0
        )


def flat(micro):
    tensors = {**vars(micro), **{f"credit.{name}": each for name, each in vars(micro.credit).items()}}
    return {name: each for name, each in tensors.items() if isinstance(each, torch.Tensor)}


def test_only_the_engine_that_continues_a_rollout_gets_its_tokens():
    """There are two engines of two ranks each; the first rank of each engine has its samples."""
    stopped = Partial(((1, 2),), 1, False, False, (5, 6), (-0.1, -1 / 3))
    ended, unwritten = Partial(((1, 1),), 1, True, True, (7,), (-0.25,)), Partial((), 1)
    groups = {4: OpenGroup(1, 4, 40, (Partial(),) * 2), 6: OpenGroup(1, 6, 60, (Partial(),) * 2)}
    unfinished = [{(6, 0): stopped, (4, 1): ended}, {}, {(6, 1): unwritten, (4, 0): stopped}, {}]
    everything = [(member, each.bare) for part in unfinished for member, each in part.items()]

    def work(exchange):
        carried = pass_on(groups, everything, unfinished[exchange.rank], 2, exchange)
        return carried, on_first(carried, exchange)

    found = on_ranks(4, work)
    dealt_to = deal_open(dict(enumerate(found[0][0])), {}, 2, {}, 2)
    whole = {(0, 0): stopped, (0, 1): ended, (1, 0): stopped, (1, 1): unwritten}
    for rank, (carried, at_first) in enumerate(found):
        rollouts = {(place, i): each for place, group in enumerate(carried) for i, each in enumerate(group.rollouts)}
        mine = dealt_to[rank // 2]
        assert rollouts == {member: each if member in mine else each.bare for member, each in whole.items()}
        kept = (each if rank == 0 else each.bare for each in whole.values())
        assert [each for group in at_first for each in group.rollouts] == list(kept)


def test_the_bytes_of_a_step_are_linear_in_its_tokens():
    def sent(tokens):
        samples = [credited(50, tokens, group, i) for group in range(4) for i in range(4)]
        prompts = {each.rollout.group: each.rollout.prompt for each in samples}

        def work(exchange):
            mine = [each.sample for each in dealt(samples, exchange.rank, 4)]
            whole = {(s.rollout.group, s.rollout.sample) for s in whole_groups(mine, prompts, range(4), exchange)}
            found = [each for each in samples if (each.rollout.group, each.rollout.sample) in whole]
            figures = share_figures([figures_of(each) for each in found], exchange)
            plans = plan_updates(figures, prompts, Config(), 4)
            deal_columns(Columns.of(found), [keys_of(plans, rank, 4) for rank in range(4)], exchange)
            return exchange.sent

        return sum(on_ranks(4, work))

    few, many, most = (sent(tokens) for tokens in (500, 1000, 2000))
    assert most - many <= 2.1 * (many - few)
    assert (most - many) / (16 * 1000) < 100
