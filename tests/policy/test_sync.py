"""The canary: any faulty push stops the run with both numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_ranks import SAMPLES, make_learner
from scripted_engine import ScriptedEngine
from scripted_world import MODEL, answer, score_with, scripted_config, tokenizer

from capo_fast.config.schema import LoraConfig
from capo_fast.engine.checksum import checksum, place_weights
from capo_fast.errors import ConfigError
from capo_fast.loaders import load_prompts
from capo_fast.policy.batch import pack_update
from capo_fast.policy.canary import CHECKSUM_TOLERANCE, SyncError
from capo_fast.policy.lora import merged_weights
from capo_fast.policy.model import load_model
from capo_fast.policy.sync import (
    AdapterSync,
    FullSync,
    MergedSync,
    check_same_architecture,
    freeze_critic,
    probe_sequences,
)
from capo_fast.runtime.files import passing_folder

CONFIG = scripted_config("--train.lr", "1e-3")


class BrokenEngine(ScriptedEngine):
    """An engine with a faulty load: it stores `fault(old, new)`."""

    def __init__(self, fault):
        super().__init__(answer, score_with(MODEL))
        self.fault = fault

    def load(self, weights):
        old = self.weights
        super().load(weights)
        self.weights = self.fault(old, self.weights)


def make_sync(engine):
    probe = probe_sequences(load_prompts(CONFIG, tokenizer()).prompts, 4, 32)
    learner = make_learner(CONFIG)
    return learner, FullSync(
        engine, learner, freeze_critic(lambda: load_model(MODEL, "sdpa"), probe, torch.float32), probe, CONFIG
    )


def train_once(learner):
    learner.train_batch([pack_update(SAMPLES, CONFIG, 0, 1)])


def test_policy_and_critic_alternate_in_one_engine(one_rank):
    engine = ScriptedEngine(answer, score_with(MODEL))
    learner, sync = make_sync(engine)
    sync.push_policy()
    base = engine.weights
    train_once(learner)
    sync.push_policy()
    trained = engine.weights
    sync.push_critic()
    assert all(torch.equal(engine.weights[name], base[name]) for name in base)
    sync.push_policy()
    assert all(torch.equal(engine.weights[name], trained[name]) for name in base)
    assert not torch.equal(trained["model.norm.weight"], base["model.norm.weight"])


def test_weights_already_in_the_engine_are_not_pushed_again(one_rank):
    calls = []

    class CountingEngine(ScriptedEngine):
        def load(self, weights):
            calls.append("load")
            super().load(weights)

        def forget_prefixes(self):
            calls.append("forget")

    _, sync = make_sync(CountingEngine(answer, score_with(MODEL)))
    for what, version in (("policy", 0), ("policy", 0), ("critic", 0), ("critic", 1), ("policy", 0), ("policy", 1)):
        sync.hold(what, version)
    assert calls == ["load", "forget", "load", "forget", "load", "load"]
    sync.release()
    sync.hold("policy", 1)
    assert calls[-1] == "load", "a release discards the engine's weights"


def test_a_critic_that_shares_the_engine_with_the_policy_is_never_pushed(one_rank):
    engine = ScriptedEngine(answer, score_with(MODEL))
    sync = FullSync(engine, make_learner(CONFIG), None, [(5, 6, 7)], CONFIG)
    sync.hold("policy", 0)
    weights = engine.weights
    sync.hold("critic", 0)
    assert engine.weights is weights


NAME = "model.layers.1.mlp.down_proj.weight"
SQUARE = "model.layers.1.self_attn.o_proj.weight"


def shuffled(weight):
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
    return weight.flatten()[order].view_as(weight)


def swapped(weight, dim, i=0, j=1):
    """The weight with two rows or columns swapped."""
    order = torch.arange(weight.shape[dim])
    order[[i, j]] = order[[j, i]]
    return weight.index_select(dim, order)


def raised(weight, by):
    """The weight with one element changed."""
    changed = weight.clone()
    changed[1, 2] += by
    return changed


@pytest.mark.parametrize(
    "fault",
    [
        lambda old, new: old or new,  # trl#5312: a reload restored the previous weights
        lambda old, new: new | ({NAME: old[NAME]} if old else {}),  # one tensor stale
        lambda old, new: new | {NAME: new[NAME].roll(1, 0)},  # rows in another order have the same sum
        lambda old, new: new | {NAME: swapped(new[NAME], 1)},
        lambda old, new: new | {SQUARE: new[SQUARE].T.contiguous()},
        lambda old, new: new | {NAME: shuffled(new[NAME])},
        lambda old, new: new | {NAME: raised(new[NAME], 1e-6)},
        lambda old, new: new | {NAME: raised(new[NAME], torch.nan)},
        lambda old, new: new | {NAME: new[NAME].bfloat16().float()},
        lambda old, new: {name: weight for name, weight in new.items() if name != NAME},  # one tensor missing
    ],
)
def test_a_checksum_detects_a_faulty_load(fault, one_rank):
    learner, sync = make_sync(BrokenEngine(fault))
    with pytest.raises(SyncError, match=r"has checksum -?[\d.e+-]+ in the trainer and (-?[\d.e+-]+|nan) in the engine"):
        sync.push_policy()
        train_once(learner)
        sync.push_policy()


def test_the_probe_detects_faults_that_checksums_do_not(one_rank):
    """The weights are right but the arithmetic is wrong: the scorer never uses the new version."""
    learner, sync = make_sync(engine := ScriptedEngine(answer, score_with(MODEL)))
    sync.push_policy()
    base, score = engine.weights, score_with(MODEL)
    engine._scorer = lambda weights, sequence: score(base, sequence)
    train_once(learner)
    with pytest.raises(SyncError, match=r"mean log-prob is -\d+\.\d+ in the trainer and -\d+\.\d+ in the engine"):
        sync.push_policy()


def test_differences_of_both_signs_do_not_cancel(one_rank):
    _, sync = make_sync(engine := ScriptedEngine(answer, score_with(MODEL)))
    score = score_with(MODEL)
    engine._scorer = lambda weights, sequence: [x + 0.1 * (-1) ** i for i, x in enumerate(score(weights, sequence))]
    with pytest.raises(SyncError, match=r"mean difference 0\.1,"):
        sync.push_policy()


LORA = replace(CONFIG, lora=LoraConfig(rank=4, targets=("q_proj", "up_proj")))


@pytest.fixture
def adapted(one_rank):
    """A learner with an adapter, its engine and its sync, after the first push and an update."""
    base = load_model(MODEL, "sdpa").state_dict()
    engine = ScriptedEngine(answer, score_with(MODEL), base)
    learner = make_learner(LORA)
    sync = AdapterSync(engine, learner, [(5, 6, 7, 8, 9), (3, 4, 3)], LORA)
    sync.push_policy()
    train_once(learner)
    return learner, engine, sync


def test_a_push_changes_the_adapter_and_not_the_base(adapted):
    _, engine, sync = adapted
    before = dict(engine.adapter)
    sync.push_policy()
    moved = {name for name in before if not torch.equal(engine.adapter[name], before[name])}
    assert moved == {name for name in before if "lora_B" in name}  # the gradient of A is 0 while B is
    policy, base = engine.score([(5, 6, 7)] * 2, base=[False, True])
    assert policy != base == score_with(MODEL)(engine.weights, (5, 6, 7))


def test_a_stale_adapter_is_detected(adapted):
    _, engine, sync = adapted
    engine.load_adapter = lambda files: None
    with pytest.raises(SyncError, match=r"lora_B\.weight has checksum -?[\d.e+-]+ in the trainer and -?[\d.e+-]+ in"):
        sync.push_policy()


def test_a_changed_base_is_detected(adapted):
    _, engine, sync = adapted
    engine.weights[NAME] = engine.weights[NAME].roll(1, 0)
    with pytest.raises(SyncError, match=rf"{NAME} has checksum"):
        sync.push_policy()


def test_an_adapter_and_a_base_with_equal_answers_are_detected(adapted):
    """vLLM 0.32 on a CPU returns the adapter's answers for the base in a mixed batch (vllm#48421)."""
    _, engine, sync = adapted
    score = engine.score
    engine.score = lambda sequences, base: score(sequences, [True] * len(base))
    with pytest.raises(SyncError, match=r"the probe's mean log-prob is -\d"):
        sync.push_policy()
    engine.score = lambda sequences, base: score(sequences, [False] * len(base))
    with pytest.raises(SyncError, match=r"the probe's mean log-prob under the base is -\d"):
        sync.push_policy()


