"""Which inputs get gradients and how often, and the memory and reads of a call, for every implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calls import DTYPES, EVERYTHING, NORMS, PROBLEMS, assert_same_bits, call, figures
from criterion import (
    TINY,
    check_logprobs,
)
from implementations import DEVICE
from problems import TOKENS, linear_problem, logits_problem
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import capo_kernels as ck

# ---- gradients ----


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype, make, impl: str) -> None:
    problem = make(EVERYTHING, dtype)
    first = call(problem, impl)
    for _ in range(3):
        assert_same_bits(call(problem, impl), first)


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd_the_figures_are_the_same(mode, make, impl: str) -> None:
    problem = make(EVERYTHING)
    want = call(problem, impl)
    with mode():
        result = problem.call(impl)
    assert not result.loss.requires_grad
    for name, value in figures(result).items():
        torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)


def test_log_probs_without_autograd(impl: str) -> None:
    logits = logits_problem().leaves["logits"].nan_to_num(0.0)
    targets = torch.zeros(TOKENS, dtype=torch.int64, device=DEVICE)
    want = ck.token_logprobs(logits.clone().requires_grad_(), targets, entropy=True, impl=impl)
    assert all(x.requires_grad for x in want)
    with torch.inference_mode():
        got = ck.token_logprobs(logits, targets, entropy=True, impl=impl)
    assert not any(x.requires_grad for x in got)
    assert all(map(torch.equal, got, want))


def test_only_the_logits_get_a_gradient(impl: str) -> None:
    problem = logits_problem(replace(EVERYTHING, is_mode="truncate"))
    others = {k: x.clone().requires_grad_() if x.is_floating_point() else x for k, x in problem.others.items()}
    logits = problem.leaves["logits"].clone().requires_grad_()
    result = replace(problem, others=others).call(impl, {"logits": logits})
    result.loss.backward()
    assert torch.equal(logits.grad, call(problem, impl)["logits"])
    assert all(x.grad is None for x in others.values())
    outputs = (result.logprobs, result.entropy, *result.metrics.values())
    assert not any(x.requires_grad for x in outputs)
    assert all(x.dim() == 0 and x.device.type == DEVICE.type for x in result.metrics.values())


FROZEN = ["hidden", "weight", "bias", "weight bias", "hidden weight bias"]


@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_inputs_get_no_gradient_and_the_others_the_same(frozen: str, impl: str) -> None:
    problem = linear_problem(EVERYTHING)
    want = call(problem, impl, chunk_tokens=7)
    leaves = {name: x.clone().requires_grad_(name not in frozen.split()) for name, x in problem.leaves.items()}
    result = problem.call(impl, leaves, chunk_tokens=7)
    assert torch.equal(result.loss, want["loss"])
    if any(x.requires_grad for x in leaves.values()):
        result.loss.backward()
    for name, x in leaves.items():
        assert x.grad is None if name in frozen.split() else torch.equal(x.grad, want[name])


@pytest.mark.parametrize("frozen", FROZEN[:-1])
def test_log_probs_of_a_frozen_part(frozen: str, impl: str) -> None:
    problem = linear_problem().tidy()
    targets = problem.others["targets"].clamp(min=0)
    grads = []
    for keep in ("", frozen):
        leaves = {name: x.clone().requires_grad_(name not in keep.split()) for name, x in problem.leaves.items()}
        ck.linear_token_logprobs(**leaves, targets=targets, chunk_tokens=7, impl=impl).sum().backward()
        grads.append({name: x.grad for name, x in leaves.items()})
    for name, want in grads[0].items():
        assert grads[1][name] is None if name in frozen.split() else torch.equal(grads[1][name], want)


@pytest.mark.parametrize("make", PROBLEMS)
def test_double_backward_is_refused(make, impl: str) -> None:
    if impl == "reference" and make is logits_problem:
        pytest.skip("eager code, which torch differentiates twice")
    problem = make(EVERYTHING)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    with pytest.raises(RuntimeError, match="create_graph: got True"):
        torch.autograd.grad(problem.call(impl, leaves).loss, list(leaves.values()), create_graph=True)


def test_double_backward_of_log_probs_is_refused(impl: str) -> None:
    """Their incoming gradient here is constant: torch itself would return zero second derivatives."""
    problem = linear_problem().tidy()
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    logp = ck.linear_token_logprobs(**leaves, targets=problem.others["targets"].clamp(min=0), impl=impl)
    with pytest.raises(RuntimeError, match="create_graph: got True"):
        torch.autograd.grad(logp.sum(), list(leaves.values()), create_graph=True)


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_second_backward_gives_the_same_gradient(dtype: torch.dtype, make, impl: str) -> None:
    problem = make(EVERYTHING, dtype)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    loss = problem.call(impl, leaves).loss
    first = torch.autograd.grad(3 * loss, list(leaves.values()), retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(3 * loss, list(leaves.values()), retain_graph=True)
    third = torch.autograd.grad(loss, list(leaves.values()))
    assert all(map(torch.equal, first, kept))
    assert all(map(torch.equal, second, kept))
    for x, y in zip(third, kept, strict=True):
        assert (3 * x.double() - y).norm() <= 2 * TINY[dtype] * y.double().norm()


@pytest.mark.parametrize("which", ["logprobs", "entropy"])
@pytest.mark.parametrize("make", PROBLEMS)
def test_a_gradient_by_one_of_the_two_outputs(make, which: str, impl: str) -> None:
    """Rows whose outer derivative is 0 get a gradient of exactly 0."""
    problem = make().tidy()
    targets = problem.others["targets"].clamp(min=0)
    some = (torch.arange(TOKENS, device=DEVICE) % 3 > 0).float()
    outer = {"logprobs": some, "entropy": None} if which == "logprobs" else {"logprobs": None, "entropy": some}
    got = check_logprobs(problem.leaves, targets, impl, outer=outer)
    rows = next(iter(problem.leaves))
    assert got[f"gradient by {rows}"][some == 0].abs().max() == 0


class Cut(torch.autograd.Function):
    """Its gradient is undefined, which autograd passes on as None."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("make", PROBLEMS)
