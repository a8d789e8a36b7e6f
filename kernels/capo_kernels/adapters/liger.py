"""Liger: `LigerFusedLinearGRPOLoss`, for step credit too. Written for and tested against liger_kernel 0.8.5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from .grpo import BATCH_TYPES, Completions, GRPOLoss, as_rows, grpo_loss, grpo_spec, token_logprobs_BT, token_shares


class CapoFusedLinearGRPOLoss(torch.nn.Module):
    """Stands in for `liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss`: same arguments, same (loss, metrics).

    Beyond it: advantages may be [B, T], and importance_sampling_level="sequence" goes with loss_type="cispo" too. See
    `grpo.grpo_loss` for what sequence ratios with [B, T] mean.

    loss_type sapo, luspo and vespo raise ValueError, and so does any value but the default for their settings.
    `compiled` and `chunk_size` bear on speed alone and are not used: there is nothing to compile, and the head goes in
    chunks of tokens, not of sequences.
    """

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ) -> None:
        super().__init__()
        refused = {
            "sapo_temperature_pos": (sapo_temperature_pos, 1.0),
            "sapo_temperature_neg": (sapo_temperature_neg, 1.05),
            "vespo_k_pos": (vespo_k_pos, 2.0),
            "vespo_lambda_pos": (vespo_lambda_pos, 3.0),
            "vespo_k_neg": (vespo_k_neg, 3.0),
            "vespo_lambda_neg": (vespo_lambda_neg, 2.0),
        }
        for name, (value, default) in refused.items():
            if value != default:
                raise ValueError(f"{name}: got {value}, want {default} (sapo and vespo are not offered)")
        if loss_type == "dr_grpo":
            check_number("max_completion_length", max_completion_length, 0, above=True)
        check_number("beta", beta, 0)
        self.spec = grpo_spec(
            loss_type=loss_type,
            importance_sampling_level=importance_sampling_level,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            delta=delta,
            # Liger without a reference counts a KL of 0.
            beta=beta if use_ref_model else 0.0,
            use_bias_correction_kl=use_bias_correction_kl,
            temperature=temperature,
        )
        self.beta = beta
        self.use_ref_model = use_ref_model
        self.loss_type = loss_type
        self.max_completion_length = max_completion_length

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(loss, metrics), the metrics being the mean KL where beta != 0 and the share of clipped tokens.

        _input: [B, T, H], differentiable, as are lin_weight [V, H] and bias [V]; the ids, the mask and the log-probs
        are [B, T]; advantages [B] or [B, T]; vllm_is_ratio [B, T] or [B, 1]. The reference's log-probs are formed from
        ref_input, ref_weight and ref_bias where they are not given.
        """
        mask_BT = attention_mask.bool()
        if self.spec.kl_coef and ref_per_token_logps is None:
            ref_per_token_logps = self._reference(ref_input, ref_weight, ref_bias, selected_token_ids, mask_BT)
        share_B1 = token_shares(self.loss_type, mask_BT, self.max_completion_length)
        if self.loss_type in BATCH_TYPES:
            share_B1 = share_B1 / _tokens_per_rank(mask_BT, num_items_in_batch)
        batch = Completions(
            _input,
            selected_token_ids,
            mask_BT,
            as_rows("advantages", advantages, mask_BT),
            share_B1,
            old_per_token_logps,
            ref_per_token_logps if self.spec.kl_coef else None,
            None if vllm_is_ratio is None else as_rows("vllm_is_ratio", vllm_is_ratio, mask_BT),
        )
        weight_VH, bias_V = lin_weight.to(_input.dtype), None if bias is None else bias.to(_input.dtype)
        result = grpo_loss(batch, weight_VH, bias_V, self.spec)
        return result.loss, self._metrics(result, batch)

    def _reference(self, hidden: Any, weight: Any, bias: Any, targets_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if hidden is None or weight is None:
            raise ValueError("ref_per_token_logps: got None, want it, or else ref_input and ref_weight")
        with torch.no_grad():
            return token_logprobs_BT(hidden, weight, bias, targets_BT, mask_BT, self.spec.temperature)

    def _metrics(self, result: GRPOLoss, batch: Completions) -> tuple[Tensor, ...]:
        clipped = (result.ratio > 1 + self.spec.clip_high) & (batch.advantages > 0)
        if self.spec.objective == "ppo":
            clipped = clipped | (result.ratio < 1 - self.spec.clip_low) & (batch.advantages < 0)
        tokens = batch.mask_BT.sum().clamp(min=1)
        clip_fraction = (clipped & batch.mask_BT).sum() / tokens
        if self.beta == 0:
            return (clip_fraction,)
        kl = torch.zeros_like(clip_fraction) if result.kl_BT is None else result.kl_BT.sum() / tokens
        return kl, clip_fraction


def _tokens_per_rank(mask_BT: Tensor, num_items_in_batch: Tensor | float | None) -> Tensor:
    """What dapo and cispo divide by: the tokens of the whole batch over the number of ranks, whose gradients are
    averaged. None: the tokens of all ranks in this call."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_items_in_batch is None:
        tokens = mask_BT.sum().float()
        if distributed:
            torch.distributed.all_reduce(tokens)
    else:
        tokens = torch.as_tensor(num_items_in_batch, dtype=torch.float32, device=mask_BT.device)
    return (tokens / (torch.distributed.get_world_size() if distributed else 1)).clamp(min=1)
