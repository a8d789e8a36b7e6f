"""Correctness gate before timing: `python -m bench.gpu.gate DEVICE IMPL...`, a line of JSON per check.

Loss, log-probs, entropies and the gradient of logits against the reference in float64; the same call by
`torch.compile(fullgraph=True)`; on a GPU also no host synchronisation, and a CUDA graph. Exit status 1 if one fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import capo_kernels as ck

SHAPES = ((64, 50_257), (64, 152_064), (1, 1_000))
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SPEC = ck.LossSpec(kl_coef=0.1, entropy_coef=0.01, temperature=0.9)


class Call:
    """The loss and its gradient on random logits [T, V]."""

    def __init__(self, tokens: int, vocab: int, dtype: torch.dtype, device: str) -> None:
        random = torch.Generator(device).manual_seed(0)
        self.logits = (torch.randn(tokens, vocab, generator=random, device=device) * 2).to(dtype)
        self.targets = torch.randint(vocab, (tokens,), generator=random, device=device)
        noise = torch.randn(3, tokens, generator=random, device=device) / 10
        exact = ck.token_logprobs(self.logits.double(), self.targets, temperature=SPEC.temperature, impl="reference")
        self.arguments = {
            "weights": torch.full((tokens,), 1 / tokens, device=device),
            "advantages": noise[0] * 10,
            "old_logprobs": exact.float() + noise[1],
            "ref_logprobs": exact.float() + noise[2],
        }

    def results(self, impl: str, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        leaf = logits.detach().requires_grad_()
        result = ck.policy_loss(leaf, self.targets, **self.arguments, spec=SPEC, impl=impl)
        [gradient] = torch.autograd.grad(result.loss, leaf)
        return {
            "loss": result.loss.detach(),
            "logprobs": result.logprobs.detach(),
            "entropy": result.entropy.detach(),
            "gradient": gradient,
        }


def errors(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative errors, in norm."""
    return {name: float((found[name].double() - x).norm() / x.norm()) for name, x in exact.items()}


def judge(call: Call, impl: str) -> dict[str, float]:
    exact = call.results("reference", call.logits.double())
    found = errors(call.results(impl, call.logits), exact)
    if wrong := {name: error for name, error in found.items() if not error <= ALLOWED[call.logits.dtype]}:
        raise AssertionError(f"relative error against float64: {wrong}")
    return found


def whole_graph(call: Call, impl: str) -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return ck.policy_loss(logits, call.targets, **call.arguments, spec=SPEC, impl=impl).loss

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = call.logits.detach().requires_grad_()
        found.append(torch.autograd.grad(function(leaf), leaf)[0])
    torch.testing.assert_close(found[0], found[1])


def no_wait(call: Call, impl: str) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.results(impl, call.logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def in_a_graph(call: Call, impl: str) -> None:
    """Checks log-probs in a CUDA graph; `ck.policy_loss` would need its coefficients on the device for this."""
    graph, arguments = torch.cuda.CUDAGraph(), {"temperature": 0.9, "impl": impl}
    want = ck.token_logprobs(call.logits, call.targets, **arguments)
    with torch.cuda.graph(graph):
        found = ck.token_logprobs(call.logits, call.targets, **arguments)
    graph.replay()
    torch.testing.assert_close(found, want, rtol=0, atol=0)


def checked(about: dict[str, Any], check: Callable[[], dict[str, float] | None]) -> bool:
    """True if the check raises nothing; prints its line."""
    try:
        found: dict[str, Any] = {"good": True, **(check() or {})}
    except Exception as error:  # the other checks must still run
        found = {"good": False, "error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"part": "gate", **about, **found}), flush=True)
    return bool(found["good"])


def judge_all(device: str, impl: str) -> bool:
    good = True
    for tokens, vocab in SHAPES:
        for dtype in ALLOWED:
            about = {"impl": impl, "shape": [tokens, vocab], "check": str(dtype)}
            good &= checked(about, partial(judge, Call(tokens, vocab, dtype, device), impl))
    small = Call(16, 1_000, torch.float32, device)
    for check in (whole_graph, *((no_wait, in_a_graph) if device == "cuda" else ())):
        good &= checked({"impl": impl, "check": check.__name__}, partial(check, small, impl))
    return good


def main(device: str, impls: list[str]) -> int:
    return 0 if all([judge_all(device, impl) for impl in impls]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
