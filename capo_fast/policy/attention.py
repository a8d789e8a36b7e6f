"""Causal attention over sequences that are packed end to end, each to itself: `attend(q, k, v, lengths, scale)`.

transformers' own "sdpa" computes the whole row, squared, and masks all but its sequences: for 50 answers of 40 tokens
2 % of that work is wanted. These are registered beside it, under transformers' AttentionInterface.

`choose_attention` picks one when the policy is built. On a GPU the number of kernels does not depend on the number of
sequences, and the host never waits.

Letters: N packed tokens, H heads, K key-value heads, D head size, B sequences, L the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...], float | None], torch.Tensor]
"""q [N, H, D], k and v [N, K, D], lengths whose sum is N, and the scale of the products (None: D ** -0.5) ->
[N, H, D]."""


def choose_attention(device: str, dtype: torch.dtype) -> Attend:
    """The one for a device type and compute dtype. Raises ValueError where torch lacks what it needs.

    torch's varlen_attn is FlashAttention 2, so flash-attn itself would add nothing; it takes no float32.
    """
    if device == "cpu":
        return attend_each
    if dtype == torch.float32:
        return attend_padded
    if missing := {"scale", "window_size"} - set(signature(varlen.varlen_attn).parameters):
        wanted = ", ".join(sorted(missing))
        raise ValueError(f"varlen_attn of torch {torch.__version__} has no {wanted}, wanted torch 2.11 or newer")
    return attend_varlen


def use_packed_attention(model: Any, attend: Attend) -> None:
    """From now on `model` wants `sequence_lengths` at each call. Raises ValueError for one with a sliding window."""
    from transformers import AttentionInterface  # takes seconds; importing this module does not

    holders = (model.config.get_text_config(), *model.modules())  # Mistral's layers read the config at each call
    if windows := {window for holder in holders if (window := getattr(holder, "sliding_window", None))}:
        raise ValueError(f"the model has a sliding window of {min(windows)} tokens, which sdpa leaves out")
    name = f"packed_{attend.__name__}"
    AttentionInterface.register(name, partial(attention_function, attend))
    model.set_attn_implementation(name)


def attention_function(
    attend: Attend,
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
    """`attend` as transformers calls it: query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D], no weights."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, tuple(sequence_lengths), scaling)[None], None


def attend_each(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...], scale: float | None
) -> torch.Tensor:
    """One call of SDPA per sequence: on a CPU calls cost little and padding costs much."""
    pieces = zip(*(x.transpose(0, 1).split(list(lengths), dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([_causal(q[None], k[None], v[None], scale)[0] for q, k, v in pieces], dim=1).transpose(0, 1)


def attend_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...], scale: float | None
) -> torch.Tensor:
    """One kernel for all sequences; bfloat16 or float16 on CUDA."""
    bounds, longest = _bounds(lengths, q.device), max(lengths)
    attention: Any = varlen.varlen_attn  # with `return_aux` it returns a pair
    # torch 2.11 has no such argument, and takes fewer key-value heads as they are.
    grouped = {"enable_gqa": True} if "enable_gqa" in signature(attention).parameters else {}
    return attention(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), **grouped)


def attend_padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...], scale: float | None
) -> torch.Tensor:
    """One call of SDPA on [B, L]. A causal token sees none of the padding, which comes after it."""
    taken_BL, back_N = _padding(lengths, q.device)
    q, k, v = (x[taken_BL].transpose(1, 2) for x in (q, k, v))
    padded = _causal(q, k, v, scale)
    return padded.transpose(1, 2).flatten(0, 1)[back_N]


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """q [B, H, L, D], k and v [B, K, L, D] -> [B, H, L, D]"""
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


@lru_cache(maxsize=8)  # every layer asks for the same
def _bounds(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """int32 [B + 1], where the sequences begin and end."""
    return _on_device(torch.tensor([0, *lengths]).cumsum(0).int(), device)


@lru_cache(maxsize=8)
def _padding(lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [B, L], the packed token at each place (any one for padding), and int64 [N], the place of each token."""
    length_B = torch.tensor(lengths)
    start_B, position_L = length_B.cumsum(0) - length_B, torch.arange(max(lengths))
    taken_BL = (start_B[:, None] + position_L).clamp(max=sum(lengths) - 1)
    back_N = (position_L < length_B[:, None]).flatten().nonzero()[:, 0]
    return _on_device(taken_BL, device), _on_device(back_N, device)


def _on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From pinned memory, for a copy of any other makes the host wait."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)
