"""Log-probs and the loss of a linear head, a chunk of tokens at a time: three GEMMs, gradient in forward.

    logits = hidden weight^T (+ bias)  ->  the row kernel, in place on the chunk  ->  dhidden = dlogits weight
                                                                                     dweight += dlogits^T hidden

The log-probs alone know their gradients only after the whole loss: their backward forms the logits again (four GEMMs).

Letters: T packed tokens, R rows to compute, H hidden, V vocabulary, c rows of one chunk, M raw metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..rows import TERMS, Modes, Scalars, TokenArguments
from ..spec import Head, LossInputs, LossSpec
from .arguments import modes, needs_logprobs, token_arguments
from .autograd import Outputs, int32, outputs, refuse_double_backward, scaled, slopes
from .custom_ops import KERNELS
from .summary import untrained_terms


class Matmuls:
    """The three GEMMs of a head over some rows of `hidden`, chunk by chunk; dweight and dbias sum up in float32.

    No more than one [chunk, V] of logits is alive: the buffer is used again. `weight_R`: the rows' weights in the loss,
    None where none is 0.
    """

    def __init__(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        weight_R: Tensor | None,
        rows_R: Tensor | None,
        chunk: int,
        wide_logits: bool,
        needs: Sequence[bool],
    ) -> None:
        self.hidden_TH, self.weight_R, self.rows_R = hidden_TH, weight_R, rows_R
        self.size = hidden_TH.shape[0] if rows_R is None else rows_R.shape[0]
        self.chunk = min(chunk, max(self.size, 1))
        self.weight_VH, self.bias_V = weight_VH, bias_V
        dtype = torch.float32 if wide_logits else hidden_TH.dtype
        self.buffer_cV = hidden_TH.new_empty(self.chunk, weight_VH.shape[0], dtype=dtype)
        # A GPU multiplies narrow numbers into wide ones; on a CPU the head is widened, once.
        self.head_VH = weight_VH if weight_VH.is_cuda else weight_VH.to(dtype)
        # Rows that are left out have gradient 0.
        fresh = torch.empty_like if rows_R is None else torch.zeros_like
        self.dhidden_TH = fresh(hidden_TH, memory_format=torch.contiguous_format) if needs[0] else None
        zeros = partial(torch.zeros_like, dtype=torch.float32, memory_format=torch.contiguous_format)
        self.dweight_VH = zeros(weight_VH) if needs[1] else None
        self.dbias_V = zeros(bias_V) if needs[2] and bias_V is not None else None

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows of the R, their hidden states [c, H], their logits [c, V])."""
        for start in range(0, self.size, self.chunk):
            rows = slice(start, min(start + self.chunk, self.size))
            hidden_cH = self._hidden(rows)
            yield rows, hidden_cH, self._logits(hidden_cH)

    def _hidden(self, rows: slice) -> Tensor:
        hidden_cH = self.hidden_TH[rows] if self.rows_R is None else self.hidden_TH[self.rows_R[rows]]
        if self.weight_R is None:
            return hidden_cH
        # Gradient 0 times the NaN that a row of weight 0 may hold would be NaN in dweight.
        return hidden_cH.where((self.weight_R[rows] != 0).unsqueeze(1), 0)

    def _logits(self, hidden_cH: Tensor) -> Tensor:
        logits_cV = self.buffer_cV[: hidden_cH.shape[0]]
        if self.bias_V is not None and self.bias_V.dtype == logits_cV.dtype:
            return torch.addmm(self.bias_V, hidden_cH, self.head_VH.T, out=logits_cV)
        matmul(hidden_cH, self.head_VH.T, out=logits_cV)
        return logits_cV if self.bias_V is None else logits_cV.add_(self.bias_V)

    def backward(self, rows: slice, hidden_cH: Tensor, dlogits_cV: Tensor) -> None:
        if self.dbias_V is not None:
            self.dbias_V += dlogits_cV.sum(0, dtype=torch.float32)
        dlogits_cV = dlogits_cV.to(self.weight_VH.dtype)
        if self.dhidden_TH is not None:
            dhidden_cH = self.dhidden_TH[rows] if self.rows_R is None else torch.empty_like(hidden_cH)
            matmul(dlogits_cV, self.weight_VH, out=dhidden_cH)
            if self.rows_R is not None:
                self.dhidden_TH[self.rows_R[rows]] = dhidden_cH
        if self.dweight_VH is not None:
            accumulate(self.dweight_VH, dlogits_cV.T, hidden_cH)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """By hidden, weight and bias in their dtypes; empty where not needed."""
        found = (self.dhidden_TH, self.dweight_VH, self.dbias_V)
        dtype = self.hidden_TH.dtype
        dhidden_TH, dweight_VH, dbias_V = (self.hidden_TH.new_empty(0) if x is None else x.to(dtype) for x in found)
        return dhidden_TH, dweight_VH, dbias_V


