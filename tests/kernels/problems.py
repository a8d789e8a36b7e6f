"""Random loss calls in any dtype, on logits or on a linear head, for comparing implementations.

Letters: T packed tokens, H hidden, V vocabulary. Rows of weight 0 (a share of `untrained`) have NaN in every argument
and the target -100. Ratios and importance weights are not close to their bounds, so that rounding does not move a row
to another branch than in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from implementations import DEVICE, INTERPRETED
from torch import Tensor

import capo_kernels as ck

LENGTHS = (2, 1, 0, 2) if INTERPRETED else (9, 1, 0, 14)
TOKENS = sum(LENGTHS)
VOCAB = 19 if INTERPRETED else 50


@dataclass(frozen=True, eq=False)
class Problem:
    """Shared by all implementations, so its tensors must not be written to."""

    leaves: dict[str, Tensor]
    """The differentiated arguments: logits; or hidden, weight and bias."""
    others: dict[str, Any]
    """The other arguments of the call, except spec and impl."""
    spec: ck.LossSpec

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.leaves.values())).dtype

    @property
    def linear(self) -> bool:
        return "hidden" in self.leaves

    @property
    def trained_T(self) -> Tensor:
        return self.others["weights"] != 0

    @cached_property
    def double(self) -> Problem:
        """The same values in float64."""

        def wide(x: Any) -> Any:
            return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

        leaves, others = ({key: wide(x) for key, x in part.items()} for part in (self.leaves, self.others))
        return Problem(leaves, others, self.spec)

    def tidy(self) -> Problem:
        """The problem with NaN in the leaves replaced by 0."""
        return replace(self, leaves={name: x.nan_to_num(0.0) for name, x in self.leaves.items()})

    def call(self, impl: str, leaves: dict[str, Tensor] | None = None, **changes: Any) -> ck.PolicyLoss:
        op = ck.linear_policy_loss if self.linear else ck.policy_loss
        return op(**{**(leaves or self.leaves), **self.others, "spec": self.spec, "impl": impl, **changes})


@cache
def logits_problem(
    spec: ck.LossSpec = ck.LossSpec(),  # noqa: B008 - frozen
    dtype: torch.dtype = torch.float32,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    vocab: int = VOCAB,
    untrained: float = 0.2,
    seed: int = 0,
) -> Problem:
    g = torch.Generator().manual_seed(seed)
    logits_TV = (torch.randn(sum(lengths), vocab, generator=g) * 2).to(dtype)
    return _problem({"logits": logits_TV}, logits_TV.double(), spec, lengths, g, untrained, gap=1e-3)


@cache
def linear_problem(
    spec: ck.LossSpec = ck.LossSpec(),  # noqa: B008 - frozen
    dtype: torch.dtype = torch.float32,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    vocab: int = VOCAB,
    hidden: int = 16,
    untrained: float = 0.2,
    seed: int = 0,
) -> Problem:
    g = torch.Generator().manual_seed(seed)
    sizes = {"hidden": (sum(lengths), hidden), "weight": (vocab, hidden), "bias": (vocab,)}
    leaves = {name: torch.randn(size, generator=g).to(dtype) for name, size in sizes.items()}
    leaves["weight"] *= 2 / hidden**0.5
    logits_TV = torch.nn.functional.linear(*(x.double() for x in leaves.values()))
    # The logits are rounded to the dtype, and so are the ratios.
    gap = 0.05 if dtype.itemsize == 2 else 1e-3
    return _problem(leaves, logits_TV, spec, lengths, g, untrained, gap)


def _problem(
    leaves: dict[str, Tensor],
    logits_TV: Tensor,
    spec: ck.LossSpec,
    lengths: tuple[int, ...],
    g: torch.Generator,
    untrained: float,
    gap: float,
) -> Problem:
    tokens, vocab = logits_TV.shape
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    trained_T = torch.rand(tokens, generator=g) >= untrained
    targets_T = torch.randint(vocab, (tokens,), generator=g)
    logp_T = _logprobs(logits_TV, targets_T, spec)

    def near(x_T: Tensor, bounds: list[float | None], share_TT: Tensor) -> Tensor:
        noise_T = 0.4 * torch.randn(tokens, generator=g, dtype=torch.float64)
        return x_T - _away(noise_T, bounds, share_TT, gap)

    same_TT = (sequence_T[:, None] == sequence_T) & trained_T
    sum_TT, own_TT = same_TT.double(), torch.eye(tokens, dtype=torch.float64)
    mean_TT = sum_TT / sum_TT.sum(1, keepdim=True).clamp(min=1)
    ratio_bounds = [1 - spec.clip_low, 1 + spec.clip_high, spec.dual_clip]
    old_T = near(logp_T, ratio_bounds, own_TT if spec.ratio == "token" else mean_TT)
    rollout_T = near(old_T, [spec.is_low, spec.is_high], own_TT if spec.is_level == "token" else sum_TT)
    floats = {
        "weights": torch.rand(tokens, generator=g) + 0.1,
        "advantages": torch.randn(tokens, generator=g),
        "old_logprobs": old_T,
        "ref_logprobs": near(logp_T, [], own_TT),
        "rollout_logprobs": rollout_T,
    }
    floats = {key: x_T.float().where(trained_T, torch.nan) for key, x_T in floats.items()}
    floats["weights"] = floats["weights"].nan_to_num(0.0)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    others = {"targets": targets_T.where(trained_T, -100), "cu_seqlens": cu_seqlens, **floats}
    rows = next(iter(leaves))
    leaves = {**leaves, rows: leaves[rows].where(trained_T[:, None], torch.nan)}
    leaves, others = ({key: x.to(DEVICE) for key, x in part.items()} for part in (leaves, others))
    return Problem(leaves, others, spec)


def _logprobs(logits_TV: Tensor, targets_T: Tensor, spec: ck.LossSpec) -> Tensor:
    if spec.softcap is not None:
        logits_TV = spec.softcap * torch.tanh(logits_TV / spec.softcap)
    return (logits_TV / spec.temperature).log_softmax(-1).gather(1, targets_T[:, None])[:, 0]


def _away(x_T: Tensor, bounds: list[float | None], share_TT: Tensor, gap: float) -> Tensor:
    """x, shifted so that exp(share @ x) differs from each bound by a factor of at least exp(gap)."""
    level_T = share_TT @ x_T
    moved_T = level_T
    for bound in bounds:
        if bound is not None and bound > 0:
            off_T = moved_T - math.log(bound)
            moved_T = moved_T.where(off_T.abs() >= gap, math.log(bound) + gap * (off_T >= 0) - gap * (off_T < 0))
    return x_T + (moved_T - level_T) / share_TT.sum(1).clamp(min=1)
