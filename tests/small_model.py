"""A learner of a small random model, and batches for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModelForCausalLM

from bench.trainer.learner import sample_of
from capo_fast.config.schema import Config, LoraConfig, LossConfig, PolicyConfig, RolloutConfig, TrainConfig
from capo_fast.plan.hardware import Hardware
from capo_fast.plan.job import Job, Lengths
from capo_fast.plan.shapes import shape_of
from capo_fast.policy.batch import pack_update
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import add_adapter
from capo_fast.policy.model import shard_policy
from capo_fast.records import PackedBatch, Prompt

CPU = Hardware("cpu", 1e10, 1e10, 1e10, 1e10, 1e9, 64, 0.02, (1e11, 1e11), "of a test")
MODEL = AutoConfig.for_model(
    "qwen2",
    vocab_size=4000,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def config_of(policy: PolicyConfig, lora: int = 0, **train: object) -> Config:
    return Config(
        policy=replace(policy, dtype="float32"),
        lora=LoraConfig(rank=lora),
        loss=LossConfig(kl_coef=0.0),
        rollout=RolloutConfig(prompts=1, n=1, temperature=1.0),
        train=TrainConfig(epochs=1, lr=1e-3, micro_tokens=10**6, schedule="constant", **train),
    )


def make_learner(config: Config, architecture: Any = MODEL) -> Learner:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
    if config.lora.rank > 0:
        add_adapter(model, config.lora, 0)
    return Learner(shard_policy(model.train(), config.policy, init_device_mesh("cpu", (1,))), None, config)


def micro_batch(
    config: Config, sequences: int, response: int = 100, prompt: int = 20, vocab: int = 4000
) -> PackedBatch:
    """A micro-batch of sequences with different prompts."""
    prompts = [Prompt(str(i), str(i), "0", None, tuple(range(i, i + prompt))) for i in range(sequences)]
    samples = [sample_of(each, i, 1, response, vocab, True) for i, each in enumerate(prompts)]
    [found] = pack_update(samples, config, 0, 1)
    return found


def job_of(learner: Learner, batch: PackedBatch, architecture: Any = MODEL) -> Job:
    packed = len(batch.input_ids), len(batch.targets)
    return Job(learner.config, shape_of(architecture, "small"), CPU, 1, 1, Lengths(1, 1, 1), packed=packed)
