"""The arguments and results of the row kernels: the interface under triton, cuda and cpu.

Letters: T tokens (rows), V vocabulary, B sequences, S steps. `csrc/capo.h` is the same in C.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import norms


class TokenArguments(NamedTuple):
    """Per-token arguments of the loss: float32 [T], contiguous, on one device, None if absent."""

    weight: Tensor
    """A row of weight 0 is not read."""
    advantage: Tensor
    old_logp: Tensor | None
    """None: the current log-probs."""
    ref_logp: Tensor | None
    importance: Tensor | None
    """Rollout log-probs, or at sequence level (`is_level`) the sequence's sum of old - rollout."""
    sequence_log_ratio: Tensor | None
    """log s_i, clamped; None: token ratios."""
    coefficients: Tensor | None
    """float32 [9], replaces the call's Scalars except temperature and softcap; None: the call's are used."""

    def take(self, rows: Tensor | slice | None) -> TokenArguments:
        """The arguments of some rows; None: all rows."""
        if rows is None:
            return self
        per_token = {name: x[rows] for name, x in self._asdict().items() if x is not None and name != "coefficients"}
        return self._replace(**per_token)


class CreditArguments(NamedTuple):
    """A Credit (credit.py) with contiguous tensors on one device."""

    step_starts: Tensor
    """bool [T]."""
    step_wrong: Tensor
    """float32 [S]."""
    outcome: Tensor
    """float32 [B]."""
    group: Tensor
    """int32 or int64 [B]."""
    cu_seqlens: Tensor
    """int32 [B + 1]."""
    stats: Tensor | None
    """float32 [G, 4]; None: computed for the groups here over the tokens of non-zero weight."""
    weight: Tensor
    """float32 [T]."""
    outcome_weight: float
    process_weight: float
    std_floor: float
    norm: int
    """Index in NORMS."""


class SequenceArguments(NamedTuple):
    """Inputs of the sums over each sequence's trained tokens: float32 [T] each, None if absent."""

    weight: Tensor
    cu_seqlens: Tensor
    """int32 [B + 1]."""
    logp: Tensor | None
    """The current log-probs; needed if old_logp is None or the ratio is wanted."""
    old_logp: Tensor | None
    rollout_logp: Tensor | None


CHOICES: dict[str, tuple[str | None, ...]] = {
    "objective": ("ppo", "cispo", "reinforce"),
    "ratio": ("token", "sequence"),
    "kl_estimator": ("k1", "k2", "k3"),
    "is_mode": (None, "truncate", "mask"),
    "is_level": ("token", "sequence"),
}
"""Values of a LossSpec's named fields. Row kernels use the index of a value here."""


class Modes(NamedTuple):
    """The choices of a LossSpec as indices into CHOICES; compile-time constants of a kernel."""

    objective: int
    kl_estimator: int
    kl_ratio: int
    """0 or 1."""
    is_mode: int
    is_level: int


class Scalars(NamedTuple):
    """The numbers of a LossSpec; run-time arguments of a kernel, so that annealing does not recompile it."""

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


NORMS = tuple(norms.NORMS)
"""The norms of a Credit; kernels use their indices here."""

TERMS = (
    "loss",  # weight (w l + kl_coef KL - entropy_coef H)
    "ratio",
    "clip_low",
    "clip_high",
    "approx_kl",
    "ref_kl",
    "is_weight",
    "active",  # 1 where the derivative by logp or H is not 0
)
"""The columns of a loss kernel's terms; 0 in a row of weight 0."""


class Results(NamedTuple):
    """Outputs of a loss kernel, float32; 0 in a row of weight 0."""

    logp: Tensor
    """[T]."""
    entropy: Tensor
    """[T]."""
    terms: Tensor
    """[T, 8] (TERMS)."""


class RowKernels(Protocol):
    """One set of row kernels. Rows of `logits` and `grad` are contiguous, any stride apart; logits bfloat16, float16 or
    float32; targets int32 or int64 [T] contiguous. `grad`, in the dtype of the logits, may be the logits themselves.

    On a GPU each method is one launch; `advantages` takes two if it computes the statistics."""

    name: str

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        """One-line reason why it can't take such logits, or None. Plain Python that torch.compile can trace."""

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
        are 0 is not read and gets 0. The row's sums are computed again: their logarithm, kept in float32 by
        `logprobs`, would make the gradient less accurate at large logits."""

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        tokens: TokenArguments,
        modes: Modes,
        scalars: Scalars,
        results: Results,
        grad: Tensor | None,
    ) -> None:
        """Writes the results, and the gradient of sum(terms[:, loss]) unless grad is None."""

    def summary(self, weight: Tensor, results: Results, has_ref: bool, has_is: bool, loss: Tensor, raw: Tensor) -> None:
        """Writes the loss, float32 [], and the raw metrics, float32 [13] (metrics.RAW). Sums in float64."""

    def advantages(self, credit: CreditArguments, advantage: Tensor) -> None:
        """Writes A = (C outcome - shift0) scale0 + (-P wrong - shift1) scale1, float32 [T]; NaN for a step without a
        vote and for a group without statistics. Statistics in float64."""

    def sequences(self, arguments: SequenceArguments, log_ratio: Tensor | None, importance: Tensor | None) -> None:
        """Writes each output that is not None, float32 [T]: the mean of logp - old, clamped to +-20 (0 without
        old_logp); the sum of old - rollout, with logp in place of old if old is None. Sums in float64."""

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        """grad [T, V] or [V] *= factor (float32, 0-d, same device), without a sync; a factor of 1 costs no pass."""
