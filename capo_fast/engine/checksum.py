"""The checksum of a weight that trainer and engine compare after a push.

On a CPU libcapo_sums (csrc/sums.cpp) sums the rows at memory speed. If it was not built, for other dtypes and on a GPU
torch sums them, also in float64. A library that was built and can't be loaded is an error.

Letters: N rows and K columns of a weight.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import capo_kernels
from capo_fast.engine.base import EngineError

BLOCK = {"cpu": 2**17, "cuda": 2**26}
"""Entries that torch converts to float64 at once: on a CPU as many as its cache holds."""
LIBRARY = Path(capo_kernels.__file__).parent / "lib" / "libcapo_sums.so"
NATIVE = {torch.float32: 0, torch.bfloat16: 1}
"""The library's codes of the dtypes that it supports."""


@lru_cache(maxsize=256)
def place_weights(size: int, device: torch.device, start: int = 0, column: bool = False) -> torch.Tensor:
    """float64 [size], fixed irregular weights in [2, 3] and [-3, -2] of the places from `start` on.

    All places have different weights, and rows and columns differ: any permutation or transposition changes a checksum.
    """
    places = torch.arange(start + 1, start + size + 1, dtype=torch.float64, device=device)
    wave = torch.sin(places**2 + column)
    return wave + 2 * wave.sign()


def row_sums(weight: torch.Tensor, column: int = 0) -> torch.Tensor:
    """float64 [N], the weighted sum of each row, exact to float64's rounding; a vector is returned as it is. Raises
    ValueError for more than two dimensions.

    column: for a slice, the position of its first column in the whole.
    """
    if weight.ndim == 1:
        return weight.double()
    rows, columns = weight.shape
    places_K = place_weights(columns, weight.device, column, column=True)
    on_cpu = weight.device.type == "cpu"
    if on_cpu and weight.dtype in NATIVE and weight.stride(1) == 1 and (native := _native_row_sums()):
        sums_N = torch.empty(rows, dtype=torch.float64)
        matrix = weight.data_ptr(), NATIVE[weight.dtype], rows, columns, weight.stride(0)
        native(*matrix, places_K.data_ptr(), sums_N.data_ptr(), torch.get_num_threads())
        return sums_N
    block = max(1, BLOCK[weight.device.type] // max(1, columns))
    return torch.cat([part.double() @ places_K for part in weight.split(block)])


@lru_cache(maxsize=1)
def _native_row_sums() -> Any:
    """The library's function, or None if it was not built. Raises EngineError."""
    if not LIBRARY.exists():
        return None
    try:
        function = ctypes.CDLL(str(LIBRARY)).capo_row_sums
    except OSError as error:  # made for another C library, or without libgomp
        raise EngineError(f"{LIBRARY} can't be loaded: {error}; wanted one built on this machine, or none") from error
    function.argtypes = (c_void_p, c_int, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int)
    function.restype = None
    return function


def checksum_of_rows(sums_N: torch.Tensor, row: int = 0) -> torch.Tensor:
    """float64 [] on the device of `sums_N`: the checksum of the weight with these `row_sums`."""
    return sums_N @ place_weights(len(sums_N), sums_N.device, row)


def checksum(weight: torch.Tensor, row: int = 0, column: int = 0) -> float:
    """A number that depends on every entry of a matrix or vector and on its place.

    row, column: for a slice, the position of its first entry in the whole; the checksums of all slices add up to the
    checksum of the whole.
    """
    return checksum_of_rows(row_sums(weight, column), row).item()
