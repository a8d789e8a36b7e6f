"""The scalar part of the loss: from log-probs and the other [T] arguments to each token's term.

Letters: T packed tokens, B sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..credit import token_advantages
from ..segments import segment_sum, sequence_of_tokens
from ..spec import LIMIT, LossInputs, LossSpec


class Tokens(NamedTuple):
    """The arguments beside the logits, [T] each, in the dtype of the computation, 0 in rows that are not trained."""

    weight_T: Tensor
    trained_T: Tensor
    advantage_T: Tensor
    old_T: Tensor | None
    ref_T: Tensor | None
    rollout_T: Tensor | None
    sequence_T: Tensor | None
    sequences: int

    def sequence_sum(self, x_T: Tensor) -> Tensor:
        """[T], each token's sum over the trained tokens of its sequence (x is 0 in the others)."""
        assert self.sequence_T is not None  # LossInputs.check
        return segment_sum(x_T, self.sequence_T, self.sequences)[self.sequence_T]


def masked_tokens(inputs: LossInputs, dtype: torch.dtype) -> Tokens:
    trained_T = inputs.weights != 0
    credit, advantages_T = inputs.credit, inputs.advantages
    if credit is not None:
        advantages_T = token_advantages(credit, trained_T)
    assert advantages_T is not None  # LossInputs.check

    def mask(x_T: Tensor) -> Tensor:
        return x_T.detach().to(dtype).where(trained_T, 0.0)

    logprobs_T = (inputs.old_logprobs, inputs.ref_logprobs, inputs.rollout_logprobs)
    old_T, ref_T, rollout_T = (None if x_T is None else mask(x_T) for x_T in logprobs_T)
    sequence_T, sequences = None, 0
    if inputs.offsets is not None:
        sequence_T = sequence_of_tokens(inputs.offsets, trained_T.shape[0])
        sequences = inputs.offsets.shape[0] - 1
    return Tokens(mask(inputs.weights), trained_T, mask(advantages_T), old_T, ref_T, rollout_T, sequence_T, sequences)


@dataclass(frozen=True)
class Terms:
    """[T] each: the terms that the loss sums, and their inputs."""

    diff_T: Tensor
    rho_T: Tensor
    policy_T: Tensor
    kl_T: Tensor | None
    is_weight_T: Tensor | None

    def loss(self, spec: LossSpec) -> Tensor:
        policy_T = self.policy_T if self.is_weight_T is None else self.is_weight_T * self.policy_T
        return policy_T if self.kl_T is None or spec.kl_coef == 0 else policy_T + spec.kl_coef * self.kl_T


def loss_terms(logp_T: Tensor, t: Tokens, spec: LossSpec) -> Terms:
    old_T = logp_T.detach() if t.old_T is None else t.old_T
    diff_T = (logp_T - old_T).clamp(-LIMIT, LIMIT)
    rho_T = diff_T.exp() if spec.ratio == "token" else _sequence_ratio(logp_T, old_T, t)
    policy_T = OBJECTIVES[spec.objective](rho_T, t.advantage_T, logp_T, spec)
    kl_T = None if t.ref_T is None else KL[spec.kl_estimator](logp_T, t.ref_T) * (rho_T if spec.kl_ratio else 1.0)
    return Terms(diff_T, rho_T, policy_T, kl_T, _is_weight(old_T, t, spec))


def _sequence_ratio(logp_T: Tensor, old_T: Tensor, t: Tokens) -> Tensor:
    """GSPO-token (arXiv 2507.18071): every token has its sequence's ratio, and its own gradient."""
    length_T = t.sequence_sum(t.trained_T.to(logp_T.dtype)).clamp(min=1)
    mean_T = t.sequence_sum((logp_T - old_T).detach()) / length_T
    return mean_T.clamp(-LIMIT, LIMIT).exp() * (logp_T - logp_T.detach()).exp()


def _is_weight(old_T: Tensor, t: Tokens, spec: LossSpec) -> Tensor | None:
    if spec.is_mode is None:
        return None
    assert t.rollout_T is not None  # LossInputs.check
    diff_T = old_T - t.rollout_T
    w_T = (diff_T if spec.is_level == "token" else t.sequence_sum(diff_T)).clamp(-LIMIT, LIMIT).exp()
    high = torch.inf if spec.is_high is None else spec.is_high
    if spec.is_mode == "truncate":
        return w_T.clamp(max=high)
    return w_T.where((w_T >= spec.is_low) & (w_T <= high), 0.0)


def _ppo(rho_T: Tensor, advantage_T: Tensor, logp_T: Tensor, spec: LossSpec) -> Tensor:
    clipped_T = rho_T.clamp(1 - spec.clip_low, 1 + spec.clip_high)
    loss_T = -torch.minimum(rho_T * advantage_T, clipped_T * advantage_T)
    if spec.dual_clip is None:
        return loss_T
    return torch.minimum(loss_T, -spec.dual_clip * advantage_T).where(advantage_T < 0, loss_T)


def _cispo(rho_T: Tensor, advantage_T: Tensor, logp_T: Tensor, spec: LossSpec) -> Tensor:
    return -rho_T.detach().clamp(max=1 + spec.clip_high) * advantage_T * logp_T


def _reinforce(rho_T: Tensor, advantage_T: Tensor, logp_T: Tensor, spec: LossSpec) -> Tensor:
    return -advantage_T * logp_T


def _k1(logp_T: Tensor, ref_T: Tensor) -> Tensor:
    return logp_T - ref_T


def _k2(logp_T: Tensor, ref_T: Tensor) -> Tensor:
    return (logp_T - ref_T) ** 2 / 2


def _k3(logp_T: Tensor, ref_T: Tensor) -> Tensor:
    x_T = (ref_T - logp_T).clamp(-LIMIT, LIMIT)
    return x_T.exp() - x_T - 1


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor, LossSpec], Tensor]] = {
    "ppo": _ppo,
    "cispo": _cispo,
    "reinforce": _reinforce,
}
KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}
