# mypy: allow-untyped-defs, allow-incomplete-defs
"""The computations over T around the row kernels, in Triton: one program per sequence, or one for all results.

The arithmetic is that of csrc/tokens.h. Letters: T tokens, B sequences, S steps, G groups; a block has N tokens. No
figure here was measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import norms
from ..metrics import RAW
from ..rows import NORMS, CreditArguments, Results, SequenceArguments
from .triton_objective import (
    ACTIVE,
    APPROX_KL,
    CLIP_HIGH,
    CLIP_LOW,
    INF,
    IS_WEIGHT,
    LIMIT,
    LOSS,
    RATIO,
    REF_KL,
    WIDTH,
)

STD_ZERO = tl.constexpr(norms.STD_ZERO)
BLOCK = 1024

GROUP_TOKEN = tl.constexpr(NORMS.index("group-token"))
GROUP_SEQUENCE = tl.constexpr(NORMS.index("group-sequence"))
SEPARATE = tl.constexpr(NORMS.index("separate"))
CENTER = tl.constexpr(NORMS.index("center"))
SEQUENCE_CENTER = tl.constexpr(NORMS.index("sequence-center"))

# The places in metrics.RAW.
TOKENS = tl.constexpr(RAW.index("tokens"))
RATIO_SUM = tl.constexpr(RAW.index("ratio_sum"))
RATIO_MIN = tl.constexpr(RAW.index("ratio_min"))
RATIO_MAX = tl.constexpr(RAW.index("ratio_max"))
CLIP_LOW_COUNT = tl.constexpr(RAW.index("clip_low_count"))
CLIP_HIGH_COUNT = tl.constexpr(RAW.index("clip_high_count"))
APPROX_KL_SUM = tl.constexpr(RAW.index("approx_kl_sum"))
REF_KL_SUM = tl.constexpr(RAW.index("ref_kl_sum"))
ENTROPY_SUM = tl.constexpr(RAW.index("entropy_sum"))
IS_WEIGHT_SUM = tl.constexpr(RAW.index("is_weight_sum"))
IS_WEIGHT_SQ_SUM = tl.constexpr(RAW.index("is_weight_sq_sum"))
IS_WEIGHT_MAX = tl.constexpr(RAW.index("is_weight_max"))
ACTIVE_COUNT = tl.constexpr(RAW.index("active_count"))

# ---- credit ----------------------------------------------------------------------------------------------------------


@triton.jit
def _zeros(N: tl.constexpr):
    return tl.zeros([N], tl.float64)


@triton.jit
def _begin(cu_seqlens, b, sequences, tokens):
    """The first token of sequence b (one past the last of b - 1), clamped to the valid range."""
    begin = tl.load(cu_seqlens + b).to(tl.int64)
    begin = tl.where(b == 0, 0, tl.where(b == sequences, tokens, begin))
    return tl.minimum(tl.maximum(begin, 0), tokens)


@triton.jit
def _steps_before(step_starts, end, N: tl.constexpr):
    count_N = tl.zeros([N], tl.int32)
    for first in range(0, end, N):
        t_N = first + tl.arange(0, N)
        count_N += (tl.load(step_starts + t_N, mask=t_N < end, other=0) != 0).to(tl.int32)
    return tl.sum(count_N, 0)


@triton.jit
def _wrong(step_starts, step_wrong, steps, t_N, end, before, seen):
    """The votes on the steps of a block's tokens, and the number of steps that begin up to its end."""
    started_N = (tl.load(step_starts + t_N, mask=t_N < end, other=0) != 0).to(tl.int32)
    seen_N = seen + tl.cumsum(started_N, 0)
    inside_N = (t_N < end) & (seen_N > before)
    known_N = inside_N & (seen_N <= steps)
    wrong_N = tl.where(inside_N, tl.load(step_wrong + seen_N - 1, mask=known_N, other=float("nan")), 0.0)
    return wrong_N, seen + tl.sum(started_N, 0)


