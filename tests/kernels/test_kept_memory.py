"""The memory of a gradient is reused once nothing references it (fused/kept.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import capo_kernels as ck
from capo_kernels.fused import kept

pytestmark = pytest.mark.skipif(ck.status()["cpu"] != "available", reason=f"cpu: {ck.status()['cpu']}")

LOGITS = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8)

HOLDERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda grad: grad,
    "view": lambda grad: grad[2:3, 5:],
    "storage": lambda grad: grad.untyped_storage(),
    "array": lambda grad: grad.numpy(),
    "capsule": torch.utils.dlpack.to_dlpack,
    "graph": lambda grad: (grad * torch.ones((), requires_grad=True)).grad_fn,
}


@pytest.fixture(autouse=True)
def any_size(monkeypatch) -> None:
    monkeypatch.setattr(kept, "SMALLEST", 0)
    ck.release_memory()
    yield
    ck.release_memory()


def gradient(logits: torch.Tensor = LOGITS) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    tokens = leaf.shape[0]
    ck.policy_loss(
        leaf, TARGETS[:tokens], weights=torch.ones(tokens), advantages=torch.ones(tokens), impl="cpu"
    ).loss.backward()
    return leaf.grad


def test_free_memory_is_reused_without_its_old_values() -> None:
    first = gradient()
    address, want = first.data_ptr(), first.clone()
    first.fill_(torch.nan)
    del first
    again = gradient()
    assert (again.data_ptr(), again.is_contiguous()) == (address, True)
    assert torch.equal(again, want)
    del again
    assert gradient(LOGITS[:5]).data_ptr() == address
    small = gradient(LOGITS[:3])
    assert small.untyped_storage().nbytes() < 2 * small.nbytes + 1


@pytest.mark.parametrize("holder", HOLDERS)
def test_referenced_memory_is_not_reused(holder: str) -> None:
    kept_alive = HOLDERS[holder](gradient())
    address = kept.KEPT._storage.data_ptr()
    assert gradient(-LOGITS).data_ptr() != address
    del kept_alive


def test_a_gradient_in_a_live_graph_is_not_reused() -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = ck.policy_loss(leaf, TARGETS, weights=torch.ones(8), advantages=torch.ones(8), impl="cpu").loss
    want = gradient()
    gradient(-LOGITS)
    (got,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(got, want)


def test_memory_shared_with_processes_is_not_reused() -> None:
    address = gradient().share_memory_().data_ptr()
    assert gradient(-LOGITS).data_ptr() != address


def test_one_gradient_is_kept_until_it_is_released() -> None:
    kept_alive = [gradient() for _ in range(3)]
    assert len({grad.data_ptr() for grad in kept_alive}) == 3
    assert kept.KEPT._storage.data_ptr() == kept_alive[-1].data_ptr()
    ck.release_memory()
    assert kept.KEPT._storage is None
    assert torch.equal(kept_alive[0], kept_alive[2])


def test_a_compiled_call_gets_its_own_memory() -> None:
    def double(logits: torch.Tensor) -> torch.Tensor:
        return ck.token_logprobs(logits, TARGETS, impl="cpu").sum()

    compiled = torch.compile(double, backend="aot_eager", fullgraph=True)
    grads = []
    for logits in (LOGITS, -LOGITS, LOGITS):
        leaf = logits.clone().requires_grad_()
        compiled(leaf).backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[2])
    assert not torch.equal(grads[0], grads[1])


def test_memory_is_the_cpus_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert kept.KEPT.like(LOGITS).is_cpu
