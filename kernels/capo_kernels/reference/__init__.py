"""The definition of every operation, in plain PyTorch: float32, or float64 for float64 inputs; any device."""

from torch import Tensor

from .logprobs import Head, linear_logprobs, logprobs
from .loss import linear_policy_loss, policy_loss

__all__ = ["Head", "linear_logprobs", "linear_policy_loss", "logprobs", "policy_loss", "refuses"]


def refuses(x: Tensor) -> str | None:
    """Why it can't take tensors like x: it takes them all."""
    return None
