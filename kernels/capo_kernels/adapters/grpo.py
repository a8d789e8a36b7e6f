"""Shared by the adapters for TRL and Liger: GRPO as those two define it, on padded completions.

Letters: B sequences, T completion tokens with padding, N trained tokens of all sequences, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..api import linear_policy_loss, linear_token_logprobs
from ..checks import check_bool, check_choice, check_number
from ..reference.objective import KL
from ..spec import LIMIT, LossSpec

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")
BATCH_TYPES = ("dapo", "cispo")
"""Losses divided by the tokens of the whole batch; one call has only part of them."""


def grpo_spec(
    *,
    loss_type: str,
    importance_sampling_level: str,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    use_bias_correction_kl: bool,
    temperature: float,
    softcap: float | None = None,
) -> LossSpec:
    """The peers' settings as a LossSpec. Raises ValueError with the setting's name if it is not supported."""
    check_choice("loss_type", loss_type, LOSS_TYPES)
    check_choice("importance_sampling_level", importance_sampling_level, ("token", "sequence"))
    check_number("epsilon_low", epsilon_low, 0)
    check_number("epsilon_high", epsilon_high, 0)
    check_number("delta", delta, optional=True)
    check_number("beta", beta, 0)
    check_bool("use_bias_correction_kl", use_bias_correction_kl)
    cispo = loss_type == "cispo"
    if delta is not None and not cispo and delta <= 1 + epsilon_high:
        raise ValueError(f"delta: got {delta}, want more than 1 + epsilon_high = {1 + epsilon_high:g}")
    return LossSpec(
        objective="cispo" if cispo else "ppo",
        ratio="sequence" if importance_sampling_level == "sequence" else "token",
        clip_low=epsilon_low,
        # The peers' cispo takes epsilon_high for the cap itself.
        clip_high=epsilon_high - 1 if cispo else epsilon_high,
        dual_clip=None if cispo else delta,
        kl_coef=beta,
        kl_ratio=use_bias_correction_kl,
        temperature=temperature,
        softcap=softcap,
    )


def token_shares(loss_type: str, mask_BT: Tensor, max_completion_length: int | None) -> Tensor:
    """[B, 1], the loss weight of each token of a sequence; 1 for BATCH_TYPES, where the caller divides."""
    sequences, length_B1 = mask_BT.shape[0], mask_BT.sum(-1, keepdim=True).clamp(min=1).float()
    if loss_type == "grpo":
        return 1 / (sequences * length_B1)
    if loss_type == "bnpo":
        return torch.ones_like(length_B1) / mask_BT.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        assert max_completion_length is not None  # checked by both adapters
        return torch.full_like(length_B1, 1 / (sequences * max_completion_length))
    return torch.ones_like(length_B1)


def tokens_per_rank(mask_BT: Tensor, num_items_in_batch: Tensor | float | None) -> Tensor:
    """Divisor of BATCH_TYPES: tokens of the whole batch / ranks, because gradients are averaged over ranks.
    None counts the tokens of all ranks in this call."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_items_in_batch is None:
        tokens = mask_BT.sum().float()
        if distributed:
            torch.distributed.all_reduce(tokens)
    else:
        tokens = torch.as_tensor(num_items_in_batch, dtype=torch.float32, device=mask_BT.device)
    return (tokens / (torch.distributed.get_world_size() if distributed else 1)).clamp(min=1)


