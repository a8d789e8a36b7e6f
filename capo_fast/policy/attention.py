"""Attention over sequences that lie end to end in one row, by torch's scaled_dot_product_attention, each for itself.

transformers' own "sdpa" works the whole row out, squared, and masks all but its sequences: for 50 answers of 40 tokens
2 % of that work is wanted. This one is registered beside it, under transformers' AttentionInterface.

Letters: N packed tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

PACKED_SDPA = "packed_sdpa"


def use_packed_sdpa(model: Any) -> None:
    """From now on `model` wants `sequence_lengths` at each call. Raises ValueError for one with a sliding window."""
    from transformers import AttentionInterface  # takes seconds; importing this module does not

    holders = (model.config.get_text_config(), *model.modules())  # Mistral's layers read the config at each call
    if windows := {window for holder in holders if (window := getattr(holder, "sliding_window", None))}:
        raise ValueError(f"the model has a sliding window of {min(windows)} tokens, which sdpa leaves out")
    AttentionInterface.register(PACKED_SDPA, packed_sdpa)
    model.set_attn_implementation(PACKED_SDPA)


def packed_sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    sequence_lengths: Sequence[int],
    scaling: float | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each sequence to itself.

    query: [1, heads, N, D]; key and value: [1, key-value heads, N, D]; sequence_lengths: their sum is N. Returns
    [1, N, heads, D] and no weights, as transformers' functions do.
    """
    pieces = zip(*(x.split(list(sequence_lengths), dim=2) for x in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    attended = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped) for q, k, v in pieces
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None
