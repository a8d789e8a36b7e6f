"""Whether anything watches a call: a graph that is traced, a dispatch mode, a transform, a tensor subclass; and whether
a backward is to be differentiated again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def observed(arguments: Iterable[Any]) -> bool:
    """True if torch's dispatcher must see the call, or its tensors may have no values."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
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


def refuse_double_backward() -> None:
    """For a backward without a graph of its own. Raises RuntimeError under create_graph: torch would lose the second
    derivative silently where the incoming gradient requires none."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "create_graph: got True, want False (policy_loss and token_logprobs of impl='reference' have second "
            "derivatives)"
        )
