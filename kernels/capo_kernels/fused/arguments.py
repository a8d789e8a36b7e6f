"""From the arguments of a loss call to those of the row kernels. A few small launches over T, none over V.

Letters: T packed tokens, B sequences, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..credit import Credit, sequence_stats, step_of_tokens
from ..rows import TokenArguments
from ..segments import segment_sum, sequence_of_tokens
from ..spec import LIMIT, LossInputs, LossSpec


def needs_logprobs(inputs: LossInputs, spec: LossSpec) -> bool:
    """Whether a row's term depends on other rows' log-probs, so that they must be known before the loss kernel."""
    if inputs.old_logprobs is None:
        return spec.is_mode is not None and spec.is_level == "sequence"
    return spec.ratio == "sequence"


def token_arguments(inputs: LossInputs, spec: LossSpec, logp_T: Tensor | None) -> TokenArguments:
    """`logp_T`: the current log-probs where `needs_logprobs` says so."""
    old_T = None if inputs.old_logprobs is None else _plain(inputs.old_logprobs)
    step_T, sequence_T, process_S, reward_B5 = _credit_arguments(inputs.credit, inputs.weights != 0)
    return TokenArguments(
        weight=_plain(inputs.weights),
        advantage=None if inputs.advantages is None else _plain(inputs.advantages),
        step=step_T,
        sequence=sequence_T,
        process=process_S,
        reward=reward_B5,
        old_logp=old_T,
        ref_logp=None if inputs.ref_logprobs is None else _plain(inputs.ref_logprobs),
        importance=_importance(inputs, spec, old_T if old_T is not None else logp_T),
        sequence_log_ratio=_sequence_log_ratio(inputs, spec, logp_T),
    )


def _plain(x: Tensor) -> Tensor:
    return x.detach().contiguous()


def _credit_arguments(
    credit: Credit | None, trained_T: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    if credit is None:
        return None, None, None, None
    sequence_T = sequence_of_tokens(credit.cu_seqlens, trained_T.shape[0])
    step_T = step_of_tokens(credit, sequence_T)
    steps = credit.step_wrong.shape[0]
    process_S = torch.nn.functional.pad(-credit.process_weight * credit.step_wrong, (1, 0))
    # A step without a vote (S != step_starts.sum()) must not be read from beyond the votes: its advantage is NaN.
    process_S = torch.nn.functional.pad(process_S, (0, 1), value=torch.nan)
    outcome_B1 = (credit.outcome_weight * credit.outcome).unsqueeze(1)
    reward_B5 = torch.cat([outcome_B1, sequence_stats(credit, trained_T)], dim=1)
    return (step_T + 1).clamp(max=steps + 1).int(), sequence_T.int(), process_S, reward_B5


def _importance(inputs: LossInputs, spec: LossSpec, old_T: Tensor | None) -> Tensor | None:
    if spec.is_mode is None:
        return None
    assert inputs.rollout_logprobs is not None  # LossInputs.check
    rollout_T = _plain(inputs.rollout_logprobs)
    if spec.is_level == "token":
        return rollout_T
    assert old_T is not None  # needs_logprobs
    return _sequence_sum(old_T - rollout_T, inputs)[0]


def _sequence_log_ratio(inputs: LossInputs, spec: LossSpec, logp_T: Tensor | None) -> Tensor | None:
    if spec.ratio == "token":
        return None
    if inputs.old_logprobs is None:
        return torch.zeros_like(inputs.weights)
    assert logp_T is not None  # needs_logprobs
    sum_T, count_T = _sequence_sum(logp_T - inputs.old_logprobs.detach(), inputs)
    return (sum_T / count_T.clamp(min=1)).clamp(-LIMIT, LIMIT)


def _sequence_sum(x_T: Tensor, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Each token's sum over the trained tokens of its sequence, and their number, float32 [T] each."""
    assert inputs.cu_seqlens is not None  # LossInputs.check
    trained_T, sequences = inputs.weights != 0, inputs.cu_seqlens.shape[0] - 1
    sequence_T = sequence_of_tokens(inputs.cu_seqlens, trained_T.shape[0])

    def total(y_T: Tensor) -> Tensor:
        # In float64 the order of a device's atomic additions does not show in the float32 result.
        return segment_sum(y_T.where(trained_T, 0).double(), sequence_T, sequences)[sequence_T].float()

    return total(x_T), total(trained_T)
