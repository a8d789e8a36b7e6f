"""The real engine with an adapter: each version and the base give the trainer's log-probs, and none another's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_ranks import make_learner
from scripted_world import MODEL, scripted_config, tokenizer

from capo_fast.config import EngineConfig, LoraConfig
from capo_fast.engine.base import run_requests
from capo_fast.records import Request
from capo_fast.runtime import ranks
from capo_fast.sync import AdapterSync

pytestmark = pytest.mark.slow
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "o_proj", "down_proj"))
CONFIG = replace(scripted_config(), lora=LORA)
PROBE = [(5, 6, 7, 8, 9), (3, 4, 3)]


@pytest.fixture(scope="module")
def engine():
    from capo_fast.engine.vllm import VllmEngine

    with ranks():
        config = EngineConfig(dtype="float32", max_model_len=256, kv_cache_gb=0.25, enforce_eager=True)
        engine = VllmEngine(MODEL, config, LORA)
        yield engine
        engine.close()


@pytest.fixture
def sync(engine):
    learner = make_learner(CONFIG)
    return learner, AdapterSync(engine, learner, PROBE, CONFIG)


def move(learner, seed):
    """Another version: B is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            if parameter.requires_grad:
                local = parameter.to_local()
                local += 0.2 * torch.randn(local.shape, generator=generator)


def greedy(engine, name, base=False):
    prompts = [tokenizer().encode(f"{i}*7-2+{i}*3\n", add_special_tokens=False) for i in range(8)]
    requests = [Request(f"{name}{i}", tuple(ids), i, 0.0, 1.0, -1, 24, base=base) for i, ids in enumerate(prompts)]
    answers = run_requests(engine, requests)
    return [(answers[request.id].token_ids, answers[request.id].logprobs) for request in requests]


def test_versions_in_a_row_and_the_base_are_the_trainers(engine, sync):
    learner, sync = sync
    gap = AdapterSync.__dict__  # noqa
    answers = []
    for version in range(3):
        if version:
            move(learner, version)
        sync.push_policy()
        for base in (False, True):
            theirs = torch.tensor(sum(engine.score(PROBE, base), []))
            print(version, base, (theirs - sync._canary.trainers(base)).abs().max())
        answers.append((greedy(engine, f"v{version}-"), greedy(engine, f"b{version}-", base=True)))
    print([a[0][0] for a in answers])
