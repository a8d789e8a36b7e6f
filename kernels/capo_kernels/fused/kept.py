"""The memory of the last large gradient on a CPU, kept for the next one.

For a gradient of [T, V] the operating system takes longer to map fresh pages than the computation takes.
"""

from __future__ import annotations

import sys
import threading

import torch
from torch import Tensor

SMALLEST = 32 << 20
"""Bytes. The C library already keeps the memory of smaller tensors."""


class Kept:
    """At most one storage, reused only if nothing else refers to it: no tensor, view, graph or process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._storage: torch.UntypedStorage | None = None

    def like(self, x: Tensor) -> Tensor:
        """A contiguous tensor with the shape, dtype and device of `x`, uninitialised."""
        size = x.numel() * x.element_size()
        if x.device.type != "cpu" or size < SMALLEST:
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        with self._lock:
            if not self._fits(size):
                self._storage = None  # before the new allocation, so that both never exist at once
                self._storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
            return x.new_empty(0).set_(self._storage, 0, x.shape)  # type: ignore[call-overload]

    def _fits(self, size: int) -> bool:
        """True if the storage is free and at most twice as large as wanted. Reference counts 1 (C++) and 2 (Python)
        are this class's own."""
        if self._storage is None or sys.getrefcount(self._storage) > 2 or self._storage.is_shared():
            return False
        return torch._C._storage_Use_Count(self._storage._cdata) == 1 and size <= self._storage.nbytes() <= 2 * size

    def release(self) -> None:
        with self._lock:
            self._storage = None


KEPT = Kept()


def release_memory() -> None:
    """Frees the memory kept on the CPU for the next gradient of logits (the last one of 32 MiB or more).

    Gradients still in use are unaffected. In place (`inplace=True`) and on a GPU nothing is kept.
    """
    KEPT.release()
