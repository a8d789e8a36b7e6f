"""The definition of a loss (LossSpec), its per-token inputs (LossInputs) and its result (PolicyLoss).

Letters: T packed tokens, B sequences, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .checks import (
    check_bool,
    check_choice,
    check_cu_seqlens,
    check_number,
    check_offsets,
    check_range,
    check_tensor,
    reads_values,
    token_dtypes,
)
from .credit import Credit
from .metrics import derive
from .rows import CHOICES, Modes, Scalars

LIMIT = 20.0
"""Differences of log-probs are clamped to +-LIMIT before they enter an exp; a clamped row has gradient 0 there."""

_OFF = {"dual_clip": math.inf, "is_high": math.inf, "softcap": 0.0}
"""Values passed to a row kernel for fields that are None."""


class Head(NamedTuple):
    """The scaling between raw logits and log-probs."""

    temperature: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class LossSpec:
    """The objective as numbers and names; frozen: anneal a coefficient with `dataclasses.replace`.

    Per token, with `z = logits / temperature`, `logp = z[target] - logsumexp(z)`, `d = clamp(logp - old, -20, 20)` and
    `rho = exp(d)`:

        ppo        l = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)            PPO, GRPO, DAPO, CAPO
        cispo      l = -sg(min(rho, 1 + clip_high)) A logp                              CISPO
        reinforce  l = -A logp
        loss = sum_t weights_t (w_t l_t + kl_coef KL_t - entropy_coef H_t)

    Raises ValueError or TypeError, naming the field, for an invalid value.

    >>> LossSpec(clip_low=0.2, clip_high=0.28).ratio
    'token'
    """

    objective: Literal["ppo", "cispo", "reinforce"] = "ppo"
    ratio: Literal["token", "sequence"] = "token"
    """`sequence`: GSPO-token, `rho_t = sg(s_i) exp(logp_t - sg(logp_t))`, `s_i = exp(mean of logp - old)`."""
    clip_low: float = 0.2
    """>= 0: the distance of the lower bound from 1, not the bound."""
    clip_high: float = 0.2
    """The distance of the upper bound from 1: >= 0 for ppo, >= -1 else; cispo's cap is `1 + clip_high`."""
    dual_clip: float | None = None
    """ppo only, > 1 + clip_high: where A < 0, `l = min(l, -dual_clip A)` bounds the loss of a token."""
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """With `x = ref - logp`: k1 `-x`, k2 `x^2 / 2`, k3 `exp(x) - x - 1` (there x is clamped to [-20, 20])."""
    kl_ratio: bool = False
    """KL times rho, with gradient through rho: unbiased for samples of the old policy (DeepSeek-V3.2)."""
    entropy_coef: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    """`logits = softcap tanh(logits / softcap)`, before the temperature."""
    is_mode: Literal["truncate", "mask"] | None = None
    """Weight w of the policy term against engine-trainer mismatch, `w = exp(clamp(old - rollout, -20, 20))`, without
    gradient: `truncate` is `min(w, is_high)`; `mask` is w where `is_low <= w <= is_high`, 0 elsewhere."""
    is_level: Literal["token", "sequence"] = "token"
    """`sequence`: the difference is summed over the sequence's trained tokens."""
    is_low: float = 0.0
    is_high: float | None = 2.0
    """None: no upper bound."""
    # Derived per spec: ClassVar keeps them out of the fields, of `asdict` and of `==`.
    numbers: ClassVar[Tensor]
    """float32 [9] on the CPU, `Scalars`: a graph that reads them here is not recompiled when one changes."""
    coefficients: ClassVar[Tensor | None] = None
    """float32 [9] like `numbers`, on a device: see `on`."""
    modes: ClassVar[Modes]
    needs_ref: ClassVar[bool]

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_bool("kl_ratio", self.kl_ratio)
        check_number("kl_coef", self.kl_coef, 0)
        check_number("entropy_coef", self.entropy_coef)
        check_number("temperature", self.temperature, 0, above=True)
        check_number("softcap", self.softcap, 0, above=True, optional=True)
        check_number("is_low", self.is_low, 0)
        check_number("is_high", self.is_high, self.is_low, optional=True)
        self._check_clips()
        object.__setattr__(self, "numbers", torch.tensor(_scalars(self), dtype=torch.float32, device="cpu"))
        object.__setattr__(self, "modes", _modes(self))
        object.__setattr__(self, "needs_ref", self.kl_coef > 0)

    def _check_clips(self) -> None:
        check_number("clip_low", self.clip_low, 0)
        check_number("clip_high", self.clip_high, 0 if self.objective == "ppo" else -1)
        check_number("dual_clip", self.dual_clip, 1 + self.clip_high, above=True, optional=True)
        if self.dual_clip is not None and self.objective != "ppo":
            raise ValueError(f"dual_clip: got {self.dual_clip} with objective={self.objective!r}, want objective='ppo'")

    def on(self, device: torch.device | str) -> LossSpec:
        """A copy with its coefficients also on a device, in `coefficients`; kernels read them there at each launch.

        A captured CUDA graph replays host values as captured but reads device values at each replay. To change them:
        `spec.coefficients.copy_(replace(spec, kl_coef=0.01).numbers)`. Keep the spec as long as the graph. The names,
        the temperature and the softcap stay as captured. `reference` does not read `coefficients`.
        """
        found = replace(self)
        object.__setattr__(found, "coefficients", self.numbers.to(device, copy=True))
        return found

    @property
    def needs_sequences(self) -> bool:
        return self.ratio == "sequence" or (self.is_mode is not None and self.is_level == "sequence")


