"""Number of launches of a loss on a GPU, counted without one: operations of torch and methods of the row kernels.

Under the interpreter Triton's own count must agree; test_cuda_emulated.py compares the emulated GPU's count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from calls import with_credit
from implementations import DEVICE, INTERPRETED
from problems import logits_problem
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import capo_kernels as ck
from capo_kernels.fused import operators
from capo_kernels.fused.custom_ops import KERNELS

FREE = ("empty", "new_empty", "empty_like", "detach", "alias", "view", "slice", "unsqueeze")
"""Operations that launch nothing."""
KL = ck.LossSpec(kl_coef=0.1, entropy_coef=0.1, is_mode="truncate")
GSPO = replace(KL, ratio="sequence", is_level="sequence")
CASES = {
    "advantages": (logits_problem(KL), 2),
    "statistics given": (with_credit(logits_problem(KL), stats=True), 3),
    "statistics computed": (with_credit(logits_problem(KL), stats=False), 4),
    "sequence ratio": (logits_problem(GSPO), 4),
    "sequence ratio, statistics given": (with_credit(logits_problem(GSPO), stats=True), 5),
}
"""Launches of a forward: credit 1 (2 with its statistics), rows 1, sums of the rows 1; for a sequence ratio also
log-probs 1 and sums over sequences 1."""


class Operations(TorchDispatchMode):
    """Records the names of torch's operations that launch a kernel."""

    def __init__(self, launches: list[str]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.launches.append(name)
        return func(*args, **(kwargs or {}))


class Kernels:
    """Row kernels that record their launches on a GPU."""

    def __init__(self, kernels, launches: list[str]) -> None:
        self.kernels, self.launches = kernels, launches

    def __getattr__(self, name: str):
        def method(*arguments):
            made = name == "advantages" and arguments[0].stats is None
            self.launches.extend([name] * (2 if made else 1))
            with _disable_current_modes():
                return getattr(self.kernels, name)(*arguments)

        return method


@contextmanager
def counted(impl: str, monkeypatch) -> Iterator[list[str]]:
    """Also counts inside the operators, each of which is one call to a dispatch mode."""
    launches: list[str] = []
    monkeypatch.setattr(operators, "observed", lambda arguments: False)
    monkeypatch.setitem(KERNELS, impl, Kernels(KERNELS[impl], launches))
    with Operations(launches):
        yield launches


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_launches_of_a_loss(case: str, inplace: bool, fused: str, monkeypatch) -> None:
    problem, want = CASES[case]
    leaf = problem.leaves["logits"].clone().requires_grad_()
    logits, one = leaf * 1, torch.ones((), device=DEVICE)
    with counted(fused, monkeypatch) as forward:
        result = problem.call(fused, {"logits": logits}, inplace=inplace)
    assert len(forward) == want, forward
    with counted(fused, monkeypatch) as backward:
        torch.autograd.grad(result.loss, logits, one)
    assert len(backward) == 1, backward
    assert problem.others["targets"].dtype == torch.int64


@pytest.mark.skipif(not INTERPRETED, reason="Triton counts only under the interpreter")
@pytest.mark.parametrize("case", CASES)
def test_launches_that_triton_counts(case: str, fused: str, monkeypatch) -> None:
    from capo_kernels.fused import triton_rows, triton_tokens

    problem, want = CASES[case]
    launches: list[str] = []
    for module in (triton_rows, triton_tokens):
        for name, kernel in vars(module).items():
            if hasattr(kernel, "pre_run_hooks"):
                monkeypatch.setattr(kernel, "pre_run_hooks", [lambda *_, name=name, **__: launches.append(name)])
    leaf = problem.leaves["logits"].clone().requires_grad_()
    result = problem.call(fused, {"logits": leaf})
    assert len(launches) == want, launches
    torch.autograd.grad(result.loss, leaf)
    assert len(launches) == want + 1, launches


def test_metrics_are_derived_only_when_read(fused: str, monkeypatch) -> None:
    problem, _ = CASES["advantages"]
    result = problem.call(fused)
    with counted(fused, monkeypatch) as launches:
        first = result.metrics
        read = len(launches)
        assert result.metrics is first
    assert 0 < read == len(launches)
