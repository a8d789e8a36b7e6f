"""Parameter counts from a config.json, against published counts and against models as built."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from capo_fast.config.schema import LoraConfig
from capo_fast.errors import ConfigError
from capo_fast.plan.shapes import PUBLISHED, find_shape, published_name, shape_of
from capo_fast.policy.lora import add_adapter
from capo_fast.policy.work import ModelSize

COUNTS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
"""From the models' cards and files."""


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_model_is_found_by_its_name(name):
    assert find_shape(name).total == COUNTS[name]


SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "llama": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_and_the_work_equal_those_of_the_built_model(kind):
    config = AutoConfig.for_model(kind, **SMALL, **KINDS[kind])
    lora = LoraConfig(rank=4, targets=("q_proj", "down_proj"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config, "small")
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    assert shape.work(LoraConfig()) == ModelSize.of(model)
    add_adapter(model, lora, seed=0)
    assert shape.work(lora) == ModelSize.of(model)


def test_another_architecture_is_refused():
    with pytest.raises(ConfigError, match=r"model\.path: x is a gpt2 model, wanted one of qwen2"):
        shape_of(AutoConfig.for_model("gpt2"), "x")


@pytest.mark.parametrize("owner", ["somebody", "unsloth"])
def test_a_model_of_another_owner_is_not_taken_for_the_published_one(owner):
    """Its vocabulary may differ."""
    assert published_name("meta-llama/Llama-3.1-8B") in PUBLISHED
    assert published_name(f"{owner}/Llama-3.1-8B") not in PUBLISHED


def test_positions_are_the_longest_usable_context():
    """A scaled rope has more. From a name alone they are unknown, as variants of a model differ in them."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6}
    config = AutoConfig.for_model("qwen2", **SMALL, max_position_embeddings=32768, rope_parameters=rope)
    assert shape_of(config, "long").positions == 131072
    assert find_shape("Qwen/Qwen2.5-7B").positions is None
