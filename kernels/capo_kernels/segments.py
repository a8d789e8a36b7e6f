"""Sums over the sequences (or groups) of a packed tensor, without a loop and without a host sync.

Letters: T packed tokens, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_of_tokens(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """int64 [T], the index of each token's sequence; empty sequences have no token."""
    sequences_B = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    return sequences_B.repeat_interleave(cu_seqlens.diff(), output_size=tokens)


def segment_sum(x: Tensor, index: Tensor, segments: int) -> Tensor:
    """[segments], the sum of x over the entries with that index."""
    return x.new_zeros(segments).index_add(0, index, x)