def test_an_undefined_gradient_adds_nothing(make, impl: str) -> None:
    problem = make().tidy()
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    logprobs = ck.token_logprobs if "logits" in leaves else ck.linear_token_logprobs
    logp = logprobs(**leaves, targets=problem.others["targets"].clamp(min=0), impl=impl)
    (Cut.apply(problem.call(impl, leaves).loss) + Cut.apply(logp).sum()).backward()
    assert all(x.grad is None or not x.grad.any() for x in leaves.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype, impl: str) -> None:
    problem = linear_problem(EVERYTHING)
    want = call(problem, impl)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    with torch.autocast(DEVICE.type, dtype=dtype):
        result = problem.call(impl, leaves)
    result.loss.backward()
    assert_same_bits({**figures(result), **{name: x.grad for name, x in leaves.items()}}, want)


@pytest.mark.parametrize("make", PROBLEMS)
def test_backward_allocates_no_zeros_for_results_without_a_gradient(make, impl: str) -> None:
    if impl == "reference":
        pytest.skip("eager code, whose operations make what they need")
    problem = make()
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    loss = problem.call(impl, leaves).loss
    with Calls() as calls:
        torch.autograd.grad(loss, list(leaves.values()), torch.ones_like(loss))
    assert not [name for name in calls.names if "zeros" in name or "fill" in name]


# ---- memory and reads of a call ----


class Calls(TorchDispatchMode):
    """Records the names of the operations called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits(impl: str) -> None:
    problem = linear_problem(EVERYTHING, lengths=(60,), hidden=2, vocab=300)
    leaves = {name: x.nan_to_num(0.0).requires_grad_() for name, x in problem.leaves.items()}
    targets = problem.others["targets"].clamp(min=0)
    with Largest() as largest:
        ck.linear_token_logprobs(**leaves, targets=targets, entropy=True, chunk_tokens=7, impl=impl)[0].sum().backward()
        problem.call(impl, leaves, chunk_tokens=7).loss.backward()
    assert largest.elements <= 7 * 300


@pytest.mark.parametrize("norm", NORMS)
def test_the_host_never_reads_a_tensor(norm: str, impl: str) -> None:
    """Fake tensors have no values, so a hidden `.item()`, `nonzero` or `if tensor` would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits, targets = torch.empty(8, 5, device=DEVICE), torch.empty(8, dtype=torch.int64, device=DEVICE)
        weights, old, ref, rollout = torch.empty(4, 8, device=DEVICE).unbind()
        steps = torch.empty(8, dtype=torch.bool, device=DEVICE)
        cu = torch.empty(4, dtype=torch.int32, device=DEVICE)
        wrong, outcome = torch.empty(4, device=DEVICE), torch.empty(3, device=DEVICE)
        credit = ck.Credit(steps, wrong, outcome, torch.empty(3, dtype=torch.int64, device=DEVICE), cu, norm=norm)
        others = {"old_logprobs": old, "ref_logprobs": ref, "rollout_logprobs": rollout, "cu_seqlens": cu}
        options = {"weights": weights, "credit": credit, "spec": EVERYTHING, "impl": impl, **others}
        ck.policy_loss(logits.requires_grad_(), targets, **options).loss.backward()
        ck.token_weights(cu, steps, "sequence-mean")
        with pytest.raises(DataDependentOutputException):
            weights.sum().item()


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_host_never_waits_for_the_device(make, impl: str) -> None:
    if DEVICE.type != "cuda":
        pytest.skip("torch detects waits only on CUDA")
    problem = make(EVERYTHING)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    problem.call(impl, leaves)  # compiles and loads all kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.call(impl, leaves).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
