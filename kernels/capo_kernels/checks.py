"""Argument checks. Every message reads `argument: got what was found, want what is wanted`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .tracing import observed

INTS = (torch.int32, torch.int64)
LOGIT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def reads_values(*tensors: Tensor) -> bool:
    """Whether their values are checked: on a CPU always; elsewhere with CAPO_DEBUG=1, since the host must wait for the
    device. Never where the call is traced: the tensors may have no values."""
    if observed(tensors):
        return False
    return all(x.is_cpu for x in tensors) or os.environ.get("CAPO_DEBUG") == "1"


def token_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes of [T] arguments beside logits of `dtype`: a log-prob in bfloat16 has a ratio error of 1-3 %."""
    return (torch.float32, torch.float64) if dtype == torch.float64 else (torch.float32,)


def check_tensor(
    name: str,
    x: Any,
    dims: Mapping[str, int | None],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None,
    *,
    dtype_hint: str = "",
) -> None:
    """Checks type, dtype, shape and device. `dims` names each dimension and gives its size, None for any."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, want a tensor")
    if hasattr(x, "device_mesh"):  # DTensor, whose module takes half a second to import
        raise TypeError(
            f"{name}: got a DTensor, want a plain tensor (FSDP2: call unshard() of the head before the loss)"
        )
    if x.dtype not in dtypes:
        raise TypeError(f"{name}: got {_short(x.dtype)}, want {' or '.join(map(_short, dtypes))}{dtype_hint}")
    if x.dim() != len(dims) or any(want not in (None, got) for got, want in zip(x.shape, dims.values(), strict=True)):
        wanted = ", ".join(letter if size is None else f"{letter} = {size}" for letter, size in dims.items())
        raise ValueError(f"{name}: got shape {list(x.shape)}, want [{wanted}]{_shape_hint(x, dims)}")
    if device is not None and x.device != device:
        raise ValueError(f"{name}: got device {x.device}, want {device} like the other arguments")


def check_number(name: str, x: Any, low: float = -math.inf, *, above: bool = False, optional: bool = False) -> None:
    """Checks for a finite int or float, at least `low` (greater with `above`), or None with `optional`."""
    if x is None and optional:
        return
    bound = "" if low == -math.inf else f" {'>' if above else '>='} {low:g}"
    wanted = f"a finite number{bound}{' or None' if optional else ''}"
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"{name}: got {type(x).__name__}, want {wanted}")
    if not math.isfinite(x) or x < low or (above and x == low):
        raise ValueError(f"{name}: got {x}, want {wanted}")


def check_choice(name: str, x: Any, choices: tuple[str | None, ...]) -> None:
    if x not in choices:
        raise ValueError(f"{name}: got {x!r}, want one of {', '.join(map(repr, choices))}")


def check_bool(name: str, x: Any) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"{name}: got {type(x).__name__}, want True or False")


def check_offsets(cu_seqlens: Any, size: int | None, device: torch.device) -> None:
    """The shape of cu_seqlens; even a batch without sequences has one offset."""
    check_tensor("cu_seqlens", cu_seqlens, {"B + 1": size}, (torch.int32,), device)
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens: got shape [0], want [B + 1]")


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int) -> None:
    """The values of cu_seqlens; only where `reads_values`."""
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != tokens or ends != sorted(ends):
        raise ValueError(f"cu_seqlens: got {ends}, want non-decreasing offsets (not lengths) from 0 to T = {tokens}")


def check_range(
    name: str, x: Tensor, low: float, high: float, *, where: Tensor | None = None, reason: str = ""
) -> None:
    """Every value in [low, high] or NaN, `where` true (bool, of x's shape); only where `reads_values`."""
    if x.numel() == 0:
        return
    lowest, highest = x.aminmax()
    if low <= lowest.item() and highest.item() <= high:  # the common case, without temporaries
        return
    outside = (x < low) | (x > high)
    if where is not None:
        outside &= where
    if outside.any():
        wanted = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name}: got {x[outside][0].item()}, want values {wanted}{reason}")


def _shape_hint(x: Tensor, dims: Mapping[str, int | None]) -> str:
    if "B + 1" in dims:
        return " (offsets, not lengths)"
    return "; flatten(0, 1)" if "T" in dims and x.dim() == len(dims) + 1 else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
