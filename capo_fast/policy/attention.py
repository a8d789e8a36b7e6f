"""Causal attention over packed segments: `attend(q, k, v, lengths, prefix=None, scale=None)`.

A token attends to the tokens before it in its own segment, and to all of its segment's prefix, if there is one. So a
prompt is computed once, and each of its responses attends to it. K and V of a prefix are gathered once for each segment
that has it. Merging two attentions by log-sum-exp would save these copies, and on a CPU the mask. With the heads of
SmolLM2-135M and eight responses it took 0.90 to 1.07 of this time at GSM8K's lengths and 0.84 at prompts of 2,000
tokens. But it needs the backward kernels of each library and has no sliding window.

transformers' own "sdpa" computes attention over the whole row and masks all but its sequences: for 50 answers of 40
tokens 2 % of that work is needed. The attentions here are registered in transformers' AttentionInterface.

`choose_attention` picks one when the policy is built. On a GPU the number of kernels does not depend on the number of
segments, and the host never waits.

Letters: N packed tokens, M gathered keys, H heads, K key-value heads, D head size, B segments, L the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from torch.nn.attention import varlen
from torch.nn.functional import embedding, scaled_dot_product_attention

Lengths = tuple[int, ...]
Prefix = tuple[int | None, ...] | None
"""For each segment the index of its prefix segment, or None; None as a whole: no segment has a prefix."""
Attend = Callable[..., torch.Tensor]
"""q [N, H, D], k and v [N, K, D], lengths whose sum is N, their prefix, and the scale of the products (None: D ** -0.5)
-> [N, H, D]."""


def choose_attention(device: str, dtype: torch.dtype, name: str = "sdpa") -> Attend:
    """The attention for a device type, compute dtype and `policy.attention`. Raises ValueError if it can't run.

    torch's varlen_attn is FlashAttention 2, which does not support float32.
    """
    if name == "flash_attention_2":
        if device == "cpu" or dtype == torch.float32:
            raise ValueError(f"flash_attention_2 can't run on {device} in {dtype}, wanted sdpa")
        return attend_flash
    if device == "cpu":
        return attend_each
    if dtype == torch.float32:
        return attend_padded
    if missing := {"scale", "window_size"} - set(signature(varlen.varlen_attn).parameters):
        wanted = ", ".join(sorted(missing))
        raise ValueError(
            f"varlen_attn of torch {torch.__version__} has no {wanted}, wanted torch 2.11 or newer or flash_attention_2"
        )
    return attend_varlen


def use_packed_attention(model: Any, attend: Attend) -> None:
    """Make `model` use `attend`; each call must then pass `lengths` and `prefix`. Raises ValueError for a sliding
    window, which only `attend_flash` supports."""
    from transformers import AttentionInterface  # takes seconds; importing this module does not

    holders = (model.config.get_text_config(), *model.modules())  # Mistral's layers read the config at each call
    windows = {window for holder in holders if (window := getattr(holder, "sliding_window", None))}
    if windows and attend is not attend_flash:
        raise ValueError(
            f"the model has a sliding window of {min(windows)} tokens, sdpa supports none; want flash_attention_2"
        )
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
    lengths: Sequence[int],
    prefix: Sequence[int | None] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` as transformers calls it: query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D], no weights."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = {} if sliding_window is None else {"window": sliding_window}
    return attend(q, k, v, tuple(lengths), prefix and tuple(prefix), scaling, **window)[None], None


def attend_each(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Lengths,
    prefix: Prefix = None,
    scale: float | None = None,
) -> torch.Tensor:
    """One call of SDPA per segment: on a CPU calls cost little and padding costs much."""
    q_B, k_B, v_B = (x.transpose(0, 1).split(list(lengths), dim=1) for x in (q, k, v))
    whose = prefix or (None,) * len(lengths)
    seen_B = [(i,) if before is None else (before, i) for i, before in enumerate(whose)]
    pieces = [
        scaled_dot_product_attention(
            query[None],
            _joined([k_B[i] for i in seen])[None],
            _joined([v_B[i] for i in seen])[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )[0]
        for query, seen, mask in zip(q_B, seen_B, _masks(lengths, whose, q.dtype), strict=True)
    ]
    return torch.cat(pieces, dim=1).transpose(0, 1)


def attend_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Lengths,
    prefix: Prefix = None,
    scale: float | None = None,
) -> torch.Tensor:
    """One kernel for all segments; bfloat16 or float16 on CUDA. Its causal mask is aligned to the last key."""
    attention: Any = varlen.varlen_attn  # with `return_aux` it returns a pair
    # torch 2.11 lacks this argument and accepts fewer key-value heads as they are.
    grouped = {"enable_gqa": True} if "enable_gqa" in signature(attention).parameters else {}
    cut = _cut(q.device, lengths, prefix)
    return attention(q, *_gathered(k, v, lengths, prefix), *cut, scale=scale, window_size=(-1, 0), **grouped)


def attend_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Lengths,
    prefix: Prefix = None,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Like `attend_varlen`, by the package flash-attn. window: tokens that each token attends to, itself included."""
    from flash_attn import flash_attn_varlen_func  # only `policy.attention: flash_attention_2` needs it

    cut = _cut(q.device, lengths, prefix)
    reach = (-1, -1) if window is None else (window - 1, 0)
    keys = _gathered(k, v, lengths, prefix)
    return flash_attn_varlen_func(q, *keys, *cut, softmax_scale=scale, causal=True, window_size=reach)


