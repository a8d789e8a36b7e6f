"""The kernels as torch operators (`torch.ops.capo.*`), which torch.compile does not trace into.

A spec's numbers are passed as `Scalars` in a float32 CPU tensor, its choices as `Modes`, absent tensors as None;
`impl` names the row kernels. Letters: T tokens, V vocabulary, H hidden, c rows of one chunk, M raw metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..metrics import RAW
from ..rows import TERMS, CreditArguments, Modes, Results, RowKernels, Scalars, SequenceArguments, TokenArguments
from .kept import KEPT
from .linear import Matmuls, take, trained_rows
from .operators import operator

KERNELS: dict[str, RowKernels] = {}
"""By name; each FusedImplementation registers its own."""

# ---- of logits -------------------------------------------------------------------------------------------------------


@operator("logprobs")
def logprobs(
    logits: Tensor, targets: Tensor, weight: Tensor | None, temperature: float, softcap: float, impl: str
) -> tuple[Tensor, Tensor]:
    """(logp, entropy), [T] each; 0 where the token's weight is 0."""
    return KERNELS[impl].logprobs(logits, targets, weight, temperature, softcap)


@logprobs.register_fake
def _(logits, targets, weight, temperature, softcap, impl):  # type: ignore[no-untyped-def]
    return tuple(logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2))


@operator("dlogits")
def dlogits(
    logits: Tensor,
    targets: Tensor,
    dlogp: Tensor,
    dentropy: Tensor | None,
    temperature: float,
    softcap: float,
    impl: str,
) -> Tensor:
    grad = KEPT.like(logits)
    KERNELS[impl].dlogits(logits, targets, dlogp, dentropy, temperature, softcap, grad)
    return grad


@dlogits.register_fake
def _(logits, targets, dlogp, dentropy, temperature, softcap, impl):  # type: ignore[no-untyped-def]
    return _like(logits)


@operator("policy_loss")
def policy_loss(
    logits: Tensor,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
    wants_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, logp [T], entropy [T], raw [13], gradient [T, V], empty if not wanted)."""
    grad = KEPT.like(logits) if wants_grad else None
    outputs = _loss(logits, targets, tokens, modes, numbers, impl, grad)
    return *outputs, logits.new_empty(0) if grad is None else grad


@policy_loss.register_fake
def _(logits, targets, tokens, modes, numbers, impl, wants_grad):  # type: ignore[no-untyped-def]
    return *_outputs(logits), _like(logits) if wants_grad else logits.new_empty(0)


@operator("policy_loss_", mutates="logits")
def policy_loss_(
    logits: Tensor,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, logp [T], entropy [T], raw [13]); the gradient overwrites the logits."""
    return _loss(logits, targets, tokens, modes, numbers, impl, logits)


@policy_loss_.register_fake
def _(logits, targets, tokens, modes, numbers, impl):  # type: ignore[no-untyped-def]
    return _outputs(logits)


@operator("scale_", mutates="grad")
def scale_(grad: Tensor, factor: Tensor, impl: str) -> None:
    """grad *= factor; a factor of 1 costs no pass over grad."""
    KERNELS[impl].scale_(grad, factor)


@scale_.register_fake
def _(grad, factor, impl):  # type: ignore[no-untyped-def]
    return None


# ---- over T ----------------------------------------------------------------------------------------------------------


@operator("advantages")
def advantages(
    step_starts: Tensor,
    step_wrong: Tensor,
    outcome: Tensor,
    group: Tensor,
    cu_seqlens: Tensor,
    stats: Tensor | None,
    weight: Tensor,
    outcome_weight: float,
    process_weight: float,
    std_floor: float,
    norm: int,
    impl: str,
) -> Tensor:
    """float32 [T]. Without `stats` they are computed over the tokens of non-zero weight."""
    advantage = torch.empty_like(weight)
    tensors = step_starts, step_wrong, outcome, group, cu_seqlens, stats, weight
    KERNELS[impl].advantages(CreditArguments(*tensors, outcome_weight, process_weight, std_floor, norm), advantage)
    return advantage


@advantages.register_fake
def _(step_starts, step_wrong, outcome, group, cu_seqlens, stats, weight, *options):  # type: ignore[no-untyped-def]
    return torch.empty_like(weight)


@operator("sequences")
def sequences(
    weight: Tensor,
    cu_seqlens: Tensor,
    logp: Tensor | None,
    old_logp: Tensor | None,
    rollout_logp: Tensor | None,
    wants_ratio: bool,
    wants_importance: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """RowKernels.sequences; a result that is not wanted is empty."""
    found = tuple(torch.empty_like(weight) if want else weight.new_empty(0) for want in (wants_ratio, wants_importance))
    log_ratio, importance = (
        x if want else None for x, want in zip(found, (wants_ratio, wants_importance), strict=True)
    )
    arguments = SequenceArguments(weight, cu_seqlens, logp, old_logp, rollout_logp)
    KERNELS[impl].sequences(arguments, log_ratio, importance)
    return found[0], found[1]


@sequences.register_fake
def _(weight, cu_seqlens, logp, old_logp, rollout_logp, wants_ratio, wants_importance, impl):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(weight) if want else weight.new_empty(0) for want in (wants_ratio, wants_importance))


