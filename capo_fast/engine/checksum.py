"""The checksum of a weight that trainer and engine compare after a push.

Letters: N rows and K columns of a weight.
"""

from __future__ import annotations

import torch

CHECKSUM_ROWS = 8192
"""Rows that are widened to float64 at once."""


def signs(size: int, device: torch.device | None = None, start: int = 0) -> torch.Tensor:
    """float64 [size] of fixed, irregular +1 and -1: those of the places from `start` on."""
    places = torch.arange(start + 1, start + size + 1, dtype=torch.float64, device=device)
    return torch.sin(places**2).sign()


def checksum(weight: torch.Tensor, row: int = 0, column: int = 0) -> float:
    """`signs(N) . W . signs(K)` of a matrix, `signs(N) . w` of a vector, in float64.

    It depends on every entry and on its place; of bfloat16 and float32 weights it is exact to float64's rounding.
    row, column: of a slice, where in the whole its first entry stands; the checksums of all slices add up to that of
    the whole.
    """
    signs_N = signs(len(weight), weight.device, row)
    if weight.ndim == 1:
        return float(weight.double() @ signs_N)
    signs_K = signs(weight.shape[1], weight.device, column)
    return float(torch.cat([rows.double() @ signs_K for rows in weight.split(CHECKSUM_ROWS)]) @ signs_N)