def test_a_passing_folder_is_in_memory_if_it_fits_and_is_deleted_at_the_end():
    with passing_folder(1) as small, passing_folder(2**60) as large:
        assert small.is_dir() and large.is_dir()
        assert small.is_relative_to("/dev/shm") and not large.is_relative_to("/dev/shm")
    assert not small.exists() and not large.exists()


def test_a_bfloat16_weight_that_is_one_step_old_is_detected():
    """At the paper's learning rates, a few entries in a thousand change by one bit."""
    stale = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    fresh = stale.clone()
    fresh[17, 5] = torch.nextafter(fresh[17, 5], torch.tensor(1.0, dtype=torch.bfloat16))
    assert abs(checksum(stale) - checksum(fresh)) > 10 * CHECKSUM_TOLERANCE * stale.float().norm()


def test_a_critic_of_another_architecture_is_refused_with_the_first_difference():
    policy = {"hidden_size": 64, "rope_parameters": {"rope_theta": 1e4}, "dtype": "float32"}
    check_same_architecture(policy | {"dtype": "bfloat16", "_name_or_path": "x"}, policy)
    with pytest.raises(ConfigError, match=r"critic\.path: its rope_parameters is {'rope_theta': 1000000.0}, want the"):
        check_same_architecture(policy | {"rope_parameters": {"rope_theta": 1e6}}, policy)


