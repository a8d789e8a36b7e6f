"""The loss: log-probs, terms, their weighted sum and the metrics; and the in-place gradient.

Letters: T packed tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..metrics import RAW, maximum, minimum
from ..spec import Head, LossInputs, LossSpec, PolicyLoss
from .logprobs import linear_logprobs, logprobs
from .objective import Terms, Tokens, loss_terms, masked_tokens


def policy_loss(
    logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec, inplace: bool = False
) -> PolicyLoss:
    _break_graph()
    if inplace and logits_TV.requires_grad and torch.is_grad_enabled():
        return _overwrite(logits_TV, targets_T, inputs, spec)
    trained_T = inputs.weights != 0
    # Untrained rows may contain NaN and targets of -100, so the values are replaced, not only weighted by 0.
    logits_TV = logits_TV.where(trained_T.unsqueeze(-1), 0.0)
    head = Head(spec.temperature, spec.softcap)
    logp_T, entropy_T = logprobs(logits_TV, targets_T.where(trained_T, 0), head, entropy=True)
    return _loss(logp_T, entropy_T, inputs, spec)


def linear_policy_loss(
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
    """`rows_R` is redundant here: the other rows have weight 0."""
    _break_graph()
    trained_T = inputs.weights != 0
    hidden_TH = hidden_TH.where(trained_T.unsqueeze(-1), 0.0)
    head = Head(spec.temperature, spec.softcap)
    targets_T = targets_T.where(trained_T, 0)
    logp_T, entropy_T = linear_logprobs(hidden_TH, weight_VH, bias_V, targets_T, head, True, chunk, wide_logits)
    return _loss(logp_T, entropy_T, inputs, spec)


def _break_graph() -> None:
    """Under torch.compile: eager code, with fullgraph=True an error with this message. `_loss` takes a derivative."""
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(
            msg="impl='reference' (auto's choice for float64, and for float16 on a CPU) can't be compiled; "
            "torch.compile takes cpu, triton and cuda"
        )


def _loss(logp_T: Tensor, entropy_T: Tensor, inputs: LossInputs, spec: LossSpec) -> PolicyLoss:
    if spec.coefficients is not None:
        raise RuntimeError("impl='reference' cannot run: it does not read coefficients on a device")
    wants_grad = logp_T.requires_grad
    # active_frac needs the derivative by logp_T even if the caller has disabled autograd.
    with torch.inference_mode(False), torch.enable_grad():
        t = masked_tokens(inputs, logp_T.dtype)
        logp_T = logp_T if wants_grad else logp_T.clone().requires_grad_()
        entropy_T = entropy_T.where(t.trained_T, 0.0)
        terms = loss_terms(logp_T.where(t.trained_T, 0.0), t, spec)
        loss = (t.weight_T * terms.loss(spec)).sum()
        (slope_T,) = torch.autograd.grad(loss, logp_T, retain_graph=True)
        if spec.entropy_coef != 0:
            loss = loss - spec.entropy_coef * (t.weight_T * entropy_T).sum()
    with torch.no_grad():
        moves_T = (slope_T != 0) | (spec.entropy_coef != 0)
        raw_M = _raw_metrics(terms, entropy_T, moves_T, t, spec)
    loss = loss if wants_grad else loss.detach()
    return PolicyLoss(loss, logp_T.detach().where(t.trained_T, 0.0), entropy_T.detach(), raw_M, "reference")


def _raw_metrics(terms: Terms, entropy_T: Tensor, moves_T: Tensor, t: Tokens, spec: LossSpec) -> Tensor:
    def total(x_T: Tensor | None) -> Tensor:
        return entropy_T.new_full((), torch.nan) if x_T is None else x_T.where(t.trained_T, 0).sum().to(entropy_T.dtype)

    rho_T, w_T = terms.rho_T, terms.is_weight_T
    raw = {
        "tokens": total(t.trained_T),
        "ratio_sum": total(rho_T),
        "ratio_min": minimum(rho_T, t.trained_T),
        "ratio_max": maximum(rho_T, t.trained_T),
        "clip_low_count": total((t.advantage_T < 0) & (rho_T < 1 - spec.clip_low)),
        "clip_high_count": total((t.advantage_T > 0) & (rho_T > 1 + spec.clip_high)),
        "approx_kl_sum": total(terms.diff_T.exp() - terms.diff_T - 1),
        "ref_kl_sum": total(terms.kl_T),
        "entropy_sum": total(entropy_T),
        "is_weight_sum": total(w_T),
        "is_weight_sq_sum": total(None if w_T is None else w_T**2),
        "is_weight_max": total(None) if w_T is None else maximum(w_T, t.trained_T),
        "active_count": total(moves_T),
    }
    return torch.stack([raw[key] for key in RAW]).detach()


def _overwrite(logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec) -> PolicyLoss:
    leaf_TV = logits_TV.detach().requires_grad_()
    result = policy_loss(leaf_TV, targets_T, inputs, spec)
    (dlogits_TV,) = torch.autograd.grad(result.loss, leaf_TV)
    return replace(result, loss=_GradInStorage.apply(logits_TV, result.loss.detach(), dlogits_TV))


class _GradInStorage(torch.autograd.Function):
    """The loss; its gradient is stored in the logits' memory."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, loss: Tensor, dlogits_TV: Tensor) -> Tensor:
        logits_TV.copy_(dlogits_TV)
        # Saved after the write: autograd then raises if the logits were modified since.
        ctx.save_for_backward(logits_TV)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch._C._autograd._get_current_graph_task_keep_graph():
            raise RuntimeError("inplace=True: got retain_graph or create_graph, want a single backward")
        (dlogits_TV,) = ctx.saved_tensors
        return dlogits_TV.detach().mul_(grad), None, None
