"""The checksum of a weight that trainer and engine compare after a push.

Letters: N rows and K columns of a weight.
"""

from __future__ import annotations

from functools import lru_cache

import torch

BLOCK = {"cpu": 2**17, "cuda": 2**26}
"""Entries that are widened to float64 at once: on a CPU what its cache holds."""


@lru_cache(maxsize=256)
def place_weights(size: int, device: torch.device, start: int = 0, column: bool = False) -> torch.Tensor:
    """float64 [size] of fixed, irregular numbers of 2 to 3 and -2 to -3: those of the places from `start` on.

    No two places weigh the same, rows and columns differ: no permutation and no transposition leaves a checksum as it
    was.
    """
    places = torch.arange(start + 1, start + size + 1, dtype=torch.float64, device=device)
    wave = torch.sin(places**2 + column)
    return wave + 2 * wave.sign()


def row_sums(weight: torch.Tensor, column: int = 0) -> torch.Tensor:
    """float64 [N], each row summed by the weights of its places: exact to float64's rounding. A vector as it is.

    column: of a slice, where in the whole its first entry is.
    """
    if weight.ndim == 1:
        return weight.double()
    places_K = place_weights(weight.shape[1], weight.device, column, column=True)
    block = max(1, BLOCK[weight.device.type] // max(1, weight.shape[1]))
    return torch.cat([rows.double() @ places_K for rows in weight.split(block)])


def checksum_of_rows(sums_N: torch.Tensor, row: int = 0) -> torch.Tensor:
    """float64 [], on its device: the checksum of the weight with these `row_sums`."""
    return sums_N @ place_weights(len(sums_N), sums_N.device, row)


def checksum(weight: torch.Tensor, row: int = 0, column: int = 0) -> float:
    """Depends on every entry of a matrix or vector and on its place.

    row, column: of a slice, where in the whole its first entry is; the checksums of all slices add up to that of the
    whole.
    """
    return checksum_of_rows(row_sums(weight, column), row).item()