def test_probe_sequences_are_the_ends_of_the_first_prompts_with_short_ones_joined():
    prompts = [replace(load_prompts(CONFIG, tokenizer()).prompts[0], token_ids=ids) for ids in ((1, 2, 3, 4, 5), (6,))]
    assert probe_sequences(prompts, 3, 4) == [(2, 3, 4, 5)]
    assert probe_sequences([*prompts, *prompts], 2, 4) == [(2, 3, 4, 5), (2, 3, 4, 5)]
    assert probe_sequences(prompts[1:] * 3, 1, 4) == [(6, 6, 6)]
    assert probe_sequences(prompts[::-1] * 2, 2, 4) == [(2, 3, 4, 5), (2, 3, 4, 5)]


def test_no_two_positions_have_the_same_weight():
    """With equal weights, a swap of two entries would not change the checksum."""
    for column in (False, True):
        assert len(place_weights(5000, torch.device("cpu"), column=column).unique()) == 5000


MERGED = replace(LORA, engine=replace(CONFIG.engine, merge_lora=True))


@pytest.fixture
def merged(one_rank):
    """A learner with an adapter that has been trained, an engine with the base, and the sync that merges."""
    base = load_model(MODEL, "sdpa").state_dict()
    engine = ScriptedEngine(answer, score_with(MODEL), base)
    learner = make_learner(MERGED)
    train_once(learner)
    return learner, engine, MergedSync(engine, learner, [(5, 6, 7, 8, 9), (3, 4, 3)], MERGED)


def test_the_merged_policy_and_the_base_alternate_by_loading_only_the_adapted_weights(merged):
    learner, engine, sync = merged
    base, load = dict(engine.weights), engine.load
    pushed = []
    engine.load = lambda weights: load((pushed.append(name), (name, weight))[1] for name, weight in weights)
    sync.hold("policy", 1)
    want = dict(merged_weights(learner.policy, torch.float32))
    assert all(torch.equal(engine.weights[name], want[name]) for name in want)
    assert {name.split(".")[-2] for name in pushed} == {"q_proj", "up_proj"}
    assert not torch.equal(want[pushed[0]], base[pushed[0]])
    sync.hold("critic", 0)
    assert all(torch.equal(engine.weights[name], base[name]) for name in base)


@pytest.mark.parametrize("what", ["policy", "critic"])
def test_a_stale_merged_push_is_detected(what, merged):
    _, engine, sync = merged
    load = engine.load
    if what == "critic":
        sync.hold("policy", 1)
    engine.load = lambda weights: load(list(weights)[:-1])
    with pytest.raises(SyncError, match=r"up_proj\.weight has checksum"):
        sync.hold(what, 1)
