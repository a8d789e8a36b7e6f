"""Loads the learner of a run, and the critic that is swapped into the engine, from their folders.

A model is made without storage and sharded, and then each rank reads its own shards: no rank holds a whole model. Only
the critic is loaded whole, once per node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from capo_fast.config.paths import resolve_model
from capo_fast.config.schema import Config
from capo_fast.policy.learner import Learner
from capo_fast.policy.lora import BasePolicy, add_adapter, base_tensors, first_adapter
from capo_fast.policy.model import (
    DTYPES,
    Policy,
    check_loss_kernel,
    dropout_of,
    empty_model,
    load_checked_model,
    naming_unread,
    shard_policy,
)
from capo_fast.policy.passing import pass_model
from capo_fast.policy.reading import allocate, keep_part, read_tensors, unstored
from capo_fast.policy.sync import FrozenCritic, check_same_architecture, freeze_critic
from capo_fast.pretrained import check_finite, weight_holders
from capo_fast.runtime.mesh import policy_mesh
from capo_fast.runtime.ranks import on_every_rank, once_a_node
from capo_fast.terminal import print_line


def load_learner(
    model_path: str, config: Config, device: torch.device, probe: Sequence[tuple[int, ...]], swaps: bool
) -> tuple[Learner, FrozenCritic | None]:
    """The learner, with a reference if the loss has a KL term, and the critic if this rank swaps its weights in. A
    collective on all ranks that learn."""
    mesh = policy_mesh(device.type, config.policy.shard)
    model = empty_policy(model_path, config, device)
    critic = None
    if swaps and config.lora.rank == 0:
        load_whole = partial(load_checked_model, model_path, config.policy.attention)
        critic = load_critic(load_whole, model.config, config, probe)
    policy = fill_policy(model, model_path, config, device, mesh)
    reference = load_reference(policy, model_path, config, device, mesh) if config.loss.kl_coef > 0 else None
    return Learner(policy, reference, config), critic


def load_policy(model_path: str, config: Config, device: torch.device, mesh: DeviceMesh) -> Policy:
    """The policy, sharded over the mesh, with an adapter if `lora.rank` is positive. A collective.

    Raises ConfigError if the loss can't run on the device, and for weights that can't be read or are not finite.
    """
    return fill_policy(empty_policy(model_path, config, device), model_path, config, device, mesh)


def empty_policy(model_path: str, config: Config, device: torch.device) -> Any:
    """The model to train, without storage. Raises ConfigError if its loss can't run on the device."""
    dtype = DTYPES[config.policy.dtype] if config.lora.rank > 0 else torch.float32
    model = empty_model(model_path, config.policy.attention, dtype)
    if dist.get_rank() == 0 and (dropout := dropout_of(model.config)):
        print_line("warning", f"the model's dropout ({dropout}) is off: log-probs must be repeatable")
    check_loss_kernel(config.policy, len(model.get_output_embeddings().weight), device)
    return model


def fill_policy(model: Any, model_path: str, config: Config, device: torch.device, mesh: DeviceMesh) -> Policy:
    """Shard `empty_policy`, and read its weights and draw its adapter. A collective."""
    if config.lora.rank > 0:
        add_adapter(model, config.lora, config.seed)
    policy = shard_policy(model.train(), config.policy, mesh)
    read_weights(policy, model_path, config, device)
    if config.lora.rank > 0:
        tensors = model.state_dict(keep_vars=True)
        for name, whole in first_adapter(model, config.seed):
            keep_part(tensors[name], whole)
    return policy


def load_reference(
    policy: Policy, model_path: str, config: Config, device: torch.device, mesh: DeviceMesh
) -> Policy | BasePolicy:
    """The policy before training: its own base, or a frozen copy, sharded like the policy. A collective."""
    if config.lora.rank > 0:
        return BasePolicy(policy)
    offload = config.reference.offload and device.type != "cpu"
    if config.reference.offload and not offload and dist.get_rank() == 0:
        print_line("warning", "reference.offload has no effect: on a CPU the reference is on the host anyway")
    frozen = empty_model(model_path, config.policy.attention, torch.float32).requires_grad_(False)
    reference = shard_policy(frozen, config.policy, mesh, offload)
    # FSDP reshards the weights outside the layers after a backward pass, and the reference has none.
    cast(FSDPModule, reference).set_reshard_after_forward(True, recurse=False)
    read_weights(reference, model_path, config, torch.device("cpu") if offload else device)
    return reference


def read_weights(policy: Policy, model_path: str, config: Config, device: torch.device) -> None:
    """Allocate a sharded model without storage on the device and read its weights. A collective. Raises ConfigError."""
    allocate(policy.model, device)
    tensors = base_tensors(policy.model)

    def read(holders: Mapping[str, Path]) -> dict[str, float]:
        with naming_unread(model_path, "model.path"):
            return read_tensors(tensors, holders)

    with readable(tensors, model_path, config) as holders:
        sums = on_every_rank(partial(read, holders))
    check_finite(model_path, {name: sum(each[name] for each in sums) for name in sums[0]})


@contextmanager
def readable(tensors: Mapping[str, torch.Tensor], model_path: str, config: Config) -> Iterator[Mapping[str, Path]]:
    """The file of each tensor, by name. A collective.

    If transformers renames or joins stored tensors, the first rank of each node loads the whole model and writes it to
    a file that all ranks of the node read.
    """
    holders = weight_holders(model_path)
    with ExitStack() as stack:
        if unstored(tensors, holders):
            dtype = next(iter(tensors.values())).dtype
            load = partial(load_checked_model, model_path, config.policy.attention, dtype)
            file, names = once_a_node(lambda: pass_model(load(), dtype, stack))
            stack.callback(dist.barrier)
            holders = dict.fromkeys(names.values(), file)
        yield holders


def load_critic(
    load_whole: Callable[[], Any], architecture: Any, config: Config, probe: Sequence[tuple[int, ...]]
) -> FrozenCritic:
    """The weights at `critic.path`, which `check_model_folder` has accepted, or a copy of the policy's. A collective of
    the ranks that hold engines.

    load_whole: returns the policy's whole model on the host; called only on the first rank of a node. architecture: the
    policy's transformers config.
    """

    def load() -> Any:
        if config.critic.path is None:
            return load_whole()
        path = resolve_model(config.critic.path, "critic.path")
        judge = load_checked_model(path, config.policy.attention, key="critic.path")
        check_same_architecture(judge.config.to_dict(), architecture.to_dict())
        return judge

    return freeze_critic(load, probe, DTYPES[config.engine.dtype])
