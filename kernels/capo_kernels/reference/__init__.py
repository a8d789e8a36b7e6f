"""The definition of every operation, in plain PyTorch: float32, or float64 for float64 inputs; any device."""

import torch

from .logprobs import linear_logprobs, logprobs
from .loss import linear_policy_loss, policy_loss

__all__ = ["linear_logprobs", "linear_policy_loss", "logprobs", "policy_loss", "refuses"]


def refuses(device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
    """None: the reference takes all logits."""
    return None
