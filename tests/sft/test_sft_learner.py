"""An update on packed answers equals that of a plain float64 loss: on one rank or two, full weights or LoRA."""

from __future__ import annotations

import json

import pytest
import sft_ranks
import torch
from forked import run_ranks
from scripted_world import MODEL
from sft_ranks import examples, make_learner, sft_config, updated, weights_of
from transformers import AutoModelForCausalLM

from capo_fast.policy.lora import merged_weights

LR = 0.02
"""The learning rate of `with_plain_gradient_steps`."""


def reference():
    """Loss and weights after a plain gradient step in float64, one conversation at a time."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for each in examples():
        ids = torch.tensor([*each.prompt_ids, *each.token_ids])
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
        for place, (token, trained) in enumerate(zip(each.token_ids, each.trained, strict=True), len(each.prompt_ids)):
            if trained:
                total, tokens = total - logprobs[place - 1, token], tokens + 1
    loss = total / tokens
    loss.backward()
    stepped = {name: (p - LR * p.grad).detach() for name, p in model.named_parameters()}
    return loss.item(), stepped


def difference(found, expected):
    return max((found[name].double() - expected[name]).abs().max().item() for name in expected)


@pytest.mark.parametrize("micro_tokens", [10**6, 40])
def test_an_update_equals_that_of_the_unpacked_loss_in_float64(micro_tokens, one_rank):
    loss, stepped = reference()
    metrics, weights, held_loss = updated(sft_config(train__micro_tokens=micro_tokens), examples())
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6) and held_loss == pytest.approx(loss, abs=1e-6)
    assert difference(weights, stepped) < 1e-7
    assert metrics["updates_skipped"] == 0


def test_an_adapter_learns_and_its_base_is_unchanged(one_rank):
    learner = make_learner(sft_config(lora__rank=4))
    before, losses = weights_of(learner), []
    for _ in range(3):
        losses.append(learner.fit(examples())["loss"])
    assert losses[0] == pytest.approx(reference()[0], abs=1e-6)
    assert losses[2] < losses[0]
    after = weights_of(learner)
    changed = {name for name in after if not after[name].equal(before[name])}
    assert changed and all(".lora_" in name for name in changed)
    assert len(dict(merged_weights(learner.policy, torch.float32))) < len(after)


def test_two_ranks_one_with_a_filler_give_the_update_of_one(tmp_path, fork_server, one_rank):
    out = tmp_path / "weights.pt"
    statuses, output = run_ranks(sft_ranks.main, tmp_path / "log", out, world=2)
    assert set(statuses) == {0}, output
    metrics, held_loss = json.loads(out.with_suffix(".json").read_text())
    expected, weights, expected_held_loss = updated(sft_config(), examples()[:3])
    assert difference(torch.load(out), {name: weight.double() for name, weight in weights.items()}) < 2e-7
    assert metrics == pytest.approx(expected, abs=1e-5) and held_loss == pytest.approx(expected_held_loss, abs=1e-6)
