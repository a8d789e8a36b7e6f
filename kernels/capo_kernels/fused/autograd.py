"""Autograd around the operators of custom_ops.py, shared by triton, cuda and cpu.

Letters: T packed tokens, R rows to compute, H hidden, V vocabulary, M raw metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rows import Modes, RowKernels
from ..spec import Head, LossInputs, LossSpec, PolicyLoss
from ..tracing import refuse_double_backward
from . import custom_ops
from .arguments import needs_logprobs, plain, token_arguments

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, log-probs [T], entropies [T], raw metrics [M]."""


@dataclass(frozen=True)
class FusedImplementation:
    """An implementation (registry.py) on row kernels; the operators of custom_ops.py look them up by name."""

    kernels: RowKernels

    def __post_init__(self) -> None:
        custom_ops.KERNELS[self.name] = self.kernels

    @property
    def name(self) -> str:
        return self.kernels.name

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        return self.kernels.refuses(device, dtype, vocab)

    def logprobs(self, logits_TV: Tensor, targets_T: Tensor, head: Head, entropy: bool) -> tuple[Tensor, ...]:
        run = (head.temperature, head.softcap or 0.0, self.name)
        both = _Logprobs.apply(_rows_contiguous(logits_TV), targets_T.contiguous(), *run)
        return both if entropy else both[:1]

    def linear_logprobs(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        head: Head,
        entropy: bool,
        chunk: int | None,
        wide_logits: bool,
    ) -> tuple[Tensor, ...]:
        run = (head.temperature, head.softcap or 0.0, self.name, chunk, wide_logits)
        both = _LinearLogprobs.apply(hidden_TH, weight_VH, bias_V, targets_T.contiguous(), *run)
        return both if entropy else both[:1]

    def policy_loss(
        self, logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec, inplace: bool
    ) -> PolicyLoss:
        logits_TV, targets_T, logp_T = _rows_contiguous(logits_TV), targets_T.contiguous(), None
        if needs_logprobs(inputs, spec):
            logp_T, _ = custom_ops.logprobs(
                logits_TV.detach(),
                targets_T,
                plain(inputs.weights),
                temperature=spec.temperature,
                softcap=spec.softcap or 0.0,
                impl=self.name,
            )
        tokens = token_arguments(inputs, spec, logp_T, self.name)
        if torch.is_grad_enabled() and logits_TV.requires_grad:
            apply = _PolicyLoss.apply
            return self._result(*apply(logits_TV, inplace, targets_T, spec.modes, spec.numbers, self.name, *tokens))
        *outputs, _ = custom_ops.policy_loss(
            logits_TV, targets_T, tokens, modes=spec.modes, numbers=spec.numbers, impl=self.name, wants_grad=False
        )
        return self._result(*outputs)

    def linear_policy_loss(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        inputs: LossInputs,
        spec: LossSpec,
        rows_R: Tensor | None,
        chunk: int | None,
        wide_logits: bool,
    ) -> PolicyLoss:
        head, targets_T, logp_T = (hidden_TH, weight_VH, bias_V), targets_T.contiguous(), None
        options = {"rows": rows_R, "impl": self.name, "chunk": chunk, "wide_logits": wide_logits}
        if needs_logprobs(inputs, spec):
            logp_T, _ = custom_ops.linear_logprobs(
                *(None if x is None else x.detach() for x in head),
                targets_T,
                token_weight=plain(inputs.weights),
                temperature=spec.temperature,
                softcap=spec.softcap or 0.0,
                **options,
            )
        tokens = token_arguments(inputs, spec, logp_T, self.name)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in head):
            plan = (rows_R, spec.modes, spec.numbers, self.name, chunk, wide_logits)
            return self._result(*_LinearPolicyLoss.apply(*head, targets_T, *plan, *tokens))
        *outputs, _, _, _ = custom_ops.linear_policy_loss(
            *head, targets_T, tokens, modes=spec.modes, numbers=spec.numbers, needs=(False,) * 3, **options
        )
        return self._result(*outputs)

    def _result(self, loss: Tensor, logp_T: Tensor, entropy_T: Tensor, raw_M: Tensor) -> PolicyLoss:
        return PolicyLoss(loss, logp_T, entropy_T, raw_M, self.name)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


