"""One training step of a Qwen2.5 model with random weights: forward, loss, backward, AdamW. No generation, no sharding.

Only the heads differ: the model below the head, its attention (sdpa) and the optimizer are the same objects for all.
The learning rate is 0, so that every call has the same weights. The bound is the same number of operations in bare
GEMMs: the share of the bound is the model FLOPs utilisation (MFU) at the GEMM rate of the same run. Attention counts
as causal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

import capo_kernels as ck
from bench.kernels.measure import Cost, Provider
from bench.kernels.problems import Problem as LossProblem
from bench.kernels.problems import Results, random_model
from bench.kernels.providers import (
    FUSED,
    LOGPROBS_ALONE,
    NO_LOGPROBS,
    SEQUENCE_ADVANTAGES,
    HeadLoss,
    compiled,
    eager_head_loss,
    liger_loss,
    need,
    trl_loss,
)

KERNEL = "train_step"
Call = Callable[[], Results]


class Problem(LossProblem):
    """A random model, and old log-probs close to its own."""

    def _make_inputs(self) -> None:
        head = self.case.head
        with torch.device(self.device):
            self.model = random_model(head).to(self.dtype)
        self.input_ids = torch.randint(
            head.vocab, (self.sequences, self.length), generator=self.random, device=self.device
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    @property
    def head_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    def hidden(self) -> Tensor:
        """[T, H]"""
        return self.model.model(input_ids=self.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)

    @cached_property
    def _hidden(self) -> Tensor:
        with torch.no_grad():
            return self.hidden()

    def logits(self, rows: slice) -> Tensor:
        with torch.no_grad():
            return self._hidden[rows].double() @ self.head_weight.double().T

    def forget(self) -> None:
        self.__dict__.pop("_hidden", None)

    def step(self, loss: HeadLoss) -> Call:
        def call() -> Results:
            self.optimizer.zero_grad(set_to_none=True)
            found = loss(self.hidden(), self.head_weight)
            found.backward()
            self.optimizer.step()
            first = self.model.model.layers[0].self_attn.q_proj.weight
            return {"loss": found, "head's gradient": self.head_weight.grad, "first layer's gradient": first.grad}

        return call

    def exact(self, kind: str) -> tuple[Results, float]:
        """The head and the loss in float32 torch, over the same model: its rounding is the same for all providers."""
        results = self.step(lambda hidden, weight: self.eager_loss(hidden.float() @ weight.float().T))()
        found = {name: x.detach().double() for name, x in results.items()}
        magnitude = float((self.weights * self.advantages.abs()).sum())
        return self.sample(found), magnitude

    def sample(self, results: Results) -> Results:
        return {name: x[:4_096] if x.dim() else x for name, x in results.items()}


def cost(problem: Problem) -> Cost:
    weights = sum(x.numel() for x in problem.model.parameters())  # the tied head counts once, as a GEMM
    norms = sum(x.numel() for x in problem.model.parameters() if x.dim() == 1)
    head = problem.case.head
    attention = 6 * head.layers * problem.length * head.hidden
    return Cost(bytes=0, flops=problem.tokens * (6 * (weights - norms) + attention))


def bench_train_step(record) -> None:
    record()


def linear(impl: str, problem: Problem) -> Call:
    need(impl, problem)
    arguments = problem.arguments("ppo") | {"impl": impl}
    return problem.step(lambda hidden, weight: ck.linear_policy_loss(hidden, weight, **arguments).loss)


def logits_in_place(impl: str, problem: Problem) -> Call:
    need(impl, problem)
    arguments = problem.arguments("ppo") | {"impl": impl, "inplace": True}
    return problem.step(lambda hidden, weight: ck.policy_loss(hidden @ weight.T, **arguments).loss)


def head(loss: Callable[[Problem], HeadLoss], problem: Problem) -> Call:
    return problem.step(loss(problem))


def torch_compile(problem: Problem) -> Call:
    return problem.step(compiled(eager_head_loss(problem)))


def bare_gemms(problem: Problem) -> Call:
    size = 8_192 if problem.device == "cuda" else 512
    a = torch.randn(size, size, device=problem.device, dtype=problem.dtype)
    times, out = max(1, round(cost(problem).flops / (2 * size**3))), torch.empty_like(a)

    def call() -> Results:
        for _ in range(times):
            torch.mm(a, a, out=out)
        return {"product": out}

    return call


PROVIDERS = [
    Provider("bare GEMMs", bare_gemms, kind="bound"),
    *(Provider(f"capo {impl}, linear head", partial(linear, impl)) for impl in FUSED),
    *(Provider(f"capo {impl}, logits in place", partial(logits_in_place, impl)) for impl in FUSED),
    Provider("liger LigerFusedLinearGRPOLoss", partial(head, liger_loss), less=SEQUENCE_ADVANTAGES),
    Provider("trl chunked log-probs, torch's PPO", partial(head, trl_loss), less=LOGPROBS_ALONE),
    Provider("torch eager", partial(head, eager_head_loss), less=NO_LOGPROBS),
    Provider("torch.compile of head and loss", torch_compile, less=NO_LOGPROBS),
]
