"""The policy against plain transformers: packed rows, names, precision, refused architectures."""

from __future__ import annotations

import pytest
import torch
from credited_samples import credited
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import capo_kernels as ck
from capo_fast.config.schema import Config, PolicyConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.batch import pack
from capo_fast.policy.model import check_loss_kernel, full_weights, load_model, shard_policy

SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
}
PLAIN = ck.LossSpec()


@pytest.fixture(params=FAMILIES)
def model_path(request, tmp_path):
    torch.manual_seed(0)
    FAMILIES[request.param]().save_pretrained(tmp_path)
    return str(tmp_path)


def make_policy(path: str, dtype: str = "float32", loss_kernel: str = "auto"):
    mesh = init_device_mesh("cpu", (1,))
    config = PolicyConfig(dtype=dtype, loss_kernel=loss_kernel)
    return shard_policy(load_model(path, "sdpa").train(), config, mesh)


def test_a_packed_batch_gives_each_sequence_its_own_logprobs(model_path, one_rank):
    samples = [credited(5, 7), credited(1, 3, sample=1), credited(9, 2, group=1)]
    policy = make_policy(model_path)
    packed = policy(pack(samples, 1.0, Config()), PLAIN, loss=False)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    alone = []
    for sample in samples:
        rollout = sample.rollout
        ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        alone.append(logprobs[-len(rollout.token_ids) :])
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-6, rtol=0)


def test_the_weights_have_the_names_and_values_of_the_file(model_path, one_rank):
    weights = dict(full_weights(make_policy(model_path), torch.float32))
    expected = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_bfloat16_computes_in_bfloat16_over_float32_master_weights(model_path, one_rank):
    batch = pack([credited(5, 7)], 1.0, Config())
    policy = make_policy(model_path, "bfloat16")
    loss, result = policy(batch, PLAIN, loss=True)
    loss.backward()
    exact = make_policy(model_path)(batch, PLAIN, loss=False)
    assert {p.dtype for p in policy.parameters()} == {p.grad.dtype for p in policy.parameters()} == {torch.float32}
    assert 1e-6 < (result.logprobs - exact).abs().max() < 0.1


def test_the_named_loss_kernel_runs(model_path, one_rank, monkeypatch):
    asked = []
    monkeypatch.setattr(ck, "linear_token_logprobs", lambda *args, impl, **kwargs: asked.append(impl))
    policy, batch = make_policy(model_path, loss_kernel="reference"), pack([credited(5, 7)], 1.0, Config())
    policy(batch, PLAIN, loss=False)
    assert [*asked, policy(batch, PLAIN, loss=True)[1].impl] == ["reference", "reference"]


def test_a_loss_kernel_that_cannot_run_is_one_line():
    with pytest.raises(ConfigError, match=r"^policy\.loss_kernel: impl='cuda' cannot run: .+$"):
        check_loss_kernel(PolicyConfig(loss_kernel="cuda"), 64, torch.device("cpu"))
    check_loss_kernel(PolicyConfig(loss_kernel="reference"), 64, torch.device("cpu"))


def test_an_untested_architecture_is_refused_by_name(tmp_path, one_rank):
    GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=32)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.path: .* is a gemma model, want one of qwen2, qwen3, llama"):
        load_model(str(tmp_path), "sdpa")
    assert load_model(str(tmp_path), "sdpa", untested=True).config.model_type == "gemma"


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.path: .*nowhere is neither a model folder nor an id"):
        load_model(str(tmp_path / "nowhere"), "sdpa")


def test_a_sliding_window_is_refused_under_sdpa(tmp_path, one_rank):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    Qwen2ForCausalLM(Qwen2Config(**SHAPE, **window)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.attention: the model has a sliding window of 8 tokens"):
        make_policy(str(tmp_path))