# Every product is written with `out`, which autocast leaves alone: forward and backward see the same dtypes.


def matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right, out in the inputs' dtype or in float32."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.float(), right.float(), out=out)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, total in float32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.float(), right.float())


@torch.library.custom_op("capo::linear_policy_loss", mutates_args=())
def linear_loss_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    rows: Tensor | None,
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
    chunk: int,
    wide_logits: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(terms [T, 16], gradients by hidden, weight and bias; empty where `needs` says that nobody wants them)."""
    arguments, scalars, choices = TokenArguments._make(tokens), Scalars._make(numbers.tolist()), Modes._make(modes)
    rows, all_trained = trained_rows(arguments.weight, rows)
    targets, arguments = take(targets, rows), arguments.take(rows)
    weight_R = None if all_trained else arguments.weight
    matmuls = Matmuls(hidden, weight, bias, weight_R, rows, chunk, wide_logits, needs)
    terms = targets.new_empty(targets.shape[0], len(TERMS), dtype=torch.float32)
    for part, hidden_cH, logits_cV in matmuls.chunks():
        grad_cV = logits_cV if any(needs) else None
        KERNELS[impl].loss(logits_cV, targets[part], arguments.take(part), choices, scalars, terms[part], grad_cV)
        if any(needs):
            matmuls.backward(part, hidden_cH, logits_cV)
    if rows is not None:
        terms = untrained_terms(hidden.shape[0], hidden.device).index_copy_(0, rows, terms)
    return terms, *matmuls.gradients()


@linear_loss_op.register_fake
def _(hidden, weight, bias, targets, tokens, rows, modes, numbers, impl, chunk, wide_logits, needs):  # type: ignore[no-untyped-def]
    terms = targets.new_empty(hidden.shape[0], len(TERMS), dtype=torch.float32)
    return terms, *_fake_gradients(hidden, weight, bias, needs)


@torch.library.custom_op("capo::linear_logprobs", mutates_args=())
def linear_logprobs_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weight: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    impl: str,
    chunk: int,
    wide_logits: bool,
) -> tuple[Tensor, Tensor]:
    """(logp, entropy), [T] each; 0 where the token's weight is 0."""
    rows, all_trained = trained_rows(token_weight, rows)
    targets, token_weight = take(targets, rows), take(token_weight, rows)
    weight_R = None if all_trained else token_weight
    matmuls = Matmuls(hidden, weight, bias, weight_R, rows, chunk, wide_logits, (False,) * 3)
    results = hidden.new_empty(2, targets.shape[0], dtype=torch.float32)
    for part, _, logits_cV in matmuls.chunks():
        weight_c = None if token_weight is None else token_weight[part]
        outputs = KERNELS[impl].logprobs(logits_cV, targets[part], weight_c, temperature, softcap)
        for result, output in zip(results, outputs, strict=True):
            result[part] = output
    if rows is not None:
        results = results.new_zeros(2, hidden.shape[0]).index_copy_(1, rows, results)
    logp, entropy = (result.clone() for result in results)
    return logp, entropy


