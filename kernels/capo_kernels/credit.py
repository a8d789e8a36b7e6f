"""Step credit: from votes on steps and verdicts on answers to one advantage per token, and the tokens' loss weights.

Letters: T packed tokens, B sequences, S steps, G groups. Sums are over trained tokens (the mask) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checks import (
    INTS,
    check_choice,
    check_cu_seqlens,
    check_number,
    check_offsets,
    check_range,
    check_tensor,
    reads_values,
)
from .norms import NORMS, Rewards
from .segments import segment_sum, sequence_of_tokens

MOST_GROUPS = 2**24
"""`credit_stats` has a row for each id up to the highest, also for absent ones."""

Norm = Literal["group-token", "group-sequence", "separate", "center", "sequence-center", "none"]


@dataclass(frozen=True, eq=False)
class Credit:
    """Votes on steps and verdicts on answers, packed; the token reward is `R = C outcome - P wrong` (paper, Eq. 1).

    `A = (R - mean) / max(std, std_floor)` (paper, Eq. 2, where std_floor = 0), 0 where std < 1e-6, with population std.
    The norm is the set: `group-token` (the paper) pools the group's tokens; `group-sequence` takes its sequences'
    mean rewards; `separate` scales C outcome over the sequences and -P wrong over the tokens and adds both; `center`
    and `sequence-center` subtract the mean of group-token and of group-sequence without division; `none` is R.

    Raises ValueError or TypeError, naming the field, for a bad shape, dtype, device or value.
    """

    step_starts: Tensor
    """bool [T], True on the first token of each step; tokens before the first belong to no step."""
    step_wrong: Tensor
    """float32 [S] in [0, 1], the vote on each step, in packed order; S = step_starts.sum()."""
    outcome: Tensor
    """float32 [B], the verdict on each sequence's answer."""
    group: Tensor
    """int [B], any ids >= 0: sequences with the same id share a prompt."""
    cu_seqlens: Tensor
    """int32 [B + 1], from 0 to T."""
    outcome_weight: float = 2.0
    process_weight: float = 1.0
    norm: Norm = "group-token"
    std_floor: float = 0.0
    stats: Tensor | None = None
    """float32 [G, 4] of `credit_stats` over whole groups, row g for group id g: required if this batch has only part of
    a group. None: this batch has whole groups."""

    def __post_init__(self) -> None:
        check_tensor("step_starts", self.step_starts, {"T": None}, (torch.bool,), None)
        device = self.step_starts.device
        check_tensor("step_wrong", self.step_wrong, {"S": None}, (torch.float32,), device)
        check_tensor("outcome", self.outcome, {"B": None}, (torch.float32,), device)
        check_tensor("group", self.group, {"B": self.outcome.shape[0]}, INTS, device)
        check_offsets(self.cu_seqlens, self.outcome.shape[0] + 1, device)
        check_choice("norm", self.norm, tuple(NORMS))
        check_number("outcome_weight", self.outcome_weight, 0)
        check_number("process_weight", self.process_weight, 0)
        check_number("std_floor", self.std_floor, 0)
        if self.stats is not None:
            check_tensor("stats", self.stats, {"G": None, "4": 4}, (torch.float32,), device)
        if reads_values(self.step_starts, self.step_wrong, self.group, self.cu_seqlens):
            self._check_values()

    def _check_values(self) -> None:
        check_cu_seqlens(self.cu_seqlens, self.step_starts.shape[0])
        check_range("step_wrong", self.step_wrong, 0, 1)
        highest, reason = math.inf, ""
        if self.stats is not None:
            rows = self.stats.shape[0]
            highest, reason = rows - 1, f" (stats has {rows} row{'' if rows == 1 else 's'})"
        check_range("group", self.group, 0, highest, reason=reason)
        steps = int(self.step_starts.count_nonzero())
        if self.step_wrong.shape[0] != steps:
            raise ValueError(f"step_wrong: got S = {self.step_wrong.shape[0]}, want S = step_starts.sum() = {steps}")


def credit_stats(credit: Credit, mask: Tensor) -> Tensor:
    """float32 [G, 4]: shift and scale of the outcome part, shift and scale of the process part; row g for group id g.

    Computed in float64 and two passes over whole groups; G is the highest id plus one (reading it from a device
    tensor is the one host sync in this package). Rows of absent ids, and of groups without a trained token, have
    scale 0 wherever the norm divides. `mask`: bool [T], the trained tokens.
    """
    _check_mask(mask, credit)
    groups = int(credit.group.max()) + 1 if credit.group.numel() else 0
    if groups > MOST_GROUPS:
        raise ValueError(f"group: got {groups - 1}, want ids < {MOST_GROUPS}; number the groups 0 to G - 1")
    return _stats(credit, mask, credit.group.long(), groups)


