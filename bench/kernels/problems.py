"""Random tensors of one measured call, and the exact results that it is compared with.

Letters: B sequences of L tokens, T = B * L packed tokens, H hidden, V vocabulary. All sequences have the same length
and one advantage each, because some peers support nothing else; `credit` gives each token its own. Ratios stay away
from the ends of the clip range, so that no row takes another branch than in float64 because of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import capo_kernels as ck
from bench.kernels.suites import Case, Head

ENTROPY_COEF = 0.01
STEP = 32
"""Tokens per step."""
INSIDE, OUTSIDE = 0.1, 0.5
"""|log ratio| of rows inside the clip range of 0.8 to 1.2 (at most), and of rows outside it."""

Results = dict[str, Tensor]


def clipped(logp: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """PPO's clipped loss of each token."""
    ratio = (logp - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


class Problem:
    """Targets, weights, advantages and old log-probs of a case; a subclass has the logits or their inputs."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.dtype = getattr(torch, case.dtype)
        self.vocab, self.hidden_size = case.head.vocab, case.head.hidden
        self.sequences = max(2, case.tokens // 1_024)
        self.length = case.tokens // self.sequences
        self.tokens = self.sequences * self.length
        self.random = torch.Generator(device).manual_seed(0)
        self._make_inputs()
        self._make_arguments()

    def _make_inputs(self) -> None:
        raise NotImplementedError

    def logits(self, rows: slice) -> Tensor:
        """Logits of these rows in float64."""
        raise NotImplementedError

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.random, device=self.device)

    def _make_arguments(self) -> None:
        tokens, sequences, device = self.tokens, self.sequences, self.device
        self.targets = torch.randint(self.vocab, (tokens,), generator=self.random, device=device)
        self.cu_seqlens = torch.arange(0, tokens + 1, self.length, device=device, dtype=torch.int32)
        signs = 1 - 2 * (torch.arange(sequences, device=device) % 2)
        self.sequence_advantages = self._uniform(0.5, 1.5, sequences) * signs
        self.advantages = self.sequence_advantages.repeat_interleave(self.length)
        self.active = self._uniform(0, 1, tokens) >= self.case.inactive
        self.rows = self.active.nonzero().squeeze(1)
        self.weights = self.active.float() / len(self.rows)
        log_ratio = self._uniform(-INSIDE, INSIDE, tokens)
        is_clipped = self._uniform(0, 1, tokens) < self.case.clipped
        log_ratio = torch.where(is_clipped, OUTSIDE * self.advantages.sign(), log_ratio)
        self.old_logprobs = (self.logprobs - log_ratio).float()

    @cached_property
    def credit(self) -> ck.Credit:
        """Votes on steps of 32 tokens; the statistics are given, as in training."""
        starts = torch.arange(self.tokens, device=self.device) % self.length % STEP == 0
        plain = {
            "step_starts": starts,
            "step_wrong": (self._uniform(0, 1, int(starts.sum())) < 0.2).float(),
            "outcome": (self.sequence_advantages > 0).float(),
            "group": torch.zeros(self.sequences, device=self.device, dtype=torch.long),
            "cu_seqlens": self.cu_seqlens,
        }
        return ck.Credit(**plain, stats=ck.credit_stats(ck.Credit(**plain), self.active))

    @cached_property
    def logprobs(self) -> Tensor:
        """float64 [T]"""
        targets = self.targets[:, None]
        return torch.cat([self.logits(rows).log_softmax(-1).gather(1, targets[rows])[:, 0] for rows in self.chunks()])

    @cached_property
    def entropy(self) -> Tensor:
        """float64 [T]"""
        logq = (self.logits(rows).log_softmax(-1) for rows in self.chunks())
        return torch.cat([-(each.exp() * each).sum(-1) for each in logq])

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose float64 logits take about 130 MB (on a GPU 2 GB)."""
        size = max(1, (2**28 if self.device == "cuda" else 2**24) // self.vocab)
        return (slice(start, min(start + size, self.tokens)) for start in range(0, self.tokens, size))

    def exact(self, kind: str) -> tuple[Results, float]:
        """A sample of the results of `kind` in float64; and the sum of |loss| over tokens, to which errors of a loss
        are relative.

        `kind`: "ppo", "ppo + entropy", "ppo + credit", "cross-entropy", "log-probs" or "log-probs + entropy".
        """
        if kind.startswith("log-probs"):
            return {"logprobs": self.logprobs, **({"entropy": self.entropy} if kind.endswith("entropy") else {})}, 0.0
        total, magnitude = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        gradients: Results = {}
        for rows in self.chunks():
            logits = self.logits(rows).requires_grad_()
            loss_T = self._losses(kind, logits, rows)
            loss_T.sum().backward()
            total, magnitude = total + loss_T.detach().sum(), magnitude + float(loss_T.detach().abs().sum())
            self._collect(gradients, logits.grad, rows)
        return {"loss": total, **gradients}, magnitude

    def _losses(self, kind: str, logits: Tensor, rows: slice) -> Tensor:
        """[rows], each token's share of the loss."""
        logq = logits.log_softmax(-1)
        logp = logq.gather(1, self.targets[rows, None])[:, 0]
        weights = self.weights[rows].double()
        if kind == "cross-entropy":
            return -logp * weights
        with_credit = kind == "ppo + credit"
        advantages = ck.token_advantages(self.credit, self.active) if with_credit else self.advantages
        loss = clipped(logp, self.old_logprobs[rows].double(), advantages[rows].double())
        if kind == "ppo + entropy":
            loss = loss + ENTROPY_COEF * (logq.exp() * logq).sum(-1)
        return loss * weights

    def _collect(self, gradients: Results, dlogits: Tensor, rows: slice) -> None:
        """Adds the gradients of these rows to the sample that `sample` takes of a call's gradients."""
        raise NotImplementedError

    def sample(self, results: Results) -> Results:
        """The parts of a call's results that `exact` returns."""
        raise NotImplementedError

    def restore(self) -> None:
        """Restores the inputs if a call overwrites them."""

    def forget(self) -> None:
        """Frees tensors that only the exact results need."""

    @cached_property
    def sampled_rows(self) -> Tensor:
        """At most 16 evenly spaced rows, including the first and the last."""
        return torch.linspace(0, self.tokens - 1, min(self.tokens, 16), device=self.device).long()

    def arguments(self, kind: str) -> dict[str, Any]:
        """Arguments of `ck.policy_loss` besides the logits."""
        with_credit = {"credit": self.credit} if kind == "ppo + credit" else {"advantages": self.advantages}
        spec = ck.LossSpec(entropy_coef=ENTROPY_COEF if kind == "ppo + entropy" else 0.0)
        return {
            "targets": self.targets,
            "weights": self.weights,
            "old_logprobs": self.old_logprobs,
            "spec": spec,
            **with_credit,
        }

    def eager_loss(self, logits: Tensor, entropy_coef: float = 0.0) -> Tensor:
        """The whole loss in torch from float32 log-probs, as in a trainer without fused kernels."""
        logq = torch.log_softmax(logits.float(), -1)
        logp = logq.gather(1, self.targets[:, None])[:, 0]
        loss = self.eager_loss_of(logp)
        return loss + entropy_coef * ((logq.exp() * logq).sum(-1) * self.weights).sum() if entropy_coef else loss

    def eager_loss_of(self, logp: Tensor) -> Tensor:
        """PPO's clipped loss of log-probs [T]."""
        return (clipped(logp, self.old_logprobs, self.advantages) * self.weights).sum()

    def as_sequences(self, x: Tensor) -> Tensor:
        """[B, L, ...] of [T, ...]"""
        return x.view(self.sequences, self.length, *x.shape[1:])


class LogitsProblem(Problem):
    """A call gets `work`, a copy of `source` that is restored before each call: in place it becomes the gradient."""

    def _make_inputs(self) -> None:
        shape, place = (self.tokens, self.vocab), {"generator": self.random, "device": self.device}
        self.source = (2 * torch.randn(shape, **place)).to(self.dtype)
        self.work = torch.empty_like(self.source)

    def restore(self) -> None:
        self.work.copy_(self.source)

    def logits(self, rows: slice) -> Tensor:
        return self.source[rows].double()

    def _collect(self, gradients: Results, dlogits: Tensor, rows: slice) -> None:
        chosen = self.sampled_rows[(self.sampled_rows >= rows.start) & (self.sampled_rows < rows.stop)]
        gradient = dlogits[chosen - rows.start]
        gradients["gradient"] = torch.cat([gradients["gradient"], gradient]) if gradients else gradient

    def sample(self, results: Results) -> Results:
        return {name: x[self.sampled_rows] if name == "gradient" else x for name, x in results.items()}


class LinearProblem(Problem):
    """Hidden states and the weight of the head; the logits have a standard deviation of 2."""

    def _make_inputs(self) -> None:
        place = {"generator": self.random, "device": self.device}
        self.hidden = torch.randn(self.tokens, self.hidden_size, **place).to(self.dtype)
        scale = 2 / self.hidden_size**0.5
        self.weight = (scale * torch.randn(self.vocab, self.hidden_size, **place)).to(self.dtype)

    @cached_property
    def _wide_weight(self) -> Tensor:
        return self.weight.double()

    def logits(self, rows: slice) -> Tensor:
        return self.hidden[rows].double() @ self._wide_weight.T

    @cached_property
    def _sampled_tokens(self) -> Tensor:
        """Vocabulary entries of the sampled weight gradient: targets of the sampled rows and 64 evenly spaced ones."""
        between = torch.linspace(0, self.vocab - 1, min(self.vocab, 64), device=self.device).long()
        return torch.cat([self.targets[self.sampled_rows], between]).unique()

    def _collect(self, gradients: Results, dlogits: Tensor, rows: slice) -> None:
        chosen = self.sampled_rows[(self.sampled_rows >= rows.start) & (self.sampled_rows < rows.stop)]
        dhidden = dlogits[chosen - rows.start] @ self._wide_weight
        dweight = dlogits[:, self._sampled_tokens].T @ self.hidden[rows].double()
        before = gradients.get("hidden gradient", dhidden[:0]), gradients.get("weight gradient", 0.0)
        gradients |= {"hidden gradient": torch.cat([before[0], dhidden]), "weight gradient": before[1] + dweight}

    def sample(self, results: Results) -> Results:
        chosen = {"hidden gradient": self.sampled_rows, "weight gradient": self._sampled_tokens}
        return {name: x[chosen[name]] if name in chosen else x for name, x in results.items()}

    def forget(self) -> None:
        self.__dict__.pop("_wide_weight", None)


def random_model(head: Head) -> Any:
    """A Qwen2 with random weights and this head, on torch's default device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # takes seconds

    config = Qwen2Config(
        vocab_size=head.vocab,
        hidden_size=head.hidden,
        intermediate_size=head.intermediate,
        num_hidden_layers=head.layers,
        num_attention_heads=head.heads,
        num_key_value_heads=head.kv_heads,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)
