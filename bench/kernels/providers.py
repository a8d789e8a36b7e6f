"""Functions shared by the providers of several kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import capo_kernels as ck
from bench.kernels.measure import Unavailable
from bench.kernels.problems import Problem, Results

HeadLoss = Callable[[Tensor, Tensor], Tensor]
"""(hidden [T, H], weight [V, H]) -> loss, or log-probs"""

FUSED = ("cuda", "triton", "cpu")
"""Our fast implementations; `reference` is the definition."""
NO_LOGPROBS = "returns no log-probs, no metrics"
SEQUENCE_ADVANTAGES = "one advantage per sequence, no entropy term"
LOGPROBS_ALONE = "log-probs alone are fused; no metrics"
CROSS_ENTROPY = "plain cross-entropy: no ratio, clip, advantages, entropy, log-probs"


def need(impl: str, problem: Problem) -> None:
    """Raises Unavailable with the implementation's own reason."""
    device = problem.device
    logits = torch.zeros(1, problem.vocab, dtype=problem.dtype, device=device)
    targets = torch.zeros(1, device=device).long()
    try:
        ck.token_logprobs(logits, targets, impl=impl)
    except RuntimeError as error:
        raise Unavailable(str(error)) from error


def need_cuda(problem: Problem) -> None:
    if problem.device != "cuda":
        raise Unavailable("needs an NVIDIA GPU")


def backward(loss: Tensor, **leaves: Tensor) -> Results:
    """The loss, and its gradient with respect to each leaf under the leaf's name."""
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def liger_loss(problem: Problem) -> HeadLoss:
    """Its clipped loss is a sum over one sequence at a time; the mask excludes inactive rows."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="bnpo")
    names = ("targets", "active", "old_logprobs")
    targets, mask, old = (problem.as_sequences(getattr(problem, name)) for name in names)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        rows = problem.as_sequences(hidden)
        return module(rows, weight, targets, mask, problem.sequence_advantages, old_per_token_logps=old)[0]

    return loss


def trl_loss(problem: Problem) -> HeadLoss:
    logprobs = trl_logprobs(problem)
    return lambda hidden, weight: problem.eager_loss_of(logprobs(hidden, weight))


def trl_logprobs(problem: Problem) -> HeadLoss:
    """[T], called as in its trainer when only log-probs are needed."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    def logprobs(hidden: Tensor, weight: Tensor) -> Tensor:
        return ChunkedLogProbFunction.apply(hidden, weight, None, problem.targets, 1.0, CHUNK, None, 1.0, ())[0]

    return logprobs


def eager_head_loss(problem: Problem) -> HeadLoss:
    return lambda hidden, weight: problem.eager_loss(hidden @ weight.T)