# ---- of a linear head ------------------------------------------------------------------------------------------------


@operator("linear_policy_loss")
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
    chunk: int | None,
    wide_logits: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, logp [T], entropy [T], raw [13], gradients by hidden, weight and bias; empty where `needs` is false)."""
    arguments, choices, scalars = _records(tokens, modes, numbers)
    rows, all_trained = trained_rows(arguments.weight, rows)
    targets, arguments = take(targets, rows), arguments.take(rows)
    weight_R = None if all_trained else arguments.weight
    matmuls = Matmuls(hidden, weight, bias, weight_R, rows, chunk, wide_logits, needs)
    results = _results(targets)
    for part, hidden_cH, logits_cV in matmuls.chunks():
        grad_cV = logits_cV if any(needs) else None
        written = Results._make(x[part] for x in results)
        KERNELS[impl].loss(logits_cV, targets[part], arguments.take(part), choices, scalars, written, grad_cV)
        if any(needs):
            matmuls.backward(part, hidden_cH, logits_cV)
    loss, raw = _summary(arguments, results, impl)
    logp, entropy = (_spread(x, rows, hidden.shape[0]) for x in results[:2])
    return loss, logp, entropy, raw, *matmuls.gradients()


@linear_policy_loss.register_fake
def _(hidden, weight, bias, targets, tokens, rows, modes, numbers, impl, chunk, wide_logits, needs):  # type: ignore[no-untyped-def]
    return *_outputs(hidden), *_gradients(hidden, weight, bias, needs)


@operator("linear_logprobs")
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
    chunk: int | None,
    wide_logits: bool,
) -> tuple[Tensor, Tensor]:
    """(logp, entropy), [T] each; 0 where the token's weight is 0."""
    rows, all_trained = trained_rows(token_weight, rows)
    targets, token_weight = take(targets, rows), take(token_weight, rows)
    weight_R = None if all_trained else token_weight
    matmuls = Matmuls(hidden, weight, bias, weight_R, rows, chunk, wide_logits, (False,) * 3)
    logp, entropy = (hidden.new_empty(targets.shape[0], dtype=torch.float32) for _ in range(2))
    for part, _, logits_cV in matmuls.chunks():
        weight_c = None if token_weight is None else token_weight[part]
        logp[part], entropy[part] = KERNELS[impl].logprobs(logits_cV, targets[part], weight_c, temperature, softcap)
    tokens = hidden.shape[0]
    return _spread(logp, rows, tokens), _spread(entropy, rows, tokens)


@linear_logprobs.register_fake
def _(hidden, weight, bias, targets, token_weight, rows, temperature, softcap, impl, chunk, wide_logits):  # type: ignore[no-untyped-def]
    return tuple(hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))


@operator("linear_logprobs_backward")
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
    chunk: int | None,
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


def _loss(
    logits: Tensor,
    targets: Tensor,
    tokens: Sequence[Tensor | None],
    modes: Sequence[int],
    numbers: Tensor,
    impl: str,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two launches: the rows and their summary."""
    results, records = _results(logits), _records(tokens, modes, numbers)
    KERNELS[impl].loss(logits, targets, *records, results, grad)
    loss, raw = _summary(records[0], results, impl)
    return loss, results.logp, results.entropy, raw


def _records(
    tokens: Sequence[Tensor | None], modes: Sequence[int], numbers: Tensor
) -> tuple[TokenArguments, Modes, Scalars]:
    """Operators take only lists and tensors; row kernels take these records."""
    return TokenArguments._make(tokens), Modes._make(modes), Scalars._make(numbers.tolist())


def _summary(tokens: TokenArguments, results: Results, impl: str) -> tuple[Tensor, Tensor]:
    loss, raw = results.logp.new_empty(()), results.logp.new_empty(len(RAW))
    has_ref, has_is = tokens.ref_logp is not None, tokens.importance is not None
    KERNELS[impl].summary(tokens.weight, results, has_ref, has_is, loss, raw)
    return loss, raw


def _results(beside: Tensor) -> Results:
    """Results for as many tokens as `beside` has rows."""
    new = partial(beside.new_empty, dtype=torch.float32)
    tokens = beside.shape[0]
    return Results(new(tokens), new(tokens), new(tokens, len(TERMS)))


def _outputs(beside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The shapes of a loss, its log-probs and entropies, and its raw metrics."""
    new = partial(beside.new_empty, dtype=torch.float32)
    tokens = beside.shape[0]
    return new(()), new(tokens), new(tokens), new(len(RAW))


def _spread(x_R: Tensor, rows: Tensor | None, tokens: int) -> Tensor:
    """[T], 0 outside the rows."""
    return x_R if rows is None else x_R.new_zeros(tokens).index_copy_(0, rows, x_R)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    found = zip((hidden, weight, bias), needs, strict=True)
    return tuple(_like(x) if need and x is not None else hidden.new_empty(0) for x, need in found)
