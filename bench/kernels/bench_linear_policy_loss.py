"""The loss through the linear head, from hidden states [T, H] and weight [V, H], with the gradients of both.

The minimum is three GEMMs of 2 T H V operations: the logits and each gradient. The bound is these three over all T at
once, with inputs and outputs in the case's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import capo_kernels as ck
from bench.kernels.measure import Cost, Provider, Unavailable
from bench.kernels.problems import LinearProblem, Results
from bench.kernels.providers import (
    CROSS_ENTROPY,
    FUSED,
    LOGPROBS_ALONE,
    NO_LOGPROBS,
    SEQUENCE_ADVANTAGES,
    HeadLoss,
    backward,
    compiled,
    eager_head_loss,
    liger_loss,
    need,
    need_cuda,
    trl_loss,
)

KERNEL = "linear_policy_loss"
Problem = LinearProblem
Call = Callable[[], Results]
ONE_CHUNK = 8_192


def cost(problem: LinearProblem) -> Cost:
    passed = problem.hidden.nbytes + problem.weight.nbytes
    return Cost(bytes=2 * passed, flops=6 * problem.tokens * problem.hidden_size * problem.vocab)


def bench_linear_policy_loss(record) -> None:
    record()


def fused(impl: str, kind: str, problem: LinearProblem, **options: Any) -> Call:
    """Passes the rows that are not masked to the call, as a trainer that packs its batches can."""
    need(impl, problem)
    arguments = problem.arguments(kind) | options | {"impl": impl}
    if problem.case.inactive:
        arguments["rows"] = problem.rows
    return _leaves(problem, lambda hidden, weight: ck.linear_policy_loss(hidden, weight, **arguments).loss)


def _leaves(problem: LinearProblem, loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
    def call() -> Results:
        hidden, weight = (x.detach().requires_grad_() for x in (problem.hidden, problem.weight))
        return backward(loss(hidden, weight), **{"hidden gradient": hidden, "weight gradient": weight})

    return call


def head(loss: Callable[[LinearProblem], HeadLoss], problem: LinearProblem) -> Call:
    return _leaves(problem, loss(problem))


def torch_compile(problem: LinearProblem) -> Call:
    return _leaves(problem, compiled(eager_head_loss(problem)))


def torch_cross_entropy(problem: LinearProblem) -> Call:
    """It computes its gradient in the forward pass, so it can only return a mean over all rows."""
    if problem.case.inactive:
        raise Unavailable("masks by targets, which this case keeps")
    try:
        from torch.nn import LinearCrossEntropyOptions
        from torch.nn.functional import linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy") from error
    chunked = problem.tokens >= problem.hidden_size  # by its documentation the plain path is cheaper below this
    loss = partial(linear_cross_entropy, options=LinearCrossEntropyOptions() if chunked else None)
    return _leaves(problem, lambda hidden, weight: loss(hidden, weight, problem.targets))


def quack(problem: LinearProblem) -> Call:
    need_cuda(problem)
    if problem.case.inactive:
        raise Unavailable("masks by targets, which this case keeps")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_linear_cross_entropy(hidden, weight, problem.targets, reduction="mean")

    return _leaves(problem, loss)


def three_gemms(problem: LinearProblem) -> Call:
    def call() -> Results:
        logits = problem.hidden @ problem.weight.T
        return {"hidden": logits @ problem.weight, "weight": logits.T @ problem.hidden}

    return call


PROVIDERS = [
    Provider("three GEMMs", three_gemms, kind="bound"),
    *(Provider(f"capo {impl}", partial(fused, impl, "ppo")) for impl in FUSED),
    *(Provider(f"capo {impl} + entropy", partial(fused, impl, "ppo + entropy"), "ppo + entropy") for impl in FUSED),
    *(Provider(f"capo {impl}, one chunk", partial(fused, impl, "ppo", chunk_tokens=ONE_CHUNK)) for impl in FUSED),
    Provider("torch eager", partial(head, eager_head_loss), less=NO_LOGPROBS),
    Provider("torch.compile", torch_compile, less=NO_LOGPROBS),
    Provider("liger LigerFusedLinearGRPOLoss", partial(head, liger_loss), less=SEQUENCE_ADVANTAGES),
    Provider("trl chunked log-probs, torch's PPO", partial(head, trl_loss), less=LOGPROBS_ALONE),
    Provider("torch linear_cross_entropy", torch_cross_entropy, "cross-entropy", CROSS_ENTROPY),
    Provider("quack linear_cross_entropy", quack, "cross-entropy", CROSS_ENTROPY),
]