def _scalars(spec: LossSpec) -> Scalars:
    numbers = {**vars(spec), "ratio_low": 1 - spec.clip_low, "ratio_high": 1 + spec.clip_high}
    return Scalars._make(_OFF[name] if numbers[name] is None else numbers[name] for name in Scalars._fields)


def _modes(spec: LossSpec) -> Modes:
    choices: dict[str, tuple[object, ...]] = {**CHOICES, "kl_ratio": (False, True)}
    found = Modes._make(choices[name].index(getattr(spec, name)) for name in Modes._fields)
    # A kernel is compiled per value, even of a choice that it does not read.
    return found if spec.is_mode is not None else found._replace(is_level=0)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """The per-token arguments of a loss as passed by the caller; checked before any implementation runs."""

    weights: Tensor
    advantages: Tensor | None
    credit: Credit | None
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    rollout_logprobs: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def offsets(self) -> Tensor | None:
        """int32 [B + 1]: cu_seqlens, by default the credit's."""
        return self.credit.cu_seqlens if self.cu_seqlens is None and self.credit is not None else self.cu_seqlens

    def check(self, rows: Tensor, spec: LossSpec) -> None:
        """`rows`: the logits [T, V] or hidden states [T, H] of the tokens."""
        if not isinstance(spec, LossSpec):
            raise TypeError(f"spec: got {type(spec).__name__}, want LossSpec")
        if spec.coefficients is not None:
            check_tensor("spec.coefficients", spec.coefficients, {"9": 9}, (torch.float32,), rows.device)
        dims, dtypes = {"T": rows.shape[0]}, token_dtypes(rows.dtype)
        check_tensor("weights", self.weights, dims, dtypes, rows.device)
        for name in ("advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs"):
            if getattr(self, name) is not None:
                check_tensor(name, getattr(self, name), dims, dtypes, rows.device)
        self._check_credit(rows)
        self._check_needs(spec)
        self._check_cu_seqlens(rows)

    def _check_credit(self, rows: Tensor) -> None:
        if (self.advantages is None) == (self.credit is None):
            found = "neither" if self.credit is None else "both"
            raise ValueError(f"advantages, credit: got {found}, want exactly one of them")
        if self.credit is None:
            return
        if not isinstance(self.credit, Credit):
            raise TypeError(f"credit: got {type(self.credit).__name__}, want Credit")
        check_tensor("credit.step_starts", self.credit.step_starts, {"T": rows.shape[0]}, (torch.bool,), rows.device)

    def _check_needs(self, spec: LossSpec) -> None:
        if spec.needs_ref and self.ref_logprobs is None:
            raise ValueError(f"ref_logprobs: got None with kl_coef={spec.kl_coef}, want a float tensor [T]")
        if spec.is_mode is not None and self.rollout_logprobs is None:
            raise ValueError(f"rollout_logprobs: got None with is_mode={spec.is_mode!r}, want a float tensor [T]")
        if spec.needs_sequences and self.offsets is None:
            reason = "ratio='sequence'" if spec.ratio == "sequence" else "is_level='sequence'"
            raise ValueError(f"cu_seqlens: got None with {reason}, want an int32 tensor [B + 1]")

    def _check_cu_seqlens(self, rows: Tensor) -> None:
        if self.cu_seqlens is None:
            return
        size = None if self.credit is None else self.credit.cu_seqlens.shape[0]
        check_offsets(self.cu_seqlens, size, rows.device)
        if reads_values(self.cu_seqlens):
            check_cu_seqlens(self.cu_seqlens, rows.shape[0])
            if self.credit is not None and not torch.equal(self.cu_seqlens, self.credit.cu_seqlens):
                raise ValueError("cu_seqlens: got offsets that differ from credit.cu_seqlens, want the same")

    def restricted_to(self, rows: Tensor) -> LossInputs:
        """The same with weight 0 outside these rows, int64 [R]."""
        return replace(self, weights=torch.zeros_like(self.weights).index_copy(0, rows, self.weights[rows]))

    def check_targets(self, targets: Tensor, vocab: int) -> None:
        """The values of the trained rows' targets, where values are read."""
        if reads_values(targets, self.weights):
            check_range("targets", targets, 0, vocab - 1, where=self.weights != 0)


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """The result of a loss call; float32, float64 for float64 inputs.

    loss: [], differentiable.
    logprobs: [T], natural log, detached; 0 in rows of weight 0.
    entropy: [T], nats, detached; 0 in rows of weight 0. For an entropy bonus use LossSpec.entropy_coef.
    raw: [13], detached: the raw metrics in the order of `capo_kernels.metrics.RAW`.
    impl: the implementation that ran.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    raw: Tensor
    impl: str

    _derived: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Set by `metrics`. (torch.compile can't trace a cached_property.)"""

    @property
    def metrics(self) -> dict[str, Tensor]:
        """0-d tensors on the inputs' device, always the same keys; unused ones are NaN. Computed on
        first access. `help(capo_kernels.metrics)` has what each is."""
        if not self._derived:
            self._derived.update(derive(self.raw))
        return self._derived