@triton.jit(do_not_specialize=["tokens", "sequences", "steps"])
def _moments(credit, moments, tokens, sequences, steps, N: tl.constexpr):
    """Per sequence: its trained tokens, the mean of -P wrong over them, the sum of squared deviations."""
    b = tl.program_id(0)
    begin = _begin(credit.cu_seqlens, b, sequences, tokens)
    end = _begin(credit.cu_seqlens, b + 1, sequences, tokens)
    before = _steps_before(credit.step_starts, begin, N)
    count_N, total_N, spread_N = _zeros(N), _zeros(N), _zeros(N)
    seen = before
    for first in range(begin, end, N):
        t_N = first + tl.arange(0, N)
        wrong_N, seen = _wrong(credit.step_starts, credit.step_wrong, steps, t_N, end, before, seen)
        trained_N = tl.load(credit.weight + t_N, mask=t_N < end, other=0.0) != 0
        count_N += trained_N.to(tl.float64)
        total_N += tl.where(trained_N, -credit.process_weight * wrong_N.to(tl.float64), 0.0)
    count = tl.sum(count_N, 0)
    mean = tl.sum(total_N, 0) / tl.maximum(count, 1.0)
    seen = before
    for first in range(begin, end, N):
        t_N = first + tl.arange(0, N)
        wrong_N, seen = _wrong(credit.step_starts, credit.step_wrong, steps, t_N, end, before, seen)
        trained_N = tl.load(credit.weight + t_N, mask=t_N < end, other=0.0) != 0
        off_N = -credit.process_weight * wrong_N.to(tl.float64) - mean
        spread_N += tl.where(trained_N, off_N * off_N, 0.0)
    tl.store(moments + 3 * b, count)
    tl.store(moments + 3 * b + 1, mean)
    tl.store(moments + 3 * b + 2, tl.sum(spread_N, 0))


@triton.jit
def _group_rows(credit, moments, group, first, sequences, N: tl.constexpr):
    """Count, mean, spread and C outcome of the sequences of a block that are in the group; count 0 elsewhere."""
    i_N = first + tl.arange(0, N)
    same_N = (i_N < sequences) & (tl.load(credit.group + i_N, mask=i_N < sequences, other=0) == group)
    count_N = tl.load(moments + 3 * i_N, mask=same_N, other=0.0)
    mean_N = tl.load(moments + 3 * i_N + 1, mask=same_N, other=0.0)
    spread_N = tl.load(moments + 3 * i_N + 2, mask=same_N, other=0.0)
    outcome_N = credit.outcome_weight * tl.load(credit.outcome + i_N, mask=same_N, other=0.0).to(tl.float64)
    return count_N, mean_N, spread_N, outcome_N


