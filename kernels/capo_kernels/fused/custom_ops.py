"""The row kernels as operators of torch (`torch.ops.capo.*`), which torch.compile takes as they are.

The numbers of a spec come as `Scalars` in a float32 tensor on the CPU, its choices as `Modes`, absent tensors as None.
Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rows import TERMS, Modes, RowKernels, Scalars, TokenArguments

KERNELS: dict[str, RowKernels] = {}
"""By the name that an operator's `impl` gives."""


@torch.library.custom_op("capo::logprobs", mutates_args=())
def logprobs(
    logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float, impl: str
) -> tuple[Tensor, Tensor]:
    return KERNELS[impl].logprobs(logits, targets, weight, temperature, softcap)


@logprobs.register_fake
def _(logits, targets, weight, temperature, softcap, impl):  # type: ignore[no-untyped-def]
    return tuple(logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("capo::dlogits", mutates_args=())
def dlogits(
    logits: Tensor,
    targets: Tensor,
    dlogp: Tensor,
    dentropy: Tensor | None,
    temperature: float,
    softcap: float,
    impl: str,
) -> Tensor:
    grad = _like(logits)
    KERNELS[impl].dlogits(logits, targets, dlogp, dentropy, temperature, softcap, grad)
    return grad


@dlogits.register_fake
def _(logits, targets, dlogp, dentropy, temperature, softcap, impl):  # type: ignore[no-untyped-def]
    return _like(logits)


@torch.library.custom_op("capo::policy_loss", mutates_args=())
def policy_loss(
    logits: Tensor,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
    wants_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(terms [T, 16], gradient [T, V], empty where not wanted)."""
    grad = _like(logits) if wants_grad else logits.new_empty(0)
    terms = _loss(logits, targets, tokens, modes, numbers, impl, grad if wants_grad else None)
    return terms, grad


@policy_loss.register_fake
def _(logits, targets, tokens, modes, numbers, impl, wants_grad):  # type: ignore[no-untyped-def]
    return _terms(logits), _like(logits) if wants_grad else logits.new_empty(0)


@torch.library.custom_op("capo::policy_loss_", mutates_args=("logits",))
def policy_loss_(
    logits: Tensor,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
) -> Tensor:
    """terms [T, 16]; the gradient takes the logits' place."""
    return _loss(logits, targets, tokens, modes, numbers, impl, logits)


@policy_loss_.register_fake
def _(logits, targets, tokens, modes, numbers, impl):  # type: ignore[no-untyped-def]
    return _terms(logits)


@torch.library.custom_op("capo::scale_", mutates_args=("grad",))
def scale_(grad: Tensor, factor: Tensor, impl: str) -> None:
    """grad *= factor, for nothing where it is 1."""
    KERNELS[impl].scale_(grad, factor)


@scale_.register_fake
def _(grad, factor, impl):  # type: ignore[no-untyped-def]
    return None


def _loss(
    logits: Tensor,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
    grad: Tensor | None,
) -> Tensor:
    terms = _terms(logits)
    arguments, scalars = TokenArguments._make(tokens), Scalars._make(numbers.tolist())
    KERNELS[impl].loss(logits, targets, arguments, Modes(*modes), scalars, terms, grad)
    return terms


def _terms(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], len(TERMS), dtype=torch.float32)


def _like(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
