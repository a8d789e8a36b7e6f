"""Loading weights from files into shards: equal to transformers' and PEFT's, in the memory of one shard."""

from __future__ import annotations

import json
from dataclasses import replace

import loading_ranks
import pytest
import torch
from forked import run_ranks
from loading_ranks import FULL, LORA, loaded, whole_weights
from model_folders import copied, reweighted, sharded
from safetensors.torch import save_file
from scripted_world import MODEL
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from capo_fast.config.schema import LossConfig, ReferenceConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.loading import load_learner, load_reference
from capo_fast.policy.lora import add_adapter
from capo_fast.policy.reading import read_tensors
from capo_fast.pretrained import weight_holders

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
RANKS = 3
LARGE = {
    "vocab_size": 40_000,
    "hidden_size": 512,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "tie_word_embeddings": True,
}
PART_BYTES = 4 * 40_000 * 512 // RANKS
"""Bytes of a rank's shard of the embedding, which is nearly the whole model."""
KL = replace(FULL, loss=LossConfig(kl_coef=0.1))


def of_type(dtype):
    return lambda folder: reweighted(folder, lambda w: {name: each.to(dtype) for name, each in w.items()})


STORED = {
    "float32": lambda folder: None,
    "bfloat16": of_type(torch.bfloat16),
    "float64": of_type(torch.float64),
    "sharded": sharded,
    "under the head's name": lambda folder: reweighted(folder, lambda w: w | {HEAD: w.pop(EMBEDDING)}),
    "under both names": lambda folder: reweighted(folder, lambda w: w | {HEAD: w[EMBEDDING].clone()}),
}


def same(found, expected):
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0)


@pytest.mark.parametrize("form", STORED)
def test_a_model_equals_the_one_that_transformers_loads(form, tmp_path, one_rank):
    STORED[form](folder := copied(tmp_path / "model"))
    policy = loaded(str(folder), FULL)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    same({name: each.full_tensor().detach() for name, each in policy.model.state_dict().items()}, theirs.state_dict())
    same(policy.model.named_buffers(), theirs.named_buffers())
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_weights_that_transformers_renames_equal_those_that_it_loads(tmp_path, one_rank):
    """A text model stored in the files of a vision model."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["full_attention"]}
    Qwen3_5ForCausalLM(Qwen3_5TextConfig(**sizes, **heads)).save_pretrained(tmp_path)
    weights = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    renamed = {name.replace("model.", "model.language_model."): each for name, each in weights.items()}
    reweighted(tmp_path, lambda stored: renamed)
    same(whole_weights(str(tmp_path), FULL), weights)


def with_adapter(dtype):
    """The weights of a model after PEFT's own `get_peft_model`."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
    add_adapter(model, LORA.lora, LORA.seed)
    return model.state_dict()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_equals_the_one_that_peft_draws(dtype, one_rank):
    config = replace(LORA, policy=replace(LORA.policy, dtype=dtype))
    same(whole_weights(MODEL, config), with_adapter(getattr(torch, dtype)))


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory, fork_server):
    """Results of `loading_ranks.py` on a number of ranks that divides no weight: weights, and a record per rank."""
    folder = tmp_path_factory.mktemp("loading")
    write_zeros(folder / "large", Qwen2Config(**LARGE, num_attention_heads=2, num_key_value_heads=1))
    reweighted(copied(folder / "spoilt"), spoil)
    out = folder / "found.pt"
    paths = str(folder / "large"), str(folder / "spoilt")
    statuses, output = run_ranks(loading_ranks.main, out.with_suffix(".log"), out, *paths, world=RANKS)
    assert set(statuses) == {0}, output
    return torch.load(out), json.loads(out.with_suffix(".json").read_text())


def write_zeros(folder, config):
    """Save a model of zeros, as drawing random weights would be slow."""
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in Qwen2ForCausalLM(config).named_parameters()}
    config.save_pretrained(folder)
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")


def spoil(weights):
    """Put NaN and infinity into rows that the first and the last rank read."""
    weights[NORM][0] = torch.nan
    weights[EMBEDDING][-1] = torch.inf


def test_every_rank_reads_its_shard(on_ranks):
    full, lora = on_ranks[0]
    same(full, AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).state_dict())
    same(lora, with_adapter(torch.bfloat16))


def test_loading_needs_at_most_its_shard_and_one_block_of_memory(on_ranks):
    """If the whole file were mapped, each shard would be in memory twice."""
    assert max(found["peak"] for found in on_ranks[1]) < PART_BYTES + 20 * 2**20


def test_weights_that_are_not_finite_are_named_on_all_ranks(on_ranks):
    [message] = {found["error"] for found in on_ranks[1]}
    assert message.endswith(
        f"spoilt: found NaN or infinite values in model.safetensors, 2 with such: {EMBEDDING}, {NORM}"
    )


def test_a_weight_of_another_shape_is_refused_by_file_and_name(tmp_path, one_rank):
    reweighted(folder := copied(tmp_path / "model"), lambda w: w | {NORM: w[NORM][:-1]})
    tensors = dict(loaded(MODEL, FULL).model.state_dict())
    with pytest.raises(ConfigError, match=rf"model\.safetensors: {NORM} has shape \[95\], wanted \[96\]"):
        read_tensors(tensors, weight_holders(str(folder)))


def storages(module):
    return {parameter.to_local().untyped_storage().data_ptr() for parameter in module.parameters()}


def test_the_reference_shares_nothing_with_the_policy_and_is_never_trained(one_rank, capsys):
    config = replace(KL, reference=ReferenceConfig(offload=True))
    learner, critic = load_learner(MODEL, config, torch.device("cpu"), [], swaps=False)
    assert critic is None and not storages(learner.policy) & storages(learner.reference)
    assert not any(parameter.requires_grad for parameter in learner.reference.parameters())
    same(learner.policy.model.state_dict(), learner.reference.model.state_dict())
    [line] = capsys.readouterr().err.splitlines()
    assert "reference.offload has no effect" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_offloaded_reference_stays_on_the_host(one_rank):
    device = torch.device("cuda", 0)
    config = replace(KL, reference=ReferenceConfig(offload=True))
    reference = load_reference(None, MODEL, config, device, init_device_mesh("cuda", (1,)))
    assert {parameter.to_local().device.type for parameter in reference.parameters()} == {"cpu"}
