"""Calls of the edge tests, and all their results."""

from __future__ import annotations

from dataclasses import replace

import torch
from implementations import DEVICE, thinned
from problems import Problem, linear_problem, logits_problem

import capo_kernels as ck

EVERYTHING = ck.LossSpec(
    ratio="sequence",
    kl_coef=0.1,
    kl_ratio=True,
    entropy_coef=0.1,
    softcap=20.0,
    dual_clip=3.0,
    is_mode="mask",
    is_level="sequence",
)
"""Uses every term and every [T] argument."""
SPECS = [ck.LossSpec(), EVERYTHING]
PROBLEMS = thinned([logits_problem, linear_problem], step=2)
DTYPES = [torch.float32, torch.bfloat16]
NORMS = ["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]


def unchecked(credit: ck.Credit, **fields: torch.Tensor) -> ck.Credit:
    """With fields whose values would be refused on a CPU: on a GPU they are not read."""
    found = replace(credit)
    for name, x in fields.items():
        object.__setattr__(found, name, x)
    return found


def assert_same_bits(got: dict, want: dict) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def call(problem: Problem, impl: str, **options) -> dict:
    """Results, metrics and gradients."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.leaves.items()}
    result = problem.call(impl, leaves, **options)
    grads = torch.autograd.grad(result.loss, list(leaves.values()))
    found = dict(zip(leaves, grads, strict=True))
    return {**figures(result), **found}


def with_credit(problem: Problem, stats: bool) -> Problem:
    """Step credit in place of the advantages. stats: with given statistics."""
    others = {name: x for name, x in problem.others.items() if name != "advantages"}
    tokens, cu_seqlens = problem.trained_T.shape[0], others["cu_seqlens"]
    starts = torch.arange(tokens, device=DEVICE) % 3 == 1
    wrong = (torch.arange(int(starts.sum()), device=DEVICE) % 2).float()
    outcome = torch.arange(cu_seqlens.shape[0] - 1, device=DEVICE) % 2
    credit = ck.Credit(starts, wrong, outcome.float(), outcome * 0, cu_seqlens)
    if stats:
        credit = replace(credit, stats=ck.credit_stats(credit, problem.trained_T))
    return replace(problem, others={**others, "credit": credit})


def figures(result: ck.PolicyLoss) -> dict:
    outputs = {"loss": result.loss.detach(), "logprobs": result.logprobs, "entropies": result.entropy}
    return {**outputs, **result.metrics}
