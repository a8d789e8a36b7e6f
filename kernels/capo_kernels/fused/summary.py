"""From the row kernel's terms [T, 16] to the loss and the metrics, without a host sync.

Letters: T packed tokens, M raw metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rows import TERMS

_MAXIMA = TERMS.index("neg_ratio_max")


def untrained_terms(tokens: int, device: torch.device) -> Tensor:
    """float32 [T, 16], the terms of rows of weight 0."""
    terms_TK = torch.zeros(tokens, len(TERMS), dtype=torch.float32, device=device)
    terms_TK[:, _MAXIMA:] = -torch.inf
    return terms_TK


def column(terms_TK: Tensor, name: str) -> Tensor:
    """float32 [T]."""
    return terms_TK[:, TERMS.index(name)].contiguous()


def summarise(terms_TK: Tensor, has_ref: bool, has_is: bool) -> tuple[Tensor, Tensor]:
    """The loss (0-d) and the raw metrics [M] of metrics.RAW. Sums in float64."""
    total = dict(zip(TERMS, terms_TK.sum(0, dtype=torch.float64).float().unbind(), strict=True))
    highest_3 = torch.nn.functional.pad(terms_TK[:, _MAXIMA:], (0, 0, 0, 1), value=-torch.inf).amax(0)
    neg_lowest, highest, highest_is = highest_3.where(highest_3 > -torch.inf, torch.nan).unbind()
    unused = torch.full_like(neg_lowest, torch.nan)
    raw_M = torch.stack(
        [
            total["tokens"],
            total["ratio"],
            -neg_lowest,
            highest,
            total["clip_low"],
            total["clip_high"],
            total["approx_kl"],
            total["ref_kl"] if has_ref else unused,
            total["entropy"],
            total["is_weight"] if has_is else unused,
            total["is_weight_sq"] if has_is else unused,
            highest_is if has_is else unused,
            total["active"],
        ]
    )
    return total["loss"].clone(), raw_M  # no view: a caller may scale its loss in place
