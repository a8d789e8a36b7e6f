"""Log-probs and entropies of logits, and of a linear head in chunks.

Letters: T packed tokens, H hidden, V vocabulary, c tokens of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..chunks import chunk_rows
from ..spec import Head
from ..tracing import refuse_double_backward


def logprobs(logits_TV: Tensor, targets_T: Tensor, head: Head, entropy: bool) -> tuple[Tensor, ...]:
    """(logp_T,) or (logp_T, entropy_T), differentiable."""
    z_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    if head.softcap is not None:
        z_TV = head.softcap * torch.tanh(z_TV / head.softcap)
    logq_TV = torch.log_softmax(z_TV / head.temperature, dim=-1)
    logp_T = logq_TV.gather(-1, targets_T.long().unsqueeze(-1)).squeeze(-1)
    return (logp_T, _entropy(logq_TV)) if entropy else (logp_T,)


def _entropy(logq_TV: Tensor) -> Tensor:
    # An entry removed by a vocabulary mask has probability 0 and log-prob -inf; 0 * -inf must count as 0.
    return -(logq_TV.exp() * logq_TV.masked_fill(logq_TV.isneginf(), 0.0)).sum(-1)


def linear_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    head: Head,
    entropy: bool,
    chunk: int | None,
    wide_logits: bool = False,
) -> tuple[Tensor, ...]:
    """`logprobs` of `hidden @ weight.T + bias`; at most [chunk, V] of the logits is in memory. `wide_logits`: logits in
    float32 or wider."""
    return _LinearLogprobs.apply(hidden_TH, weight_VH, bias_V, targets_T, head, entropy, chunk, wide_logits)


class _LinearLogprobs(torch.autograd.Function):
    """Backward computes the logits again, by chunk: the gradients of the log-probs are known only after the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        head: Head,
        entropy: bool,
        chunk: int | None,
        wide: bool,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T)
        ctx.set_materialize_grads(False)
        ctx.chunk = chunk_rows(targets_T.shape[0], weight_VH, hidden_TH.dtype, chunk, needs_dweight=True)
        ctx.head, ctx.wide = head, wide
        chunks = []
        for rows in _chunks(targets_T.shape[0], ctx.chunk):
            logits_cV = _linear(hidden_TH[rows], weight_VH, bias_V, wide)
            chunks.append(logprobs(logits_cV, targets_T[rows], head, entropy))
        return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads_T: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if all(grad is None for grad in grads_T):
            return (None,) * 8
        hidden_TH, weight_VH, bias_V, targets_T = ctx.saved_tensors
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dhidden_TH = torch.empty_like(hidden_TH) if need_hidden else None
        dweight_VH = torch.zeros_like(weight_VH, dtype=wide) if need_weight else None
        dbias_V = torch.zeros_like(bias_V, dtype=wide) if need_bias else None
        for rows in _chunks(targets_T.shape[0], ctx.chunk):
            logits_cV = _linear(hidden_TH[rows], weight_VH, bias_V, ctx.wide).to(wide)
            dlogits_cV = _dlogits(logits_cV, targets_T[rows], ctx.head, [g if g is None else g[rows] for g in grads_T])
            if dhidden_TH is not None:
                dhidden_TH[rows] = dlogits_cV.to(weight_VH.dtype) @ weight_VH
            if dweight_VH is not None:
                dweight_VH.addmm_(dlogits_cV.T, hidden_TH[rows].to(wide))
            if dbias_V is not None:
                dbias_V += dlogits_cV.sum(0)
        dweight_VH = None if dweight_VH is None else dweight_VH.to(weight_VH.dtype)
        dbias_V = None if dbias_V is None else dbias_V.to(bias_V.dtype)
        return dhidden_TH, dweight_VH, dbias_V, *(None,) * 5


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, max(tokens, 1), chunk)]


def _linear(hidden_cH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, wide: bool) -> Tensor:
    if wide:
        hidden_cH, weight_VH, bias_V = _wide(hidden_cH), _wide(weight_VH), None if bias_V is None else _wide(bias_V)
    # Autocast applies to forward but not to backward: they would compute different logits.
    with torch.autocast(hidden_cH.device.type, enabled=False):
        return torch.nn.functional.linear(hidden_cH, weight_VH, bias_V)


def _dlogits(logits_cV: Tensor, targets_c: Tensor, head: Head, grads_c: list[Tensor | None]) -> Tensor:
    with torch.enable_grad():
        leaf_cV = logits_cV.detach().requires_grad_()
        outputs = logprobs(leaf_cV, targets_c, head, entropy=len(grads_c) == 2 and grads_c[1] is not None)
    known = [(out, grad) for out, grad in zip(outputs, grads_c, strict=False) if grad is not None]
    (dlogits_cV,) = torch.autograd.grad([out for out, _ in known], leaf_cV, [grad for _, grad in known])
    return dlogits_cV
