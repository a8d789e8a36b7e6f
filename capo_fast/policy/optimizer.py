"""AdamW in the forms of `train.optimizer`. Its state exists from the start: all checkpoints have the same entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from capo_fast.config.training import TrainConfig
from capo_fast.errors import ConfigError, cause_of

MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK, SMALLEST = 256, 4096
"""torchao's limits: elements of a moment that share a scale, and elements of the smallest part stored in 8 bits."""
GRAIN = 8
"""Parts into which an 8-bit moment can be cut: the number of shards must divide it."""


def make_optimizer(parameters: Sequence[torch.nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW of these parameters with zero moments; they are on the host between steps with `train.offload_optimizer`.

    Raises ConfigError if torchao is needed and can't be imported.
    """
    options: dict[str, Any] = {"lr": train.lr, "betas": train.betas, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw-8bit":
        optimizer = eight_bit_adamw(parameters, options)
    else:
        # None: all parameters at once on a GPU, one by one on a CPU.
        fused = True if train.optimizer == "adamw-fused" else None
        optimizer = torch.optim.AdamW(parameters, fused=fused, **options)
        for parameter in parameters:
            step = torch.zeros((), device=parameter.device if fused else None)
            optimizer.state[parameter] = {"step": step, **{key: torch.zeros_like(parameter) for key in MOMENTS}}
    if train.offload_optimizer:
        keep_on_host(optimizer)
    return optimizer


# ---- 8-bit moments ----


def eight_bit_adamw(parameters: Sequence[torch.nn.Parameter], options: Mapping[str, Any]) -> Any:
    """torchao's AdamW8bit. Small moments stay float32. Raises ConfigError."""
    check_torchao()
    from torchao.optim import AdamW8bit  # an optional package

    optimizer = AdamW8bit(parameters, block_size=BLOCK, **options)
    for parameter in parameters:
        check_shards(parameter)
        narrow = has_narrow_moments(parameter)
        moments = {
            key: optimizer._new_buffer(parameter, key == "exp_avg") if narrow else torch.zeros_like(parameter)
            for key in MOMENTS
        }
        optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
    return optimizer


def check_torchao() -> None:
    """Raises ConfigError if torchao can't be imported."""
    try:
        import torchao.optim  # noqa: F401  an optional package
    except ImportError as error:
        raise ConfigError(
            f"train.optimizer: adamw-8bit needs the package torchao, which can't be imported ({cause_of(error)})"
        ) from error


def has_narrow_moments(parameter: torch.Tensor) -> bool:
    """Whether its moments are in 8 bits: each of `GRAIN` parts has whole blocks. Independent of the number of ranks."""
    part = parameter.numel() // GRAIN
    return parameter.shape[0] % GRAIN == 0 and part >= SMALLEST and part % BLOCK == 0


def check_shards(parameter: torch.Tensor) -> None:
    """Raises ConfigError if the moments can't be sharded like the weights."""
    if not isinstance(parameter, DTensor):
        return
    sizes = [
        size for size, kind in zip(parameter.device_mesh.shape, parameter.placements, strict=True) if kind.is_shard()
    ]
    check_grain(math.prod(sizes))


def check_grain(shards: int) -> None:
    """Raises ConfigError if 8-bit moments can't be cut into this number of shards."""
    if GRAIN % shards:
        raise ConfigError(
            f"train.optimizer: found adamw-8bit with weights in {shards} shards, wanted a divisor of {GRAIN}"
        )


def stored(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A parameter's state as plain tensors that share its memory. An 8-bit moment is two tensors: its codes, and its
    scales, with one row per group of rows that has whole blocks."""
    found = dict[str, torch.Tensor]()
    for key, value in state.items():
        local = _local(value)
        if not hasattr(local, "codes"):
            found[key] = value
            continue
        columns = math.prod(value.shape[1:])
        rows = BLOCK // math.gcd(columns, BLOCK)
        found[f"{key}.codes"] = _like(value, local.codes, tuple(value.shape))
        scales = local.scale.view(-1, rows * columns // BLOCK)
        found[f"{key}.scale"] = _like(value, scales, (value.shape[0] // rows, scales.shape[1]))
    return found


def _local(tensor: torch.Tensor) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, local: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A local part as the shard of a tensor of this shape, sharded like `whole`."""
    if not isinstance(whole, DTensor):
        return local
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, whole.device_mesh, whole.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


# ---- offload ----


def keep_on_host(optimizer: torch.optim.Optimizer) -> None:
    """Keep its moments on the host; they are on their parameters' device only during a step."""

    def fetch(*unused: Any) -> None:
        for parameter, state in optimizer.state.items():
            _move(state, parameter.device)

    def put_back(*unused: Any) -> None:
        for state in optimizer.state.values():
            _move(state, torch.device("cpu"))

    optimizer.register_step_pre_hook(fetch)
    optimizer.register_step_post_hook(put_back)
    put_back()


def _move(state: dict[str, Any], device: torch.device) -> None:
    """Move the moments; the step count stays where the optimizer needs it."""
    for key in MOMENTS:
        state[key] = state[key].to(device)
