"""Liger: `LigerFusedLinearGRPOLoss` and `triton_grpo_loss`, for step credit too. Written for liger_kernel 0.8.5."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..checks import INTS, LOGIT_DTYPES, check_bool, check_number, check_tensor
from ..spec import LossSpec
from .arguments import as_rows, check_completions, check_head, check_logprobs
from .grpo import (
    BATCH_TYPES,
    Completions,
    GRPOLoss,
    Head,
    grpo_loss,
    grpo_spec,
    token_logprobs_BT,
    token_shares,
    tokens_per_rank,
)
from .grpo_logits import logprobs_BT, reduced_loss, token_losses

_DEFAULTS = {
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}
"""Settings of the losses that are not supported."""

_BOTH_REFERENCES = "Both ref_per_token_logps and ref_input are provided. Using ref_per_token_logps."


class CapoFusedLinearGRPOLoss(torch.nn.Module):
    """Replaces `liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss`: same arguments, same (loss, metrics).

    Beyond it: advantages may be [B, T], and importance_sampling_level="sequence" goes with loss_type="cispo" too. See
    `grpo.grpo_loss` for sequence ratios with [B, T].

    loss_type sapo, luspo and vespo raise ValueError, and so does any value but the default for their settings.
    `compiled` and `chunk_size` affect speed alone and are not used: nothing is compiled, and the head is computed in
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
        _refuse_settings(
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
        )
        check_bool("use_ref_model", use_ref_model)
        if loss_type == "dr_grpo":
            check_number("max_completion_length", max_completion_length, 0, above=True)
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
        """(loss, metrics). The metrics are the mean KL (where beta != 0) and the fraction of clipped tokens.

        _input: [B, T, H], differentiable, as are lin_weight [V, H] and bias [V]; the ids, the mask and the log-probs
        are [B, T]; advantages [B] or [B, T]; vllm_is_ratio [B, T] or [B, 1]. Without reference
        log-probs they are computed from ref_input, ref_weight and ref_bias.
        """
        ids, mask = ("selected_token_ids", selected_token_ids), ("attention_mask", attention_mask)
        check_completions(ids, mask, ("_input", _input))
        check_head(_input, lin_weight=lin_weight, bias=bias)
        mask_BT = attention_mask.bool()
        check_logprobs(mask_BT, old_per_token_logps=old_per_token_logps, ref_per_token_logps=ref_per_token_logps)
        if self.use_ref_model and ref_per_token_logps is not None and ref_input is not None:
            warnings.warn(_BOTH_REFERENCES, stacklevel=2)
        if self.spec.kl_coef and ref_per_token_logps is None:
            ref_per_token_logps = self._reference(ref_input, ref_weight, ref_bias, selected_token_ids, mask_BT)
        batch = _completions(
            selected_token_ids,
            mask_BT,
            advantages,
            (self.loss_type, self.max_completion_length, num_items_in_batch),
            old_per_token_logps,
            ref_per_token_logps if self.spec.kl_coef else None,
            vllm_is_ratio,
        )
        head = Head(lin_weight.to(_input.dtype), None if bias is None else bias.to(_input.dtype))
        result = grpo_loss(_input, head, batch, self.spec)
        return result.loss, self._metrics(result, batch)

    def _reference(self, hidden: Any, weight: Any, bias: Any, targets_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if hidden is None or weight is None:
            raise ValueError("ref_per_token_logps: got None, want a tensor, or ref_input and ref_weight")
        sizes = {**dict(zip("BT", mask_BT.shape, strict=True)), "H": None}
        check_tensor("ref_input", hidden, sizes, LOGIT_DTYPES, mask_BT.device)
        check_head(hidden, (hidden.dtype,), ref_weight=weight, ref_bias=bias)
        with torch.no_grad():
            return token_logprobs_BT(hidden, Head(weight, bias), targets_BT, mask_BT, self.spec)

    def _metrics(self, result: GRPOLoss, batch: Completions) -> tuple[Tensor, ...]:
        low, high = batch.clips(result.ratio, self.spec)
        tokens = batch.mask_BT.sum().clamp(min=1)
        clip_fraction = ((low | high) & batch.mask_BT).sum() / tokens
        if self.beta == 0:
            return (clip_fraction,)
        kl = torch.zeros_like(clip_fraction) if result.kl_BT is None else result.kl_BT.sum() / tokens
        return kl, clip_fraction


def triton_grpo_loss(
    logits: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    completion_ids: Tensor,
    advantages: Tensor,
    completion_mask: Tensor | None = None,
    temperature: float = 0.9,
    beta: float = 0.04,
    eps_low: float = 0.2,
    eps_high: float = 0.4,
    inplace: bool = True,
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    importance_sampling_level: str = "token",
    reduce: bool = False,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vllm_is_ratio: Tensor | None = None,
    delta: float | None = None,
    use_bias_correction_kl: bool = False,
    num_items_in_batch: Tensor | float | None = None,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> tuple[Tensor, list[Tensor]] | tuple[Tensor, Tensor | None, Tensor]:
    """Replaces `liger_kernel.transformers.grpo_loss.triton_grpo_loss`: same arguments, same results.

    logits: [B, T + 1, V], differentiable, row t of a sequence for its token t; ids, mask, old and reference log-probs
    [B, T]; advantages [B], with token ratios also [B, T]; vllm_is_ratio [B], [B, 1] or [B, T].
    With `reduce` it returns (loss, [mean KL where beta != 0, fraction of clipped tokens]), else (losses [B, T], KL
    [B, T] or None, clipped [B, T]); the losses alone are differentiable.

    With `reduce` and token ratios one kernel computes loss and gradient; with `inplace` it overwrites the logits with
    the gradient in forward, unless they are a leaf. Otherwise backward reads the logits again, unchanged.
    Beyond Liger: loss_type="cispo" at sequence level. Unsupported settings raise ValueError as in
    `CapoFusedLinearGRPOLoss`.
    """
    _refuse_settings(
        sapo_temperature_pos=sapo_temperature_pos,
        sapo_temperature_neg=sapo_temperature_neg,
        vespo_k_pos=vespo_k_pos,
        vespo_lambda_pos=vespo_lambda_pos,
        vespo_k_neg=vespo_k_neg,
        vespo_lambda_neg=vespo_lambda_neg,
    )
    spec = _logits_spec(
        eps_low,
        eps_high,
        loss_type=loss_type,
        importance_sampling_level=importance_sampling_level,
        delta=delta,
        beta=beta,
        use_bias_correction_kl=use_bias_correction_kl,
        temperature=temperature,
    )
    check_number("max_completion_length", max_completion_length, 0, above=True, optional=True)
    mask_BT = _logits_mask(logits, completion_ids, completion_mask)
    check_logprobs(mask_BT, old_logp=old_logp, ref_logp=ref_logp)
    if beta and ref_logp is None:
        raise ValueError(f"ref_logp: got None with beta={beta}, want a float tensor [B, T]")
    shares = (loss_type, max_completion_length or completion_ids.shape[1], num_items_in_batch)
    ref_BT = ref_logp if beta else None
    batch = _completions(completion_ids, mask_BT, advantages, shares, old_logp, ref_BT, vllm_is_ratio)
    if spec.ratio == "sequence" and batch.advantages.shape[1] != 1:
        raise ValueError(f"advantages: got shape {list(advantages.shape)}, want [B] with sequence ratios")
    if reduce:
        return _reduced(logits, batch, spec, inplace)
    found = token_losses(logprobs_BT(logits, batch, temperature), batch, spec)
    return found.loss, found.kl_BT, found.clipped_BT.to(found.loss.dtype)


def _logits_spec(eps_low: float, eps_high: float, **settings: Any) -> LossSpec:
    """`settings`: the other arguments of `grpo_spec`."""
    check_number("eps_low", eps_low, 0)
    check_number("eps_high", eps_high, 0)
    spec = grpo_spec(epsilon_low=eps_low, epsilon_high=eps_high, **settings)
    if settings["delta"] is not None and settings["loss_type"] == "cispo":
        raise ValueError(f"delta: got {settings['delta']} with loss_type='cispo', want None")
    return spec


def _logits_mask(logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    """bool [B, T], all True if `mask` is None."""
    check_tensor("completion_ids", ids, {"B": None, "T": None}, INTS, None)
    mask = torch.ones_like(ids) if mask is None else mask
    check_completions(("completion_ids", ids), ("completion_mask", mask), ("logits", logits), beyond=1)
    return mask.bool()


def _completions(
    ids_BT: Tensor,
    mask_BT: Tensor,
    advantages: Tensor,
    shares: tuple[str, int | None, Tensor | float | None],
    old_BT: Tensor | None,
    ref_BT: Tensor | None,
    vllm_is_ratio: Tensor | None,
) -> Completions:
    """`shares`: loss_type, max_completion_length and num_items_in_batch."""
    loss_type, length, items = shares
    share_B1 = token_shares(loss_type, mask_BT, length)
    if loss_type in BATCH_TYPES:
        share_B1 = share_B1 / tokens_per_rank(mask_BT, items)
    importance = None if vllm_is_ratio is None else as_rows("vllm_is_ratio", vllm_is_ratio, mask_BT)
    advantages_BT = as_rows("advantages", advantages, mask_BT)
    return Completions(ids_BT, mask_BT, advantages_BT, share_B1, old_BT, ref_BT, importance)


def _reduced(logits: Tensor, batch: Completions, spec: LossSpec, inplace: bool) -> tuple[Tensor, list[Tensor]]:
    if spec.ratio == "token":
        found = reduced_loss(logits, batch, spec, inplace)
    else:
        found = token_losses(logprobs_BT(logits, batch, spec.temperature), batch, spec)
        found = found._replace(loss=(batch.share_B1 * found.loss).sum())
    tokens = batch.mask_BT.sum().clamp(min=1)
    means = [] if found.kl_BT is None else [found.kl_BT.sum() / tokens]
    return found.loss, [*means, found.clipped_BT.sum() / tokens]


def _refuse_settings(**settings: float) -> None:
    for name, value in settings.items():
        if value != _DEFAULTS[name]:
            raise ValueError(f"{name}: got {value}, want {_DEFAULTS[name]} (sapo and vespo are not supported)")
