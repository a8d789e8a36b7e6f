"""Random loss calls and their expected results: the contract computed one token at a time in Python floats.

`oracle(case, spec, frozen)` takes the log-probs behind every stop-gradient from `frozen`, so that its finite
differences are the gradient that the loss must have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

import capo_kernels as ck


@dataclass(frozen=True)
class Case:
    logits: list[list[float]]
    targets: list[int]
    weights: list[float]
    advantages: list[float]
    old: list[float] | None
    ref: list[float] | None
    rollout: list[float] | None
    cu: list[int]

    def arguments(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """The keyword arguments of `policy_loss` except logits, targets and spec."""

        def tensor(x: list[float] | None) -> torch.Tensor | None:
            return None if x is None else torch.tensor(x, dtype=dtype)

        return {
            "weights": tensor(self.weights),
            "advantages": tensor(self.advantages),
            "old_logprobs": tensor(self.old),
            "ref_logprobs": tensor(self.ref),
            "rollout_logprobs": tensor(self.rollout),
            "cu_seqlens": torch.tensor(self.cu, dtype=torch.int32),
        }

    def run(self, spec: ck.LossSpec, **changes: Any) -> tuple[ck.PolicyLoss, torch.Tensor]:
        """The loss in float64, and its gradient by the logits."""
        logits = torch.tensor(self.logits, dtype=torch.float64, requires_grad=True)
        result = ck.policy_loss(logits, torch.tensor(self.targets), spec=spec, **{**self.arguments(), **changes})
        result.loss.backward()
        assert logits.grad is not None
        return result, logits.grad


def random_case(seed: int, lengths: tuple[int, ...] = (3, 1, 4), vocab: int = 5, spread: float = 0.4) -> Case:
    """One row in five is not trained. The other log-probs are `spread` around the current ones, so ratios clip."""
    g = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    logits = torch.randn(tokens, vocab, generator=g, dtype=torch.float64) * 2
    targets = torch.randint(vocab, (tokens,), generator=g)
    logp = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def near() -> list[float]:
        return (logp + spread * torch.randn(tokens, generator=g, dtype=torch.float64)).tolist()

    weights = torch.rand(tokens, generator=g, dtype=torch.float64) * (torch.rand(tokens, generator=g) > 0.2)
    advantages = torch.randn(tokens, generator=g, dtype=torch.float64)
    cu = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return Case(logits.tolist(), targets.tolist(), weights.tolist(), advantages.tolist(), near(), near(), near(), cu)


def log_prob(row: list[float], target: int, spec: ck.LossSpec) -> tuple[float, float]:
    if spec.softcap is not None:
        row = [spec.softcap * math.tanh(x / spec.softcap) for x in row]
    z = [x / spec.temperature for x in row]
    lse = max(z) + math.log(sum(math.exp(x - max(z)) for x in z))
    return z[target] - lse, lse - sum(math.exp(x - lse) * x for x in z)


def clamp(x: float) -> float:
    return min(max(x, -20.0), 20.0)


def oracle(case: Case, spec: ck.LossSpec, frozen: list[float] | None = None) -> dict[str, Any]:
    """Loss, log-probs, entropies, and rho, w and KL of every token."""
    pairs = [log_prob(row, y, spec) for row, y in zip(case.logits, case.targets, strict=True)]
    logp, entropy = [a for a, _ in pairs], [b for _, b in pairs]
    frozen = logp if frozen is None else frozen
    old = frozen if case.old is None else case.old
    loss, tokens = 0.0, []
    for start, end in zip(case.cu, case.cu[1:], strict=False):
        trained = [t for t in range(start, end) if case.weights[t] != 0]
        for t in trained:
            rho, rho_frozen = _ratio(t, trained, logp, frozen, old, spec)
            w = _is_weight(t, trained, old, case.rollout, spec)
            kl = _kl(logp[t], case.ref[t], spec) * (rho if spec.kl_ratio else 1.0) if case.ref else math.nan
            policy = _policy(rho, rho_frozen, case.advantages[t], logp[t], spec)
            penalty = spec.kl_coef * kl if spec.kl_coef else 0.0
            loss += case.weights[t] * (w * policy + penalty - spec.entropy_coef * entropy[t])
            tokens.append({"t": t, "rho": rho, "w": w, "kl": kl, "d": clamp(logp[t] - old[t])})
    return {"loss": loss, "logp": logp, "entropy": entropy, "tokens": tokens}


def _ratio(
    t: int, trained: list[int], logp: list[float], frozen: list[float], old: list[float], spec: ck.LossSpec
) -> tuple[float, float]:
    if spec.ratio == "token":
        return math.exp(clamp(logp[t] - old[t])), math.exp(clamp(frozen[t] - old[t]))
    s = math.exp(clamp(sum(frozen[u] - old[u] for u in trained) / len(trained)))
    return s * math.exp(logp[t] - frozen[t]), s


def _is_weight(t: int, trained: list[int], old: list[float], rollout: list[float] | None, spec: ck.LossSpec) -> float:
    if spec.is_mode is None or rollout is None:
        return 1.0
    over = [t] if spec.is_level == "token" else trained
    w = math.exp(clamp(sum(old[u] - rollout[u] for u in over)))
    high = math.inf if spec.is_high is None else spec.is_high
    if spec.is_mode == "truncate":
        return min(w, high)
    return w if spec.is_low <= w <= high else 0.0


def _policy(rho: float, rho_frozen: float, advantage: float, logp: float, spec: ck.LossSpec) -> float:
    if spec.objective == "reinforce":
        return -advantage * logp
    if spec.objective == "cispo":
        return -min(rho_frozen, 1 + spec.clip_high) * advantage * logp
    clipped = min(max(rho, 1 - spec.clip_low), 1 + spec.clip_high)
    loss = -min(rho * advantage, clipped * advantage)
    return min(loss, -spec.dual_clip * advantage) if spec.dual_clip and advantage < 0 else loss


def _kl(logp: float, ref: float, spec: ck.LossSpec) -> float:
    if spec.kl_estimator == "k1":
        return logp - ref
    if spec.kl_estimator == "k2":
        return (logp - ref) ** 2 / 2
    return math.exp(clamp(ref - logp)) - clamp(ref - logp) - 1


def oracle_gradient(case: Case, spec: ck.LossSpec, step: float = 1e-5) -> torch.Tensor:
    """[T, V], central differences of the oracle."""
    frozen = oracle(case, spec)["logp"]

    def shifted(t: int, v: int, by: float) -> float:
        rows = [list(row) for row in case.logits]
        rows[t][v] += by
        return float(oracle(replace(case, logits=rows), spec, frozen)["loss"])

    return torch.tensor(
        [
            [(shifted(t, v, step) - shifted(t, v, -step)) / (2 * step) for v in range(len(row))]
            for t, row in enumerate(case.logits)
        ],
        dtype=torch.float64,
    )
