"""The figures of a loss call, over its trained rows (weight != 0), unweighted. The keys are always the same.

Raw figures, which ranks and micro-batches combine by adding (`*_min`, `*_max`: by minimum and maximum):

    tokens               trained rows
    ratio_sum, _min, _max    rho
    clip_low_count       rows with A < 0 and rho < 1 - clip_low
    clip_high_count      rows with A > 0 and rho > 1 + clip_high
    approx_kl_sum        exp(d) - d - 1, d = clamp(logp - old, -20, 20)
    ref_kl_sum           KL_t of the loss (NaN without ref_logprobs)
    entropy_sum          H_t in nats
    is_weight_sum, is_weight_sq_sum, is_weight_max    w_t of the loss (NaN without is_mode)
    active_count         rows whose loss has a non-zero derivative by logp_t or H_t

Derived from them: ratio_mean, clip_low_frac, clip_high_frac, approx_kl, ref_kl, entropy, is_weight_mean, active_frac
(each sum or count / tokens) and ess = is_weight_sum^2 / (tokens is_weight_sq_sum). No trained row: NaN.

Letters: M raw figures, N calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Metrics = dict[str, Tensor]

RAW = (
    "tokens",
    "ratio_sum",
    "ratio_min",
    "ratio_max",
    "clip_low_count",
    "clip_high_count",
    "approx_kl_sum",
    "ref_kl_sum",
    "entropy_sum",
    "is_weight_sum",
    "is_weight_sq_sum",
    "is_weight_max",
    "active_count",
)
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


def combine_metrics(parts: Sequence[Mapping[str, Tensor]]) -> Metrics:
    """The metrics of several calls (micro-batches, ranks) combined as one call. Raises ValueError on no parts."""
    if not parts:
        raise ValueError("parts: got none, want the metrics of at least one call")
    columns = {key: torch.stack([part[key] for part in parts]) for key in RAW}
    known_N = columns["tokens"] > 0  # a call without trained rows has NaN for extremes; any other NaN is a row's
    return derive(torch.stack([_combine(key, column_N, known_N) for key, column_N in columns.items()]))


def derive(raw_M: Tensor) -> Metrics:
    """The raw figures, in the order of RAW, by name, with the derived means and fractions."""
    raw = dict(zip(RAW, raw_M.unbind(), strict=True))
    shares = dict(zip(RAW, (raw_M / raw["tokens"]).unbind(), strict=True))
    means = {name: shares[key] for name, key in _MEANS.items()}
    ess = raw["is_weight_sum"] ** 2 / (raw["tokens"] * raw["is_weight_sq_sum"])
    return {**raw, **means, "ess": ess}


def minimum(x_T: Tensor, keep_T: Tensor) -> Tensor:
    """0-d, NaN where nothing is kept."""
    lowest = torch.nn.functional.pad(x_T.where(keep_T, torch.inf), (0, 1), value=torch.inf).amin()
    return lowest.where(keep_T.any(), torch.nan)


def maximum(x_T: Tensor, keep_T: Tensor) -> Tensor:
    """0-d, NaN where nothing is kept."""
    return -minimum(-x_T, keep_T)


def _combine(key: str, column_N: Tensor, known_N: Tensor) -> Tensor:
    if key.endswith("_min"):
        return minimum(column_N, known_N)
    return maximum(column_N, known_N) if key.endswith("_max") else column_N.sum()
