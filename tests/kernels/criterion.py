"""The criterion: the error against float64 must be at most twice PyTorch's own error in the same dtype, + tiny.

PyTorch's own result is that of eager code in the dtype of the inputs: `reference` on logits, after torch's linear layer
if there is one. The exact result is that of the same code in float64 on the same values. Errors and tiny are relative
to the norm of the exact result. For the loss that is the sum of its tokens' magnitudes, as its terms cancel. The
checked results have names: loss, logprobs, entropy, the gradient by each input, and separately the target column of the
logits' gradient, whose entries `p - 1` are unlike all others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from implementations import DEVICE
from problems import Problem
from torch import Tensor

import capo_kernels as ck
from capo_kernels.reference.objective import loss_terms, masked_tokens
from capo_kernels.spec import LossInputs

TINY = {torch.float64: 1e-12, torch.float32: 2**-21, torch.float16: 2**-11, torch.bfloat16: 2**-8}

SOUND = 16
"""Limit of PyTorch's own error, in units of tiny (norms below 1 count as 1): a broken `reference` must not set a bound
that any result meets."""

Results = dict[str, Tensor]


def check_loss(problem: Problem, impl: str, **options) -> None:
    """options: further arguments of the call, such as chunk_tokens."""
    exact, same = eager_loss(problem.double), eager_loss(problem)
    got = loss_results(problem, impl, **options)
    check(got, same, exact, {"loss": loss_magnitude(problem, exact)}, problem.dtype if problem.linear else None)


def loss_results(problem: Problem, impl: str, **options) -> Results:
    leaves = {name: x.detach().requires_grad_() for name, x in problem.leaves.items()}
    result = problem.call(impl, leaves, **options)
    assert result.impl == impl
    return _results(result, leaves, problem)


@cache
def eager_loss(problem: Problem) -> Results:
    """PyTorch's own results: `reference` on logits; for a linear head torch's linear layer computes the logits."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tidy().leaves.items()}
    on_logits = Problem({"logits": eager_logits(leaves)}, problem.others, problem.spec)
    return _results(on_logits.call("reference"), leaves, problem)


def eager_logits(leaves: dict[str, Tensor]) -> Tensor:
    if "logits" in leaves:
        return leaves["logits"]
    return torch.nn.functional.linear(leaves["hidden"], leaves["weight"], leaves.get("bias"))


def _results(result: ck.PolicyLoss, leaves: dict[str, Tensor], problem: Problem) -> Results:
    grads = dict(zip(leaves, torch.autograd.grad(result.loss, list(leaves.values())), strict=True))
    results = {"loss": result.loss.detach(), "logprobs": result.logprobs, "entropy": result.entropy}
    return {**results, **gradients(grads, problem.others["targets"])}


def gradients(grads: Results, targets_T: Tensor) -> Results:
    found = {f"gradient by {name}": grad for name, grad in grads.items()}
    if "logits" in grads:
        found["target column"] = grads["logits"].gather(1, targets_T.clamp(min=0).long()[:, None])[:, 0]
    return found


def loss_magnitude(problem: Problem, exact: Results) -> float:
    """The sum over the tokens of |weight (w l + kl_coef KL)| + |weight entropy_coef H|."""
    names = ("weights", "advantages", "credit", "old_logprobs", "ref_logprobs", "rollout_logprobs", "cu_seqlens")
    tokens = masked_tokens(LossInputs(*(problem.double.others.get(name) for name in names)), torch.float64)
    loss_T = loss_terms(exact["logprobs"], tokens, problem.spec).loss(problem.spec)
    entropy_T = problem.spec.entropy_coef * exact["entropy"]
    return float((tokens.weight_T.abs() * (loss_T.abs() + entropy_T.abs())).sum())


def check(
    got: Results, same: Results, exact: Results, magnitudes: dict[str, float], rounded: torch.dtype | None
) -> None:
    """magnitudes: norms that replace those of the exact results. rounded: the dtype of rounded intermediates."""
    assert got.keys() == exact.keys()
    faults = []
    for name, want in exact.items():
        assert (got[name].dtype, got[name].shape) == (same[name].dtype, want.shape), name
        norm = magnitudes.get(name, float(want.norm()))
        unit = max(TINY[got[name].dtype], TINY.get(rounded, 0.0))
        tiny, sound = unit * norm, SOUND * unit * max(norm, 1.0)
        error, own = (float((x[name].double() - want).norm()) for x in (got, same))
        assert own <= sound, f"{name}: PyTorch's own error is {own:.3g}, want <= {sound:.3g}"
        if not error <= 2 * own + tiny:
            faults.append(f"{name}: error {error:.3g}, want <= 2 x {own:.3g} (PyTorch's) + {tiny:.3g} (tiny)")
    assert not faults, "\n" + "\n".join(faults)


Outer = dict[str, Tensor | None]
"""The outer derivatives by "logprobs" and, if entropies are requested, by "entropy"."""


def check_logprobs(
    leaves: dict[str, Tensor],
    targets_T: Tensor,
    impl: str,
    temperature: float = 1.0,
    outer: Outer | None = None,
    **options,
) -> Results:
    """Check token_logprobs or linear_token_logprobs and the gradients by `leaves`. Returns the results."""
    call = {"targets_T": targets_T, "temperature": temperature, "outer": outer}
    exact = eager_logprobs({name: x.double() for name, x in leaves.items()}, **call)
    got, same = logprobs_results(leaves, impl=impl, **call, **options), eager_logprobs(leaves, **call)
    check(got, same, exact, {}, leaves["hidden"].dtype if "hidden" in leaves else None)
    return got


def logprobs_results(
    leaves: dict[str, Tensor],
    targets_T: Tensor,
    impl: str,
    temperature: float = 1.0,
    outer: Outer | None = None,
    op: Callable | None = None,
    **options,
) -> Results:
    """outer: random if not given."""
    g = torch.Generator().manual_seed(1)
    random = {name: torch.randn(targets_T.shape, generator=g).to(DEVICE) for name in ("logprobs", "entropy")}
    outer = outer or random
    op = op or (ck.token_logprobs if "logits" in leaves else ck.linear_token_logprobs)
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    entropy = "entropy" in outer
    out = op(**leaves, targets=targets_T, temperature=temperature, entropy=entropy, impl=impl, **options)
    out = dict(zip(outer, out if entropy else (out,), strict=True))
    given = {name: x.to(out[name].dtype) for name, x in outer.items() if x is not None}
    grads = torch.autograd.grad([out[name] for name in given], list(leaves.values()), list(given.values()))
    detached = {name: x.detach() for name, x in out.items()}
    return {**detached, **gradients(dict(zip(leaves, grads, strict=True)), targets_T)}


def eager_logprobs(leaves: dict[str, Tensor], targets_T: Tensor, **call) -> Results:
    def op(targets, temperature, entropy, impl, **leaves):
        return ck.token_logprobs(eager_logits(leaves), targets, temperature=temperature, entropy=entropy, impl=impl)

    return logprobs_results(leaves, targets_T, "reference", op=op, **call)
