"""TRL: the loss of `trl.GRPOTrainer` through the fused linear head. Written for and tested against TRL 1.16.0.

from trl import GRPOTrainer
from capo_kernels.adapters.trl import CapoLossMixin

class Trainer(CapoLossMixin, GRPOTrainer):
    pass
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..spec import LossSpec
from .arguments import as_rows
from .grpo import BATCH_TYPES, Completions, GRPOLoss, Head, grpo_loss, grpo_spec, token_shares

_LOGIT_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
_MULTIMODAL = ("pixel_values", "token_type_ids", "mm_token_type_ids")


class CapoLossMixin:
    """Base class to put before GRPOTrainer: `compute_loss` returns TRL's loss, gradient and metrics, and never holds
    the logits of more than one chunk of tokens.

    loss_type grpo, bnpo, dr_grpo, dapo or cispo, at either importance_sampling_level; epsilon, epsilon_high, delta,
    beta, use_bias_correction_kl, temperature, the importance ratios of vLLM and the tool mask are as in TRL.
    Any other setting that changes TRL's loss raises ValueError with its name when the trainer is created.

    `inputs["advantages"]` may be [B], or [B, T] for step credit: override `_generate_and_score_completions` to set it.
    The one difference from TRL: with sequence ratios and [B, T] advantages each token keeps its own credit in the
    gradient (GSPO-token). `use_liger_kernel` patches the model's layers alone, in TRL as here; the loss is this one.
    The implementation is `auto`'s: `capo_kernels.status()` has what can run.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raises TypeError for `class T(GRPOTrainer, CapoLossMixin)`, where TRL's own loss would run."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(CapoLossMixin)]:
            if hasattr(base, "training_step") and not issubclass(base, CapoLossMixin):
                wanted = f"class {cls.__name__}(CapoLossMixin, {base.__name__})"
                raise TypeError(f"{cls.__name__}: got {base.__name__} before CapoLossMixin, want {wanted}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _loss_spec(self)

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        if return_outputs:
            raise ValueError("return_outputs: got True, want False")
        spec = _loss_spec(self)
        mask_BT = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask_BT = mask_BT & inputs["tool_mask"].bool()
        hidden_BTH, head = _completion_hidden(self, model, inputs)
        batch = Completions(
            inputs["completion_ids"],
            mask_BT,
            as_rows("advantages", inputs["advantages"], mask_BT),
            _token_shares(self, mask_BT, inputs),
            inputs.get("old_per_token_logps"),
            inputs["ref_per_token_logps"] if spec.kl_coef else None,
            inputs["importance_sampling_ratio"] if _corrects_vllm(self) else None,
        )
        result = grpo_loss(hidden_BTH, head, batch, spec)
        _log_metrics(self, result, batch, spec)
        return result.loss


def _loss_spec(trainer: Any) -> LossSpec:
    config = trainer.model.config.get_text_config()
    refused = {
        "off_policy_mask_threshold": (trainer.off_policy_mask_threshold, None),
        "top_entropy_quantile": (trainer.top_entropy_quantile, 1.0),
        "entropy_coef": (trainer.entropy_coef, 0.0),
        "use_adaptive_entropy": (trainer.use_adaptive_entropy, False),
        # The head of a sharded model is gathered only inside the model's forward.
        "fsdp": (trainer.is_fsdp_enabled, False),
        "deepspeed": (trainer.is_deepspeed_enabled, False),
    }
    for name, (value, wanted) in refused.items():
        if value != wanted:
            raise ValueError(f"{name}: got {value!r}, want {wanted!r}")
    if trainer.aux_loss_enabled:
        raise ValueError(f"router_aux_loss_coef: got {trainer.router_aux_loss_coef}, want 0 (no MoE auxiliary loss)")
    for name in _LOGIT_SCALES:
        if getattr(config, name, None) not in (None, 1.0):
            raise ValueError(f"model.config.{name}: got {getattr(config, name)}, want unscaled logits")
    return grpo_spec(
        loss_type=trainer.loss_type,
        importance_sampling_level=trainer.importance_sampling_level,
        epsilon_low=trainer.epsilon_low,
        epsilon_high=trainer.epsilon_high,
        delta=trainer.args.delta,
        beta=trainer.beta,
        use_bias_correction_kl=trainer.args.use_bias_correction_kl,
        temperature=trainer.temperature,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _corrects_vllm(trainer: Any) -> bool:
    return bool(trainer.use_vllm and trainer.vllm_importance_sampling_correction)


def _mode(trainer: Any) -> str:
    return "train" if trainer.model.training else "eval"


def _completion_hidden(trainer: Any, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Head]:
    """The hidden states that predict the completions, and the head, in one dtype."""
    for name in _MULTIMODAL:
        if name in inputs:
            raise ValueError(f"inputs[{name!r}]: got a value, want text only")
    head = trainer.accelerator.unwrap_model(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ValueError(f"the model's output embeddings: got {type(head).__name__}, want torch.nn.Linear")
    with trainer.accelerator.autocast():
        outputs = model(
            input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            output_hidden_states=True,
            logits_to_keep=1,
            use_cache=False,
        )
        hidden_BTH = outputs.hidden_states[-1][:, -inputs["completion_ids"].shape[1] - 1 : -1]
        device = hidden_BTH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_BTH.dtype
    if trainer.args.cast_lm_head_to_fp32:
        dtype = torch.float32
    bias_V = None if head.bias is None else head.bias.to(dtype)
    return hidden_BTH.to(dtype), Head(head.weight.to(dtype), bias_V)


def _token_shares(trainer: Any, mask_BT: Tensor, inputs: dict[str, Any]) -> Tensor:
    training = _mode(trainer) == "train"
    share_B1 = token_shares(trainer.loss_type, mask_BT, trainer.max_completion_length)
    if trainer.loss_type in BATCH_TYPES:
        # num_items_in_batch counts the generation batch of all ranks; DDP averages over the ranks.
        steps = trainer.args.steps_per_generation if training else 1
        share_B1 = share_B1 * steps * trainer.accelerator.num_processes / inputs["num_items_in_batch"].clamp(min=1)
    return share_B1 / trainer.current_gradient_accumulation_steps if training else share_B1


def _log_metrics(trainer: Any, result: GRPOLoss, batch: Completions, spec: LossSpec) -> None:
    metrics, mean = trainer._metrics[_mode(trainer)], _global_mean(trainer, batch.mask_BT)
    if result.kl_BT is not None:
        metrics["kl"].append(mean(result.kl_BT))
    metrics["entropy"].append(mean(result.entropy_BT))
    low, high = batch.clips(result.ratio, spec)
    if spec.objective == "cispo":
        metrics["cispo_clip_ratio"].append(mean(high.float()))
        return
    metrics["clip_ratio/low_mean"].append(mean(low.float()))
    metrics["clip_ratio/high_mean"].append(mean(high.float()))
    metrics["clip_ratio/region_mean"].append(mean((low | high).float()))
    metrics["clip_ratio/low_min"].append(_over_sequences(trainer, low, batch.mask_BT, torch.min))
    metrics["clip_ratio/high_max"].append(_over_sequences(trainer, high, batch.mask_BT, torch.max))


def _global_mean(trainer: Any, mask_BT: Tensor) -> Callable[[Tensor], float]:
    """Mean over the trained tokens of all ranks; over their sequences for a [B, 1] tensor."""

    def mean(x: Tensor) -> float:
        x, counted = (x, torch.ones_like(x)) if x.shape[1] == 1 else (x.where(mask_BT, 0.0), mask_BT.float())
        total, count = trainer.accelerator.reduce(torch.stack([x.sum(), counted.sum()]), reduction="sum")
        return (total / count.clamp(min=1)).item()

    return mean


def _over_sequences(trainer: Any, x: Tensor, mask_BT: Tensor, extreme: Callable[[Tensor], Tensor]) -> float:
    """Minimum or maximum (`extreme`) of the sequences' means; sequences without a trained token are left out."""
    mean_B = x.float().squeeze(1) if x.shape[1] == 1 else (x * mask_BT).sum(-1) / mask_BT.sum(-1)
    mean_B = trainer.accelerator.gather(mean_B)
    known = mean_B[~mean_B.isnan()]
    return extreme(known).item() if known.numel() else float("nan")
