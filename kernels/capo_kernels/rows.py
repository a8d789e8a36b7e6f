"""The arguments and results of the row kernels: the interface under triton, cuda and cpu.

Letters: T tokens (rows), V vocabulary, B sequences, S steps. `csrc/capo.h` is the same in C.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class TokenArguments(NamedTuple):
    """What a row of the loss has beside its logits: contiguous, on the logits' device, None where absent."""

    weight: Tensor
    """float32 [T]; a row of weight 0 is not read."""
    advantage: Tensor | None
    """float32 [T], or else the four of credit:"""
    step: Tensor | None
    """int32 [T], index into `process`; 0 where a token belongs to no step."""
    sequence: Tensor | None
    """int32 [T], index into `reward`."""
    process: Tensor | None
    """float32 [S + 2]: 0, -P wrong of each step, NaN for a step without a vote."""
    reward: Tensor | None
    """float32 [B, 5]: C outcome, outcome shift and scale, process shift and scale.
    A = (reward0 - reward1) reward2 + (process - reward3) reward4."""
    old_logp: Tensor | None
    """float32 [T]; None: the current log-probs."""
    ref_logp: Tensor | None
    """float32 [T]."""
    importance: Tensor | None
    """float32 [T]: rollout log-probs, or at sequence level (`is_level`) the sequence's sum of old - rollout."""
    sequence_log_ratio: Tensor | None
    """float32 [T], log s_i, clamped; None: token ratios."""

    def take(self, rows: Tensor | slice | None) -> TokenArguments:
        """Those of some rows; None: of all."""
        if rows is None:
            return self
        per_token = {
            name: x[rows] for name, x in self._asdict().items() if x is not None and name not in ("process", "reward")
        }
        return self._replace(**per_token)


CHOICES: dict[str, tuple[str | None, ...]] = {
    "objective": ("ppo", "cispo", "reinforce"),
    "ratio": ("token", "sequence"),
    "kl_estimator": ("k1", "k2", "k3"),
    "is_mode": (None, "truncate", "mask"),
    "is_level": ("token", "sequence"),
}
"""The values of a LossSpec's fields that name something. A row kernel knows each by its place here."""


class Modes(NamedTuple):
    """The choices of a LossSpec, by their places in CHOICES; they are compile-time constants of a kernel."""

    objective: int
    kl_estimator: int
    kl_ratio: int
    """0 or 1."""
    is_mode: int
    is_level: int


class Scalars(NamedTuple):
    """The numbers of a LossSpec; they are run-time arguments of a kernel, so that annealing recompiles nothing."""

    ratio_low: float
    """1 - clip_low."""
    ratio_high: float
    """1 + clip_high."""
    dual_clip: float
    """inf where off."""
    kl_coef: float
    entropy_coef: float
    is_low: float
    is_high: float
    """inf where off."""
    temperature: float
    softcap: float
    """0 where off."""


TERMS = (
    "logp",
    "entropy",
    "loss",  # weight (w l + kl_coef KL - entropy_coef H)
    "tokens",
    "ratio",
    "clip_low",
    "clip_high",
    "approx_kl",
    "ref_kl",
    "is_weight",
    "is_weight_sq",
    "active",  # 1 where the derivative by logp or H is not 0
    "advantage",
    "neg_ratio_max",
    "ratio_max",
    "is_weight_max",
)
"""The columns of a loss kernel's result. A row of weight 0 has 0 in all but the last three, which are -inf there."""


class RowKernels(Protocol):
    """One set of them. Rows of `logits` and `grad` are contiguous, any stride apart; logits bfloat16, float16 or
    float32; targets int32 [T] contiguous. `grad`, in the dtype of the logits, may be the logits themselves."""

    name: str

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        """Why it can't take such logits, in a line, or None. Plain Python that torch.compile can trace."""

    def logprobs(
        self, logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float
    ) -> tuple[Tensor, Tensor]:
        """(logp, entropy), float32 [T] each; 0 in rows of weight 0, which are not read. One read."""

    def dlogits(
        self,
        logits: Tensor,
        targets: Tensor,
        dlogp: Tensor,
        dentropy: Tensor | None,
        temperature: float,
        softcap: float,
        grad: Tensor,
    ) -> None:
        """Writes the gradient for derivatives by logp and by the entropy, float32 [T] each. A row whose two derivatives
        are 0 is not read and gets 0. The row's sums are formed again: kept from `logprobs` in float32, their logarithm
        would cost the gradient digits at large logits."""

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        tokens: TokenArguments,
        modes: Modes,
        scalars: Scalars,
        terms: Tensor,
        grad: Tensor | None,
    ) -> None:
        """Writes terms, float32 [T, 16] (TERMS), and the gradient of sum(terms[:, loss]) unless grad is None."""

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        """grad [T, V] or [V] *= factor (float32, 0-d, same device), without a sync; for nothing where it is 1."""
