"""libcapo_cpu on every instruction set of this machine, and on several threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from criterion import check_logprobs, check_loss
from problems import logits_problem

import capo_kernels as ck

pytestmark = pytest.mark.skipif(ck.status()["cpu"] != "available", reason=f"cpu: {ck.status()['cpu']}")

SPEC = ck.LossSpec(kl_coef=0.3, entropy_coef=0.1, temperature=0.7)
CAPPED = ck.LossSpec(kl_coef=0.3, entropy_coef=0.1, softcap=2.5)


def status(isa: str) -> str:
    code = "import capo_kernels as ck; print(ck.status()['cpu'])"
    environment = os.environ | {"CAPO_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request, monkeypatch) -> str:
    monkeypatch.setenv("CAPO_CPU_ISA", request.param)
    kernels = sys.modules["capo_kernels.fused.custom_ops"].KERNELS["cpu"]
    if kernels.isa() != request.param:
        pytest.skip(kernels.isa())
    return request.param


@pytest.mark.parametrize("spec", [SPEC, CAPPED], ids=["plain", "softcap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_instruction_set_meets_the_criterion(dtype: torch.dtype, spec: ck.LossSpec, isa: str) -> None:
    for seed, vocab in enumerate((2, 3, 15, 16, 17, 100, 2047, 2049, 10007)):
        check_loss(logits_problem(spec, dtype, vocab=vocab, lengths=(9, 4), seed=seed), "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_instruction_set_gives_the_log_probs(dtype: torch.dtype, isa: str) -> None:
    logits = torch.randn(13, 5003, generator=torch.Generator().manual_seed(0)).to(dtype)
    check_logprobs({"logits": logits}, torch.arange(13), "cpu", temperature=0.6)


def test_bfloat16_gradients_are_rounded_to_nearest(isa: str) -> None:
    """Truncated gradients would meet the criterion, half of them too small. A few differ where sums differ in a bit."""
    problem = logits_problem(SPEC, torch.bfloat16, vocab=1009)
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        logits = problem.leaves["logits"].clone().to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(problem.call("cpu", {"logits": logits}).loss, logits)
        grads.append(grad[problem.trained_T].bfloat16())
    assert (grads[0] != grads[1]).double().mean() < 0.01


def test_the_number_of_threads_changes_no_bit() -> None:
    problem = logits_problem(SPEC, vocab=5003, lengths=(40, 23))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaves = {name: x.clone().requires_grad_() for name, x in problem.leaves.items()}
            result = problem.call("cpu", leaves)
            result.loss.backward()
            results.append((leaves["logits"].grad, result.loss, result.logprobs, result.entropy))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("spec", [ck.LossSpec(), SPEC], ids=["plain", "entropy"])
@pytest.mark.parametrize(("dtype", "vocab"), [(torch.float32, 131_105), (torch.bfloat16, 262_208)])
def test_a_gradient_that_bypasses_the_caches_has_the_bits_of_one_in_place(
    dtype: torch.dtype, vocab: int, spec: ck.LossSpec, isa: str
) -> None:
    """Gradients of 32 MiB and more; with odd rows, only the aligned ones bypass the caches."""
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)).to(dtype).repeat(64, 1).requires_grad_()
    logits.data[:, 7] = torch.arange(64)
    others = {"weights": torch.ones(64), "advantages": torch.ones(64), "ref_logprobs": torch.zeros(64), "spec": spec}
    targets, copy = torch.arange(64), logits * 1
    ck.policy_loss(copy, targets, **others, inplace=True, impl="cpu")
    ck.policy_loss(logits, targets, **others, impl="cpu").loss.backward()
    assert torch.equal(logits.grad, copy.detach())


def test_a_missing_instruction_set_is_an_error() -> None:
    assert status("mmx") == "CAPO_CPU_ISA is none of avx512, avx2, portable"
    assert status("portable") == "available"


def test_an_instruction_set_that_goes_missing_later_is_named(monkeypatch) -> None:
    """CAPO_CPU_ISA is read at each call."""
    monkeypatch.setenv("CAPO_CPU_ISA", "mmx")
    with pytest.raises(RuntimeError, match=r"^libcapo_cpu: CAPO_CPU_ISA is none of avx512, avx2, portable$"):
        ck.token_logprobs(torch.randn(2, 5), torch.tensor([1, 2]), impl="cpu")
