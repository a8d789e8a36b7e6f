"""The canary: a push that went wrong in any way stops the run with both numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_ranks import SAMPLES, make_learner
from scripted_world import MODEL, answer, score_with, scripted_config, tokenizer

from capo_fast.batch import pack_update
from capo_fast.config import ConfigError
from capo_fast.data import load_problems, render_prompts
from capo_fast.engine.scripted import ScriptedEngine
from capo_fast.policy import full_weights
from capo_fast.sync import Sync, SyncError, check_same_architecture, probe_sequences

CONFIG = scripted_config("--train.lr", "1e-3")


class BrokenEngine(ScriptedEngine):
    """An engine whose load goes wrong in the way that `fault(old, new) -> what it really holds` says."""

    def __init__(self, fault):
        super().__init__(answer, score_with(MODEL))
        self.fault = fault

    def load(self, weights):
        old = self.weights
        super().load(weights)
        self.weights = self.fault(old, self.weights)


def make_sync(engine):
    problems = load_problems(CONFIG.data.path, CONFIG.data)[:4]
    learner = make_learner(CONFIG)
    frozen = {name: weight.clone() for name, weight in full_weights(learner.policy, torch.float32)}
    return learner, Sync(engine, learner, frozen, render_prompts(problems, tokenizer(), None, 200), CONFIG)


def train_once(learner):
    learner.train_batch([pack_update(SAMPLES, CONFIG, 0, 1)])


def test_policy_and_critic_take_turns_in_one_engine(one_rank):
    engine = ScriptedEngine(answer, score_with(MODEL))
    learner, sync = make_sync(engine)
    sync.push_policy(0)
    base = engine.weights
    train_once(learner)
    sync.push_policy(1)
    trained = engine.weights
    sync.push_critic()
    assert all(torch.equal(engine.weights[name], base[name]) for name in base)
    sync.push_policy(1)
    assert all(torch.equal(engine.weights[name], trained[name]) for name in base)
    assert not torch.equal(trained["model.norm.weight"], base["model.norm.weight"])


def test_what_the_engine_holds_is_not_pushed_again(one_rank):
    loads = []
    _, sync = make_sync(BrokenEngine(lambda old, new: loads.append(1) or new))
    for push in (sync.push_policy, sync.push_policy, lambda _: sync.push_critic(), lambda _: sync.push_critic()):
        push(0)
    assert len(loads) == 2


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    "fault",
    [
        lambda old, new: old or new,  # trl#5312: a reload restored what was there before
        lambda old, new: new | ({NAME: old[NAME]} if old else {}),  # one tensor stale
        lambda old, new: new | {NAME: new[NAME].roll(1, 0)},  # rows in another order: same sum
        lambda old, new: {name: weight for name, weight in new.items() if name != NAME},  # never arrived
    ],
)
def test_a_checksum_tells(fault, one_rank):
    learner, sync = make_sync(BrokenEngine(fault))
    with pytest.raises(SyncError, match=r"has checksum -?[\d.e+-]+ in the trainer and (-?[\d.e+-]+|nan) in the engine"):
        sync.push_policy(0)
        train_once(learner)
        sync.push_policy(1)


def test_the_probe_tells_what_checksums_cannot(one_rank):
    """Right weights, wrong arithmetic: a scorer that never sees the new version."""
    learner, sync = make_sync(engine := ScriptedEngine(answer, score_with(MODEL)))
    sync.push_policy(0)
    base, score = engine.weights, score_with(MODEL)
    engine._scorer = lambda weights, sequence: score(base, sequence)
    train_once(learner)
    with pytest.raises(SyncError, match=r"mean log-prob is -\d+\.\d+ in the trainer and -\d+\.\d+ in the engine"):
        sync.push_policy(1)


def test_a_critic_of_another_shape_is_refused_with_the_first_difference():
    policy = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    check_same_architecture(policy, policy)
    with pytest.raises(ConfigError, match=r"critic\.path: b has shape \(5,\), want the policy's \(4,\)"):
        check_same_architecture(policy | {"b": torch.zeros(5)}, policy)
    with pytest.raises(ConfigError, match=r"critic\.path: c has shape \(1,\), want the policy's none"):
        check_same_architecture(policy | {"c": torch.zeros(1)}, policy)


def test_probe_sequences_are_the_ends_of_the_first_prompts():
    problems = load_problems(CONFIG.data.path, CONFIG.data)[:3]
    prompts = render_prompts(problems, tokenizer(), None, 200)
    prompts[1] = replace(prompts[1], token_ids=(5,))
    assert probe_sequences(prompts, 3, 4) == [prompts[0].token_ids[-4:], prompts[2].token_ids[-4:]]
