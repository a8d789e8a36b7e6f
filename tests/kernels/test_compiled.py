"""The operators under torch.compile(fullgraph=True) and their registration."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from implementations import DEVICE
from problems import TOKENS, Problem, linear_problem, logits_problem
from torch._dynamo.backends.registry import lookup_backend
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import capo_kernels as ck
from capo_kernels import registry
from capo_kernels.fused.autograd import FusedImplementation
from capo_kernels.fused.custom_ops import KERNELS

SPEC = ck.LossSpec(ratio="sequence", kl_coef=0.1, entropy_coef=0.1, softcap=20.0, is_mode="mask", is_level="sequence")
PROBLEMS = [logits_problem, linear_problem]


@pytest.fixture(autouse=True)
def fused(impl: str, monkeypatch) -> None:
    """Skips `reference`, which is eager code. Resets TORCHDYNAMO_DISABLE, which would make torch.compile do nothing."""
    if impl == "reference":
        pytest.skip("eager code, not an operator")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    torch._dynamo.reset()


class Counted:
    """A backend that counts the graphs that it compiles."""

    def __init__(self) -> None:
        self.backend, self.graphs = lookup_backend("aot_eager"), 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.backend(graph, inputs)


def results(problem: Problem, impl: str, wrap=lambda f: f, **options) -> list[torch.Tensor]:
    """The loss times 3, the other results, and the gradients."""
    leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
    op = ck.linear_policy_loss if problem.linear else ck.policy_loss

    def step(leaves: dict, others: dict, spec: ck.LossSpec) -> tuple:
        # With inplace=True the logits must not be a leaf.
        computed = {name: x * 1 for name, x in leaves.items()}
        result = op(**computed, **others, spec=spec, impl=impl, **options)
        return result.loss * 3, result.logprobs, result.entropy, result.metrics

    loss, logprobs, entropy, metrics = wrap(step)(leaves, problem.others, problem.spec)
    loss.backward()
    return [loss.detach(), logprobs, entropy, *metrics.values(), *(x.grad for x in leaves.values())]


def with_credit(problem: Problem) -> Problem:
    others = {name: x for name, x in problem.others.items() if name != "advantages"}
    return replace(problem, others={**others, "credit": credit_of(problem)})


def credit_of(problem: Problem) -> ck.Credit:
    starts = torch.arange(TOKENS, device=DEVICE) % 5 == 0
    wrong = torch.arange(-(-TOKENS // 5), device=DEVICE) % 2.0
    outcome, group = torch.tensor([1.0, 0.0, 1.0, 0.0], device=DEVICE), torch.tensor([0, 0, 1, 1], device=DEVICE)
    return ck.Credit(starts, wrong, outcome, group, problem.others["cu_seqlens"])


def same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_loss_in_one_graph_also_under_annealing(make, impl: str) -> None:
    counted, compiled, losses = Counted(), [], set()

    def once(step):
        compiled.append(torch.compile(step, fullgraph=True, backend=counted))
        return compiled[0]

    for coef in (0.1, 0.05, 0.02, 0.01):
        problem = replace(make(SPEC), spec=replace(SPEC, entropy_coef=coef, kl_coef=2 * coef))
        got = results(problem, impl, once)
        same(got, results(problem, impl))
        losses.add(got[0].item())
    assert counted.graphs == 1
    assert len(losses) == 4


def test_the_loss_in_place_with_credit_in_one_graph(impl: str) -> None:
    problem = with_credit(logits_problem(SPEC))
    counted = Counted()
    got = results(problem, impl, lambda step: torch.compile(step, fullgraph=True, backend=counted), inplace=True)
    same(got, results(problem, impl, inplace=True))
    assert counted.graphs == 1


@pytest.mark.parametrize("make", PROBLEMS)
def test_log_probs_in_one_graph(make, impl: str) -> None:
    problem = make().tidy()
    targets = problem.others["targets"].clamp(min=0)
    op = ck.linear_token_logprobs if problem.linear else ck.token_logprobs

    def run(wrap=lambda f: f):
        leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}

        def step(leaves):
            logp, entropy = op(**leaves, targets=targets, temperature=0.7, entropy=True, impl=impl)
            return (logp.sin() + 2 * entropy).sum()

        loss = wrap(step)(leaves)
        return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))

    counted = Counted()
    for x, y in zip(run(lambda f: torch.compile(f, fullgraph=True, backend=counted)), run(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert counted.graphs == 1


def test_one_graph_with_triton_and_a_gpu_present(impl: str, monkeypatch) -> None:
    """The GPU is pretended. Calls of Triton and of the driver cannot be traced."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from capo_kernels.fused.triton_rows import TritonRows

    monkeypatch.setitem(KERNELS, "triton", TritonRows())
    monkeypatch.setitem(registry.BUILT, "triton", FusedImplementation(KERNELS["triton"]))
    monkeypatch.delitem(registry.MISSING, "triton", raising=False)
    # Only the package may find the GPU, not Dynamo.
    pretended = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(registry, "torch", SimpleNamespace(**{**vars(torch), "cuda": pretended}))
    problem = logits_problem()
    got = results(problem, impl, lambda step: torch.compile(step, fullgraph=True, backend="eager"))
    same(got, results(problem, impl))


def test_through_inductor(impl: str) -> None:
    """Inductor compiles the code after the operator to a kernel that scales the gradient in place: no second [T, V].
    One case, because compiling takes seconds."""
    if DEVICE.type == "cpu" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    problem = logits_problem(vocab=4_001).tidy()
    others = {**problem.others, "spec": problem.spec, "impl": impl}

    def run(wrap=lambda f: f) -> list[torch.Tensor]:
        leaf = problem.leaves["logits"].clone().requires_grad_()
        loss = wrap(lambda x: ck.policy_loss(x, **others).loss)(leaf)
        loss.backward(torch.full_like(loss, 3.0))
        return [loss.detach(), leaf.grad]

    got, [_, backward] = run_and_get_code(lambda: run(torch.compile(fullgraph=True)))
    same(got, run())
    assert "def call" in backward
    assert not re.findall(rf"empty_strided_\w+\(\({TOKENS}, 4001\)", backward)


class Calls(TorchDispatchMode):
    """Records the calls of our operators with copies of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "capo":
            self.calls.append((func, tree_map_only(torch.Tensor, torch.clone, args), kwargs))
        return func(*args, **(kwargs or {}))


def test_every_operator_matches_its_registration(impl: str) -> None:
    """Schema (mutation and aliasing), shapes without values, and the traced against the eager operator."""
    with Calls() as calls:
        for problem in (logits_problem(SPEC).tidy(), linear_problem(SPEC).tidy()):
            results(problem, impl)
            op = ck.linear_token_logprobs if problem.linear else ck.token_logprobs
            leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
            targets = problem.others["targets"].clamp(min=0)
            sum(op(**leaves, targets=targets, entropy=True, impl=impl)).sum().backward()
        results(with_credit(logits_problem(SPEC).tidy()), impl, inplace=True)
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("capo::")}
    assert {func.name() for func, _, _ in calls.calls} == defined
    for func in {func for func, _, _ in calls.calls}:
        _, args, kwargs = next(call for call in calls.calls if call[0] == func)
        torch.library.opcheck(func, args, kwargs)
