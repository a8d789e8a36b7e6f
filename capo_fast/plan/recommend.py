"""Settings for a model, a context and devices: the fastest ones, lowered until they fit."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import yaml

from capo_fast.config.core_yaml import CoreDumper
from capo_fast.config.load import build_config, by_key
from capo_fast.config.schema import Config
from capo_fast.errors import ConfigError
from capo_fast.plan.hardware import GIB, Hardware
from capo_fast.plan.job import TEMPLATE, TYPICAL_PROMPT, Job, Lengths
from capo_fast.plan.levers import Change, in_order, lower, needed_cache
from capo_fast.plan.memory import room
from capo_fast.plan.shapes import ModelShape

FIXED = (
    "algorithm",
    "model.path",
    "rollout.max_tokens",
    "engine.max_model_len",
    "critic.max_tokens",
    "train.micro_tokens",
)
KEPT = ("rollout.prompts", "rollout.n", "critic.votes", "train.epochs", "train.lr", "train.steps")
"""Settings of a run that are not recommended: their defaults hold, and are shown."""
LOWERED = (
    *("policy.dtype", "engine.dtype", "train.optimizer", "train.offload_optimizer", "policy.gradient_checkpointing"),
    *("policy.offload_activations", "policy.shard", "reference.offload", "engine.tensor_parallel"),
    *("engine.kv_cache_gb", "lora.rank"),
)
"""The recommended settings, in the order of the output."""


def recommend(
    shape: ModelShape,
    context: int,
    hardware: Hardware,
    ranks: int,
    hosts: int,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Job, list[Change]]:
    """The job, and the changes from full fine-tuning without recomputation. given: the algorithm, or nothing."""
    config = largest_settings(shape, context, "float32" if hardware.on_cpu else "bfloat16", given)
    prompt = min(TYPICAL_PROMPT, context // 4)
    lengths = Lengths(prompt, -(-config.rollout.max_tokens // 2), -(-config.critic.max_tokens // 2))
    job = Job(config, shape, hardware, ranks, hosts, lengths)
    whole = job.with_settings(engine__kv_cache_gb=needed_cache(job))
    job, changes = lower(whole)
    job = with_free_cache(job)
    return job, in_order(whole, [replace(each, value=attrgetter(each.key)(job.config)) for each in changes])


def largest_settings(shape: ModelShape, context: int, dtype: str, given: Mapping[str, Any]) -> Config:
    """The fastest settings."""
    positions = shape.positions or sys.maxsize
    config = build_config(
        {
            "model.path": shape.name,
            "engine.max_model_len": context,
            "rollout.max_tokens": context - min(1024, context // 4),
            "critic.max_tokens": min(2048, context // 2, positions // 4),
            "train.micro_tokens": max(16384, context),
            "train.optimizer": "adamw-fused",
            "policy.dtype": dtype,
            "engine.dtype": dtype,
        },
        given,
    )
    return with_critique_room(config, positions) if config.has_critic and context <= positions else config


def with_critique_room(config: Config, positions: int) -> Config:
    """The configuration with room in the engine for the critique of a longest rollout: above the context, or with
    shorter rollouts if the model has too few positions for it. Raises ConfigError if it has none left for a rollout."""
    wanted = config.engine.max_model_len + TEMPLATE + config.critic.max_tokens
    most = min(wanted, positions)
    longest = config.rollout.max_tokens - (wanted - most)
    if longest < 1:
        raise ConfigError(
            f"--model: found {config.model.path} with {positions} positions, wanted more than "
            f"{wanted - config.rollout.max_tokens} for the prompt, the critic's template and a critique"
        )
    engine, rollout = replace(config.engine, max_model_len=most), replace(config.rollout, max_tokens=longest)
    return replace(config, engine=engine, rollout=rollout)


def with_free_cache(job: Job) -> Job:
    """The job with a key-value cache as large as a step needs and the device allows."""
    wanted = needed_cache(job)
    over = min(0.0, room(job.with_settings(engine__kv_cache_gb=wanted))) / GIB
    fitting = math.floor(10 * (wanted + over)) / 10
    return job.with_settings(engine__kv_cache_gb=max(fitting, job.config.engine.kv_cache_gb))


def settings(job: Job) -> str:
    """The chosen settings as YAML for `capo train --config FILE`."""
    values, defaults = by_key(job.config), by_key(Config())
    chosen = [*FIXED, *(key for key in LOWERED if values[key] != defaults[key])]
    found = {key: values[key] for key in chosen}
    return yaml.dump(found, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=math.inf)


def kept(job: Job) -> str:
    """The defaults that hold without further settings, in one line."""
    values = by_key(job.config)
    return ", ".join(f"{key} {values[key]}" for key in KEPT if key != "critic.votes" or job.config.has_critic)
