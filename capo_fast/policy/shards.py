"""Sharded tensors as safetensors files, one per rank, which any number of ranks can read.

A file's `__metadata__` has, for each of its tensors, the part's offset in the whole tensor and the whole shape:

    rank 0 of 2: {"model.norm.weight": [[0], [64]]}        rank 1 of 2: {"model.norm.weight": [[32], [64]]}

The files are written here, not by the safetensors package: tensor by tensor, so that no rank needs a copy of its part
on the host, and hashed on the way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from capo_fast.policy.manifest import FileEntry, new_file
from capo_fast.policy.slices import copy_slice

NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in safetensors files."""


@dataclass(frozen=True)
class Shard:
    """This rank's part of a tensor."""

    local: torch.Tensor
    offset: tuple[int, ...]
    """Start of the part in the whole tensor, per dimension."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""


def shard_of(tensor: torch.Tensor) -> Shard:
    """This rank's part of a tensor, sharing its memory; a plain tensor is whole on every rank."""
    if not isinstance(tensor, DTensor):
        return Shard(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape))
    local = tensor.to_local().detach()
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Shard(local, tuple(offset), tuple(tensor.shape))


def is_written(tensor: torch.Tensor, rank: int) -> bool:
    """Whether this rank writes its part: the first of the ranks with the same part does."""
    if not isinstance(tensor, DTensor):
        return rank == 0
    copies = zip(tensor.placements, tensor.device_mesh.get_coordinate() or (), strict=True)
    return all(copy == 0 for placement, copy in copies if placement.is_replicate())


def shards_of(tensors: Mapping[str, torch.Tensor], rank: int) -> dict[str, Shard]:
    """The parts that this rank writes."""
    mine = {name: shard_of(tensor) for name, tensor in tensors.items() if is_written(tensor, rank)}
    return {name: part for name, part in mine.items() if part.local.numel()}


def write_parts(path: Path, role: str, parts: Mapping[str, Shard]) -> FileEntry:
    """Write one safetensors file of these parts. Raises RecordError."""
    header = header_of(parts)
    with new_file(path, len(header) + sum(part.local.nbytes for part in parts.values())) as file:
        file.write(header)
        for part in parts.values():
            file.write(data_of(part.local))
    return file.entry(role)


def data_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes, as in the files."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_of(parts: Mapping[str, Shard]) -> bytes:
    """Length (8 bytes, little-endian) and JSON of names, dtypes, shapes, offsets, padded to a multiple of 8 bytes."""
    table: dict[str, Any] = {
        "__metadata__": {"shards": json.dumps({name: [part.offset, part.shape] for name, part in parts.items()})}
    }
    end = 0
    for name, part in parts.items():
        begin, end = end, end + part.local.nbytes
        entry = {"dtype": NAMES[part.local.dtype], "shape": list(part.local.shape), "data_offsets": [begin, end]}
        table[name] = entry
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_shards(paths: Sequence[Path], tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill this rank's part of every tensor from the files of all ranks that wrote. Raises ValueError if a tensor is
    missing, unknown, incomplete, or of another dtype or shape."""
    wanted = {name: shard_of(tensor) for name, tensor in tensors.items()}
    filled = dict.fromkeys(wanted, 0)
    with ExitStack() as stack:
        for path in paths:
            file = stack.enter_context(safe_open(path, "pt"))
            for name, (offset, shape) in json.loads(file.metadata()["shards"]).items():
                if name not in wanted:
                    raise ValueError(f"{path.name}: {name} is not a tensor of this run")
                filled[name] += _copy(path, name, file.get_slice(name), offset, shape, wanted[name])
    for name, part in wanted.items():
        if filled[name] != part.local.numel():
            raise ValueError(f"{name}: found {filled[name]} of {part.local.numel()} elements")


def _copy(path: Path, name: str, saved: Any, offset: Sequence[int], shape: Sequence[int], part: Shard) -> int:
    """Copy the overlap of a saved part and this rank's part; returns the number of elements."""
    found = saved.get_dtype(), tuple(shape)
    if found != (NAMES[part.local.dtype], part.shape):
        raise ValueError(f"{path.name}: {name}: found {found}, wanted {(NAMES[part.local.dtype], part.shape)}")
    if not shape:
        part.local.copy_(saved[...])
        return 1
    sizes = saved.get_shape(), part.local.shape
    spans = [(max(a, b), min(a + m, b + n)) for a, b, m, n in zip(offset, part.offset, *sizes, strict=True)]
    if any(begin >= end for begin, end in spans):
        return 0
    copy_slice(path, name, _slices(spans, offset), part.local[_slices(spans, part.offset)])
    return math.prod(end - begin for begin, end in spans)


def _slices(spans: Sequence[tuple[int, int]], start: Sequence[int]) -> tuple[slice, ...]:
    """Spans of the whole tensor as slices of a part that begins at `start`."""
    return tuple(slice(begin - at, end - at) for (begin, end), at in zip(spans, start, strict=True))


def read_whole(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The whole tensors of the files of all ranks, on the host, by name."""
    whole: dict[str, torch.Tensor] = {}
    paths = list(paths)
    for path in paths:
        with safe_open(path, "pt") as file:
            for name, (_, shape) in json.loads(file.metadata()["shards"]).items():
                whole.setdefault(name, torch.empty(shape, dtype=file.get_tensor(name).dtype))
    read_shards(paths, whole)
    return whole
