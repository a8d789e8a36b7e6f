# mypy: allow-untyped-defs, allow-incomplete-defs
"""The scalar part of the loss in Triton, as in csrc/row.h: one row's terms and the derivatives of its loss.

`tokens`, `scalars` and MODES are the TokenArguments, Scalars and Modes of rows.py. A function that
returns a pair returns a value and its derivative by logp. A new objective is a new function here.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .. import spec
from ..rows import CHOICES, TERMS, Scalars

INF = tl.constexpr(math.inf)
LOG2_E = tl.constexpr(math.log2(math.e))
LN_2_HIGH = tl.constexpr(0.693359375)  # of few bits, so that its products with small integers are exact
LN_2_LOW = tl.constexpr(math.log(2) - 0.693359375)
LIMIT = tl.constexpr(spec.LIMIT)

# The choices of MODES, by the names of rows.py.
PPO = tl.constexpr(CHOICES["objective"].index("ppo"))
CISPO = tl.constexpr(CHOICES["objective"].index("cispo"))
K1 = tl.constexpr(CHOICES["kl_estimator"].index("k1"))
K2 = tl.constexpr(CHOICES["kl_estimator"].index("k2"))
UNWEIGHTED = tl.constexpr(CHOICES["is_mode"].index(None))
TRUNCATE = tl.constexpr(CHOICES["is_mode"].index("truncate"))
TOKEN = tl.constexpr(CHOICES["is_level"].index("token"))

# The places of Scalars in `coefficients`, by the names of rows.py.
RATIO_LOW = tl.constexpr(Scalars._fields.index("ratio_low"))
RATIO_HIGH = tl.constexpr(Scalars._fields.index("ratio_high"))
DUAL_CLIP = tl.constexpr(Scalars._fields.index("dual_clip"))
KL_COEF = tl.constexpr(Scalars._fields.index("kl_coef"))
ENTROPY_COEF = tl.constexpr(Scalars._fields.index("entropy_coef"))
IS_LOW = tl.constexpr(Scalars._fields.index("is_low"))
IS_HIGH = tl.constexpr(Scalars._fields.index("is_high"))

# The columns of a row's terms, by the names of rows.py.
LOSS = tl.constexpr(TERMS.index("loss"))
RATIO = tl.constexpr(TERMS.index("ratio"))
CLIP_LOW = tl.constexpr(TERMS.index("clip_low"))
CLIP_HIGH = tl.constexpr(TERMS.index("clip_high"))
APPROX_KL = tl.constexpr(TERMS.index("approx_kl"))
REF_KL = tl.constexpr(TERMS.index("ref_kl"))
IS_WEIGHT = tl.constexpr(TERMS.index("is_weight"))
ACTIVE = tl.constexpr(TERMS.index("active"))
WIDTH = tl.constexpr(len(TERMS))


@triton.jit
def _exp(x):
    """2^n exp(x - n ln 2) with n next to x log2(e): exp2 of the rounded x log2(e) would lose 1e-6 at x = 20."""
    n = tl.floor(x * LOG2_E + 0.5)
    rest = (x - n * LN_2_HIGH) - n * LN_2_LOW
    return tl.exp2(rest * LOG2_E) * tl.exp2(n)


@triton.jit
def _clamp(x):
    return tl.where(x < -LIMIT, -LIMIT, tl.where(x > LIMIT, LIMIT, x))


@triton.jit
def _clamped_exp(x):
    value = _exp(_clamp(x))
    return value, tl.where(tl.abs(x) > LIMIT, 0.0, value)


@triton.jit
def _ppo(rho, rho_slope, advantage, ratio_low, ratio_high, dual_clip):
    bound = tl.where(advantage > 0, ratio_high, ratio_low)
    held = tl.where(advantage > 0, rho > bound, (advantage <= 0) & (rho < bound))  # NaN is not clipped
    ratio = tl.where(held, bound, rho)
    dual = (advantage < 0) & (ratio > dual_clip)
    ratio = tl.where(dual, dual_clip, ratio)
    return -ratio * advantage, tl.where(held | dual, 0.0, -rho_slope * advantage)


@triton.jit
def _policy(rho, rho_slope, advantage, logp, ratio_low, ratio_high, dual_clip, OBJECTIVE: tl.constexpr):
    if OBJECTIVE == PPO:
        return _ppo(rho, rho_slope, advantage, ratio_low, ratio_high, dual_clip)
    elif OBJECTIVE == CISPO:
        slope = -tl.where(rho > ratio_high, ratio_high, rho) * advantage
        return slope * logp, slope
    else:
        return -advantage * logp, -advantage


@triton.jit
def _kl(logp, ref, rho, rho_slope, ESTIMATOR: tl.constexpr, RATIO: tl.constexpr):
    x = ref - logp
    if ESTIMATOR == K1:
        value, slope = -x, 1.0
    elif ESTIMATOR == K2:
        value, slope = 0.5 * x * x, -x
    else:
        e = _exp(_clamp(x))
        value, slope = e - _clamp(x) - 1.0, tl.where(tl.abs(x) > LIMIT, 0.0, 1.0 - e)
    if RATIO:
        value, slope = value * rho, slope * rho + value * rho_slope
    return value, slope


@triton.jit
def _importance(x, old_logp, is_low, is_high, MODE: tl.constexpr, LEVEL: tl.constexpr):
    if MODE == UNWEIGHTED:
        return 1.0
    else:
        if LEVEL == TOKEN:
            x = old_logp - x
        w = _exp(_clamp(x))
        if MODE == TRUNCATE:
            return tl.where(w > is_high, is_high, w)
        else:
            return tl.where((w < is_low) | (w > is_high), 0.0, w)


@triton.jit
def _coefficient(tokens, scalar, AT: tl.constexpr):
    """From the call's arguments, or from device memory, which a captured graph reads at each replay."""
    if tokens.coefficients is not None:
        scalar = tl.load(tokens.coefficients + AT)
    return scalar


