"""The real engine with an adapter: each version and the base have the trainer's log-probs, never another version's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learner_ranks import make_learner
from scripted_world import MODEL, scripted_config
from small_engine import CONFIG as ENGINE
from small_engine import chosen, logits_of
from transformers import AutoModelForCausalLM

from capo_fast.config.schema import LoraConfig
from capo_fast.engine.base import run_requests
from capo_fast.policy.canary import Canary, SyncError
from capo_fast.policy.lora import adapter_files, adapter_weights, merged_weights
from capo_fast.policy.sync import AdapterSync
from capo_fast.records import Request
from capo_fast.runtime.ranks import ranks

pytestmark = pytest.mark.slow
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "o_proj", "down_proj"))
CONFIG = replace(scripted_config(), lora=LORA)
PROBE = [(5, 6, 7, 8, 9), (3, 4, 3)]


@pytest.fixture(scope="module")
def engine():
    from capo_fast.engine.vllm import VllmEngine

    with ranks():
        engine = VllmEngine(MODEL, ENGINE, LORA)
        yield engine
        engine.close()


@pytest.fixture
def learner(engine):
    return make_learner(CONFIG)


@pytest.fixture
def sync(engine, learner):
    return AdapterSync(engine, learner, PROBE, CONFIG)


def move(learner, seed):
    """Change the adapter, as a training step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            if parameter.requires_grad:
                local = parameter.to_local()
                local += 0.2 * torch.randn(local.shape, generator=generator)


def requests(name, *, base=False, length=6, count=6):
    prompts = [[3 + (7 * i + j * j) % 40 for j in range(length)] for i in range(count)]
    return [Request(f"{name}{i}", tuple(ids), i, 1.0, 1.0, -1, 12, base=base) for i, ids in enumerate(prompts)]


def plain(learner, base):
    """The policy or its base as a transformers model."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    if not base:
        model.load_state_dict(dict(merged_weights(learner.policy, torch.float32)))
    return model


def test_successive_versions_and_the_base_in_the_same_batch_match_the_trainer(engine, learner, sync):
    for version in range(3):
        if version > 0:
            move(learner, version)
        sync.push_policy()
        both = {base: requests(f"v{version}-{base}-", base=base) for base in (False, True)}
        mixed = [request for pair in zip(*both.values(), strict=True) for request in pair]
        answers = run_requests(engine, mixed)
        for base, group in both.items():
            model = plain(learner, base)
            for request in group:
                completion = answers[request.id]
                expected = chosen(logits_of(model, request, completion).log_softmax(-1), completion)
                torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=5e-5, rtol=0)
    assert not Path(engine._adapter.lora_path).exists()


def test_no_version_reads_the_cache_of_another_and_a_push_clears_it(engine, learner, sync):
    def cached(name, base):
        return run_requests(engine, requests(name, base=base, length=200, count=1))[f"{name}0"].cached_tokens

    sync.push_policy()
    assert (cached("a", False), cached("b", True)) == (0, 0)
    assert cached("c", False) == cached("d", True) > 100
    move(learner, 1)
    sync.push_policy()
    assert (cached("e", False), cached("f", True)) == (0, 0)


def test_one_wrong_bit_of_a_version_is_detected(engine, learner, sync, monkeypatch):
    move(learner, 1)
    sync.push_policy()
    monkeypatch.setattr(engine, "load_adapter", lambda files: None)
    parameter = next(p for p in learner.policy.parameters() if p.requires_grad)
    with torch.no_grad():
        parameter.to_local()[0, 0].nextafter_(torch.tensor(1.0))
    with pytest.raises(SyncError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight has checksum"):
        sync.push_policy()


def test_an_adapter_with_two_tensors_swapped_is_detected_by_its_weights_and_by_its_answers(
    engine, learner, sync, monkeypatch
):
    move(learner, 1)
    weights = adapter_weights(learner.policy)
    names = [f"model.layers.{i}.self_attn.q_proj.lora_A.weight" for i in (0, 1)]
    swapped = weights | {names[0]: weights[names[1]], names[1]: weights[names[0]]}
    files, load = adapter_files(learner.policy.model, swapped), engine.load_adapter
    monkeypatch.setattr(engine, "load_adapter", lambda right: load(files))
    with pytest.raises(SyncError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight has checksum"):
        sync.push_policy()
    canary = Canary(engine, PROBE, CONFIG)
    with pytest.raises(SyncError, match=r"the probe's mean log-prob is -\d"):
        canary.check_probe(sync.trainer_logprobs(), sync.trainer_logprobs(base=True))