# ---- log-probs -------------------------------------------------------------------------------------------------------


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, temperature: float, softcap: float, impl: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits_TV, targets_T)
        ctx.set_materialize_grads(False)
        ctx.options = {"temperature": temperature, "softcap": softcap, "impl": impl}
        return custom_ops.logprobs(logits_TV, targets_T, None, **ctx.options)

    @staticmethod
    def backward(ctx: Any, dlogp_T: Tensor | None, dentropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if dlogp_T is None and dentropy_T is None:
            return _nones(ctx, 0)
        dlogits_TV = custom_ops.dlogits(*ctx.saved_tensors, *_slopes(dlogp_T, dentropy_T), **ctx.options)
        return dlogits_TV, *_nones(ctx, 1)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        temperature: float,
        softcap: float,
        impl: str,
        chunk: int | None,
        wide_logits: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T)
        ctx.set_materialize_grads(False)
        head = {"temperature": temperature, "softcap": softcap}
        ctx.options = {**head, "impl": impl, "chunk": chunk, "wide_logits": wide_logits}
        return custom_ops.linear_logprobs(hidden_TH, weight_VH, bias_V, targets_T, None, None, **ctx.options)

    @staticmethod
    def backward(ctx: Any, dlogp_T: Tensor | None, dentropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if dlogp_T is None and dentropy_T is None:
            return _nones(ctx, 0)
        needs = ctx.needs_input_grad[:3]
        slopes = _slopes(dlogp_T, dentropy_T)
        grads = custom_ops.linear_logprobs_backward(*ctx.saved_tensors, *slopes, **ctx.options, needs=needs)
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *_nones(ctx, 3)


def _slopes(dlogp_T: Tensor | None, dentropy_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The derivatives as the kernels take them. At least one is not None."""
    if dlogp_T is None:
        assert dentropy_T is not None
        dlogp_T = torch.zeros_like(dentropy_T)
    return dlogp_T.contiguous(), None if dentropy_T is None else dentropy_T.contiguous()


# ---- the loss: its gradient is computed with it, for d(loss) = 1; backward scales that in place ----------------------


class _PolicyLoss(torch.autograd.Function):
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
        if inplace:
            outputs = custom_ops.policy_loss_(
                logits_TV.detach(), targets_T, arguments, modes=modes, numbers=numbers, impl=impl
            )
            dlogits_TV = logits_TV
        else:
            *outputs, dlogits_TV = custom_ops.policy_loss(
                logits_TV, targets_T, arguments, modes=modes, numbers=numbers, impl=impl, wants_grad=True
            )
        # Saved after the write: autograd then raises if the logits were modified since.
        ctx.save_for_backward(dlogits_TV)
        ctx.set_materialize_grads(False)  # else backward allocates zeros for the outputs without a gradient
        ctx.inplace, ctx.impl = inplace, impl
        loss, logp_T, entropy_T, raw_M = outputs
        ctx.mark_non_differentiable(logp_T, entropy_T, raw_M)
        return loss, logp_T, entropy_T, raw_M

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.inplace and _keeps_graph():
            raise RuntimeError("inplace=True: got retain_graph or create_graph, want a single backward")
        refuse_double_backward()
        if dloss is None:
            return _nones(ctx, 0)
        (dlogits_TV,) = ctx.saved_tensors
        return _scaled(dlogits_TV, dloss, ctx.impl), *_nones(ctx, 1)


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        rows_R: Tensor | None,
        modes: Modes,
        numbers: Tensor,
        impl: str,
        chunk: int | None,
        wide_logits: bool,
        *arguments: Tensor | None,
    ) -> Outputs:
        *outputs, dhidden_TH, dweight_VH, dbias_V = custom_ops.linear_policy_loss(
            *(hidden_TH, weight_VH, bias_V),
            targets_T,
            arguments,
            rows=rows_R,
            modes=modes,
            numbers=numbers,
            impl=impl,
            chunk=chunk,
            wide_logits=wide_logits,
            needs=ctx.needs_input_grad[:3],
        )
        ctx.save_for_backward(dhidden_TH, dweight_VH, dbias_V)
        ctx.set_materialize_grads(False)
        ctx.impl = impl
        loss, logp_T, entropy_T, raw_M = outputs
        ctx.mark_non_differentiable(logp_T, entropy_T, raw_M)
        return loss, logp_T, entropy_T, raw_M

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if dloss is None:
            return _nones(ctx, 0)
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        grads = (_scaled(grad, dloss, ctx.impl) if need else None for grad, need in wanted)
        return *grads, *_nones(ctx, 3)


def _scaled(grad: Tensor, factor: Tensor, impl: str) -> Tensor:
    """grad * factor, in place if grad is not read again."""
    if torch.compiler.is_compiling():
        return (grad.float() * factor).to(grad.dtype)
    grad = grad.detach().clone() if _keeps_graph() else grad.detach()
    custom_ops.scale_(grad, factor, impl)
    return grad


# ---- backward --------------------------------------------------------------------------------------------------------


def _nones(ctx: Any, grads: int) -> tuple[None, ...]:
    """None gradients for the arguments after the first `grads`."""
    return (None,) * (len(ctx.needs_input_grad) - grads)


def _keeps_graph() -> bool:
    """True if the backward that is running may run again on the same saved tensors."""
    return not torch.compiler.is_compiling() and torch._C._autograd._get_current_graph_task_keep_graph()
