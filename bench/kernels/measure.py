"""All providers of a case: compared with float64, then timed in turns.

A provider is one implementation of the case: ours, a peer's, or a bound, which does the same memory traffic or the same
GEMMs and nothing else. A provider that can't run is reported with the reason; one with wrong results is not timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.kernels.clocks import CLOCKS, Call
from bench.kernels.problems import Problem, Results
from bench.kernels.suites import Case, Suite

ALLOWED = {"float32": 1e-4, "bfloat16": 3e-2}
"""Error of the loss and of each gradient, relative to its norm. Wide enough for peers that round in other places; the
tests in tests/kernels compare our kernels with PyTorch's own error."""


class Unavailable(Exception):
    """A provider can't run here; the message is the reason."""


@dataclass(frozen=True)
class Provider:
    """`make(problem)` does the untimed preparation and returns the timed call."""

    name: str
    make: Callable[[Any], Callable[[], Results]] = field(repr=False)
    kind: str = "ppo"
    """Results that it computes (`Problem.exact`); "bound" for a bound."""
    less: str = ""
    """Outputs of ours that it does not compute."""

    def __str__(self) -> str:
        return self.name.replace(" ", "_")


@dataclass(frozen=True)
class Cost:
    """Minimum bytes moved and operations of a kernel for all rows of a case, including masked ones."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Measurement:
    seconds: list[float]
    hot_seconds: float | None
    """Median with warm caches (GPU)."""
    host_seconds: float | None
    extra_bytes: int
    """Peak memory above the memory in use before the call."""
    error: float | None
    """The largest relative error against float64; None for a bound."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Bench:
    """Measurements of a case by provider, or the exception that prevented one."""

    def __init__(self, kernel: str, case: Case, suite: Suite, problem: Problem, cost: Cost) -> None:
        self.kernel, self.case, self.suite, self.problem, self.cost = kernel, case, suite, problem, cost
        self.clock = CLOCKS[suite.device]()
        self.found: dict[Provider, Measurement | Exception] = {}
        self._exact: dict[str, tuple[Results, float]] = {}

    def run(self, providers: Iterable[Provider]) -> None:
        torch._dynamo.reset()  # code compiled for other shapes must not affect this case
        calls, errors = {}, {}
        for provider in providers:
            try:
                calls[provider], errors[provider] = self._admit(provider)
            except Exception as error:  # a failed provider must not lose the figures of the others
                out_of_memory = isinstance(error, torch.OutOfMemoryError)  # its traceback would keep the tensors alive
                self.found[provider] = error.with_traceback(None) if out_of_memory else error
        self.problem.forget()
        seconds = self._interleave(calls)
        for provider, call in calls.items():
            hot = self._hot(call) if self.suite.device == "cuda" else None
            host, extra = self._fresh(self.clock.host_seconds, call), self._fresh(self.clock.extra_bytes, call)
            self.found[provider] = Measurement(seconds[provider], hot, host, extra, errors[provider])

    def _admit(self, provider: Provider) -> tuple[Call, float | None]:
        """The provider's call after two warm-up calls, and its error. Raises the reason why it is not timed."""
        try:
            call = provider.make(self.problem)
        except ImportError as error:
            raise Unavailable(f"can't be imported: {error}") from error
        self._fresh(lambda call: call(), call)
        results = self._fresh(lambda call: call(), call)
        if provider.kind == "bound":
            return call, None
        errors = self._errors(provider.kind, results)
        if wrong := {name: error for name, error in errors.items() if not error <= ALLOWED[self.case.dtype]}:
            listed = ", ".join(f"{name} {error:.1e}" for name, error in wrong.items())
            raise AssertionError(f"relative error against float64: {listed}; allowed is {ALLOWED[self.case.dtype]:g}")
        return call, max(errors.values())

    def _errors(self, kind: str, results: Results) -> dict[str, float]:
        if kind not in self._exact:
            self._exact[kind] = self.problem.exact(kind)
        exact, magnitude = self._exact[kind]
        got = self.problem.sample(results)
        norms = {name: magnitude if name == "loss" else float(x.norm()) for name, x in exact.items()}
        return {name: float((got[name].detach().double() - x).norm()) / norms[name] for name, x in exact.items()}

    def _fresh(self, measure: Callable[[Call], Any], call: Call) -> Any:
        """Measures the call on restored inputs."""
        self.problem.restore()
        return measure(call)

    def _interleave(self, calls: Mapping[Provider, Call]) -> dict[Provider, list[float]]:
        """Times all providers in turns, so that a disturbance of the machine affects all of them."""
        seconds: dict[Provider, list[float]] = {provider: [] for provider in calls}
        least, most = self.suite.rounds
        spent = 0.0
        for turn in range(most):
            if turn >= least and spent * (turn + 1) / turn > self.suite.seconds:
                break
            for provider, call in calls.items():
                seconds[provider].append(self._fresh(self.clock.seconds, call))
                spent += seconds[provider][-1]
        return seconds

    def _hot(self, call: Call) -> float:
        return statistics.median(self._fresh(lambda call: self.clock.seconds(call, cold=False), call) for _ in range(5))

    def figures(self, provider: Provider) -> dict[str, Any]:
        """Figures that accompany the times in the results, in SI units."""
        measured, case = self.found[provider], self.case
        assert isinstance(measured, Measurement)
        bounds = [x.median for p, x in self.found.items() if p.kind == "bound" and isinstance(x, Measurement)]
        return {
            "kernel": self.kernel,
            "provider": provider.name,
            "kind": provider.kind,
            "less": provider.less,
            "case": str(case),
            "model": case.model,
            "tokens": self.problem.tokens,
            "hidden": case.head.hidden,
            "vocab": case.head.vocab,
            "dtype": case.dtype,
            "regime": case.regime,
            "bytes": self.cost.bytes,
            "flops": self.cost.flops,
            "bytes_per_second": self.cost.bytes / measured.median,
            "flops_per_second": self.cost.flops / measured.median,
            "share_of_bound": min(bounds) / measured.median if bounds else None,
            "hot_seconds": measured.hot_seconds,
            "host_seconds": measured.host_seconds,
            "extra_bytes": measured.extra_bytes,
            "error": measured.error,
        }
