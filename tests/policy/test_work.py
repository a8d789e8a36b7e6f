"""The learner's FLOPs: the formula against PyTorch's own count of a step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from learner_ranks import SAMPLES, TRAIN, make_learner
from torch.utils.flop_counter import FlopCounterMode

from capo_fast.config.schema import Config, LoraConfig, LossConfig
from capo_fast.policy.batch import pack_update
from capo_fast.policy.work import ModelSize, PassCounter, Passes

CONFIG = Config(train=TRAIN, loss=LossConfig(kl_coef=0.0))


@pytest.mark.parametrize(("rank", "tolerance"), [(0, 0.005), (4, 0.04)])
def test_the_layers_flops_match_their_matrix_products(rank, tolerance, one_rank):
    """PyTorch counts attention separately, as the full square. With LoRA it omits the unneeded gradients of the first
    layer's inputs: 3 % in this model of three layers."""
    learner = make_learner(replace(CONFIG, lora=LoraConfig(rank=rank)))
    (batch,) = pack_update(SAMPLES, learner.config, 0, 1)
    size = ModelSize.of(learner.policy.model)
    counter = PassCounter(learner.policy)
    with FlopCounterMode(display=False) as theirs:
        learner.policy(batch, learner.spec, loss=True)[0].backward()
    ours = counter.read()
    head = (6 if size.head_trained else 4) * size.head * len(batch.targets)
    layers = ours - head - 12 * size.attention * (batch.position_ids + 1).sum().item()
    flops = theirs.get_flop_counts()["Global"]
    found = sum(count for operator, count in flops.items() if "mm" in str(operator))
    assert layers == pytest.approx(found, rel=tolerance)


def test_a_forward_pass_is_a_third_and_a_read_resets_the_count(one_rank):
    learner = make_learner(CONFIG)
    (batch,) = pack_update(SAMPLES, learner.config, 0, 1)
    counter = PassCounter(learner.policy)
    learner.policy(batch, learner.spec, loss=True)
    both = counter.read()
    learner.logprobs_at(batch, 1.0)
    assert counter.read() == pytest.approx(both / 3)
    assert counter.read() == 0


def test_a_token_attends_to_all_before_it_also_in_a_shared_prompt():
    """Two responses of two tokens follow one prompt of three."""
    positions = torch.tensor([0, 1, 2, 3, 4, 3, 4])
    passes = Passes()
    passes.add(SimpleNamespace(input_ids=positions, position_ids=positions, rows=torch.tensor([2, 3, 2, 5])))
    assert (passes.tokens, passes.responses, float(passes.pairs)) == (7, 4, 1 + 2 + 3 + 2 * (4 + 5))
