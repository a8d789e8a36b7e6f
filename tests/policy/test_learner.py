"""Gradient steps: equal for every split of a batch, on one rank or two; non-finite updates are skipped."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import learner_ranks
import pytest
import torch
from dispatched import Operations
from forked import run_ranks
from learner_ranks import (
    PARTLY_LIVE,
    SAMPLES,
    TRAIN,
    WITHOUT_GRADIENT,
    make_learner,
    train,
    with_plain_gradient_steps,
)
from scripted_world import MODEL

from capo_fast.config.schema import Config, LoraConfig, LossConfig, PolicyConfig, RolloutConfig, TrainConfig
from capo_fast.exchange.columns import Share
from capo_fast.policy.batch import pack_update
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.learner import TrainingDiverged, lr_factor
from capo_fast.policy.loading import load_learner
from capo_fast.policy.model import full_weights

CONFIG = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=TRAIN,
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)


def weights_of(learner):
    return {name: weight.clone() for name, weight in full_weights(learner.policy, torch.float32)}


def difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("aggregation", ["sequence-mean", "token-mean", "constant"])
def test_micro_batches_that_split_groups_give_the_step_of_one_big_batch(aggregation, one_rank):
    results = {}
    for budget in (10**6, 30):
        config = replace(CONFIG, loss=LossConfig(kl_coef=0.0, aggregation=aggregation))
        config = replace(config, train=replace(TRAIN, micro_tokens=budget))
        learner = with_plain_gradient_steps(make_learner(config))
        start = weights_of(learner)
        metrics = train(learner, config)
        results[budget] = weights_of(learner), metrics
    (whole, of_whole), (split, of_split) = results.values()
    assert difference(whole, start) > 1e-5
    assert difference(whole, split) < 1e-6
    assert of_whole["loss/loss"] == pytest.approx(of_split["loss/loss"], abs=1e-6)
    assert of_whole["loss/entropy"] == pytest.approx(of_split["loss/entropy"], abs=1e-5)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory, fork_server):
    """Results of `learner_ranks.py` by number of ranks: weights by LoRA rank (0: no LoRA), and the other results."""
    found = {}
    for ranks in (1, 2):
        out = tmp_path_factory.mktemp("ranks") / f"{ranks}.pt"
        statuses, output = run_ranks(learner_ranks.main, out.with_suffix(".log"), out, world=ranks)
        assert set(statuses) == {0}, output
        found[ranks] = torch.load(out), json.loads(out.with_suffix(".json").read_text())
    return found


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_two_ranks_give_the_step_of_one(lora_rank, on_ranks):
    (one, of_one), (two, of_two) = on_ranks[1], on_ranks[2]
    assert difference(one[lora_rank], two[lora_rank]) < 2e-6
    expected, found = of_one["metrics"][str(lora_rank)], of_two["metrics"][str(lora_rank)]
    for work in ("learn/tokens", "learn/flops"):
        assert found.pop(work) >= expected.pop(work), "a group that is cut repeats its prompt"
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_two_nodes_of_two_give_the_same_step_and_save_every_weight_once(on_ranks, one_rank, tmp_path):
    statuses, output = run_ranks(learner_ranks.save_step, tmp_path / "log", tmp_path / "run", world=4, per_node=2)
    assert set(statuses) == {0}, output
    checkpoint, _ = Checkpointer(tmp_path / "run", keep=1).newest_whole()
    sizes = [checkpoint.manifest.files[name].size for name in checkpoint.manifest.of("model")]
    assert max(sizes[:2]) < 1.1 * min(sizes[:2]) and max(sizes[2:]) < 1000
    learner = with_plain_gradient_steps(make_learner(learner_ranks.STEP))
    checkpoint.load(learner)
    weights, of_one = on_ranks[1]
    assert difference(weights[0], weights_of(learner)) < 2e-6
    expected, found = of_one["metrics"]["0"], json.loads((tmp_path / "run/metrics.json").read_text())
    for key in ("loss/loss", "grad_norm", "loss/entropy", "gap/mean"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5)


def test_skipping_rollouts_without_a_gradient_does_not_change_ten_steps(one_rank):
    """The third update of each step has no gradient, but weight decay and momentum still change the weights."""
    config = replace(CONFIG, train=replace(TRAIN, minibatches=3, weight_decay=0.1))
    # Only packing reads the advantages of steps.
    computed = [replace(each, step_advantages=(1.0,) * len(each.step_advantages)) for each in PARTLY_LIVE]
    found = []
    for samples in (PARTLY_LIVE, computed):
        learner = make_learner(config)
        learner.optimizer.param_groups[0]["eps"] = 1e-3  # see with_plain_gradient_steps
        metrics = [learner.train(Share.of(samples)) for _ in range(10)][-1]
        found.append((weights_of(learner), metrics))
    (skipping, of_skipping), (whole, of_whole) = found
    assert difference(skipping, whole) < 1e-6 < difference(skipping, weights_of(make_learner(config)))
    assert of_skipping["updates"] == 3 and of_skipping["updates_skipped"] == 0
    assert of_skipping["loss/loss"] == pytest.approx(of_whole["loss/loss"], abs=1e-6)
    left_out = [len(each.rollout.token_ids) for each in PARTLY_LIVE[8:]]
    assert (of_skipping["learn/skipped_rollouts"], of_skipping["learn/skipped_tokens"]) == (4, sum(left_out))
    assert (of_whole["learn/skipped_rollouts"], of_whole["learn/skipped_tokens"]) == (0, 0)
    assert of_skipping["learn/tokens"] < of_whole["learn/tokens"]


@pytest.mark.parametrize("loss", [{"kl_coef": 0.1}, {"entropy_coef": 0.1}])
def test_a_kl_or_entropy_term_needs_every_rollout(loss, one_rank):
    config = replace(CONFIG, loss=LossConfig(**{"kl_coef": 0.0, **loss}), lora=LoraConfig(rank=2))
    metrics = make_learner(config).train(Share.of(WITHOUT_GRADIENT))
    assert metrics["learn/skipped_rollouts"] == 0
    assert metrics["loss/entropy"] > 0


def test_a_step_without_any_gradient_is_an_update_whose_figures_are_unknown(one_rank):
    metrics = make_learner(CONFIG).train(Share.of(WITHOUT_GRADIENT))
    assert (metrics["updates"], metrics["updates_skipped"], metrics["grad_norm"]) == (1, 0, 0)
    assert metrics["learn/skipped_rollouts"] == 12
    assert all(math.isnan(metrics[key]) for key in ("gap/mean", "gap/p99", "gap/k3", "loss/entropy"))


def test_the_ranks_of_a_node_share_one_critic_and_delete_its_file(on_ranks):
    found = on_ranks[2][1]
    [first, file], [second, same_file] = found["critics"]
    assert first == second == on_ranks[1][1]["critics"][0][0]
    assert file == same_file and file.endswith("weights.safetensors (deleted)")
    assert not found["left"]


def test_an_update_that_is_not_finite_changes_nothing_and_the_third_in_a_row_stops(one_rank):
    learner = make_learner(CONFIG)
    before = weights_of(learner)
    poisoned = [replace(sample, outcome=float("nan")) for sample in SAMPLES]
    metrics = learner.train_batch([pack_update(poisoned, CONFIG, 0, 1)])
    assert metrics["updates_skipped"] == metrics["updates"] == 1
    assert difference(before, weights_of(learner)) == 0
    learner.train_batch([pack_update(SAMPLES, CONFIG, 0, 1)])
    assert learner.bad_in_a_row == 0
    learner.train_batch([pack_update(poisoned, CONFIG, 0, 1)] * 2)
    with pytest.raises(TrainingDiverged, match=r"3 updates in a row were not finite \(the last: loss nan"):
        learner.train_batch([pack_update(poisoned, CONFIG, 0, 1)])


def test_several_updates_measure_the_ratio_against_the_policy_before_the_first(one_rank):
    config = replace(CONFIG, train=replace(TRAIN, epochs=3))
    metrics = train(make_learner(config), config)
    assert metrics["updates"] == 3
    assert metrics["loss/approx_kl"] > 1e-6
    once = train(make_learner(CONFIG), CONFIG)
    assert once["loss/approx_kl"] == 0


def test_old_logprobs_of_the_rollout_are_the_engines_own(one_rank):
    config = replace(
        CONFIG, policy=PolicyConfig(dtype="float32", old="rollout"), train=replace(TRAIN, epochs=2, lr=1e-6)
    )
    trainers = replace(config, policy=PolicyConfig(dtype="float32"))
    assert train(make_learner(config), config)["loss/ratio_mean"] != pytest.approx(1, abs=0.05)
    assert train(make_learner(trainers), trainers)["loss/ratio_mean"] == pytest.approx(1, abs=0.05)


def test_the_reference_is_the_initial_policy(one_rank):
    config = replace(CONFIG, loss=LossConfig(kl_coef=0.1), train=replace(TRAIN, lr=1e-3))
    learner, _ = load_learner(MODEL, config, torch.device("cpu"), [], swaps=False)
    first, second = train(learner, config), train(learner, config)
    assert first["loss/ref_kl"] == pytest.approx(0, abs=1e-7)
    assert second["loss/ref_kl"] > 1e-6


def test_the_gap_is_between_trainer_and_engine(one_rank):
    learner = make_learner(CONFIG)
    [micro] = pack_update(SAMPLES, CONFIG, 0, 1)
    gap = (learner.logprobs_at(micro, 1.0) - micro.rollout_logprobs).abs()
    metrics = train(learner, CONFIG)
    assert metrics["gap/mean"] == pytest.approx(gap.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "update", "expected"),
    [
        ("constant", 50, 1.0),
        ("cosine", 0, 0.25),
        ("cosine", 3, 1.0),
        ("cosine", 53, 0.5),
        ("cosine", 103, 0.0),
        ("linear", 28, 0.75),
        ("linear", 200, 0.0),
    ],
)
def test_schedules(schedule, update, expected):
    assert lr_factor(update, schedule, warmup=3, total=103) == pytest.approx(expected)


def test_training_settings_reach_the_optimizer(one_rank):
    config = replace(CONFIG, train=TrainConfig(lr=3e-4, betas=(0.8, 0.85), weight_decay=0.1, warmup_steps=1))
    [group] = make_learner(config).optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1.5e-4, (0.8, 0.85), 0.1)


def test_more_micro_batches_add_no_wait_for_the_device(one_rank):
    """The host reads a tensor's value once per update and per metric of the step, not per micro-batch."""
    counts = []
    for budget in (10**6, 30):
        config = replace(CONFIG, train=replace(TRAIN, micro_tokens=budget))
        learner = make_learner(config)
        minibatch = pack_update(SAMPLES, config, 0, 1)
        with Operations() as operations:
            learner.train_batch([minibatch])
        counts.append((len(minibatch), operations.count["_local_scalar_dense"]))
    (few, of_few), (many, of_many) = counts
    assert few == 1 and many > 3
    assert of_many == of_few
