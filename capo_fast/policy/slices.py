"""Reads parts of stored tensors without holding the rest in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

BLOCK_BYTES = 8 * 2**20
"""Bytes of the target that are read at once."""


def copy_slice(path: Path, name: str, place: Sequence[slice], target: torch.Tensor) -> None:
    """Copy the part `place` of a tensor in a safetensors file to `target`, which may have any dtype and device.

    The file is mapped for one block of rows at a time, because pages that were read count as memory of the process
    until the map is closed. Raises OSError and SafetensorError for a file that can't be read.
    """
    if not place:  # a number has no rows
        with safe_open(path, "pt") as file:
            target.copy_(file.get_slice(name)[...])
        return
    rows = max(1, BLOCK_BYTES * len(target) // max(target.nbytes, 1))
    for begin in range(0, len(target), rows):
        block = target[begin : begin + rows]
        first = place[0].start + begin
        with safe_open(path, "pt") as file:
            block.copy_(file.get_slice(name)[(slice(first, first + len(block)), *place[1:])])
