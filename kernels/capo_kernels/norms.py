"""The norms: shift and scale of a group's advantages from its rewards. All in float64, in two passes.

Letters: T packed tokens, B sequences, G rows of the statistics (one per group). `floor` bounds a std from below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, zeros_like

from .segments import segment_sum

STD_ZERO = 1e-6
"""A group whose rewards have a smaller standard deviation has advantages of 0."""

Columns = tuple[Tensor, Tensor, Tensor, Tensor]
"""float64 [G] each: shift and scale of the outcome part, shift and scale of the process part."""


class Rewards(NamedTuple):
    """A batch's rewards in float64, with the row of the statistics that each token and each sequence belongs to."""

    outcome_B: Tensor
    process_T: Tensor
    total_T: Tensor
    mean_B: Tensor
    trained_T: Tensor
    trained_B: Tensor
    row_T: Tensor
    row_B: Tensor
    rows: int

    def pool_tokens(self, x_T: Tensor) -> tuple[Tensor, Tensor]:
        return _mean_std(x_T, self.row_T, self.trained_T, self.rows)

    def pool_sequences(self, x_B: Tensor) -> tuple[Tensor, Tensor]:
        return _mean_std(x_B, self.row_B, self.trained_B, self.rows)


def _mean_std(x: Tensor, row: Tensor, keep: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    count_G = segment_sum(keep.double(), row, rows).clamp(min=1)
    mean_G = segment_sum(x.where(keep, 0.0), row, rows) / count_G
    spread_G = segment_sum(((x - mean_G[row]) ** 2).where(keep, 0.0), row, rows) / count_G
    return mean_G, spread_G.sqrt()


def _scale(std_G: Tensor, floor: float) -> Tensor:
    return (1 / std_G.clamp(min=floor)).where(std_G >= STD_ZERO, 0.0)


def _group_token(r: Rewards, floor: float) -> Columns:
    mean_G, std_G = r.pool_tokens(r.total_T)
    scale_G = _scale(std_G, floor)
    return mean_G, scale_G, zeros_like(mean_G), scale_G


def _group_sequence(r: Rewards, floor: float) -> Columns:
    mean_G, std_G = r.pool_sequences(r.mean_B)
    scale_G = _scale(std_G, floor)
    return mean_G, scale_G, zeros_like(mean_G), scale_G


def _separate(r: Rewards, floor: float) -> Columns:
    outcome_G, outcome_std_G = r.pool_sequences(r.outcome_B)
    process_G, process_std_G = r.pool_tokens(r.process_T)
    return outcome_G, _scale(outcome_std_G, floor), process_G, _scale(process_std_G, floor)


def _center(r: Rewards, floor: float) -> Columns:
    return _shift_alone(r, r.pool_tokens(r.total_T)[0])


def _sequence_center(r: Rewards, floor: float) -> Columns:
    return _shift_alone(r, r.pool_sequences(r.mean_B)[0])


def _shift_alone(r: Rewards, mean_G: Tensor) -> Columns:
    # Equal rewards must give exactly 0, not float32 rounding noise: a group is dropped when its advantages are all 0.
    scale_G = (r.pool_tokens(r.total_T)[1] >= STD_ZERO).double()
    return mean_G, scale_G, zeros_like(mean_G), scale_G


def _none(r: Rewards, floor: float) -> Columns:
    zero_G, one_G = r.mean_B.new_zeros(r.rows), r.mean_B.new_ones(r.rows)
    return zero_G, one_G, zero_G, one_G


NORMS: dict[str, Callable[[Rewards, float], Columns]] = {
    "group-token": _group_token,
    "group-sequence": _group_sequence,
    "separate": _separate,
    "center": _center,
    "sequence-center": _sequence_center,
    "none": _none,
}
