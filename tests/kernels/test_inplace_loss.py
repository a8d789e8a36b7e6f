"""inplace=True: the gradient in the logits' storage."""

from __future__ import annotations

import pytest
import torch
from problems import Problem, logits_problem

import capo_kernels as ck

SPEC = ck.LossSpec(kl_coef=0.1, entropy_coef=0.1)


def leaf(problem: Problem) -> torch.Tensor:
    return problem.leaves["logits"].clone().requires_grad_()


def run(logits: torch.Tensor, impl: str, inplace: bool = True) -> ck.PolicyLoss:
    problem = logits_problem(SPEC, logits.dtype)
    return problem.call(impl, {"logits": logits}, inplace=inplace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_loss_and_gradient_which_is_in_the_storage_of_the_logits(dtype: torch.dtype, impl: str) -> None:
    problem = logits_problem(SPEC, dtype)
    want_leaf, got_leaf = leaf(problem), leaf(problem)
    want = run(want_leaf * 1, impl, inplace=False)
    want.loss.backward()
    logits = got_leaf * 1
    address = logits.data_ptr()
    got = run(logits, impl)
    assert logits.data_ptr() == address
    assert torch.equal(logits.detach(), want_leaf.grad)
    (arrived,) = torch.autograd.grad(got.loss, logits, retain_graph=False)
    assert arrived.data_ptr() == address
    assert torch.equal(arrived, want_leaf.grad)
    for name in ("loss", "logprobs", "entropy"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    for key, value in want.metrics.items():
        torch.testing.assert_close(got.metrics[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_the_gradient_reaches_the_inputs_of_the_logits(impl: str) -> None:
    plain, scaled = leaf(logits_problem(SPEC)), leaf(logits_problem(SPEC))
    run(plain * 2, impl, inplace=False).loss.backward()
    (run(scaled * 2, impl).loss * 0.25 + 3).backward()
    assert plain.grad.abs().max() > 0
    torch.testing.assert_close(scaled.grad, plain.grad / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_view_of_strided_rows_is_overwritten(dtype: torch.dtype, impl: str) -> None:
    problem = logits_problem(SPEC, dtype)
    x, other = leaf(problem), leaf(problem)
    ones = torch.ones_like(x.detach())[:, :3]
    wide = torch.cat([ones, x, ones], 1)
    run(wide[:, 3:-3], impl).loss.backward()
    run(other, impl, inplace=False).loss.backward()
    assert torch.equal(wide.detach()[:, :3], ones)
    assert torch.equal(wide.detach()[:, -3:], ones)
    torch.testing.assert_close(x.grad, other.grad)


def test_a_leaf_that_requires_grad_is_refused(impl: str) -> None:
    with pytest.raises(ValueError, match="inplace: got True for logits that are a leaf"):
        run(leaf(logits_problem(SPEC)), impl)


@pytest.mark.parametrize("option", ["retain_graph", "create_graph"])
def test_retain_graph_and_double_backward_are_refused(option: str, impl: str) -> None:
    x = leaf(logits_problem(SPEC))
    result = run(x * 1, impl)
    with pytest.raises(RuntimeError, match="want a single backward"):
        torch.autograd.grad(result.loss, x, **{option: True})


@pytest.mark.parametrize("inplace", [False, True])
def test_a_second_backward_is_refused(inplace: bool, impl: str) -> None:
    result = run(leaf(logits_problem(SPEC)) * 1, impl, inplace)
    result.loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.loss.backward()


def test_autograd_detects_the_write(impl: str) -> None:
    """exp saved its output, which the call overwrites: an error, not a wrong gradient. A later write is one too."""
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(leaf(logits_problem(SPEC)).exp(), impl).loss.backward()
    logits = leaf(logits_problem(SPEC)) * 1
    result = run(logits, impl)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()


def test_without_a_gradient_nothing_is_overwritten(impl: str) -> None:
    before = logits_problem(SPEC).leaves["logits"]
    logits = before.clone()
    assert not run(logits, impl).loss.requires_grad
    with torch.no_grad():
        computed = leaf(logits_problem(SPEC)) * 1
        assert not run(computed, impl).loss.requires_grad
    for x in (logits, computed):
        torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