@dataclass(frozen=True, eq=False)
class Completions:
    """A padded batch, without its hidden states or logits. Entries outside the mask are not read."""

    targets_BT: Tensor
    mask_BT: Tensor
    """bool."""
    advantages: Tensor
    """[B, 1] or [B, T]."""
    share_B1: Tensor
    old_BT: Tensor | None
    ref_BT: Tensor | None
    importance: Tensor | None
    """[B, 1] or [B, T], a factor of the policy term; not of the KL."""

    @property
    def weighted_advantages(self) -> Tensor:
        """Every objective is positively homogeneous in the advantage, so the factor may be part of it."""
        return self.advantages if self.importance is None else self.advantages * self.importance

    def clips(self, ratio: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
        """bool, the shape of `ratio` or of the advantages: ratios clipped at the lower bound (cispo has none) and at
        the upper bound."""
        low = (ratio < 1 - spec.clip_low) & (self.advantages < 0) & (spec.objective == "ppo")
        return low, (ratio > 1 + spec.clip_high) & (self.advantages > 0)


class Head(NamedTuple):
    weight_VH: Tensor
    bias_V: Tensor | None


class GRPOLoss(NamedTuple):
    loss: Tensor
    entropy_BT: Tensor
    ratio: Tensor
    """[B, T], or [B, 1] for sequence ratios."""
    kl_BT: Tensor | None


def grpo_loss(hidden_BTH: Tensor, head: Head, batch: Completions, spec: LossSpec) -> GRPOLoss:
    """The loss through the linear head, differentiable by hidden states, weight and bias; the rest is detached. Hidden
    state t of a completion predicts its token t.

    With sequence ratios and one advantage for each token the gradient is GSPO-token's (arXiv 2507.18071, section 4.3):
    each token keeps its own credit. The peers' gradient gives every token of a sequence the mean credit; both agree
    where the advantage is constant over the sequence.
    """
    mask_BT = batch.mask_BT
    dtype = torch.promote_types(hidden_BTH.dtype, torch.float32)

    def pack(x: Tensor) -> Tensor:
        return x.expand_as(mask_BT)[mask_BT].to(dtype)

    kl_apart = spec.ratio == "sequence" and spec.kl_ratio and spec.kl_coef != 0
    result = linear_policy_loss(
        hidden_BTH[mask_BT],
        head.weight_VH,
        batch.targets_BT[mask_BT],
        weights=pack(batch.share_B1),
        bias=head.bias_V,
        advantages=pack(batch.weighted_advantages),
        old_logprobs=None if batch.old_BT is None else pack(batch.old_BT),
        ref_logprobs=None if batch.ref_BT is None else pack(batch.ref_BT),
        cu_seqlens=torch.nn.functional.pad(mask_BT.sum(-1).cumsum(0), (1, 0)).int(),
        spec=replace(spec, kl_coef=0.0) if kl_apart else spec,
    )
    loss = result.loss + _sequence_kl(hidden_BTH, head, batch, spec) if kl_apart else result.loss
    ratio, kl_BT = ratio_and_kl(_unpack(result.logprobs, mask_BT), batch, spec)
    return GRPOLoss(loss, _unpack(result.entropy, mask_BT), ratio, kl_BT)


def token_logprobs_BT(hidden_BTH: Tensor, head: Head, targets_BT: Tensor, mask_BT: Tensor, spec: LossSpec) -> Tensor:
    """[B, T], 0 outside the mask."""
    logp_N = linear_token_logprobs(
        hidden_BTH[mask_BT],
        head.weight_VH,
        targets_BT[mask_BT],
        bias=head.bias_V,
        temperature=spec.temperature,
        softcap=spec.softcap,
    )
    assert isinstance(logp_N, Tensor)  # entropy=False
    return _unpack(logp_N, mask_BT)


def _sequence_kl(hidden_BTH: Tensor, head: Head, batch: Completions, spec: LossSpec) -> Tensor:
    """KL times a sequence's ratio, which the peers differentiate through all tokens of the sequence. GSPO-token's
    gradient is the same for the policy term, but not here, where KL differs between tokens; so this term takes another
    pass through the head."""
    logp_BT = token_logprobs_BT(hidden_BTH, head, batch.targets_BT, batch.mask_BT, spec)
    _, kl_BT = ratio_and_kl(logp_BT, batch, spec)
    assert kl_BT is not None  # both adapters require a reference where kl_coef != 0
    return spec.kl_coef * (batch.share_B1 * kl_BT).sum()


def _unpack(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    return x_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, x_N)


def ratio_and_kl(logp_BT: Tensor, batch: Completions, spec: LossSpec) -> tuple[Tensor, Tensor | None]:
    """The ratio ([B, 1] for sequence ratios) and the KL of the loss; both [B, T], differentiable by logp."""
    old_BT = logp_BT.detach() if batch.old_BT is None else batch.old_BT
    diff = (logp_BT - old_BT).where(batch.mask_BT, 0.0)
    if spec.ratio == "sequence":
        diff = diff.sum(-1, keepdim=True) / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
    ratio = diff.clamp(-LIMIT, LIMIT).exp()
    if batch.ref_BT is None:
        return ratio, None
    kl_BT = KL[spec.kl_estimator](logp_BT, batch.ref_BT.where(batch.mask_BT, logp_BT))
    return ratio, kl_BT * (ratio if spec.kl_ratio else 1.0)
