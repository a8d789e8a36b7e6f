"""Log-probs of the targets from logits [T, V], without gradient.

The minimum is one read of the logits: T V times the bytes of an element. The bound is a sum over them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import capo_kernels as ck
from bench.kernels.measure import Cost, Provider
from bench.kernels.problems import LogitsProblem, Results
from bench.kernels.providers import FUSED, compiled, need, need_cuda

KERNEL = "token_logprobs"
Problem = LogitsProblem
Call = Callable[[], Results]


def cost(problem: LogitsProblem) -> Cost:
    return Cost(bytes=problem.source.nbytes, flops=0)


def bench_token_logprobs(record) -> None:
    record()


def fused(impl: str, entropy: bool, problem: LogitsProblem) -> Call:
    need(impl, problem)

    def call() -> Results:
        found = ck.token_logprobs(problem.work, problem.targets, entropy=entropy, impl=impl)
        return dict(zip(("logprobs", "entropy"), found, strict=True)) if entropy else {"logprobs": found}

    return call


def eager(problem: LogitsProblem) -> Call:
    targets = problem.targets[:, None]
    return lambda: {"logprobs": problem.work.float().log_softmax(-1).gather(1, targets)[:, 0]}


def torch_compile(problem: LogitsProblem) -> Call:
    targets = problem.targets[:, None]
    logprobs = compiled(lambda logits: logits.float().log_softmax(-1).gather(1, targets)[:, 0])
    return lambda: {"logprobs": logprobs(problem.work)}


def trl(problem: LogitsProblem) -> Call:
    from trl.trainer.utils import selective_log_softmax

    targets = problem.as_sequences(problem.targets)
    return lambda: {"logprobs": selective_log_softmax(problem.as_sequences(problem.work), targets).flatten()}


def flash_attn(problem: LogitsProblem) -> Call:
    need_cuda(problem)
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return lambda: {"logprobs": -cross_entropy_loss(problem.work, problem.targets)[0]}


def quack(problem: LogitsProblem) -> Call:
    need_cuda(problem)
    from quack.cross_entropy import cross_entropy

    return lambda: {"logprobs": -cross_entropy(problem.work, problem.targets, reduction="none")}


def read(problem: LogitsProblem) -> Call:
    return lambda: {"sum": torch.sum(problem.work)}


PROVIDERS = [
    Provider("sum", read, kind="bound"),
    *(Provider(f"capo {impl}", partial(fused, impl, False), "log-probs") for impl in FUSED),
    *(Provider(f"capo {impl} + entropy", partial(fused, impl, True), "log-probs + entropy") for impl in FUSED),
    Provider("torch eager", eager, "log-probs"),
    Provider("torch.compile", torch_compile, "log-probs"),
    Provider("trl selective_log_softmax", trl, "log-probs"),
    Provider("flash-attn cross_entropy", flash_attn, "log-probs"),
    Provider("quack cross_entropy", quack, "log-probs"),
]