@triton.jit
def _group_stats(credit, moments, group, sequences, NORM: tl.constexpr, N: tl.constexpr):
    tokens_N, tokens_reward_N, process_N = _zeros(N), _zeros(N), _zeros(N)
    rows_N, rows_reward_N, outcomes_N = _zeros(N), _zeros(N), _zeros(N)
    for first in range(0, sequences, N):
        n_N, m_N, _, o_N = _group_rows(credit, moments, group, first, sequences, N)
        tokens_N += n_N
        tokens_reward_N += tl.where(n_N > 0, n_N * (o_N + m_N), 0.0)
        process_N += tl.where(n_N > 0, n_N * m_N, 0.0)
        rows_N += (n_N > 0).to(tl.float64)
        rows_reward_N += tl.where(n_N > 0, o_N + m_N, 0.0)
        outcomes_N += tl.where(n_N > 0, o_N, 0.0)
    tokens, rows = tl.maximum(tl.sum(tokens_N, 0), 1.0), tl.maximum(tl.sum(rows_N, 0), 1.0)
    by_token, process = tl.sum(tokens_reward_N, 0) / tokens, tl.sum(process_N, 0) / tokens
    by_row, outcome = tl.sum(rows_reward_N, 0) / rows, tl.sum(outcomes_N, 0) / rows
    token_N, step_N, row_N, verdict_N = _zeros(N), _zeros(N), _zeros(N), _zeros(N)
    for first in range(0, sequences, N):
        n_N, m_N, spread_N, o_N = _group_rows(credit, moments, group, first, sequences, N)
        off_N = o_N + m_N - by_token
        token_N += tl.where(n_N > 0, spread_N + n_N * off_N * off_N, 0.0)
        off_N = m_N - process
        step_N += tl.where(n_N > 0, spread_N + n_N * off_N * off_N, 0.0)
        off_N = o_N + m_N - by_row
        row_N += tl.where(n_N > 0, off_N * off_N, 0.0)
        off_N = o_N - outcome
        verdict_N += tl.where(n_N > 0, off_N * off_N, 0.0)
    token_std, row_std = tl.sqrt(tl.sum(token_N, 0) / tokens), tl.sqrt(tl.sum(row_N, 0) / rows)
    step_std, verdict_std = tl.sqrt(tl.sum(step_N, 0) / tokens), tl.sqrt(tl.sum(verdict_N, 0) / rows)
    zero = outcome * 0.0
    spreads = tl.where(token_std >= STD_ZERO, 1.0, 0.0)
    if NORM == GROUP_TOKEN:
        scale = _scale(token_std, credit.std_floor)
        return by_token, scale, zero, scale
    elif NORM == GROUP_SEQUENCE:
        scale = _scale(row_std, credit.std_floor)
        return by_row, scale, zero, scale
    elif NORM == SEPARATE:
        return outcome, _scale(verdict_std, credit.std_floor), process, _scale(step_std, credit.std_floor)
    elif NORM == CENTER:
        return by_token, spreads, zero, spreads
    elif NORM == SEQUENCE_CENTER:
        return by_row, spreads, zero, spreads
    else:
        return zero, zero + 1.0, zero, zero + 1.0


@triton.jit
def _scale(std, floor):
    return tl.where(std >= STD_ZERO, 1.0 / tl.where(std < floor, floor, std), 0.0)


@triton.jit
def _given_stats(credit, group, groups):
    known = (group >= 0) & (group < groups)
    row = credit.stats + 4 * group
    shift0, scale0 = tl.load(row, mask=known, other=float("nan")), tl.load(row + 1, mask=known, other=float("nan"))
    return (
        shift0,
        scale0,
        tl.load(row + 2, mask=known, other=float("nan")),
        tl.load(row + 3, mask=known, other=float("nan")),
    )


@triton.jit(do_not_specialize=["tokens", "sequences", "steps", "groups"])
def _advantages(credit, moments, advantage, tokens, sequences, steps, groups, NORM: tl.constexpr, N: tl.constexpr):
    b = tl.program_id(0)
    group = tl.load(credit.group + b).to(tl.int64)
    if credit.stats is None:
        shift0, scale0, shift1, scale1 = _group_stats(credit, moments, group, sequences, NORM, N)
    else:
        shift0, scale0, shift1, scale1 = _given_stats(credit, group, groups)
    shift0, scale0 = shift0.to(tl.float32), scale0.to(tl.float32)
    shift1, scale1 = shift1.to(tl.float32), scale1.to(tl.float32)
    begin = _begin(credit.cu_seqlens, b, sequences, tokens)
    end = _begin(credit.cu_seqlens, b + 1, sequences, tokens)
    before = _steps_before(credit.step_starts, begin, N)
    outcome = (credit.outcome_weight * tl.load(credit.outcome + b) - shift0) * scale0
    seen = before
    for first in range(begin, end, N):
        t_N = first + tl.arange(0, N)
        wrong_N, seen = _wrong(credit.step_starts, credit.step_wrong, steps, t_N, end, before, seen)
        process_N = (-credit.process_weight * wrong_N - shift1) * scale1
        tl.store(advantage + t_N, outcome + process_N, mask=t_N < end)


