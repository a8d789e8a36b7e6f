"""Converts the arguments of a loss call to those of its kernels. Only operators launch kernels here.

Letters: T packed tokens, B sequences, S steps.
"""

from __future__ import annotations

from torch import Tensor

from ..credit import Credit
from ..rows import NORMS, TokenArguments
from ..spec import LossInputs, LossSpec
from . import custom_ops


def needs_logprobs(inputs: LossInputs, spec: LossSpec) -> bool:
    """True if a row's term depends on other rows' log-probs, which must then be computed before the loss kernel."""
    if inputs.old_logprobs is None:
        return spec.is_mode is not None and spec.is_level == "sequence"
    return spec.ratio == "sequence"


def token_arguments(inputs: LossInputs, spec: LossSpec, logp_T: Tensor | None, impl: str) -> TokenArguments:
    """`logp_T`: the current log-probs where `needs_logprobs` is true."""
    weight_T = plain(inputs.weights)
    old_T, ref_T, importance_T = map(_optional, (inputs.old_logprobs, inputs.ref_logprobs, inputs.rollout_logprobs))
    log_ratio_T = None
    if spec.needs_sequences:
        log_ratio_T, sum_T = _sequence_arguments(inputs, spec, weight_T, logp_T, impl)
        importance_T = importance_T if sum_T is None else sum_T
    return TokenArguments(
        weight=weight_T,
        advantage=_advantages(inputs, weight_T, impl),
        old_logp=old_T,
        ref_logp=ref_T,
        importance=None if spec.is_mode is None else importance_T,
        sequence_log_ratio=log_ratio_T,
        coefficients=spec.coefficients,
    )


def plain(x: Tensor) -> Tensor:
    """Contiguous and detached."""
    return (x.detach() if x.requires_grad else x).contiguous()


def _optional(x: Tensor | None) -> Tensor | None:
    return None if x is None else plain(x)


def _advantages(inputs: LossInputs, weight_T: Tensor, impl: str) -> Tensor:
    if inputs.credit is None:
        assert inputs.advantages is not None  # LossInputs.check
        return plain(inputs.advantages)
    credit = inputs.credit
    return custom_ops.advantages(
        *_tensors(credit),
        weight_T,
        float(credit.outcome_weight),
        float(credit.process_weight),
        float(credit.std_floor),
        NORMS.index(credit.norm),
        impl,
    )


def _tensors(credit: Credit) -> tuple[Tensor | None, ...]:
    fields = (credit.step_starts, credit.step_wrong, credit.outcome, credit.group, credit.cu_seqlens)
    return *map(plain, fields), _optional(credit.stats)


def _sequence_arguments(
    inputs: LossInputs, spec: LossSpec, weight_T: Tensor, logp_T: Tensor | None, impl: str
) -> tuple[Tensor | None, Tensor | None]:
    """log s_i and the sequence's sum of old - rollout, if the spec uses them."""
    assert inputs.offsets is not None  # LossInputs.check
    wants = spec.ratio == "sequence", spec.is_mode is not None and spec.is_level == "sequence"
    beside = logp_T, _optional(inputs.old_logprobs), _optional(inputs.rollout_logprobs)
    sums = custom_ops.sequences(weight_T, plain(inputs.offsets), *beside, *wants, impl)
    log_ratio_T, sum_T = (x if want else None for x, want in zip(sums, wants, strict=True))
    return log_ratio_T, sum_T
