"""The figures of a loss call, over its trained rows (weight != 0), unweighted. The keys are always the same.

Raw figures, which ranks and micro-batches combine by adding (`*_min`, `*_max`: by minimum and maximum):

    tokens               trained rows
    ratio_sum, _min, _max    rho
    clip_low_count       rows with A < 0 and rho < 1 - clip_low
    clip_high_count      rows with A > 0 and rho > 1 + clip_high
    approx_kl_sum        exp(d) - d - 1, d = clamp(logp - old, -20, 20)
    ref_kl_sum           KL_t as the loss has it (NaN without ref_logprobs)
    entropy_sum          H_t in nats
    is_weight_sum, is_weight_sq_sum, is_weight_max    w_t as the loss has it (NaN without is_mode)
    active_count         rows whose loss has a non-zero derivative by logp_t or H_t

Derived from them: ratio_mean, clip_low_frac, clip_high_frac, approx_kl, ref_kl, entropy, is_weight_mean, active_frac
(each sum or count / tokens) and ess = is_weight_sum^2 / (tokens is_weight_sq_sum). No trained row: NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

Metrics = dict[str, Tensor]

_MEANS = {
    "ratio_mean": "ratio_sum",
    "clip_low_frac": "clip_low_count",
    "clip_high_frac": "clip_high_count",
    "approx_kl": "approx_kl_sum",
    "ref_kl": "ref_kl_sum",
    "entropy": "entropy_sum",
    "is_weight_mean": "is_weight_sum",
    "active_frac": "active_count",
}
_DERIVED = (*_MEANS, "ess")


def combine_metrics(parts: Sequence[Mapping[str, Tensor]]) -> Metrics:
    """The metrics of several calls (micro-batches, ranks) as if they had been one. Raises ValueError on no parts."""
    if not parts:
        raise ValueError("parts: got none, want the metrics of at least one call")
    raw = {key: _combine(key, [part[key] for part in parts]) for key in parts[0] if key not in _DERIVED}
    return derive(raw)


def derive(raw: Metrics) -> Metrics:
    """The raw figures with the means and fractions that follow from them."""
    means = {name: raw[key] / raw["tokens"] for name, key in _MEANS.items()}
    ess = raw["is_weight_sum"] ** 2 / (raw["tokens"] * raw["is_weight_sq_sum"])
    return {**raw, **means, "ess": ess}


def minimum(x_T: Tensor, keep_T: Tensor) -> Tensor:
    """0-d, NaN where nothing is kept."""
    lowest = torch.nn.functional.pad(x_T.where(keep_T, torch.inf), (0, 1), value=torch.inf).amin()
    return lowest.where(keep_T.any(), torch.nan)


def maximum(x_T: Tensor, keep_T: Tensor) -> Tensor:
    """0-d, NaN where nothing is kept."""
    return -minimum(-x_T, keep_T)


def _combine(key: str, values: list[Tensor]) -> Tensor:
    # fmin and fmax pass over the NaN of a call without trained rows, whose sums are 0.
    if key.endswith("_min"):
        return reduce(torch.fmin, values)
    if key.endswith("_max"):
        return reduce(torch.fmax, values)
    return torch.stack(values).sum(0)
