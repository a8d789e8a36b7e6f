"""Writes a whole model on one rank to a file that all ranks of its node read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from capo_fast.policy.shards import data_of, header_of, shard_of
from capo_fast.runtime.files import naming, passing_folder, write_all


@torch.no_grad()
def pass_model(model: Any, dtype: torch.dtype, stack: ExitStack) -> tuple[Path, dict[str, str]]:
    """A safetensors file of the model's weights in `dtype`, deleted when the stack closes, and for each name in the
    model's state its name in the file, where tied weights are stored once.

    The model is destroyed: a weight's memory is freed once it is in the file, so that both together take no more than
    the larger of them and one weight. Raises RecordError if the file does not fit.
    """
    found = model.state_dict(keep_vars=True)
    stored: dict[int, str] = {}
    names = {name: stored.setdefault(id(weight), name) for name, weight in found.items()}
    weights = {name: found[name] for name in stored.values()}
    parts = {name: shard_of(_cast(weight.to("meta"), dtype)) for name, weight in weights.items()}
    header = header_of(parts)
    size = len(header) + sum(part.local.nbytes for part in parts.values())
    path = stack.enter_context(passing_folder(size)) / "weights.safetensors"
    with naming(path, size), path.open("xb", buffering=0) as file:
        write_all(file, header)
        for weight in weights.values():
            write_all(file, data_of(_cast(weight, dtype)))
            weight.data = weight.data.new_empty(0)
    return path, names


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The detached tensor in `dtype`; integers (some buffers) keep their dtype."""
    return weight.detach().to(dtype) if weight.is_floating_point() else weight.detach()
