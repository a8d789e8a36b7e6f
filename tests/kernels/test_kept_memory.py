"""The memory of a gradient, used again where nobody holds it (fused/kept.py)."""

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


def test_one_that_is_free_is_used_again_and_its_old_values_do_not_show() -> None:
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
def test_one_that_is_held_is_left_alone(holder: str) -> None:
    held = HOLDERS[holder](gradient())
    address = kept.KEPT._storage.data_ptr()
    assert gradient(-LOGITS).data_ptr() != address
    del held


def test_one_in_a_graph_that_is_kept_is_left_alone() -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = ck.policy_loss(leaf, TARGETS, weights=torch.ones(8), advantages=torch.ones(8), impl="cpu").loss
    want = gradient()
    gradient(-LOGITS)
    (got,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(got, want)


def test_shared_memory_is_left_to_the_processes_that_have_it() -> None:
    address = gradient().share_memory_().data_ptr()
    assert gradient(-LOGITS).data_ptr() != address


def test_what_is_kept_is_one_gradient_until_it_is_released() -> None:
    held = [gradient() for _ in range(3)]
    assert len({grad.data_ptr() for grad in held}) == 3
    assert kept.KEPT._storage.data_ptr() == held[-1].data_ptr()
    ck.release_memory()
    assert kept.KEPT._storage is None
    assert torch.equal(held[0], held[2])


def test_a_compiled_call_gets_its_own() -> None:
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