@triton.jit
def _given(pointer, row):
    value = 0.0
    if pointer is not None:
        value = tl.load(pointer + row)
    return value


@triton.jit
def row_arguments(row, tokens):
    """Arguments of `loss_terms` for a row, loaded before the logits, which take longer. 0 if absent."""
    return (
        tl.load(tokens.advantage + row),
        _given(tokens.old_logp, row),
        _given(tokens.ref_logp, row),
        _given(tokens.importance, row),
        _given(tokens.sequence_log_ratio, row),
    )


@triton.jit
def loss_terms(row, arguments, weight, logp, entropy, results, tokens, scalars, MODES: tl.constexpr):
    """Writes the results of a row; returns the derivatives of its loss by logp and by the entropy."""
    ratio_low = _coefficient(tokens, scalars.ratio_low, RATIO_LOW)
    ratio_high = _coefficient(tokens, scalars.ratio_high, RATIO_HIGH)
    dual_clip = _coefficient(tokens, scalars.dual_clip, DUAL_CLIP)
    kl_coef = _coefficient(tokens, scalars.kl_coef, KL_COEF)
    entropy_coef = _coefficient(tokens, scalars.entropy_coef, ENTROPY_COEF)
    is_low, is_high = _coefficient(tokens, scalars.is_low, IS_LOW), _coefficient(tokens, scalars.is_high, IS_HIGH)
    advantage, old_logp, ref_logp, importance, log_ratio = arguments
    if tokens.old_logp is None:
        old_logp = logp
    token, token_slope = _clamped_exp(logp - old_logp)
    rho, rho_slope = token, token_slope
    if tokens.sequence_log_ratio is not None:
        rho = _exp(log_ratio)
        rho_slope = rho
    w = _importance(importance, old_logp, is_low, is_high, MODES.is_mode, MODES.is_level)
    policy, slope = _policy(rho, rho_slope, advantage, logp, ratio_low, ratio_high, dual_clip, MODES.objective)
    loss, slope = w * policy, w * slope
    kl = 0.0
    if tokens.ref_logp is not None:
        kl, kl_slope = _kl(logp, ref_logp, rho, rho_slope, MODES.kl_estimator, MODES.kl_ratio)
        loss += tl.where(kl_coef != 0, kl_coef * kl, 0.0)
        slope += tl.where(kl_coef != 0, kl_coef * kl_slope, 0.0)
    loss -= tl.where(entropy_coef != 0, entropy_coef * entropy, 0.0)
    slope *= weight
    tl.store(results.logp + row, logp)
    tl.store(results.entropy + row, entropy)
    terms = results.terms + row.to(tl.int64) * WIDTH
    tl.store(terms + LOSS, weight * loss)
    tl.store(terms + RATIO, rho)
    tl.store(terms + CLIP_LOW, tl.where((advantage < 0) & (rho < ratio_low), 1.0, 0.0))
    tl.store(terms + CLIP_HIGH, tl.where((advantage > 0) & (rho > ratio_high), 1.0, 0.0))
    tl.store(terms + APPROX_KL, token - _clamp(logp - old_logp) - 1.0)
    tl.store(terms + REF_KL, kl)
    tl.store(terms + IS_WEIGHT, w)
    tl.store(terms + ACTIVE, tl.where((slope != 0) | (entropy_coef != 0), 1.0, 0.0))
    return slope, -weight * entropy_coef


@triton.jit
def untrained_terms(row, results):
    """Writes the results of a row of weight 0."""
    tl.store(results.logp + row, 0.0)
    tl.store(results.entropy + row, 0.0)
    tl.store(results.terms + row.to(tl.int64) * WIDTH + tl.arange(0, WIDTH), tl.zeros([WIDTH], tl.float32))
