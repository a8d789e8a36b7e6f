"""The loss and its gradient on logits [T, V]: PPO's clip on token ratios.

The minimum is one read and one write of the logits: 2 T V times the bytes of an element. The bound does exactly this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import capo_kernels as ck
from bench.kernels.measure import Cost, Provider
from bench.kernels.problems import ENTROPY_COEF, LogitsProblem, Results
from bench.kernels.providers import (
    CROSS_ENTROPY,
    FUSED,
    NO_LOGPROBS,
    SEQUENCE_ADVANTAGES,
    backward,
    compiled,
    need,
    need_cuda,
)

KERNEL = "policy_loss"
Problem = LogitsProblem
Call = Callable[[], Results]


def cost(problem: LogitsProblem) -> Cost:
    return Cost(bytes=2 * problem.source.nbytes, flops=0)


def bench_policy_loss(record) -> None:
    record()


class _Computed(torch.autograd.Function):
    """Makes the logits the output of an operation, as in a model: not a leaf, without a copy."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, anchor: Tensor) -> Tensor:
        return logits.new_empty(0).set_(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def in_place(impl: str, kind: str, problem: LogitsProblem) -> Call:
    need(impl, problem)
    arguments = problem.arguments(kind)
    anchor = torch.zeros((), requires_grad=True, device=problem.device)

    def call() -> Results:
        logits = _Computed.apply(problem.work, anchor)
        loss = ck.policy_loss(logits, **arguments, inplace=True, impl=impl).loss
        loss.backward()
        return {"loss": loss, "gradient": problem.work}

    return call


def out_of_place(impl: str, problem: LogitsProblem) -> Call:
    need(impl, problem)
    arguments = problem.arguments("ppo")
    return _leaf(problem, lambda logits: ck.policy_loss(logits, **arguments, impl=impl).loss)


def _leaf(problem: LogitsProblem, loss: Callable[[Tensor], Tensor]) -> Call:
    def call() -> Results:
        logits = problem.work.detach().requires_grad_()
        return backward(loss(logits), gradient=logits)

    return call


def eager(entropy_coef: float, problem: LogitsProblem) -> Call:
    return _leaf(problem, partial(problem.eager_loss, entropy_coef=entropy_coef))


def torch_compile(entropy_coef: float, problem: LogitsProblem) -> Call:
    return _leaf(problem, compiled(partial(problem.eager_loss, entropy_coef=entropy_coef)))


def liger(problem: LogitsProblem) -> Call:
    """Its rows are [B, L + 1]; it ignores the last row of each sequence."""
    need_cuda(problem)
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    logits = torch.nn.functional.pad(problem.as_sequences(problem.source), (0, 0, 0, 1)).requires_grad_()
    old, targets = problem.as_sequences(problem.old_logprobs), problem.as_sequences(problem.targets)

    def call() -> Results:
        loss, _ = triton_grpo_loss(
            logits,
            old,
            None,
            targets,
            problem.sequence_advantages,
            temperature=1.0,
            beta=0.0,
            eps_high=0.2,
            inplace=False,
            loss_type="grpo",
            reduce=True,
        )
        results = backward(loss, gradient=logits)
        return results | {"gradient": results["gradient"][:, :-1].reshape(problem.source.shape)}

    return call


def trl(entropy_coef: float, problem: LogitsProblem) -> Call:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    targets = problem.as_sequences(problem.targets)

    def loss(logits: Tensor) -> Tensor:
        rows = problem.as_sequences(logits)
        logp, entropy = selective_log_softmax_and_entropy(rows, targets, entropy_requires_grad=bool(entropy_coef))
        return problem.eager_loss_of(logp.flatten()) - entropy_coef * (entropy.flatten() * problem.weights).sum()

    return _leaf(problem, loss)


def torch_cross_entropy(problem: LogitsProblem) -> Call:
    cross_entropy = torch.nn.functional.cross_entropy
    return _leaf(problem, lambda logits: cross_entropy(logits.float(), problem.targets))


def flash_attn(problem: LogitsProblem) -> Call:
    need_cuda(problem)
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return _leaf(problem, lambda logits: cross_entropy_loss(logits, problem.targets)[0].mean())


def quack(problem: LogitsProblem) -> Call:
    need_cuda(problem)
    from quack.cross_entropy import cross_entropy

    return _leaf(problem, lambda logits: cross_entropy(logits, problem.targets, reduction="mean"))


def multiply(problem: LogitsProblem) -> Call:
    return lambda: {"gradient": problem.work.mul_(1.0001)}


def own(impl: str, kind: str) -> tuple[Callable[[LogitsProblem], Call], str]:
    return partial(in_place, impl, kind), kind


ENTROPY = ("ppo + entropy", NO_LOGPROBS)
PROVIDERS = [
    Provider("in-place multiply", multiply, kind="bound"),
    *(Provider(f"capo {impl}, in place", *own(impl, "ppo")) for impl in FUSED),
    *(Provider(f"capo {impl}", partial(out_of_place, impl)) for impl in FUSED),
    *(
        Provider(f"capo {impl}, in place + entropy", partial(in_place, impl, "ppo + entropy"), "ppo + entropy")
        for impl in FUSED
    ),
    *(
        Provider(f"capo {impl}, in place, credit by steps", partial(in_place, impl, "ppo + credit"), "ppo + credit")
        for impl in FUSED
    ),
    Provider("torch eager", partial(eager, 0.0), less=NO_LOGPROBS),
    Provider("torch eager + entropy", partial(eager, ENTROPY_COEF), *ENTROPY),
    Provider("torch.compile", partial(torch_compile, 0.0), less=NO_LOGPROBS),
    Provider("torch.compile + entropy", partial(torch_compile, ENTROPY_COEF), *ENTROPY),
    Provider("liger triton_grpo_loss", liger, less=SEQUENCE_ADVANTAGES),
    Provider("trl selective_log_softmax, torch's PPO", partial(trl, 0.0), less=NO_LOGPROBS),
    Provider(
        "trl selective_log_softmax, torch's PPO + entropy", partial(trl, ENTROPY_COEF), "ppo + entropy", NO_LOGPROBS
    ),
    Provider("torch cross_entropy", torch_cross_entropy, "cross-entropy", CROSS_ENTROPY),
    Provider("flash-attn cross_entropy", flash_attn, "cross-entropy", CROSS_ENTROPY),
    Provider("quack cross_entropy", quack, "cross-entropy", CROSS_ENTROPY),
]
