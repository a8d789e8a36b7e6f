"""The structures of csrc/capo.h for ctypes, field by field, and functions that fill them from tensors."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from ..rows import CreditArguments, Modes, Results, Scalars, SequenceArguments, TokenArguments

ABI = 2
"""CAPO_ABI of csrc/capo.h, which this file mirrors."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class CLogits(ctypes.Structure):
    """capo_logits."""

    _fields_ = (
        ("logits", c_void_p),
        ("grad", c_void_p),
        ("targets", c_void_p),
        ("weight", c_void_p),
        ("tokens", c_int64),
        ("vocab", c_int64),
        ("stride", c_int64),
        ("grad_stride", c_int64),
        ("temperature", c_float),
        ("softcap", c_float),
        ("dtype", c_int32),
        ("wide_targets", c_int32),
    )


class CTokens(ctypes.Structure):
    """capo_tokens."""

    _fields_ = tuple((name, c_void_p) for name in TokenArguments._fields if name != "weight")


class CSpec(ctypes.Structure):
    """capo_spec."""

    _fields_ = (
        *((name, c_int32) for name in Modes._fields),
        *((name, c_float) for name in Scalars._fields if name not in ("temperature", "softcap")),
    )


class CResults(ctypes.Structure):
    """capo_results."""

    _fields_ = tuple((name, c_void_p) for name in Results._fields)


class CSummary(ctypes.Structure):
    """capo_summary."""

    _fields_ = (
        ("weight", c_void_p),
        ("entropy", c_void_p),
        ("terms", c_void_p),
        ("tokens", c_int64),
        ("has_ref", c_int32),
        ("has_is", c_int32),
        ("loss", c_void_p),
        ("raw", c_void_p),
    )


class CCredit(ctypes.Structure):
    """capo_credit."""

    _fields_ = (
        *((name, c_void_p) for name in CreditArguments._fields[:7]),
        ("moments", c_void_p),
        ("advantage", c_void_p),
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("steps", c_int64),
        ("groups", c_int64),
        ("outcome_weight", c_double),
        ("process_weight", c_double),
        ("std_floor", c_double),
        ("norm", c_int32),
        ("wide_groups", c_int32),
    )


class CSequences(ctypes.Structure):
    """capo_sequences."""

    _fields_ = (
        *((name, c_void_p) for name in SequenceArguments._fields),
        ("log_ratio", c_void_p),
        ("importance", c_void_p),
        ("tokens", c_int64),
        ("sequences", c_int64),
    )


def logits_of(
    logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float, grad: Tensor | None
) -> CLogits:
    return CLogits(
        logits.data_ptr(),
        pointer(grad),
        targets.data_ptr(),
        pointer(weight),
        *logits.shape,
        logits.stride(0),
        0 if grad is None else grad.stride(0),
        temperature,
        softcap,
        DTYPES[logits.dtype],
        targets.dtype == torch.int64,
    )


def credit_of(credit: CreditArguments, moments: Tensor | None, advantage: Tensor) -> CCredit:
    return CCredit(
        *map(pointer, (*credit[:7], moments, advantage)),
        advantage.shape[0],
        credit.outcome.shape[0],
        credit.step_wrong.shape[0],
        0 if credit.stats is None else credit.stats.shape[0],
        *credit[7:],
        credit.group.dtype == torch.int64,
    )


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
