"""Registers a function as a torch operator, and calls the function directly where nothing observes the operator.

A call through torch's dispatcher costs 40 us on a CPU, more than a small loss takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


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
        if torch.compiler.is_compiling() or observed((*arguments, *options.values())):
            return self.definition(*arguments, **options)
        if self.mutates is not None:
            # As the dispatcher does: autograd then raises for a tensor saved before the write.
            torch.autograd.graph.increment_version(arguments[0])
        return self.function(*arguments, **options)


def operator(name: str, mutates: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    return lambda function: Operator(name, function, mutates)


def observed(arguments: Iterable[Any]) -> bool:
    """True if the dispatcher must see the call: a dispatch mode, a torch.func transform, a trace, a tensor subclass."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.jit.is_tracing()
        or any(isinstance(x, Tensor) and type(x) not in PLAIN for x in _flat(arguments))
    )


def _flat(arguments: Iterable[Any]) -> Iterable[Any]:
    for x in arguments:
        if isinstance(x, tuple | list):
            yield from x
        else:
            yield x
