"""Chunk size: the rows of a linear head's logits that are computed at a time.

Letters: T packed tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUND = 128
"""Chunks are a multiple of it (the rows of a GEMM's tile); the last may be shorter."""


def on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def chunk_rows(size: int, weight_VH: Tensor, dtype: torch.dtype, chunk: int | None, needs_dweight: bool) -> int:
    """Rows of a chunk of `size` rows: at most `chunk` (None: the default). `dtype`: of the logits."""
    if chunk is not None:
        return equal_rows(size, chunk)
    (vocab, hidden), memory = weight_VH.shape, None
    if on_gpu(weight_VH):
        memory = torch.cuda.get_device_properties(weight_VH.device).total_memory
    converts = needs_dweight and weight_VH.dtype != torch.float32
    return equal_rows(size, default_rows(size, vocab, hidden, dtype.itemsize, converts, memory))


def equal_rows(size: int, most: int) -> int:
    """Rows per chunk: the fewest chunks, of equal size. Each chunk reads the head twice and reads and writes dweight,
    so a short last chunk would cost as much as a full one."""
    count = max(1, -(-size // most))
    return max(1, min(most, size, -(-size // (count * ROUND)) * ROUND))


def default_rows(size: int, vocab: int, hidden: int, itemsize: int, converts: bool, memory: float | None) -> int:
    """Maximum rows of a chunk. itemsize: bytes of a logit; converts: whether several chunks would form dweight in
    float32 and convert it; memory: bytes of the GPU, None on a CPU."""
    if memory is None:
        return max(256, 2**25 // vocab)  # 256 at a vocabulary of 128k; with small ones the cost is per call
    # One chunk needs no float32 dweight, so that memory is available for logits on top of 4,096 rows.
    spared = 4 * hidden // itemsize if converts else 0
    if size <= 4096 + spared:
        return max(size, 1)
    return 8192 if 8192 * vocab * itemsize <= memory // 16 else 4096