# ---- sequences and results -------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "sequences"])
def _sequences(of, log_ratio, importance, tokens, sequences, N: tl.constexpr):
    b = tl.program_id(0)
    begin = _begin(of.cu_seqlens, b, sequences, tokens)
    end = _begin(of.cu_seqlens, b + 1, sequences, tokens)
    count_N, ratio_N, weight_N = _zeros(N), _zeros(N), _zeros(N)
    for first in range(begin, end, N):
        t_N = first + tl.arange(0, N)
        trained_N = tl.load(of.weight + t_N, mask=t_N < end, other=0.0) != 0
        count_N += trained_N.to(tl.float64)
        if log_ratio is not None and of.old_logp is not None:
            ratio_N += _difference(of.logp, of.old_logp, t_N, trained_N)
        if importance is not None:
            if of.old_logp is not None:
                weight_N += _difference(of.old_logp, of.rollout_logp, t_N, trained_N)
            else:
                weight_N += _difference(of.logp, of.rollout_logp, t_N, trained_N)
    mean = tl.sum(ratio_N, 0).to(tl.float32) / tl.maximum(tl.sum(count_N, 0).to(tl.float32), 1.0)
    mean = tl.where(mean < -LIMIT, -LIMIT, tl.where(mean > LIMIT, LIMIT, mean))
    for first in range(begin, end, N):
        t_N = first + tl.arange(0, N)
        if log_ratio is not None:
            tl.store(log_ratio + t_N, mean, mask=t_N < end)
        if importance is not None:
            tl.store(importance + t_N, tl.sum(weight_N, 0).to(tl.float32), mask=t_N < end)


@triton.jit
def _difference(x, y, t_N, keep_N):
    return (tl.load(x + t_N, mask=keep_N, other=0.0) - tl.load(y + t_N, mask=keep_N, other=0.0)).to(tl.float64)


@triton.jit
def _column(results, t_N, kept_N, COLUMN: tl.constexpr):
    return tl.load(results.terms + t_N.to(tl.int64) * WIDTH + COLUMN, mask=kept_N, other=0.0)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["weight"])
