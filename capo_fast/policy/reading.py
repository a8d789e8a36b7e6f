"""Reads a model's safetensors files into a model without storage: each rank reads its own parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from capo_fast.errors import ConfigError
from capo_fast.policy.shards import Shard, shard_of
from capo_fast.policy.slices import copy_slice


@torch.no_grad()
def allocate(model: Any, device: torch.device) -> None:
    """Give the model's parameters and persistent buffers memory on the device, without values; tied ones share it."""
    found = model.state_dict(keep_vars=True)
    unique = {id(each): each for each in found.values()}
    made = {key: _empty_on(each, device) for key, each in unique.items()}
    model.load_state_dict({name: made[id(each)] for name, each in found.items()}, assign=True)


def _empty_on(old: torch.Tensor, device: torch.device) -> torch.Tensor:
    new = torch.empty_like(old, device=device)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def unstored(tensors: Mapping[str, torch.Tensor], holders: Mapping[str, Path]) -> list[str]:
    """The names of tensors that no file contains, neither under their own name nor under that of a tied tensor."""
    stored = {id(each) for name, each in tensors.items() if name in holders}
    return [name for name, each in tensors.items() if id(each) not in stored]


@torch.no_grad()
def read_tensors(tensors: Mapping[str, torch.Tensor], holders: Mapping[str, Path]) -> dict[str, float]:
    """Fill this rank's part of every tensor from its file; returns the sum of the part's values by name.

    holders: the file of each weight by name, from `weight_holders`. Raises ConfigError for a weight of another shape,
    OSError and SafetensorError for a file that can't be read.
    """
    sums: dict[str, float] = {}
    filled = set[int]()
    for name, tensor in tensors.items():
        if name in holders and id(tensor) not in filled:
            part = shard_of(tensor)
            _read(holders[name], name, part)
            sums[name] = part.local.sum().item()
            filled.add(id(tensor))
    return sums


def _read(file: Path, name: str, part: Shard) -> None:
    with safe_open(file, "pt") as opened:
        found = opened.get_slice(name).get_shape()
    if tuple(found) != part.shape:
        raise ConfigError(f"{file}: {name} has shape {found}, wanted {list(part.shape)}")
    copy_slice(file, name, _place(part), part.local)


@torch.no_grad()
def keep_part(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Fill this rank's part of a tensor from the whole tensor, which may have any device and dtype."""
    part = shard_of(tensor)
    part.local.copy_(whole[_place(part)])


def _place(part: Shard) -> tuple[slice, ...]:
    """The part's place in the whole tensor."""
    return tuple(slice(start, start + length) for start, length in zip(part.offset, part.local.shape, strict=True))
