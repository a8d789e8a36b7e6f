"""Token credit in the learner: equal advantages give equal steps, in either form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credited_samples import pack
from learner_ranks import PARTLY_LIVE, TRAIN, make_learner

from capo_fast.config.schema import Config, LossConfig, PolicyConfig, RolloutConfig
from capo_fast.credit.groups import spread
from capo_fast.exchange.columns import Share
from capo_fast.policy.model import full_weights
from capo_fast.runtime.ranks import ranks

CONFIG = Config(
    policy=PolicyConfig(dtype="float32"),
    loss=LossConfig(kl_coef=0.0),
    train=replace(TRAIN, minibatches=2),
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)


def by_token(credited):
    advantages = tuple(spread(credited.rollout, credited.step_advantages))
    return replace(
        credited, token_advantages=advantages, stats=(0.0,) * 4, step_wrong=(0.0,) * len(credited.step_wrong)
    )


def test_a_batch_has_one_form_of_credit():
    samples = PARTLY_LIVE[:3]
    stepwise, tokenwise = pack(samples, 3.0, CONFIG), pack([by_token(each) for each in samples], 3.0, CONFIG)
    assert stepwise.credit is not None and stepwise.advantages is None
    assert tokenwise.credit is None
    expected = [advantage for each in samples for advantage in spread(each.rollout, each.step_advantages)]
    assert tokenwise.advantages.tolist() == pytest.approx(expected)
    assert torch.equal(stepwise.cu_seqlens, tokenwise.cu_seqlens)
    assert torch.equal(stepwise.weights, tokenwise.weights)


def test_equal_advantages_make_equal_steps():
    found = []
    with ranks():
        for samples in (PARTLY_LIVE, [by_token(each) for each in PARTLY_LIVE]):
            learner = make_learner(CONFIG)
            learner.optimizer.param_groups[0]["eps"] = 1e-3  # else Adam scales tiny gradients up
            metrics = learner.train(Share.of(samples))
            weights = torch.cat([weight.flatten() for _, weight in full_weights(learner.policy, torch.float32)])
            found.append((weights.clone(), metrics))
    (one, of_one), (two, of_two) = found
    assert torch.allclose(one, two, atol=1e-7, rtol=0)
    assert of_two["learn/skipped_rollouts"] == of_one["learn/skipped_rollouts"] > 0
    assert of_two["loss/loss"] == pytest.approx(of_one["loss/loss"], abs=1e-6)
