"""inplace=True: the gradient in the logits' storage."""

from __future__ import annotations

import pytest
import torch
from loss_cases import random_case

import capo_kernels as ck

CASE = random_case(1)
SPEC = ck.LossSpec(kl_coef=0.1, entropy_coef=0.1)


def run(logits: torch.Tensor, inplace: bool = True) -> ck.PolicyLoss:
    arguments = CASE.arguments(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    return ck.policy_loss(logits, torch.tensor(CASE.targets), spec=SPEC, inplace=inplace, **arguments)


def leaf(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(CASE.logits, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_same_loss_and_gradient_and_the_storage_holds_it(dtype: torch.dtype) -> None:
    want_leaf, got_leaf = leaf(dtype), leaf(dtype)
    want = run(want_leaf * 1, inplace=False)
    want.loss.backward()
    logits = got_leaf * 1
    address = logits.data_ptr()
    got = run(logits)
    assert torch.equal(logits.detach(), want_leaf.grad)
    assert logits.data_ptr() == address
    got.loss.backward()
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got_leaf.grad, want_leaf.grad)
    assert torch.equal(got.logprobs, want.logprobs)
    assert torch.equal(got.entropy, want.entropy)
    for key, value in want.metrics.items():
        torch.testing.assert_close(got.metrics[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_the_loss_may_be_scaled() -> None:
    """As gradient accumulation and loss scaling do: the factor reaches the gradient without the host."""
    plain, scaled = leaf(), leaf()
    run(plain * 1, inplace=False).loss.backward()
    (run(scaled * 1).loss * 0.25 + 3).backward()
    torch.testing.assert_close(scaled.grad, plain.grad / 4)


def test_a_view_of_strided_rows_is_overwritten_alone() -> None:
    x = leaf()
    wide = torch.cat([x, x, x], 1) * 1
    before = wide.detach().clone()
    run(wide[:, 5:10]).loss.backward()
    other = leaf()
    run(other, inplace=False).loss.backward()
    assert torch.equal(wide.detach()[:, :5], before[:, :5])
    torch.testing.assert_close(x.grad, other.grad)


def test_a_leaf_that_requires_grad_is_refused() -> None:
    with pytest.raises(ValueError, match="inplace: got True for logits that are a leaf"):
        run(leaf())


@pytest.mark.parametrize("option", ["retain_graph", "create_graph"])
def test_retain_graph_and_double_backward_are_refused(option: str) -> None:
    x = leaf()
    result = run(x * 1)
    with pytest.raises(RuntimeError, match="want a single backward"):
        torch.autograd.grad(result.loss, x, **{option: True})


def test_a_second_backward_is_refused() -> None:
    result = run(leaf() * 1)
    result.loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.loss.backward()


def test_autograd_sees_the_write() -> None:
    """exp saved its output, which is gone: an error, not a wrong gradient. So is a write after ours."""
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(leaf().exp()).loss.backward()
    logits = leaf() * 1
    result = run(logits)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()


def test_where_no_gradient_is_wanted_nothing_is_overwritten() -> None:
    logits = leaf().detach()
    result = run(logits)
    assert not result.loss.requires_grad
    assert torch.equal(logits, leaf().detach())
    with torch.no_grad():
        computed = leaf() * 1
        assert not run(computed).loss.requires_grad
    assert torch.equal(computed, leaf().detach())
