"""Log-probs through the linear head, without gradient. The bound is one GEMM of 2 T H V operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import capo_kernels as ck
from bench.kernels.measure import Cost, Provider
from bench.kernels.problems import LinearProblem, Results
from bench.kernels.providers import FUSED, compiled, need, trl_logprobs

KERNEL = "linear_token_logprobs"
Problem = LinearProblem
Call = Callable[[], Results]


def cost(problem: LinearProblem) -> Cost:
    passed = problem.hidden.nbytes + problem.weight.nbytes
    return Cost(bytes=passed, flops=2 * problem.tokens * problem.hidden_size * problem.vocab)


def bench_linear_token_logprobs(record) -> None:
    record()


def fused(impl: str, problem: LinearProblem) -> Call:
    need(impl, problem)
    inputs = problem.hidden, problem.weight, problem.targets
    return lambda: {"logprobs": ck.linear_token_logprobs(*inputs, impl=impl)}


def eager(problem: LinearProblem) -> Call:
    return _of(problem, _logprobs)


def torch_compile(problem: LinearProblem) -> Call:
    return _of(problem, compiled(_logprobs))


def _of(problem: LinearProblem, logprobs: Callable) -> Call:
    return lambda: {"logprobs": logprobs(problem.hidden, problem.weight, problem.targets)}


def _logprobs(hidden, weight, targets):
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def trl(problem: LinearProblem) -> Call:
    logprobs = trl_logprobs(problem)
    return lambda: {"logprobs": logprobs(problem.hidden, problem.weight)}


def gemm(problem: LinearProblem) -> Call:
    return lambda: {"logits": problem.hidden @ problem.weight.T}


PROVIDERS = [
    Provider("one GEMM", gemm, kind="bound"),
    *(Provider(f"capo {impl}", partial(fused, impl), "log-probs") for impl in FUSED),
    Provider("torch eager", eager, "log-probs"),
    Provider("torch.compile", torch_compile, "log-probs"),
    Provider("trl chunked log-probs", trl, "log-probs"),
]
