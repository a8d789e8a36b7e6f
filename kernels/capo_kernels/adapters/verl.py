"""verl: its log-prob helpers. Written from the source of verl 0.9.1, which does not run on a CPU.

All return float32 (float64 for float64 inputs) where verl may return the dtype of its inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..api import linear_token_logprobs, token_logprobs
from ..checks import check_number
from .arguments import check_head, flat_rows


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """verl/utils/torch_functional.py, `logprobs_from_logits`: logits [..., V], labels [...] -> log-probs of the shape
    `logits.shape[:-1]`.

    inplace_backward allows a backward that overwrites the logits; here they are unchanged either way.
    """
    logits_TV, labels_T = flat_rows(logits=logits, labels=labels)
    logp_T = token_logprobs(logits_TV, labels_T)
    assert isinstance(logp_T, Tensor)  # entropy=False
    return logp_T.view(logits.shape[:-1])


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """verl/utils/kernel/linear_cross_entropy.py, `linear_cross_entropy`: hidden [..., H], weight [V, H], labels [...]
    -> log-probs and entropies, 1-D. Logits are float32 whatever the dtype of the inputs, as in verl's kernel.

    Raises ValueError for another reduction and for a vocabulary split over a process group.
    """
    if reduction.lower() != "none":
        raise ValueError(f"reduction: got {reduction!r}, want 'none'")
    if dist_process_group is not None:
        raise ValueError("dist_process_group: got a process group, want None")
    hidden_TH, labels_T = flat_rows(hidden=hidden, labels=labels)
    check_head(hidden_TH, (hidden.dtype,), weight=weight, bias=None)
    return _logprobs_and_entropy(hidden_TH, weight, labels_T, temperature, None)


class FusedLinearForPPO(torch.nn.Module):
    """verl/utils/experimental/torch_functional.py, `FusedLinearForPPO`; chunk_size in tokens. impl_backend
    (verl's choice of implementation) must be its default. Logits are float32, where verl rounds them to the
    dtype of the inputs."""

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()
        if impl_backend != "torch":
            raise ValueError(f"impl_backend: got {impl_backend!r}, want 'torch'")
        check_number("chunk_size", chunk_size, 1)
        self.chunk_size = chunk_size

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [..., H], vocab_weights [V, H], input_ids [...] -> log-probs and entropies of the shape
        `hidden_states.shape[:-1]`."""
        hidden_TH, input_ids_T = flat_rows(hidden_states=hidden_states, input_ids=input_ids)
        check_head(hidden_TH, (hidden_states.dtype,), vocab_weights=vocab_weights, bias=None)
        both = _logprobs_and_entropy(hidden_TH, vocab_weights, input_ids_T, temperature, self.chunk_size)
        logp, entropy = (x_T.view(hidden_states.shape[:-1]) for x_T in both)
        return logp, entropy


def _logprobs_and_entropy(
    hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float, chunk: int | None
) -> tuple[Tensor, Tensor]:
    logp_T, entropy_T = linear_token_logprobs(
        hidden_TH,
        weight_VH,
        targets_T,
        temperature=temperature,
        entropy=True,
        chunk_tokens=chunk,
        logits_dtype="float32",
    )
    return logp_T, entropy_T
