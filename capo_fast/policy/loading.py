"""The learner of a run and the critic that takes its place in the engine, from their folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import BasePolicy, add_adapter
from capo_fast.policy.model import (
    DTYPES,
    Policy,
    check_loss_kernel,
    dropout_of,
    load_checked_model,
    load_model,
    shard_policy,
)
from capo_fast.policy.sync import FrozenCritic, check_same_architecture, freeze_critic
from capo_fast.runtime.mesh import policy_mesh
from capo_fast.terminal import print_line


def load_learner(
    model_path: str, config: Config, device: torch.device, probe: Sequence[tuple[int, ...]], swaps: bool
) -> tuple[Learner, FrozenCritic | None]:
    """The learner, with a reference where the loss has a KL term, and the critic where this rank swaps its weights in.
    A collective on all ranks that learn."""
    mesh = policy_mesh(device.type, config.policy.shard)
    model = load_trained(model_path, config, device)
    critic = load_critic(lambda: model, model.config, config, probe) if swaps and config.lora.rank == 0 else None
    policy = shard_trained(model, config, mesh)
    reference = load_reference(policy, model_path, config, mesh) if config.loss.kl_coef > 0 else None
    return Learner(policy, reference, config), critic


def load_trained(model_path: str, config: Config, device: torch.device) -> Any:
    """The model that is to be trained, on the host. Raises ConfigError where its loss can't run on the device."""
    dtype = DTYPES[config.policy.dtype] if config.lora.rank > 0 else torch.float32
    model = load_checked_model(model_path, config.policy.attention, dtype)
    if dist.get_rank() == 0 and (dropout := dropout_of(model.config)):
        print_line("warning", f"the model's dropout ({dropout}) is off: log-probs must be repeatable")
    check_loss_kernel(config.policy, len(model.get_output_embeddings().weight), device)
    return model


def shard_trained(model: Any, config: Config, mesh: DeviceMesh) -> Policy:
    """The policy, with an adapter where the settings give it a rank."""
    if config.lora.rank > 0:
        add_adapter(model, config.lora, config.seed)
    return shard_policy(model.train(), config.policy, mesh)


def load_critic(
    load_policy: Callable[[], Any], architecture: Any, config: Config, probe: Sequence[tuple[int, ...]]
) -> FrozenCritic:
    """The weights at `critic.path`, or a copy of the policy's own. A collective of the ranks that hold engines.

    architecture: the policy's transformers config.
    """

    def load() -> Any:
        if config.critic.path is None:
            return load_policy()
        path = resolve_model(config.critic.path, "critic.path")
        judge = load_model(path, config.policy.attention, config.model.untested, key="critic.path")
        check_same_architecture(judge.config.to_dict(), architecture.to_dict())
        return judge

    return freeze_critic(load, probe, DTYPES[config.engine.dtype])


def load_reference(policy: Policy, model_path: str, config: Config, mesh: DeviceMesh) -> Policy | BasePolicy:
    """The policy as it was before training: its own base, or a frozen copy."""
    if config.lora.rank > 0:
        return BasePolicy(policy)
    frozen = load_checked_model(model_path, config.policy.attention).requires_grad_(False)
    return shard_policy(frozen, config.policy, mesh)
