"""Registers a function as a torch operator, and calls the function directly where nothing observes the operator.

A call through torch's dispatcher costs 40 us on a CPU, more than a small loss takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..tracing import observed


class Operator:
    """`capo::NAME`. A call runs the function directly, unless a graph is traced or a tensor is of a subclass."""

    def __init__(self, name: str, function: Callable[..., Any], mutates: str | None) -> None:
        self.function, self.mutates = function, mutates
        self.definition = torch.library.custom_op(
            f"capo::{name}", function, mutates_args=() if mutates is None else (mutates,)
        )
        self.register_fake = self.definition.register_fake

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """An operator that mutates a tensor has it as its first argument."""
        if observed((*arguments, *options.values())):
            return self.definition(*arguments, **options)
        if self.mutates is not None:
            # As the dispatcher does: autograd then raises for a tensor saved before the write.
            torch.autograd.graph.increment_version(arguments[0])
        return self.function(*arguments, **options)


def operator(name: str, mutates: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    return lambda function: Operator(name, function, mutates)
