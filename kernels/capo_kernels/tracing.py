"""Whether anything watches a call: a graph that is traced, a dispatch mode, a transform, a tensor subclass."""

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
