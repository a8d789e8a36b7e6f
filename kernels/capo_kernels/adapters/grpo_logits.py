"""GRPO on padded logits [B, T + 1, V]: row t of a sequence predicts its token t, the last row none.

Letters: B sequences, T completion tokens with padding, N = B (T + 1) rows of logits, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..api import policy_loss
from ..reference.objective import OBJECTIVES
from ..spec import LossSpec, PolicyLoss
from ..tracing import refuse_double_backward
from .grpo import Completions, ratio_and_kl


class Losses(NamedTuple):
    loss: Tensor
    """[B, T], 0 outside the mask; 0-d where it is reduced."""
    kl_BT: Tensor | None
    """Detached, 0 outside the mask."""
    clipped_BT: Tensor
    """bool."""


def reduced_loss(logits: Tensor, batch: Completions, spec: LossSpec, inplace: bool) -> Losses:
    """Token ratios, by the kernel that computes loss and gradient together: one read of the logits and one write.
    With `inplace` forward overwrites the logits with the gradient, unless they are a leaf."""
    result = policy_loss(
        logits.flatten(0, 1),
        _rows(batch.targets_BT, batch),
        weights=_number_rows(batch.share_B1, logits, batch),
        advantages=_number_rows(batch.weighted_advantages, logits, batch),
        old_logprobs=None if batch.old_BT is None else _number_rows(batch.old_BT, logits, batch),
        ref_logprobs=None if batch.ref_BT is None else _number_rows(batch.ref_BT, logits, batch),
        spec=spec,
        inplace=inplace and not logits.is_leaf,
    )
    return token_losses(_tokens(result.logprobs, batch), batch, spec)._replace(loss=result.loss)


def token_losses(logp_BT: Tensor, batch: Completions, spec: LossSpec) -> Losses:
    """The loss of each token as Liger and TRL define it, differentiable by the log-probs."""
    ratio, kl_BT = ratio_and_kl(logp_BT, batch, spec)
    advantages_BT = batch.weighted_advantages.expand_as(batch.mask_BT).where(batch.mask_BT, 0.0)
    loss_BT = OBJECTIVES[spec.objective](ratio, advantages_BT, logp_BT, spec)
    low, high = batch.clips(ratio, spec)
    clipped_BT = (low | high) & batch.mask_BT
    if kl_BT is None:
        return Losses(loss_BT, None, clipped_BT)
    return Losses(loss_BT + spec.kl_coef * kl_BT, kl_BT.detach(), clipped_BT)


def logprobs_BT(logits: Tensor, batch: Completions, temperature: float) -> Tensor:
    """[B, T], 0 outside the mask, differentiable by the logits; rows outside the mask are not read."""
    trained_N = _number_rows(torch.ones_like(batch.share_B1), logits, batch)
    logp_N = _Logprobs.apply(logits.flatten(0, 1), _rows(batch.targets_BT, batch), trained_N, temperature)
    return _tokens(logp_N, batch)


class _Logprobs(torch.autograd.Function):
    """Log-probs equal the loss -A log p with A = -1, so their gradient is that of a loss whose weights are known only
    in backward. Rows of weight 0 are not read."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, trained_N: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits_NV, targets_N)
        ctx.temperature = temperature
        return _logprob_loss(logits_NV, targets_N, trained_N, temperature).logprobs

    @staticmethod
    def backward(ctx: Any, dlogp_N: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        logits_NV, targets_N = ctx.saved_tensors
        with torch.enable_grad():
            leaf_NV = logits_NV.detach().requires_grad_()
            loss = _logprob_loss(leaf_NV, targets_N, dlogp_N.contiguous(), ctx.temperature).loss
        return *torch.autograd.grad(loss, leaf_NV), None, None, None


def _logprob_loss(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, temperature: float) -> PolicyLoss:
    spec = LossSpec(objective="reinforce", temperature=temperature)
    advantages_N = torch.full_like(weights_N, -1.0)
    return policy_loss(logits_NV, targets_N, weights=weights_N, advantages=advantages_N, spec=spec)


def _number_rows(x: Tensor, logits: Tensor, batch: Completions) -> Tensor:
    return _rows(x.to(torch.promote_types(logits.dtype, torch.float32)), batch)


def _rows(x: Tensor, batch: Completions) -> Tensor:
    """[N] of [B, T] or [B, 1], 0 outside the mask and in each sequence's last row."""
    x_BT = x.expand_as(batch.mask_BT).where(batch.mask_BT, 0)
    return torch.nn.functional.pad(x_BT, (0, 1)).flatten()


def _tokens(x_N: Tensor, batch: Completions) -> Tensor:
    sequences, tokens = batch.mask_BT.shape
    return x_N.view(sequences, tokens + 1)[:, :tokens]
