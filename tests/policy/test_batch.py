"""Packing: alignment, token budgets, and denominators over the whole update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credited_samples import credited, pack
from hypothesis import given
from hypothesis import strategies as st

from capo_fast.config.schema import Config, LossConfig, RolloutConfig, TrainConfig
from capo_fast.exchange.figures import figures_of
from capo_fast.policy.batch import deal, pack_update, split_minibatches

CONFIG = Config()


def parts_of(credited):
    rollout = credited.rollout
    return rollout.group, rollout.prompt.token_ids, len(rollout.token_ids)


def test_rows_are_the_positions_that_predict_their_targets():
    batch = pack([credited(2, 3), credited(1, 2, group=2), credited(3, 1, group=1)], 6.0, CONFIG)
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 2000, 2001, 1000, 1001, 1002]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert (batch.lengths, batch.prefix) == ((4, 2, 3), (None, None, None))
    assert batch.rows.tolist() == [1, 2, 3, 4, 5, 8]
    assert batch.targets.tolist() == [2, 3, 4, 2001, 2002, 1003]
    assert batch.credit.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.credit.group.tolist() == [0, 1, 2]
    assert batch.credit.stats.tolist() == [[0.5, 1.0, 0.0, 1.0], [0.5, 3.0, 0.0, 3.0], [0.5, 2.0, 0.0, 2.0]]
    assert batch.credit.step_starts.tolist() == [True, False, True, True, False, True]
    assert batch.credit.step_wrong.tolist() == [1.0, 0.0, 1.0, 1.0]


def test_a_prompt_that_a_group_shares_is_packed_once():
    samples = [credited(2, 3), credited(2, 1, sample=1), credited(2, 2, sample=2), credited(3, 2, group=1)]
    batch = pack(samples, 4.0, CONFIG)
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 202, 1000, 1001, 1002, 1003]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3]
    assert (batch.lengths, batch.prefix) == ((2, 2, 1, 4), (None, 0, 0, None))
    assert batch.rows.tolist() == [1, 2, 3, 1, 1, 4, 7, 8]
    assert batch.targets.tolist() == [2, 3, 4, 102, 202, 203, 1003, 1004]


def computed(samples):
    return len(pack(samples, 1.0, CONFIG).input_ids)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=0, max_size=30),
    budget=st.integers(1, 100),
    world=st.integers(1, 4),
)
def test_bins_contain_every_sample_once_within_the_budget_and_keep_groups_together(lengths, budget, world):
    samples = [credited(5, length, group=group, sample=i) for i, (group, length) in enumerate(lengths)]
    bins = deal(samples, budget, world, parts_of)
    assert len(bins) % world == 0
    assert sorted(s.rollout.sample for b in bins for s in b) == list(range(len(samples)))
    assert all(len(b) == 1 or computed(b) <= budget for b in bins if b)
    repeats = sum(len({s.rollout.group for s in b}) for b in bins) - len({s.rollout.group for s in samples})
    assert repeats <= max(0, sum(map(bool, bins)) - 1)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_get_nearly_equal_work(world):
    samples = [credited(50, 20 + 7 * (i % 9), group=i // 8, sample=i) for i in range(64)]
    bins = deal(samples, 1000, world, parts_of)
    loads = [sum(computed(b) for b in bins[rank::world] if b) for rank in range(world)]
    assert len(bins) == -(-computed(samples) // 1000 // world) * world
    assert max(loads) < computed(samples) / world + 50 + 76, "the mean, and the longest sequence"


@pytest.mark.parametrize("loss", [{}, {"kl_coef": 0.1}, {"entropy_coef": 0.1}])
def test_rollouts_without_a_gradient_are_not_packed_but_count_in_the_denominators(loss):
    config = replace(CONFIG, loss=LossConfig(**{"kl_coef": 0.0, **loss}))
    samples = [credited(2, 3, sample=i, advantage=float(i % 2), trained=i != 5) for i in range(6)]
    [micro] = pack_update(samples, config, 0, 1)
    found = {target // 100 for target in micro.targets.tolist()}
    assert found == ({0, 1, 2, 3, 4} if loss else {1, 3})
    assert micro.weights.tolist() == pytest.approx([1 / (5 * 3)] * len(micro.weights))


def test_an_update_without_a_gradient_is_a_filler_on_every_rank():
    config = replace(CONFIG, loss=LossConfig(kl_coef=0.0))
    samples = [credited(2, 9 - i, sample=i, advantage=0.0) for i in range(4)]
    [[first], [second]] = [pack_update(samples, config, rank, 2) for rank in range(2)]
    assert first.targets.tolist() == second.targets.tolist() == [302 + i for i in range(6)]
    assert not (first.weights.any() or second.weights.any())


@pytest.mark.parametrize("aggregation", ["sequence-mean", "token-mean", "constant"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_weights_sum_to_those_of_one_big_batch(aggregation, world):
    config = replace(CONFIG, loss=LossConfig(aggregation=aggregation), rollout=RolloutConfig(max_tokens=7))
    samples = [credited(2, 1 + i % 5, group=i // 2, sample=i, trained=i != 3) for i in range(8)]
    whole = pack_update(samples, replace(config, train=TrainConfig(micro_tokens=10**6)), 0, 1)
    small = replace(config, train=TrainConfig(micro_tokens=9))
    shares = [pack_update(samples, small, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    weights = {}
    for batch in (micro for share in shares for micro in share):
        weights |= {t: w for t, w in zip(batch.targets.tolist(), batch.weights.tolist(), strict=True) if w}
    [batch] = whole
    assert weights == pytest.approx(dict(zip(batch.targets.tolist(), batch.weights.tolist(), strict=True)))
    assert not any(300 <= target < 400 for target in weights), "sample 3 is not trained on"
    expected = {"sequence-mean": 1.0, "token-mean": 1.0, "constant": batch.targets.numel() / (7 * 7)}[aggregation]
    assert sum(weights.values()) == pytest.approx(expected)


def test_a_rank_without_work_gets_a_filler_of_weight_zero():
    shares = [pack_update([credited(2, 3)], CONFIG, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [1, 1]
    assert sorted(float(share[0].weights.sum()) for share in shares) == [0.0, 1.0]


def test_minibatches_have_whole_groups_and_skip_untrained_rollouts():
    samples = [credited(group=g, sample=i, trained=g != 2) for g in range(4) for i in range(2)]
    figures = list(map(figures_of, samples))
    dealt = split_minibatches(figures, 2)
    assert [[each.group for each in minibatch] for minibatch in dealt] == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert split_minibatches([each for each in figures if not each.trained], 2) == []


def test_a_batch_moves_with_its_credit():
    moved = pack([credited()], 3.0, CONFIG).to(torch.device("meta"))
    assert {moved.input_ids.device.type, moved.credit.step_wrong.device.type} == {"meta"}
