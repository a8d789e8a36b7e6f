"""A LoRA policy against plain PEFT: gradients, its base, exports, checkpoints, precision."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from credited_samples import pack
from learner_ranks import SAMPLES, TRAIN, make_learner, train
from model_folders import copied
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft import LoraConfig as PeftConfig
from safetensors.torch import load_file
from scripted_world import MODEL, tokenizer
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

import capo_kernels as ck
from capo_fast.config.schema import Config, LoraConfig, LossConfig, PolicyConfig, RolloutConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.checkpoint import Checkpointer
from capo_fast.policy.export import export_adapter, export_model
from capo_fast.policy.lora import BasePolicy, adapter_files, adapter_weights, add_adapter, base_weights, merged_weights
from capo_fast.policy.manifest import RUN_SECTIONS
from capo_fast.policy.model import load_model, shard_policy

LORA = LoraConfig(rank=4, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"))
CONFIG = Config(
    seed=5,
    policy=PolicyConfig(dtype="float32"),
    lora=LORA,
    loss=LossConfig(kl_coef=0.1),
    train=replace(TRAIN, schedule="cosine"),
    rollout=RolloutConfig(temperature=1.0, max_tokens=64),
)
PLAIN = ck.LossSpec()
BATCH = SAMPLES[:3]


def make_policy(policy: PolicyConfig = CONFIG.policy):
    """A policy whose adapter is not zero."""
    dtype = getattr(torch, policy.dtype)
    model = load_model(MODEL, "sdpa", dtype=dtype).train()
    add_adapter(model, LORA, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return shard_policy(model, policy, init_device_mesh("cpu", (1,)))


def plain_logprobs(model):
    """float32 [T], log-probs of `BATCH`, one sequence at a time, by transformers."""
    rows = []
    for sample in BATCH:
        rollout = sample.rollout
        ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        rows.append(logprobs[-len(rollout.token_ids) :])
    return torch.cat(rows)


def plain_model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def gradients(policy):
    return {name: p.grad.full_tensor() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_match_plain_peft_also_after_a_pass_of_the_base(checkpointing, one_rank):
    policy = make_policy(PolicyConfig(dtype="float32", gradient_checkpointing=checkpointing))
    theirs = get_peft_model(
        plain_model(), PeftConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.targets))
    )
    theirs.load_state_dict(
        {f"base_model.model.{name}": w.full_tensor() for name, w in policy.model.state_dict().items()}
    )
    batch = pack(BATCH, 1.0, CONFIG)
    with torch.no_grad():
        BasePolicy(policy)(batch, PLAIN, loss=False)
    policy(batch, PLAIN, loss=False).sum().backward()
    plain_logprobs(theirs).sum().backward()
    expected = {
        name.removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters() if p.grad is not None
    }
    assert len(expected) == 2 * 3 * policy.model.config.num_hidden_layers
    torch.testing.assert_close(gradients(policy), expected, rtol=1e-3, atol=1e-4)


def test_the_base_is_the_policy_without_its_adapter(one_rank):
    policy, batch = make_policy(), pack(BATCH, 1.0, CONFIG)
    before, base, after = (call(batch, PLAIN, loss=False) for call in (policy, BasePolicy(policy), policy))
    torch.testing.assert_close(base, plain_logprobs(plain_model()), atol=2e-6, rtol=0)
    assert torch.equal(before, after)
    assert (before - base).abs().max() > 0.1


def test_a_learner_updates_only_the_adapter_and_measures_the_kl_to_the_base(one_rank):
    learner = make_learner(CONFIG)
    start = {name: weight.clone() for name, weight in adapter_weights(learner.policy).items()}
    first, second = train(learner, CONFIG), train(learner, CONFIG)
    assert first["loss/ref_kl"] == pytest.approx(0, abs=1e-7)
    assert second["loss/ref_kl"] > 1e-6
    assert len(learner.optimizer.state) == len(start)
    moved = adapter_weights(learner.policy)
    assert all(not torch.equal(moved[name], start[name]) for name in start)
    base = dict(base_weights(learner.policy, torch.float32))
    torch.testing.assert_close(base, dict(plain_model().state_dict()), rtol=0, atol=0)


def test_the_base_has_the_compute_dtype_and_the_adapter_float32(one_rank):
    policy, batch = make_policy(PolicyConfig(dtype="bfloat16")), pack(BATCH, 1.0, CONFIG)
    loss, result = policy(batch, PLAIN, loss=True)
    loss.backward()
    assert {p.dtype for p in policy.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert {p.grad.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    exact = make_policy()(batch, PLAIN, loss=False)
    assert 1e-6 < (result.logprobs - exact).abs().max() < 0.3


def test_only_the_seed_determines_the_initial_adapter(one_rank):
    first, other = {}, {}
    for seed, found in ((5, first), (6, other)):
        for draws in (0, 3):
            torch.rand(draws)
            add_adapter(model := plain_model(), LORA, seed)
            found[draws] = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(first[0], first[3], strict=True))
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize("target", ["qproj", "lm_head", "embed_tokens", "self_attn"])
def test_a_target_that_is_not_a_linear_layer_is_refused_with_the_valid_names(target):
    message = rf"^lora\.targets: the model has no {target}, want some of q_proj, k_proj, v_proj, o_proj, gate_proj, "
    with pytest.raises(ConfigError, match=message):
        add_adapter(plain_model(), replace(LORA, targets=("q_proj", target)), seed=0)


def test_exports_load_in_peft_and_merged_in_transformers(one_rank, tmp_path):
    learner = make_learner(CONFIG)
    learner.policy, batch = make_policy(), pack(BATCH, 1.0, CONFIG)
    ours = learner.policy(batch, PLAIN, loss=False)
    for _ in range(2):  # the second exports replace the first
        export_adapter(learner, tokenizer(), tmp_path / "adapter")
        export_model(learner, tokenizer(), tmp_path / "model", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == MODEL
    theirs = PeftModel.from_pretrained(plain_model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(plain_logprobs(theirs), ours, atol=2e-5, rtol=0)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain_logprobs(merged), ours, atol=2e-5, rtol=0)
    torch.testing.assert_close(dict(merged.state_dict()), dict(merged_weights(learner.policy, torch.float32)))


def test_an_adapter_loads_with_its_base_from_any_folder(one_rank, tmp_path, monkeypatch):
    copied(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    add_adapter(model := load_model("base", "sdpa"), LORA, seed=5)
    zeros = {name.replace(".default", ""): w for name, w in model.state_dict().items() if ".default." in name}
    (tmp_path / "adapter").mkdir()
    for name, data in adapter_files(model, zeros).items():
        (tmp_path / "adapter" / name).write_bytes(data)
    monkeypatch.chdir("/")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    torch.testing.assert_close(plain_logprobs(loaded), plain_logprobs(plain_model()), atol=2e-5, rtol=0)


def test_a_hub_id_is_kept_as_the_name_of_the_base():
    model = plain_model()
    model.name_or_path = "org/name"
    add_adapter(model, LORA, seed=5)
    assert model.peft_config["default"].base_model_name_or_path == "org/name"


def test_a_resumed_run_is_equal_bit_for_bit_and_its_checkpoint_has_no_base(one_rank, tmp_path):
    learner = make_learner(CONFIG)
    train(learner, CONFIG)
    (checkpointer := Checkpointer(tmp_path, keep=1)).save(1, learner, dict.fromkeys(RUN_SECTIONS))
    train(learner, CONFIG)
    other = make_learner(CONFIG)
    checkpointer.newest_whole()[0].load(other)
    train(other, CONFIG)
    torch.testing.assert_close(state_of(learner), state_of(other), rtol=0, atol=0)
    saved = load_file(tmp_path / "step_000001" / "model-00000.safetensors")
    assert len(saved) == len(adapter_weights(learner.policy))
    assert all(re.search(r"\.lora_[AB]\.default\.weight$", name) for name in saved)


def state_of(learner):
    optimizer = [value["exp_avg_sq"].full_tensor() for value in learner.optimizer.state.values()]
    return copy.deepcopy((dict(merged_weights(learner.policy, torch.float32)), optimizer))
