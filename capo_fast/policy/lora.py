"""The policy as a LoRA adapter over a frozen base (Hu et al., 2021): W + alpha / R * B A. The only importer of PEFT.

PEFT's layers replace the model's own, so FSDP2, the loss and the checkpoints work on one module. With the adapter
switched off the same module is the base: the reference of the KL term and the critic need no second copy.

Letters: N rows and K columns of a weight, R the adapter's rank; A is [R, K], B is [N, R].
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import capo_kernels as ck
from capo_fast.config.schema import LoraConfig
from capo_fast.errors import ConfigError
from capo_fast.policy.model import Policy, whole
from capo_fast.records import TokenBatch

NAME = "default"
"""PEFT's name of the model's only adapter."""


class BasePolicy:
    """The policy with its adapter switched off: called like a `Policy`, without weights of its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, batch: TokenBatch, spec: ck.LossSpec, loss: bool) -> Any:
        with adapter_off(self._policy.model):
            return self._policy(batch, spec, loss=loss)


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> None:
    """Freeze the model and add a float32 adapter, equal on all ranks: A random, B zero.

    Raises ConfigError for a target that is not a linear layer of the model.
    """
    # PEFT takes seconds to import, and full fine-tuning needs none of it.
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    check_targets(model, lora)
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=_absolute(model.name_or_path),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, NAME)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def first_adapter(model: Any, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The initial weights that `add_adapter` would draw in a model with storage, whole, one at a time, by their names
    in `state_dict`. For a model without storage they are drawn here."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(nn.init.kaiming_uniform_, a=math.sqrt(5), generator=generator)
    for name, layer in _layers(model).items():
        a_RK = torch.empty(layer.r[NAME], layer.in_features)
        b_NR = torch.empty(layer.out_features, layer.r[NAME])
        for each in (a_RK, b_NR, a_RK):  # PEFT makes two linear layers, which draw A and B, and then draws A again
            draw(each)
        yield f"{name}.lora_A.{NAME}.weight", a_RK.to(layer.get_base_layer().weight.dtype)
        yield f"{name}.lora_B.{NAME}.weight", b_NR.zero_()


def _absolute(model_path: str) -> str:
    """The absolute path of a folder; a hub id unchanged."""
    return str(Path(model_path).resolve()) if Path(model_path).is_dir() else model_path


def check_targets(model: Any, lora: LoraConfig) -> None:
    """Raises ConfigError. The head and the embeddings can't be targets: they are outside the decoder layers."""
    modules = model.model.layers.named_modules()
    there = dict.fromkeys(name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear))
    for target in lora.targets:
        if target not in there:
            raise ConfigError(f"lora.targets: the model has no {target}, want some of {', '.join(there)}")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Switch to the base alone. PEFT's own switch also freezes the adapter, and FSDP2 would keep it frozen, because it
    records which weights are trainable when it first gathers a layer. So the adapter's product is scaled by 0."""
    for layer in _layers(model).values():
        layer.set_scale(NAME, 0.0)
    try:
        yield
    finally:
        for layer in _layers(model).values():
            layer.set_scale(NAME, 1.0)


def adapter_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """The whole adapter, float32 on its device, as `<layer>.lora_A.weight` and `.lora_B.weight`. A collective."""
    return _adapter_of(policy.model.state_dict())


def _adapter_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    suffix = f".{NAME}.weight"
    return {
        name.removesuffix(suffix) + ".weight": whole(weight).detach()
        for name, weight in state.items()
        if name.endswith(suffix)
    }


def adapter_files(model: Any, adapter: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """`adapter_weights` in PEFT's format: contents by file name."""
    config = model.peft_config[NAME].to_dict()
    config |= {"inference_mode": True, "target_modules": sorted(config["target_modules"])}
    tensors = {f"base_model.model.{name}": weight.cpu().contiguous() for name, weight in adapter.items()}
    return {
        "adapter_config.json": json.dumps(config, indent=2, sort_keys=True).encode(),
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }


def scaled_adapter(
    model: Any, adapter: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """The adapter as the engine uses it: in the engine's dtype, with B times alpha / R."""
    scaling = {name: layer.scaling[NAME] for name, layer in _layers(model).items()}
    for name, weight in adapter.items():
        layer, _, which = name.removesuffix(".weight").rpartition(".")
        yield name, weight.to(dtype) * (scaling[layer] if which == "lora_B" else 1.0)


BASE_LAYER = ".base_layer."


def adapted_weights(model: Any) -> set[str]:
    """Names of the weights that the adapter changes, as in `base_weights`."""
    return {f"{name}.weight" for name in _layers(model)}


def base_weights(
    policy: Policy, dtype: torch.dtype, names: Container[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The frozen base, like `full_weights` of a policy without an adapter; only `names`, if given. A collective."""
    yield from _base_of(policy.model.state_dict(), dtype, names)


def _base_of(
    state: Mapping[str, torch.Tensor], dtype: torch.dtype, names: Container[str] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in _without_adapter(state).items():
        if names is None or name in names:
            yield name, whole(weight.detach()).to(dtype)


def base_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The model's parameters and persistent buffers without the adapter, by the names that they have without one. A
    tied head is contained twice."""
    return _without_adapter(model.state_dict(keep_vars=True))


def untied_names(model: Any) -> set[str]:
    """Names of the weights, as in `base_weights`; of tied ones only the first, as in a model's files."""
    first = {id(weight): name for name, weight in reversed(base_tensors(model).items())}
    return set(first.values())


def _without_adapter(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    adapter = f".{NAME}.weight"
    return {name.replace(BASE_LAYER, "."): each for name, each in state.items() if not name.endswith(adapter)}


def merged_weights(
    policy: Policy, dtype: torch.dtype, names: Container[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy with its adapter merged, W + alpha / R * B A in float32, one weight at a time; only `names`, if given.
    A collective.

    For a policy without an adapter these are its weights.
    """
    state = policy.model.state_dict()
    adapter = dict(scaled_adapter(policy.model, _adapter_of(state), torch.float32))
    for name, weight in _base_of(state, torch.float32, names):
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in adapter:
            weight = weight.addmm(adapter[f"{layer}.lora_B.weight"], adapter[f"{layer}.lora_A.weight"])
        yield name, weight.to(dtype)


def _layers(model: Any) -> dict[str, Any]:
    """PEFT's layers, by the names of the layers that they replaced."""
    from peft.tuners.lora import LoraLayer  # already loaded if there is an adapter

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