def _summary(weight, results, loss, raw, tokens, HAS_REF: tl.constexpr, HAS_IS: tl.constexpr, N: tl.constexpr):
    total_N, count_N, ratio_N, low_N = _zeros(N), _zeros(N), _zeros(N), _zeros(N)
    high_N, kl_N, ref_N, entropy_N = _zeros(N), _zeros(N), _zeros(N), _zeros(N)
    is_N, is_square_N, active_N = _zeros(N), _zeros(N), _zeros(N)
    least_N, most_N = tl.full([N], INF, tl.float32), tl.full([N], -INF, tl.float32)
    most_is_N = tl.full([N], -INF, tl.float32)
    for first in range(0, tokens, N):
        t_N = first + tl.arange(0, N)
        kept_N = tl.load(weight + t_N, mask=t_N < tokens, other=0.0) != 0
        rho_N, w_N = _column(results, t_N, kept_N, RATIO), _column(results, t_N, kept_N, IS_WEIGHT)
        total_N += _column(results, t_N, kept_N, LOSS).to(tl.float64)
        count_N += kept_N.to(tl.float64)
        ratio_N += rho_N.to(tl.float64)
        low_N += _column(results, t_N, kept_N, CLIP_LOW).to(tl.float64)
        high_N += _column(results, t_N, kept_N, CLIP_HIGH).to(tl.float64)
        kl_N += _column(results, t_N, kept_N, APPROX_KL).to(tl.float64)
        ref_N += _column(results, t_N, kept_N, REF_KL).to(tl.float64)
        entropy_N += tl.load(results.entropy + t_N, mask=kept_N, other=0.0).to(tl.float64)
        is_N += w_N.to(tl.float64)
        is_square_N += w_N.to(tl.float64) * w_N.to(tl.float64)
        active_N += _column(results, t_N, kept_N, ACTIVE).to(tl.float64)
        least_N = tl.minimum(least_N, tl.where(kept_N, rho_N, INF))
        most_N = tl.maximum(most_N, tl.where(kept_N, rho_N, -INF))
        most_is_N = tl.maximum(most_is_N, tl.where(kept_N, w_N, -INF))
    count, ratio, weights = tl.sum(count_N, 0), tl.sum(ratio_N, 0), tl.sum(is_N, 0)
    # A maximum may drop a NaN, a sum can't; ratios and weights are finite.
    some, known, known_is = count > 0, ratio == ratio, weights == weights
    tl.store(loss, tl.sum(total_N, 0))
    tl.store(raw + TOKENS, count)
    tl.store(raw + RATIO_SUM, ratio)
    tl.store(raw + RATIO_MIN, tl.where(some & known, tl.min(least_N, 0), float("nan")))
    tl.store(raw + RATIO_MAX, tl.where(some & known, tl.max(most_N, 0), float("nan")))
    tl.store(raw + CLIP_LOW_COUNT, tl.sum(low_N, 0))
    tl.store(raw + CLIP_HIGH_COUNT, tl.sum(high_N, 0))
    tl.store(raw + APPROX_KL_SUM, tl.sum(kl_N, 0))
    tl.store(raw + REF_KL_SUM, tl.sum(ref_N, 0) if HAS_REF else float("nan"))
    tl.store(raw + ENTROPY_SUM, tl.sum(entropy_N, 0))
    tl.store(raw + IS_WEIGHT_SUM, weights if HAS_IS else float("nan"))
    tl.store(raw + IS_WEIGHT_SQ_SUM, tl.sum(is_square_N, 0) if HAS_IS else float("nan"))
    tl.store(
        raw + IS_WEIGHT_MAX, tl.where(some & known_is, tl.max(most_is_N, 0), float("nan")) if HAS_IS else float("nan")
    )
    tl.store(raw + ACTIVE_COUNT, tl.sum(active_N, 0))


# ---- launchers -------------------------------------------------------------------------------------------------------


class TritonTokens:
    """The methods of the row kernels (rows.py) that compute over T."""

    def advantages(self, credit: CreditArguments, advantage: Tensor) -> None:
        tokens, sequences, steps = advantage.shape[0], credit.outcome.shape[0], credit.step_wrong.shape[0]
        if sequences == 0:
            return
        norm, moments = credit.norm, None
        groups = 0 if credit.stats is None else credit.stats.shape[0]
        credit = credit._replace(step_starts=credit.step_starts.view(torch.uint8))
        with torch.cuda.device_of(advantage):
            if credit.stats is None:
                moments = advantage.new_empty(sequences, 3, dtype=torch.float64)
                _moments[(sequences,)](credit, moments, tokens, sequences, steps, N=BLOCK)
            _advantages[(sequences,)](credit, moments, advantage, tokens, sequences, steps, groups, NORM=norm, N=BLOCK)

    def sequences(self, arguments: SequenceArguments, log_ratio: Tensor | None, importance: Tensor | None) -> None:
        sequences = arguments.cu_seqlens.shape[0] - 1
        if sequences == 0:
            return
        with torch.cuda.device_of(arguments.weight):
            _sequences[(sequences,)](arguments, log_ratio, importance, arguments.weight.shape[0], sequences, N=BLOCK)

    def summary(self, weight: Tensor, results: Results, has_ref: bool, has_is: bool, loss: Tensor, raw: Tensor) -> None:
        with torch.cuda.device_of(weight):
            _summary[(1,)](
                weight, results, loss, raw, weight.shape[0], HAS_REF=has_ref, HAS_IS=has_is, N=BLOCK, num_warps=8
            )