def token_advantages(credit: Credit, mask: Tensor) -> Tensor:
    """float32 [T]: `A = (C outcome - shift0) scale0 + (-P wrong - shift1) scale1`, 0 outside the mask (bool [T]).

    With credit.stats=None the batch must have whole groups.
    """
    _check_mask(mask, credit)
    sequence_T = sequence_of_tokens(credit.cu_seqlens, mask.shape[0])
    shift0_T, scale0_T, shift1_T, scale1_T = sequence_stats(credit, mask)[sequence_T].unbind(-1)
    outcome_T, process_T = _rewards(credit, sequence_T, torch.float32)
    return ((outcome_T - shift0_T) * scale0_T + (process_T - shift1_T) * scale1_T).where(mask, 0.0)


def sequence_stats(credit: Credit, mask: Tensor) -> Tensor:
    """float32 [B, 4], for each sequence the `credit_stats` row of its group."""
    if credit.stats is not None:
        return credit.stats[credit.group.long()]
    # The rank of each id in sorted order: a row per group in [0, B) without reading the highest id from the device.
    row_B = torch.searchsorted(credit.group.sort().values, credit.group)
    return _stats(credit, mask, row_B, credit.group.shape[0])[row_B]


def step_of_tokens(credit: Credit, sequence_T: Tensor) -> Tensor:
    """int64 [T], the index of each token's step; -1 for a token before its sequence's first step."""
    seen_T = credit.step_starts.cumsum(0)
    seen_before_B = torch.nn.functional.pad(seen_T, (1, 0))[credit.cu_seqlens[:-1].long()]
    return (seen_T - 1).where(seen_T > seen_before_B[sequence_T], -1)


def token_weights(cu_seqlens: Tensor, mask: Tensor, mode: str, denominator: float | Tensor | None = None) -> Tensor:
    """float32 [T], the share of each token in the loss, 0 outside the mask (bool [T]).

    `sequence-mean` (the paper): 1 / (sequences with a trained token * trained tokens of its sequence);
    `token-mean` (DAPO): 1 / trained tokens; `constant` (Dr.GRPO): 1 / denominator. An explicit denominator (a number
    or a 0-d tensor > 0) is the number of sequences with a trained token, or of trained tokens, of the whole batch: the
    losses and gradients of its micro-batches then add up exactly, over accumulation steps and ranks. DDP and FSDP
    average gradients over the ranks: call `(result.loss * world_size).backward()` there. Raises ValueError if
    `constant` has none.
    """
    check_tensor("mask", mask, {"T": None}, (torch.bool,), None)
    check_offsets(cu_seqlens, None, mask.device)
    check_choice("mode", mode, ("sequence-mean", "token-mean", "constant"))
    _check_denominator(denominator, mode)
    if reads_values(cu_seqlens):
        check_cu_seqlens(cu_seqlens, mask.shape[0])
    divisor_T = torch.ones_like(mask, dtype=torch.float64)
    if mode == "sequence-mean":
        sequence_T = sequence_of_tokens(cu_seqlens, mask.shape[0])
        length_B = segment_sum(mask.double(), sequence_T, cu_seqlens.shape[0] - 1)
        divisor_T = length_B[sequence_T]
    if denominator is None:
        denominator = (length_B > 0).sum() if mode == "sequence-mean" else mask.sum()
    return (1 / (divisor_T * denominator)).where(mask, 0.0).float()


def _stats(credit: Credit, mask_T: Tensor, row_B: Tensor, rows: int) -> Tensor:
    sequence_T = sequence_of_tokens(credit.cu_seqlens, mask_T.shape[0])
    outcome_T, process_T = _rewards(credit, sequence_T, torch.float64)
    total_T = outcome_T + process_T
    length_B = segment_sum(mask_T.double(), sequence_T, row_B.shape[0])
    mean_B = segment_sum(total_T.where(mask_T, 0.0), sequence_T, row_B.shape[0]) / length_B
    outcome_B = credit.outcome.double() * credit.outcome_weight
    row_T = row_B[sequence_T]
    rewards = Rewards(outcome_B, process_T, total_T, mean_B, mask_T, length_B > 0, row_T, row_B, rows)
    return torch.stack(NORMS[credit.norm](rewards, credit.std_floor), dim=-1).float()


def _rewards(credit: Credit, sequence_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """C outcome and -P wrong, [T] each."""
    wrong_T = torch.nn.functional.pad(credit.step_wrong, (1, 0))[step_of_tokens(credit, sequence_T) + 1]
    outcome_T = credit.outcome[sequence_T].to(dtype)
    return credit.outcome_weight * outcome_T, -credit.process_weight * wrong_T.to(dtype)


def _check_mask(mask: Tensor, credit: Credit) -> None:
    if not isinstance(credit, Credit):
        raise TypeError(f"credit: got {type(credit).__name__}, want Credit")
    check_tensor("mask", mask, {"T": credit.step_starts.shape[0]}, (torch.bool,), credit.step_starts.device)


def _check_denominator(denominator: float | Tensor | None, mode: str) -> None:
    if mode == "constant" and denominator is None:
        raise ValueError("denominator: got None with mode='constant', want a number > 0")
    if isinstance(denominator, Tensor):
        if denominator.dim() != 0:
            raise ValueError(f"denominator: got shape {list(denominator.shape)}, want a number or a 0-d tensor")
        if reads_values(denominator):
            check_number("denominator", denominator.item(), 0, above=True)
    else:
        check_number("denominator", denominator, 0, above=True, optional=True)