def attend_padded(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Lengths,
    prefix: Prefix = None,
    scale: float | None = None,
) -> torch.Tensor:
    """One call of SDPA on [B, L], each segment after its prefix, whose queries are computed again for each segment.
    Padding comes last, so the causal mask hides it."""
    taken_BL, back_N = _padding(lengths, prefix, q.device)
    q, k, v = (_rows(x, taken_BL).transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    padded = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return padded.transpose(1, 2).flatten(0, 1)[back_N]


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _gathered(k: torch.Tensor, v: torch.Tensor, lengths: Lengths, prefix: Prefix) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K, D], the keys and values of each segment after those of its prefix."""
    if not _is_shared(prefix):
        return k, v
    taken_M = _keys(lengths, prefix, k.device)
    return _rows(k, taken_M), _rows(v, taken_M)


def _rows(x: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """x [N, K, D] at indices of any shape. Unlike indexing, an embedding sums a row's gradients on a GPU in float32 and
    in a fixed order."""
    return embedding(taken, x.flatten(1)).unflatten(-1, x.shape[1:])


def _is_shared(prefix: Prefix) -> bool:
    return prefix is not None and any(before is not None for before in prefix)


def _reach(lengths: Lengths, prefix: Prefix) -> Lengths:
    """Number of keys of each segment: its own and its prefix's."""
    whose = prefix or (None,) * len(lengths)
    return tuple(n + (0 if before is None else lengths[before]) for n, before in zip(lengths, whose, strict=True))


def _cut(device: torch.device, lengths: Lengths, prefix: Prefix) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Bounds of the segments' queries and of their keys, int32 [B + 1] each, and the largest number of each."""
    reach = _reach(lengths, prefix)
    return _bounds(lengths, device), _bounds(reach, device), max(lengths), max(reach)


@lru_cache(maxsize=2)  # every layer needs the same masks
def _masks(lengths: Lengths, prefix: tuple[int | None, ...], dtype: torch.dtype) -> list[torch.Tensor | None]:
    """For each segment with a prefix, the additive mask of 0 and -inf, [queries, keys]. SDPA's own causal mask is
    aligned to the first key."""
    masks: list[torch.Tensor | None] = []
    for length, before in zip(lengths, prefix, strict=True):
        if before is None:
            masks.append(None)
            continue
        hidden = torch.full((length, lengths[before] + length), -torch.inf, dtype=dtype)
        masks.append(hidden.triu_(lengths[before] + 1))
    return masks


@lru_cache(maxsize=8)
def _bounds(lengths: Lengths, device: torch.device) -> torch.Tensor:
    """int32 [B + 1], the bounds of consecutive pieces of these lengths."""
    return _on_device(torch.tensor([0, *lengths]).cumsum(0).int(), device)


@lru_cache(maxsize=8)
def _keys(lengths: Lengths, prefix: Prefix, device: torch.device) -> torch.Tensor:
    """int64 [M], the packed token of each key."""
    return _on_device(_seen(lengths, prefix), device)


def _seen(lengths: Lengths, prefix: Prefix) -> torch.Tensor:
    token_B = torch.arange(sum(lengths)).split(list(lengths))
    whose = prefix or (None,) * len(lengths)
    seen = [(own,) if before is None else (token_B[before], own) for before, own in zip(whose, token_B, strict=True)]
    return torch.cat([piece for pieces in seen for piece in pieces])


@lru_cache(maxsize=8)
def _padding(lengths: Lengths, prefix: Prefix, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [B, L], the packed token at each place (any one for padding), and int64 [N], the place of each token."""
    seen_M, reach_B = _seen(lengths, prefix), torch.tensor(_reach(lengths, prefix))
    start_B, place_L = reach_B.cumsum(0) - reach_B, torch.arange(int(reach_B.max()))
    taken_BL = seen_M[(start_B[:, None] + place_L).clamp(max=len(seen_M) - 1)]
    first_B = reach_B - torch.tensor(lengths)
    back_N = ((place_L >= first_B[:, None]) & (place_L < reach_B[:, None])).flatten().nonzero()[:, 0]
    return _on_device(taken_BL, device), _on_device(back_N, device)


def _on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy from pinned memory; a copy from other memory makes the host wait."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)
