"""Log-probs and the loss of logits: autograd around the operators.

Letters: T packed tokens, V vocabulary, M raw metrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rows import Modes, TokenArguments
from ..spec import Head, LossInputs, LossSpec
from . import custom_ops
from .arguments import modes, needs_logprobs, token_arguments
from .summary import column, summarise

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, log-probs [T], entropies [T], raw metrics [M]."""


def logprobs(logits_TV: Tensor, targets_T: Tensor, head: Head, impl: str) -> tuple[Tensor, Tensor]:
    """(logp [T], entropy [T]), differentiable."""
    return _Logprobs.apply(rows_contiguous(logits_TV), int32(targets_T), head.temperature, head.softcap or 0.0, impl)


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, temperature: float, softcap: float, impl: str
    ) -> tuple[Tensor, Tensor]:
        logp_T, entropy_T = custom_ops.logprobs(logits_TV, targets_T, None, temperature, softcap, impl)
        ctx.save_for_backward(logits_TV, targets_T)
        ctx.set_materialize_grads(False)
        ctx.constants = temperature, softcap, impl
        return logp_T, entropy_T

    @staticmethod
    def backward(ctx: Any, dlogp_T: Tensor | None, dentropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        logits_TV, targets_T = ctx.saved_tensors
        dlogp_T, dentropy_T = slopes(dlogp_T, dentropy_T)
        dlogits_TV = custom_ops.dlogits(logits_TV, targets_T, dlogp_T, dentropy_T, *ctx.constants)
        return dlogits_TV, None, None, None, None


def slopes(dlogp_T: Tensor | None, dentropy_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The derivatives as the kernels take them. One of the two is given."""
    if dlogp_T is None:
        assert dentropy_T is not None  # else autograd would not have called
        dlogp_T = torch.zeros_like(dentropy_T)
    return dlogp_T.contiguous(), None if dentropy_T is None else dentropy_T.contiguous()


def policy_loss(
    logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec, inplace: bool, impl: str
) -> Outputs:
    logits_TV, targets_T = rows_contiguous(logits_TV), int32(targets_T)
    logp_T = None
    if needs_logprobs(inputs, spec):
        weight_T, head = inputs.weights.detach().contiguous(), (spec.temperature, spec.softcap or 0.0)
        logp_T, _ = custom_ops.logprobs(logits_TV.detach(), targets_T, weight_T, *head, impl)
    tokens = token_arguments(inputs, spec, logp_T)
    if torch.is_grad_enabled() and logits_TV.requires_grad:
        return _PolicyLoss.apply(logits_TV, inplace, targets_T, modes(spec), spec.numbers, impl, *tokens)
    terms_TK, _ = custom_ops.policy_loss(logits_TV, targets_T, tokens, modes(spec), spec.numbers, impl, False)
    return outputs(terms_TK, tokens)


class _PolicyLoss(torch.autograd.Function):
    """The gradient is computed with the loss, for d(loss) = 1; backward scales it in its place."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        inplace: bool,
        targets_T: Tensor,
        modes: Modes,
        numbers: Tensor,
        impl: str,
        *arguments: Tensor | None,
    ) -> Outputs:
        tokens = TokenArguments._make(arguments)
        if inplace:
            terms_TK = custom_ops.policy_loss_(logits_TV.detach(), targets_T, tokens, modes, numbers, impl)
            dlogits_TV = logits_TV
        else:
            terms_TK, dlogits_TV = custom_ops.policy_loss(logits_TV, targets_T, tokens, modes, numbers, impl, True)
        # Saved after the write: autograd then refuses a backward over logits that someone has written to since.
        ctx.save_for_backward(dlogits_TV)
        ctx.inplace, ctx.impl = inplace, impl
        loss, logp_T, entropy_T, raw_M = outputs(terms_TK, tokens)
        ctx.mark_non_differentiable(logp_T, entropy_T, raw_M)
        return loss, logp_T, entropy_T, raw_M

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.inplace and keeps_graph():
            raise RuntimeError("inplace=True: got retain_graph or create_graph, want a single backward")
        refuse_double_backward()
        (dlogits_TV,) = ctx.saved_tensors
        return scaled(dlogits_TV, dloss, ctx.impl), *(None,) * (5 + len(TokenArguments._fields))


def outputs(terms_TK: Tensor, tokens: TokenArguments) -> Outputs:
    loss, raw_M = summarise(terms_TK, tokens.ref_logp is not None, tokens.importance is not None)
    return loss, column(terms_TK, "logp"), column(terms_TK, "entropy"), raw_M


def scaled(grad: Tensor, factor: Tensor, impl: str) -> Tensor:
    """grad * factor, in grad's place where nobody will read it again."""
    if torch.compiler.is_compiling():
        return (grad.float() * factor).to(grad.dtype)
    grad = grad.detach().clone() if keeps_graph() else grad.detach()
    custom_ops.scale_(grad, factor, impl)
    return grad


def keeps_graph() -> bool:
    """Whether the backward that runs now may run again over the same saved tensors."""
    return not torch.compiler.is_compiling() and torch._C._autograd._get_current_graph_task_keep_graph()


def refuse_double_backward() -> None:
    """The gradient's own gradient would be lost without a word: only `reference` has it."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("create_graph: got True, want False (impl='reference' has second derivatives)")


def rows_contiguous(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


def int32(targets_T: Tensor) -> Tensor:
    return targets_T.to(torch.int32).contiguous()
