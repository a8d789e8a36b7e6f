"""Policy-gradient loss kernels with step credit (CAPO, arXiv 2508.02298), a library on torch alone.

>>> import torch, capo_kernels as ck
>>> logits = torch.zeros(3, 8, requires_grad=True)
>>> loss = ck.policy_loss(logits, torch.tensor([1, 2, 3]), weights=torch.full((3,), 1 / 3), advantages=torch.ones(3))
>>> float(loss.loss.detach())
-1.0
"""

from .api import linear_policy_loss, linear_token_logprobs, policy_loss, token_logprobs
from .credit import Credit, credit_stats, token_advantages, token_weights
from .fused.kept import release_memory
from .metrics import combine_metrics
from .registry import status
from .spec import LossSpec, PolicyLoss

__all__ = [
    "Credit",
    "LossSpec",
    "PolicyLoss",
    "combine_metrics",
    "credit_stats",
    "linear_policy_loss",
    "linear_token_logprobs",
    "policy_loss",
    "release_memory",
    "status",
    "token_advantages",
    "token_logprobs",
    "token_weights",
]