@linear_logprobs_op.register_fake
def _(hidden, weight, bias, targets, token_weight, rows, temperature, softcap, impl, chunk, wide_logits):  # type: ignore[no-untyped-def]
    return tuple(hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("capo::linear_logprobs_backward", mutates_args=())
def linear_logprobs_backward_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dlogp: Tensor,
    dentropy: Tensor | None,
    temperature: float,
    softcap: float,
    impl: str,
    chunk: int,
    wide_logits: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by hidden, weight and bias."""
    matmuls = Matmuls(hidden, weight, bias, None, None, chunk, wide_logits, needs)
    for part, hidden_cH, logits_cV in matmuls.chunks():
        slopes_c = (dlogp[part], None if dentropy is None else dentropy[part])
        KERNELS[impl].dlogits(logits_cV, targets[part], *slopes_c, temperature, softcap, logits_cV)
        matmuls.backward(part, hidden_cH, logits_cV)
    return matmuls.gradients()


@linear_logprobs_backward_op.register_fake
def _(hidden, weight, bias, targets, dlogp, dentropy, temperature, softcap, impl, chunk, wide, needs):  # type: ignore[no-untyped-def]
    return _fake_gradients(hidden, weight, bias, needs)


def _fake_gradients(hidden, weight, bias, needs):  # type: ignore[no-untyped-def]
    found = zip((hidden, weight, bias), needs, strict=True)
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if need and x is not None else hidden.new_empty(0)
        for x, need in found
    )


def trained_rows(weight_T: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, bool]:
    """The rows to compute, None for all; and whether it is known that all of them have a weight. On a CPU the weights
    say both (they are 0 outside `rows`); on a device reading them would stop the host."""
    if weight_T is None or weight_T.device.type != "cpu":
        return rows, weight_T is None
    rows = weight_T.nonzero().squeeze(1)
    return None if rows.shape[0] == weight_T.shape[0] else rows, True


def take(x: Tensor | None, rows: Tensor | None) -> Any:
    return x if x is None or rows is None else x[rows]


@dataclass(frozen=True)
class Plan:
    """How a linear call runs: all that is neither a tensor nor the loss."""

    impl: str
    chunk: int
    wide_logits: bool


def linear_logprobs(
    hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, head: Head, plan: Plan
) -> tuple[Tensor, Tensor]:
    """(logp [T], entropy [T]), differentiable."""
    head = Head(head.temperature, head.softcap or 0.0)
    return _LinearLogprobs.apply(hidden_TH, weight_VH, bias_V, int32(targets_T), head, plan)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, head: Head, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        run = (*head, plan.impl, plan.chunk, plan.wide_logits)
        logp_T, entropy_T = linear_logprobs_op(hidden_TH, weight_VH, bias_V, targets_T, None, None, *run)
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T)
        ctx.set_materialize_grads(False)
        ctx.run = run
        return logp_T, entropy_T

    @staticmethod
    def backward(ctx: Any, dlogp_T: Tensor | None, dentropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        needs = ctx.needs_input_grad[:3]
        dlogp_T, dentropy_T = slopes(dlogp_T, dentropy_T)
        grads = linear_logprobs_backward_op(*ctx.saved_tensors, dlogp_T, dentropy_T, *ctx.run, needs)
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None


def linear_policy_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    inputs: LossInputs,
    spec: LossSpec,
    rows_R: Tensor | None,
    plan: Plan,
) -> Outputs:
    targets_T, logp_T = int32(targets_T), None
    if needs_logprobs(inputs, spec):
        run = (spec.temperature, spec.softcap or 0.0, plan.impl, plan.chunk, plan.wide_logits)
        detached = (None if x is None else x.detach() for x in (hidden_TH, weight_VH, bias_V))
        logp_T, _ = linear_logprobs_op(*detached, targets_T, inputs.weights.detach().contiguous(), rows_R, *run)
    tokens = token_arguments(inputs, spec, logp_T)
    constants = (targets_T, rows_R, modes(spec), spec.numbers, plan)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden_TH, weight_VH, bias_V)):
        return _LinearPolicyLoss.apply(hidden_TH, weight_VH, bias_V, *constants, *tokens)
    terms_TK, *_ = _loss(hidden_TH, weight_VH, bias_V, *constants, tokens, (False,) * 3)
    return outputs(terms_TK, tokens)


def _loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    rows_R: Tensor | None,
    modes: Modes,
    numbers: Tensor,
    plan: Plan,
    tokens: TokenArguments,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = (plan.impl, plan.chunk, plan.wide_logits, needs)
    return linear_loss_op(hidden_TH, weight_VH, bias_V, targets_T, tokens, rows_R, modes, numbers, *run)


class _LinearPolicyLoss(torch.autograd.Function):
    """The gradients are computed with the loss, for d(loss) = 1; backward scales them in their place."""

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
        plan: Plan,
        *arguments: Tensor | None,
    ) -> Outputs:
        tokens, needs = TokenArguments._make(arguments), ctx.needs_input_grad[:3]
        constants = (targets_T, rows_R, modes, numbers, plan)
        terms_TK, *grads = _loss(hidden_TH, weight_VH, bias_V, *constants, tokens, needs)
        ctx.save_for_backward(*grads)
        ctx.impl = plan.impl
        loss, logp_T, entropy_T, raw_M = outputs(terms_TK, tokens)
        ctx.mark_non_differentiable(logp_T, entropy_T, raw_M)
        return loss, logp_T, entropy_T, raw_M

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        grads = (scaled(grad, dloss, ctx.impl) if need else None for grad, need in wanted)
        return *grads, *(None,) * (5 + len(TokenArguments._fields))
