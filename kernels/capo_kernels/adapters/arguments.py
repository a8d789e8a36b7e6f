"""Checks of tensors under the names that the other libraries give them.

Letters: B sequences, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import INTS, LOGIT_DTYPES, check_tensor

NUMBERS = (*LOGIT_DTYPES, *INTS, torch.bool, torch.uint8, torch.int8, torch.int16)
"""The dtypes of a mask."""


def check_completions(ids: tuple[str, Any], mask: tuple[str, Any], rows: tuple[str, Any], beyond: int = 0) -> None:
    """Names and values of token ids [B, T], their mask [B, T] and hidden states or logits [B, T + beyond, size]."""
    check_tensor(*ids, {"B": None, "T": None}, INTS, None)
    sequences, tokens = ids[1].shape
    check_tensor(*mask, {"B": sequences, "T": tokens}, NUMBERS, ids[1].device)
    length = f"T + {beyond}" if beyond else "T"
    check_tensor(*rows, {"B": sequences, length: tokens + beyond, "size": None}, LOGIT_DTYPES, ids[1].device)


def check_logprobs(mask_BT: Tensor, **logprobs: Any) -> None:
    """Each keyword argument is None or float [B, T]; its name is used in the error."""
    dims = dict(zip("BT", mask_BT.shape, strict=True))
    for name, x in logprobs.items():
        if x is not None:
            check_tensor(name, x, dims, LOGIT_DTYPES, mask_BT.device)


def check_head(hidden: Tensor, dtypes: tuple[torch.dtype, ...] = LOGIT_DTYPES, **head: Any) -> None:
    """Weight [V, H] and bias (None or [V]), as keyword arguments with their public names."""
    (weight_name, weight), (bias_name, bias) = head.items()
    check_tensor(weight_name, weight, {"V": None, "H": hidden.shape[-1]}, dtypes, hidden.device)
    if bias is not None:
        check_tensor(bias_name, bias, {"V": weight.shape[0]}, dtypes, hidden.device)


def as_rows(name: str, x: Any, mask_BT: Tensor) -> Tensor:
    """[B, 1] for [B]; [B, 1] and [B, T] as they are."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, want a tensor")
    x_BT = x.unsqueeze(1) if x.dim() == 1 else x
    sequences, tokens = mask_BT.shape
    if x_BT.shape not in ((sequences, 1), (sequences, tokens)):
        wanted = f"[{sequences}], [{sequences}, 1] or [{sequences}, {tokens}]"
        raise ValueError(f"{name}: got shape {list(x.shape)}, want {wanted}")
    if x.device != mask_BT.device:
        raise ValueError(f"{name}: got device {x.device}, want {mask_BT.device} like the other arguments")
    return x_BT


def flat_rows(**arguments: Any) -> tuple[Tensor, Tensor]:
    """[T, last] and [T] of rows [..., last] and labels in any shape of as many elements, as keyword arguments."""
    for (name, x), dtypes in zip(arguments.items(), (LOGIT_DTYPES, INTS), strict=True):
        any_shape = {str(i): None for i in range(x.dim())} if isinstance(x, Tensor) else {}
        check_tensor(name, x, any_shape, dtypes, None)
    (rows_name, rows), (labels_name, labels) = arguments.items()
    if rows.dim() < 2:
        raise ValueError(f"{rows_name}: got shape {list(rows.shape)}, want rows [..., size]")
    if labels.numel() != rows.shape[:-1].numel():
        wanted = f"{list(rows.shape[:-1])} beside {rows_name} {list(rows.shape)}"
        raise ValueError(f"{labels_name}: got shape {list(labels.shape)}, want {wanted}")
    if labels.device != rows.device:
        raise ValueError(f"{labels_name}: got device {labels.device}, want {rows.device} like {rows_name}")
    return rows.reshape(-1, rows.shape[-1]), labels.reshape(-1)
