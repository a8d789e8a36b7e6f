"""verl: its log-prob helpers. Written from the source of verl 0.9.1, which needs more than a CPU test can give.

All return float32 (float64 for float64 inputs) where verl may return the dtype of its inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..api import linear_token_logprobs, token_logprobs


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """verl/utils/torch_functional.py, `logprobs_from_logits`: logits [..., V], labels [...] -> log-probs [...].

    inplace_backward allows a backward that overwrites the logits; this one leaves them as they are either way.
    """
    logp_T = token_logprobs(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    assert isinstance(logp_T, Tensor)  # entropy=False
    return logp_T.view(labels.shape)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """verl/utils/kernel/linear_cross_entropy.py, `linear_cross_entropy`: hidden [..., H], weight [V, H], labels [...]
    -> log-probs and entropies, 1-D.

    Raises ValueError for another reduction and for a vocabulary split over a process group.
    """
    if reduction.lower() != "none":
        raise ValueError(f"reduction: got {reduction!r}, want 'none'")
    if dist_process_group is not None:
        raise ValueError("dist_process_group: got a process group, want None")
    return _logprobs_and_entropy(hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1), temperature, None)


class FusedLinearForPPO(torch.nn.Module):
    """verl/utils/experimental/torch_functional.py, `FusedLinearForPPO`; chunk_size in tokens. impl_backend, which picks
    one of verl's own implementations there, must be its default."""

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()
        if impl_backend != "torch":
            raise ValueError(f"impl_backend: got {impl_backend!r}, want 'torch'")
        self.chunk_size = chunk_size

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [..., H], vocab_weights [V, H], input_ids [...] -> log-probs [...] and entropies [...]."""
        hidden_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        logp_T, entropy_T = _logprobs_and_entropy(
            hidden_TH, vocab_weights, input_ids.reshape(-1), temperature, self.chunk_size
        )
        return logp_T.view(input_ids.shape), entropy_T.view(input_ids.shape)


def _logprobs_and_entropy(
    hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float, chunk: int | None
) -> tuple[Tensor, Tensor]:
    logp_T, entropy_T = linear_token_logprobs(
        hidden_TH, weight_VH, targets_T, temperature=temperature, entropy=True, chunk_tokens=chunk
    )
    return logp_T, entropy_T
