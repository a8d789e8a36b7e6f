"""The loss and its gradient on a CPU, as ratios in one run: `python bench/cpu_loss.py [--dtype bfloat16] [--json F]`.

Every contender computes log-probs, ratios, PPO's clip, the weighted sum and the gradient by the logits, on the same
random logits [T, V]; "+ entropy" with the entropy bonus in the loss. The rounds interleave the contenders; medians.
Each gradient is checked against float64 on a few rows before anything is timed. `multiply` is the bound: one read and
one write of the logits. Nothing here is a peer's fused kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import capo_kernels as ck

ENTROPY_COEF = 0.01


class Problem:
    """Logits that are made anew before each measurement, because in place they become the gradient."""

    def __init__(self, tokens: int, vocab: int, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        self.source = torch.randn(tokens, vocab, generator=g).to(dtype)
        self.logits = self.source.clone()
        self.targets = torch.randint(vocab, (tokens,), generator=g)
        self.weights = torch.full((tokens,), 1 / tokens)
        self.advantages = torch.randn(tokens, generator=g)
        exact = self.source.float().log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
        self.old = exact + 0.2 * torch.randn(tokens, generator=g)

    def fused(self, inplace: bool, entropy_coef: float) -> Callable[[Tensor], Tensor]:
        spec = ck.LossSpec(entropy_coef=entropy_coef)

        def run(logits: Tensor) -> Tensor:
            x = _Computed.apply(logits, torch.zeros((), requires_grad=True)) if inplace else logits.requires_grad_()
            ck.policy_loss(
                x,
                self.targets,
                weights=self.weights,
                advantages=self.advantages,
                old_logprobs=self.old,
                spec=spec,
                inplace=inplace,
            ).loss.backward()
            return logits if inplace else logits.grad

        return run

    def eager(self, entropy_coef: float) -> Callable[[Tensor], Tensor]:
        def loss(logits: Tensor) -> Tensor:
            logq = torch.log_softmax(logits.float(), -1)
            logp = logq.gather(1, self.targets[:, None])[:, 0]
            ratio = (logp - self.old).exp()
            term = -torch.minimum(ratio * self.advantages, ratio.clamp(0.8, 1.2) * self.advantages)
            if entropy_coef:
                term = term + entropy_coef * (logq.exp() * logq).sum(-1)
            return (term * self.weights).sum()

        return loss


class _Computed(torch.autograd.Function):
    """The logits as a model's output: not a leaf, and nothing is copied."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, anchor: Tensor) -> Tensor:
        return logits.new_empty(0).set_(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def backward_of(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(logits: Tensor) -> Tensor:
        loss(logits.requires_grad_()).backward()
        return logits.grad

    return run


def contenders(problem: Problem) -> dict[str, Callable[[Tensor], Tensor]]:
    eager, with_entropy = problem.eager(0.0), problem.eager(ENTROPY_COEF)
    return {
        "multiply": lambda logits: logits.mul_(1.0001),
        "eager": backward_of(eager),
        "eager + entropy": backward_of(with_entropy),
        "torch.compile": backward_of(torch.compile(eager)),
        "torch.compile + entropy": backward_of(torch.compile(with_entropy)),
        "capo in place": problem.fused(True, 0.0),
        "capo in place + entropy": problem.fused(True, ENTROPY_COEF),
        "capo out of place": problem.fused(False, 0.0),
        "capo out of place + entropy": problem.fused(False, ENTROPY_COEF),
    }


def gate(problem: Problem, runs: dict[str, Callable[[Tensor], Tensor]]) -> None:
    """Every gradient against float64 on four rows."""
    rows = slice(0, 4)
    for name, run in runs.items():
        if name == "multiply":
            continue
        leaf = problem.source[rows].double().requires_grad_()
        small = {"weights": problem.weights[rows].double(), "advantages": problem.advantages[rows].double()}
        spec = ck.LossSpec(entropy_coef=ENTROPY_COEF if "entropy" in name else 0.0)
        old = problem.old[rows].double()
        ck.policy_loss(leaf, problem.targets[rows], old_logprobs=old, spec=spec, **small).loss.backward()
        found = run(problem.source.clone())[rows].double()
        error = ((found - leaf.grad).norm() / leaf.grad.norm()).item()
        if not error < (5e-3 if problem.source.dtype == torch.bfloat16 else 1e-5):
            raise SystemExit(f"{name}: relative error {error:.1e} against float64, nothing is timed")


def measure(problem: Problem, runs: dict[str, Callable[[Tensor], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds by contender, `rounds` each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            logits = problem.logits.detach()
            logits.copy_(problem.source)
            start = time.perf_counter()
            run(logits)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def extra_memory(run: Callable[[Tensor], Tensor], logits: Tensor) -> float:
    """Peak memory of a call beyond what was there, as a share of the logits. Linux alone."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    run(logits)
    return max(_status("VmHWM") - before, 0) * 1024 / (logits.numel() * logits.element_size())


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="where the figures go as JSON")
    options = parser.parse_args()
    problem = Problem(options.tokens, options.vocab, getattr(torch, options.dtype))
    runs = contenders(problem)
    gate(problem, runs)
    extra = extra_memory(runs["capo in place"], problem.source.clone())
    seconds = measure(problem, runs, options.rounds)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"{'':28} {'ms':>8} {'min':>8} {'max':>8} {'x multiply':>11} {'eager / it':>11} {'compile / it':>13}")
    for name, value in middle.items():
        kind = " + entropy" if name.endswith("entropy") else ""
        low, high = min(seconds[name]) * 1e3, max(seconds[name]) * 1e3
        print(
            f"{name:28} {value * 1e3:8.1f} {low:8.1f} {high:8.1f} {value / middle['multiply']:11.2f} "
            f"{middle['eager' + kind] / value:11.2f} {middle['torch.compile' + kind] / value:13.2f}"
        )
    print(f"extra memory in place: {extra:.2%} of the logits")
    if options.json:
        about = {
            "shape": [options.tokens, options.vocab],
            "dtype": options.dtype,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "status": ck.status(),
            "extra_memory_share": extra,
            "seconds": seconds,
        }
        with open(options.json, "w") as file:
            json.dump(about, file, indent=1)


if __name__ == "__main__":
    main()
