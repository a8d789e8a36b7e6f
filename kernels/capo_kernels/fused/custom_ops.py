"""The row kernels as operators of torch (`torch.ops.capo.*`), which torch.compile takes as they are.

The numbers of a spec come as `Scalars` in a float32 tensor on the CPU, its choices as `Modes`, absent tensors as None;
`impl` names the row kernels. Letters: T tokens, V vocabulary, H hidden, c rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rows import TERMS, Modes, RowKernels, Scalars, TokenArguments
from .linear import Matmuls, take, trained_rows
from .summary import untrained_terms

KERNELS: dict[str, RowKernels] = {}
"""By name; a FusedImplementation enters its own."""

# ---- of logits -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("capo::logprobs", mutates_args=())
def logprobs(
    logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float, impl: str
) -> tuple[Tensor, Tensor]:
    """(logp, entropy), [T] each; 0 where the token's weight is 0."""
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
    terms, grad = _terms(logits), _like(logits) if wants_grad else None
    KERNELS[impl].loss(logits, targets, *_records(tokens, modes, numbers), terms, grad)
    return terms, logits.new_empty(0) if grad is None else grad


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
    terms = _terms(logits)
    KERNELS[impl].loss(logits, targets, *_records(tokens, modes, numbers), terms, logits)
    return terms


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


# ---- of a linear head ------------------------------------------------------------------------------------------------


@torch.library.custom_op("capo::linear_policy_loss", mutates_args=())
def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    rows: Tensor | None,
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
    chunk: int,
    wide_logits: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(terms [T, 16], gradients by hidden, weight and bias; empty where `needs` is false)."""
    arguments, choices, scalars = _records(tokens, modes, numbers)
    rows, all_trained = trained_rows(arguments.weight, rows)
    targets, arguments = take(targets, rows), arguments.take(rows)
    weight_R = None if all_trained else arguments.weight
    matmuls = Matmuls(hidden, weight, bias, weight_R, rows, chunk, wide_logits, needs)
    terms = _terms(targets)
    for part, hidden_cH, logits_cV in matmuls.chunks():
        grad_cV = logits_cV if any(needs) else None
        KERNELS[impl].loss(logits_cV, targets[part], arguments.take(part), choices, scalars, terms[part], grad_cV)
        if any(needs):
            matmuls.backward(part, hidden_cH, logits_cV)
    if rows is not None:
        terms = untrained_terms(hidden.shape[0], hidden.device).index_copy_(0, rows, terms)
    return terms, *matmuls.gradients()


@linear_policy_loss.register_fake
def _(hidden, weight, bias, targets, tokens, rows, modes, numbers, impl, chunk, wide_logits, needs):  # type: ignore[no-untyped-def]
    return _terms(hidden), *_gradients(hidden, weight, bias, needs)


@torch.library.custom_op("capo::linear_logprobs", mutates_args=())
def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weight: Tensor | None,
    rows: Tensor | None,
    temperature: float,
    softcap: float,
    impl: str,
    chunk: int,
    wide_logits: bool,
) -> tuple[Tensor, Tensor]:
    """(logp, entropy), [T] each; 0 where the token's weight is 0."""
    rows, all_trained = trained_rows(token_weight, rows)
    targets, token_weight = take(targets, rows), take(token_weight, rows)
    weight_R = None if all_trained else token_weight
    matmuls = Matmuls(hidden, weight, bias, weight_R, rows, chunk, wide_logits, (False,) * 3)
    results = hidden.new_empty(2, targets.shape[0], dtype=torch.float32)
    for part, _, logits_cV in matmuls.chunks():
        weight_c = None if token_weight is None else token_weight[part]
        outputs = KERNELS[impl].logprobs(logits_cV, targets[part], weight_c, temperature, softcap)
        for result, output in zip(results, outputs, strict=True):
            result[part] = output
    if rows is not None:
        results = results.new_zeros(2, hidden.shape[0]).index_copy_(1, rows, results)
    logp, entropy = (result.clone() for result in results)
    return logp, entropy


@linear_logprobs.register_fake
def _(hidden, weight, bias, targets, token_weight, rows, temperature, softcap, impl, chunk, wide_logits):  # type: ignore[no-untyped-def]
    return tuple(hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("capo::linear_logprobs_backward", mutates_args=())
def linear_logprobs_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dlogp: Tensor,
    dentropy: Tensor | None,
    temperature: float,
    softcap: float,
    impl: str,
    chunk: int,
    wide_logits: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by hidden, weight and bias; empty where `needs` is false."""
    matmuls = Matmuls(hidden, weight, bias, None, None, chunk, wide_logits, needs)
    for part, hidden_cH, logits_cV in matmuls.chunks():
        slopes_c = (dlogp[part], None if dentropy is None else dentropy[part])
        KERNELS[impl].dlogits(logits_cV, targets[part], *slopes_c, temperature, softcap, logits_cV)
        matmuls.backward(part, hidden_cH, logits_cV)
    return matmuls.gradients()


@linear_logprobs_backward.register_fake
def _(hidden, weight, bias, targets, dlogp, dentropy, temperature, softcap, impl, chunk, wide_logits, needs):  # type: ignore[no-untyped-def]
    return _gradients(hidden, weight, bias, needs)


# ---- arguments and results -------------------------------------------------------------------------------------------


def _records(
    tokens: Sequence[Tensor | None], modes: Sequence[int], numbers: Tensor
) -> tuple[TokenArguments, Modes, Scalars]:
    """An operator takes lists and tensors alone; a row kernel takes these."""
    return TokenArguments._make(tokens), Modes._make(modes), Scalars._make(numbers.tolist())


def _terms(beside: Tensor) -> Tensor:
    """float32 [T, 16], of as many tokens as `beside` has rows."""
    return beside.new_empty(beside.shape[0], len(TERMS), dtype=torch.float32)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    found = zip((hidden, weight, bias), needs, strict=True)
    return tuple(_like(x) if need and x is not None else hidden.new_empty(0) for x, need in found)
