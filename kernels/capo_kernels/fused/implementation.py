"""An implementation made from row kernels: the functions that `reference` has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import derive
from ..rows import RowKernels
from ..spec import Head, LossInputs, LossSpec, PolicyLoss
from . import autograd, linear
from .custom_ops import KERNELS


@dataclass(frozen=True)
class Fused:
    """One of triton, cuda and cpu."""

    name: str

    @classmethod
    def of(cls, kernels: RowKernels) -> Fused:
        KERNELS[kernels.name] = kernels
        return cls(kernels.name)

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        return KERNELS[self.name].refuses(device, dtype, vocab)

    def logprobs(self, logits_TV: Tensor, targets_T: Tensor, head: Head, entropy: bool) -> tuple[Tensor, ...]:
        both = autograd.logprobs(logits_TV, targets_T, head, self.name)
        return both if entropy else both[:1]

    def linear_logprobs(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        head: Head,
        entropy: bool,
        chunk: int,
        wide_logits: bool,
    ) -> tuple[Tensor, ...]:
        plan = linear.Plan(self.name, chunk, wide_logits)
        both = linear.linear_logprobs(hidden_TH, weight_VH, bias_V, targets_T, head, plan)
        return both if entropy else both[:1]

    def policy_loss(
        self, logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec, inplace: bool
    ) -> PolicyLoss:
        return self._result(autograd.policy_loss(logits_TV, targets_T, inputs, spec, inplace, self.name))

    def linear_policy_loss(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        inputs: LossInputs,
        spec: LossSpec,
        rows_R: Tensor | None,
        chunk: int,
        wide_logits: bool,
    ) -> PolicyLoss:
        plan = linear.Plan(self.name, chunk, wide_logits)
        return self._result(
            linear.linear_policy_loss(hidden_TH, weight_VH, bias_V, targets_T, inputs, spec, rows_R, plan)
        )

    def _result(self, outputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> PolicyLoss:
        loss, logp_T, entropy_T, raw_M = outputs
        return PolicyLoss(loss, logp_T, entropy_T, derive(raw_M), self.name)
