"""The policy against plain transformers: packed rows, weight names, precision, refused architectures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from credited_samples import credited, pack
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import capo_kernels as ck
from capo_fast.config.schema import Config, PolicyConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.batch import pack_tokens
from capo_fast.policy.loading import load_policy
from capo_fast.policy.model import (
    Policy,
    check_loss_kernel,
    dropout_of,
    full_weights,
    load_model,
    switch_dropout_off,
    whole,
)

SHAPE = {
    "vocab_size": 3000,
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


def make_policy(path: str, dtype: str = "float32", loss_kernel: str = "auto", checkpointing: bool = False):
    config = Config(policy=PolicyConfig(dtype=dtype, loss_kernel=loss_kernel, gradient_checkpointing=checkpointing))
    return load_policy(path, config, torch.device("cpu"), init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_groups_have_the_logprobs_and_gradients_of_separate_sequences(checkpointing, model_path, one_rank):
    shapes = [(5, 7, 0), (5, 1, 0), (5, 4, 0), (3, 3, 2), (6, 2, 1), (6, 6, 1)]
    samples = [credited(prompt, response, group, i) for i, (prompt, response, group) in enumerate(shapes)]
    policy = make_policy(model_path, checkpointing=checkpointing)
    packed = policy(pack(samples, 1.0, Config()), PLAIN, loss=False)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    alone = torch.cat([logprobs_alone(model, sample.rollout) for sample in samples])
    torch.testing.assert_close(packed.double(), alone, atol=2e-6, rtol=0)
    weights = torch.linspace(-1, 1, len(alone), dtype=torch.float64)
    (packed * weights).sum().backward()
    (alone * weights).sum().backward()
    found = {name: whole(weight.grad).double() for name, weight in policy.model.named_parameters()}
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


class FixedHidden(torch.nn.Module):
    """A decoder with these hidden states, whatever its tokens are."""

    name_or_path = ""

    def __init__(self, hidden):
        super().__init__()
        self.model = lambda **unused: SimpleNamespace(last_hidden_state=hidden[None])


def test_the_gradient_of_a_shared_prompt_is_the_same_for_any_number_of_threads():
    batch = pack_tokens([(range(50), range(100))] * 16)  # small tensors are summed by one thread
    hidden = torch.randn(len(batch.input_ids), 256, requires_grad=True)
    outer = torch.randn(len(batch.rows), 256)
    found = []
    try:
        for threads in (1, 4, 4, 4, 4):
            torch.set_num_threads(threads)
            rows = Policy(FixedHidden(hidden), "auto")._hidden(batch)
            found.append(torch.autograd.grad(rows, hidden, outer)[0])
    finally:
        torch.set_num_threads(1)
    assert all(gradient.equal(found[0]) for gradient in found)


def logprobs_alone(model, rollout):
    ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[-len(rollout.token_ids) :]


def test_the_weights_have_the_names_and_values_of_the_file(model_path, one_rank):
    weights = dict(full_weights(make_policy(model_path), torch.float32))
    expected = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).state_dict()
    assert sorted(weights) == sorted(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    embedding, head = (expected[f"{name}.weight"].data_ptr() for name in ("model.embed_tokens", "lm_head"))
    one = weights["model.embed_tokens.weight"] is weights["lm_head.weight"]
    assert one == (embedding == head), "a tied head is gathered and copied once"


def test_bfloat16_computes_in_bfloat16_over_float32_master_weights(model_path, one_rank):
    batch = pack([credited(5, 7)], 1.0, Config())
    policy = make_policy(model_path, "bfloat16")
    loss, result = policy(batch, PLAIN, loss=True)
    loss.backward()
    exact = make_policy(model_path)(batch, PLAIN, loss=False)
    assert {p.dtype for p in policy.parameters()} == {p.grad.dtype for p in policy.parameters()} == {torch.float32}
    assert 1e-6 < (result.logprobs - exact).abs().max() < 0.1


def test_the_named_loss_kernel_runs(model_path, one_rank, monkeypatch):
    kernels = []
    monkeypatch.setattr(ck, "linear_token_logprobs", lambda *args, impl, **kwargs: kernels.append(impl))
    policy, batch = make_policy(model_path, loss_kernel="reference"), pack([credited(5, 7)], 1.0, Config())
    policy(batch, PLAIN, loss=False)
    assert [*kernels, policy(batch, PLAIN, loss=True)[1].impl] == ["reference", "reference"]


def test_a_loss_kernel_that_cannot_run_is_a_one_line_error():
    with pytest.raises(ConfigError, match=r"^policy\.loss_kernel: impl='cuda' cannot run: .+$"):
        check_loss_kernel(PolicyConfig(loss_kernel="cuda"), 64, torch.device("cpu"))
    check_loss_kernel(PolicyConfig(loss_kernel="reference"), 64, torch.device("cpu"))


def test_an_untested_architecture_is_refused_by_name(tmp_path, one_rank):
    GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=32)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.path: .* is a gemma model, want one of qwen2, qwen3, llama"):
        load_model(str(tmp_path), "sdpa")
    assert load_model(str(tmp_path), "sdpa", untested=True).config.model_type == "gemma"


def test_a_missing_model_is_a_one_line_error(tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.path: .*nowhere is neither a model folder nor an id"):
        load_model(str(tmp_path / "nowhere"), "sdpa")


WINDOW = SHAPE | {"sliding_window": 8}
WINDOWS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**WINDOW, use_sliding_window=True, max_window_layers=0)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**WINDOW)),
}


@pytest.mark.parametrize("family", WINDOWS)
def test_a_sliding_window_is_refused_under_sdpa(family, tmp_path, one_rank):
    """Qwen's layers store the window; Mistral's read it from the config."""
    WINDOWS[family]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.attention: the model has a sliding window of 8 tokens"):
        make_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=1)), "has no model.layers"),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=32)), "found final_logit_softcapping 30"),
        (lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2)), "has fused experts"),
    ],
)
def test_a_model_that_the_trainer_can_not_compute_is_refused_even_untested(model, message, tmp_path):
    model().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_model(str(tmp_path), "sdpa", untested=True)


def test_dropout_is_off_in_every_layer(tmp_path, one_rank):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.5)).save_pretrained(tmp_path)
    policy, batch = make_policy(str(tmp_path)), pack([credited(5, 7)], 1.0, Config())
    assert policy.training and policy.model.config.attention_dropout == 0.5  # the exported config keeps it
    assert dropout_of(policy.model.config) == "attention_dropout 0.5"
    first, second = (policy(batch, PLAIN, loss=False) for _ in range(2))
    assert torch.equal(first, second)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=1)).train()
    switch_dropout_off(model)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(ids).logits, model(ids).logits)
