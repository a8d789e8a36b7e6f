"""Random loss calls in any dtype, on logits or on a linear head, for the implementations to be compared on.

Letters: T packed tokens, H hidden, V vocabulary. Rows of weight 0 (a share of `untrained`) hold NaN in every argument
and -100 as their target. Ratios and importance weights keep away from the bounds that they are compared with, so that
rounding sends no row through another branch than float64 takes.
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
    """Made once for all implementations: its tensors are not to be written to."""

    leaves: dict[str, Tensor]
    """What is differentiated: logits; or hidden, weight and bias."""
    beside: dict[str, Any]
    """The other arguments of the call but for spec and impl."""
    spec: ck.LossSpec

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.leaves.values())).dtype

    @property
    def linear(self) -> bool:
        return "hidden" in self.leaves

    @property
    def trained_T(self) -> Tensor:
        return self.beside["weights"] != 0

    @cached_property
    def double(self) -> Problem:
        """The same values in float64."""

        def wide(x: Any) -> Any:
            return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

        leaves, beside = ({key: wide(x) for key, x in part.items()} for part in (self.leaves, self.beside))
        return Problem(leaves, beside, self.spec)

    def tidy(self) -> Problem:
        """Without the NaN in the leaves."""
        return replace(self, leaves={name: x.nan_to_num(0.0) for name, x in self.leaves.items()})

    def call(self, impl: str, leaves: dict[str, Tensor] | None = None, **changes: Any) -> ck.PolicyLoss:
        op = ck.linear_policy_loss if self.linear else ck.policy_loss
        return op(**{**(leaves or self.leaves), **self.beside, "spec": self.spec, "impl": impl, **changes})


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
    # The logits themselves are rounded to the dtype, and with them the ratios.
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
    beside = {"targets": targets_T.where(trained_T, -100), "cu_seqlens": cu_seqlens, **floats}
    rows = next(iter(leaves))
    leaves = {**leaves, rows: leaves[rows].where(trained_T[:, None], torch.nan)}
    leaves, beside = ({key: x.to(DEVICE) for key, x in part.items()} for part in (leaves, beside))
    return Problem(leaves, beside, spec)


def _logprobs(logits_TV: Tensor, targets_T: Tensor, spec: ck.LossSpec) -> Tensor:
    if spec.softcap is not None:
        logits_TV = spec.softcap * torch.tanh(logits_TV / spec.softcap)
    return (logits_TV / spec.temperature).log_softmax(-1).gather(1, targets_T[:, None])[:, 0]


def _away(x_T: Tensor, bounds: list[float | None], share_TT: Tensor, gap: float) -> Tensor:
    """x, shifted so that exp(share @ x) is a factor exp(gap) or more from each bound."""
    level_T = share_TT @ x_T
    moved_T = level_T
    for bound in bounds:
        if bound is not None and bound > 0:
            off_T = moved_T - math.log(bound)
            moved_T = moved_T.where(off_T.abs() >= gap, math.log(bound) + gap * (off_T >= 0) - gap * (off_T < 0))
    return x_T + (moved_T - level_T) / share_TT.sum(1).clamp(min=1)
