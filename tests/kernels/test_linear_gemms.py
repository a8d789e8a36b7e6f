"""The GEMMs of a linear head on a GPU, counted on meta tensors: products, writes and memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capo_kernels import chunks
from capo_kernels.fused import linear
from capo_kernels.fused.linear import Matmuls

V, H = 152_064, 3_584
"""Qwen2.5-7B's head, in bfloat16."""
DWEIGHT, ROW = 2 * V * H, 2 * V
"""Bytes of the gradient by the weight and of a row of logits."""
GIB = 2**30


class Operations(TorchDispatchMode):
    """Records the products with their output dtype, the other passes over [V, H], and the bytes allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[str, torch.dtype]] = []
        self.passes: list[str] = []
        self.allocated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            # Without a GPU torch has no meta function for addmm with another dtype. All products go to `out`.
            self.products.append((name, kwargs["out"].dtype))
            return kwargs["out"]
        found = func(*args, **kwargs)
        if name == "device":
            return found
        if name in ("new_empty", "empty_like", "zeros_like", "_to_copy"):
            self.allocated += found.numel() * found.dtype.itemsize
        if name not in ("new_empty", "empty_like", "t") and tuple(found.shape) == (V, H):
            self.passes.append(name)
        return found


def run(tokens: int, monkeypatch, chunk: int | None = None, memory: int = 80 * GIB) -> tuple[Operations, list[int]]:
    """The operations, and the rows of each chunk."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    pretend_a_gpu(monkeypatch)
    hidden = torch.empty(tokens, H, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(V, H, dtype=torch.bfloat16, device="meta")
    with Operations() as operations:
        matmuls = Matmuls(hidden, weight, None, None, None, chunk, False, (True, True, False))
        rows = []
        for part, hidden_cH, logits_cV in matmuls.chunks():
            matmuls.backward(part, hidden_cH, logits_cV)
            rows.append(part.stop - part.start)
        assert matmuls.gradients()[1].dtype == torch.bfloat16
    return operations, rows


def pretend_a_gpu(monkeypatch) -> None:
    for module in (chunks, linear):
        monkeypatch.setattr(module, "on_gpu", lambda x: True)


def test_one_chunk_writes_the_returned_weight_gradient_directly(monkeypatch) -> None:
    for tokens in (1, 4_096, 8_192, 4_096 + 2 * H):
        operations, rows = run(tokens, monkeypatch)
        assert rows == [tokens]
        assert operations.products == [("mm", torch.bfloat16)] * 3
        assert operations.passes == []
        # At most the bytes of a float32 gradient, its bfloat16 copy and 4,096 rows of logits.
        assert operations.allocated - 2 * tokens * H <= 3 * DWEIGHT + 4_096 * ROW


def test_of_several_chunks_the_first_writes_and_the_others_add(monkeypatch) -> None:
    operations, rows = run(20_000, monkeypatch)
    assert rows == [6_784, 6_784, 6_432]
    narrow = [("mm", torch.bfloat16)] * 2
    adds = [*narrow, ("addmm", torch.float32)]
    assert operations.products == [*narrow, ("mm", torch.float32), *adds, *adds]
    assert operations.passes == ["_to_copy"]
    assert operations.allocated == 2 * 20_000 * H + 6_784 * ROW + 3 * DWEIGHT


@pytest.mark.parametrize(
    ("tokens", "chunk", "memory", "want"),
    [
        (8_193, 4_096, 80 * GIB, [2_816, 2_816, 2_561]),  # and not 4,096, 4,096 and 1
        (8_193, 8_192, 80 * GIB, [4_224, 3_969]),
        (300, 100, 80 * GIB, [100, 100, 100]),
        (24_000, None, 24 * GIB, [4_096, 4_096, 4_096, 4_096, 4_096, 3_520]),
        (24_000, None, 80 * GIB, [8_064, 8_064, 7_872]),
    ],
)
def test_chunks_are_equal_and_minimal(tokens: int, chunk: int | None, memory: int, want: list[int], monkeypatch):
    assert run(tokens, monkeypatch, chunk, memory)[1] == want


def test_without_a_gradient_by_the_weight_chunks_are_not_enlarged(monkeypatch) -> None:
    pretend_a_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * GIB))
    weight = torch.empty(V, H, dtype=torch.bfloat16, device="meta")
    assert [chunks.chunk_rows(8_192, weight, torch.bfloat16, None, need) for need in (False, True)] == [4_096, 8_192]
