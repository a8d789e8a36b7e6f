"""The arguments and results of the row kernels: the interface under triton, cuda and cpu.

Letters: T tokens (rows), V vocabulary, B sequences, S steps. `csrc/capo.h` is the same in C.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import norms


class TokenArguments(NamedTuple):
    """What a row of the loss has beside its logits: float32 [T], contiguous, on one device, None where absent."""

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
    """float32 [9], Scalars in place of those of the call, but for temperature and softcap; None: those."""

    def take(self, rows: Tensor | slice | None) -> TokenArguments:
        """Those of some rows; None: of all."""
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
    """float32 [G, 4]; None: of the groups here, over the tokens with weight."""
    weight: Tensor
    """float32 [T]."""
    outcome_weight: float
    process_weight: float
    std_floor: float
    norm: int
    """Its place in NORMS."""


class SequenceArguments(NamedTuple):
    """What sums over the trained tokens of sequences are made from: float32 [T] each, None where absent."""

    weight: Tensor
    cu_seqlens: Tensor
    """int32 [B + 1]."""
    logp: Tensor | None
    """The current log-probs, where old_logp is None or the ratio is wanted."""
    old_logp: Tensor | None
    rollout_logp: Tensor | None


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


NORMS = tuple(norms.NORMS)
"""The norms of a Credit, known to a kernel by their places here."""

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
    """What a loss kernel writes, float32; 0 in a row of weight 0."""

    logp: Tensor
    """[T]."""
    entropy: Tensor
    """[T]."""
    terms: Tensor
    """[T, 8] (TERMS)."""


class RowKernels(Protocol):
    """One set of them. Rows of `logits` and `grad` are contiguous, any stride apart; logits bfloat16, float16 or
    float32; targets int32 or int64 [T] contiguous. `grad`, in the dtype of the logits, may be the logits themselves.

    On a GPU each method is one launch, but `advantages`, which takes two where it makes the statistics."""

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
        """Writes what is not None, float32 [T]: the mean of logp - old, clamped to +-20 (0 without old_logp); the sum
        of old - rollout, where logp takes the place of old if that is None. Sums in float64."""

    def scale_(self, grad: Tensor, factor: Tensor) -> None:
        """grad [T, V] or [V] *= factor (float32, 0-d, same device), without a sync; for nothing where it is 1."""
