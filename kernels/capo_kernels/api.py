"""The public operations: check the arguments, choose an implementation, run it.

Letters: T packed tokens, B sequences, H hidden, V vocabulary. Sequences are concatenated along T. Row t of the logits
or hidden states predicts `targets[t]`, and entry t of every [T] argument and result describes that token.

Errors, for all: TypeError for a wrong type or dtype, ValueError for a wrong shape, device, value or combination, each
naming the argument, what was found and what is wanted; RuntimeError if a named implementation can't run. Values
(targets in range, offsets, step counts) are checked on CPU tensors, and on a device with CAPO_DEBUG=1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .checks import INTS, LOGIT_DTYPES, check_bool, check_choice, check_number, check_range, check_tensor, reads_values
from .credit import Credit
from .registry import choose
from .spec import Head, LossInputs, LossSpec, PolicyLoss


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The natural log-prob of each target under `softmax(logits / temperature)`, differentiable.

    logits: float [T, V], rows may be strided; targets: int [T] in [0, V); softcap: as in LossSpec.
    Returns float32 [T] (float64 for float64 logits); with `entropy` also each row's entropy in nats, same dtype.
    """
    _check_logits(logits, targets)
    _check_head(targets, logits.shape[1], temperature, softcap, entropy)
    implementation = choose(impl, logits.device, logits.dtype, logits.shape[1])
    return _unpack(implementation.logprobs(logits, targets, Head(temperature, softcap), entropy))


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    chunk_tokens: int | None = None,
    logits_dtype: str | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`token_logprobs` of `hidden @ weight.T + bias`; at most [chunk_tokens, V] of the logits is in memory at a time.

    hidden: float [T, H]; weight [V, H] and bias [V] in the dtype of hidden; chunk_tokens: None means 8,192 on CUDA
    (4,096 if the logits of 8,192 need more than 1/16 of the device memory; all of T if that needs no more memory than
    4,096 with a float32 gradient by the weight), elsewhere max(256, 2^25 / V). Chunks have equal sizes.
    logits_dtype: "float32" keeps the logits of bfloat16 inputs unrounded; None: the dtype of hidden. Gradients by
    hidden, weight and bias; that by weight is summed in float32 and returned in its dtype.
    """
    _check_linear(hidden, weight, bias, targets)
    _check_head(targets, weight.shape[0], temperature, softcap, entropy)
    _check_chunk(chunk_tokens)
    wide, vocab = _is_wide(logits_dtype, hidden), weight.shape[0]
    implementation = choose(impl, hidden.device, torch.float32 if wide else hidden.dtype, vocab)
    head = Head(temperature, softcap)
    return _unpack(implementation.linear_logprobs(hidden, weight, bias, targets, head, entropy, chunk_tokens, wide))


def policy_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor,
    advantages: Tensor | None = None,
    credit: Credit | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008 - frozen
    inplace: bool = False,
    impl: str = "auto",
) -> PolicyLoss:
    """The weighted policy-gradient loss of LossSpec (CAPO: arXiv 2508.02298), differentiable by logits.

    logits: bfloat16, float16, float32 or float64 [T, V], rows may be strided; targets: int [T].
    weights: float32 [T], the share of each token in the loss (`token_weights`). A row of weight 0 is not read: it may
    contain NaN and its target any value. It adds nothing to the loss and gets gradient 0.
    advantages: float32 [T]; or pass credit, and they are computed from it over the rows of non-zero weight.
    old_logprobs, ref_logprobs, rollout_logprobs: float32 [T], natural log; old_logprobs=None uses the current ones.
    All of these may be float64 beside float64 logits. None of them gets a gradient.
    cu_seqlens: int32 [B + 1], needed for sequence ratios and sequence importance weights; None: the credit's.
    inplace: the gradient overwrites the logits. The logits may not be a leaf that requires grad, and backward rejects
    retain_graph and create_graph. If no gradient is needed, nothing is overwritten.
    """
    _check_logits(logits, targets)
    inputs = LossInputs(weights, advantages, credit, old_logprobs, ref_logprobs, rollout_logprobs, cu_seqlens)
    inputs.check(logits, spec)
    inputs.check_targets(targets, logits.shape[1])
    check_bool("inplace", inplace)
    if inplace:
        _check_overwritable(logits)
    _refuse_frozen_coefficients(logits, spec)
    implementation = choose(impl, logits.device, logits.dtype, logits.shape[1])
    return implementation.policy_loss(logits, targets, inputs, spec, inplace)


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    weights: Tensor,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    logits_dtype: str | None = None,
    rows: Tensor | None = None,
    advantages: Tensor | None = None,
    credit: Credit | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008 - frozen
    impl: str = "auto",
) -> PolicyLoss:
    """`policy_loss` of `hidden @ weight.T + bias`; at most [chunk_tokens, V] of the logits is in memory at a time.

    hidden, weight, bias, chunk_tokens, logits_dtype: as in `linear_token_logprobs`; the rest as in `policy_loss`. Rows
    of hidden with weight 0 are not read and get gradient 0. No gradient is computed for a frozen head.
    rows: int64 [R], ascending, the rows to compute; the others are treated as weight 0 and left out of the GEMMs.
    None: all rows on a GPU, where reading the weights would need a sync; rows of non-zero weight on a CPU.
    """
    _check_linear(hidden, weight, bias, targets)
    inputs = LossInputs(weights, advantages, credit, old_logprobs, ref_logprobs, rollout_logprobs, cu_seqlens)
    inputs.check(hidden, spec)
    wide, vocab = _is_wide(logits_dtype, hidden), weight.shape[0]
    if rows is not None:
        inputs = inputs.restricted_to(_check_rows(rows, hidden))
    inputs.check_targets(targets, vocab)
    _check_chunk(chunk_tokens)
    _refuse_frozen_coefficients(hidden, spec)
    implementation = choose(impl, hidden.device, torch.float32 if wide else hidden.dtype, vocab)
    return implementation.linear_policy_loss(hidden, weight, bias, targets, inputs, spec, rows, chunk_tokens, wide)


def _refuse_transforms() -> None:
    """The kernels have no batch rule and no second derivative; torch's own error would name its internals."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        raise RuntimeError("torch.func: got a call inside a transform (grad, vmap, jvp, ...), want loss.backward()")


def _refuse_frozen_coefficients(logits: Tensor, spec: LossSpec) -> None:
    if logits.is_cuda and spec.coefficients is None and _is_captured():
        raise RuntimeError(
            "spec: got coefficients on the host inside the capture of a CUDA graph, which would replay them unchanged, "
            "want spec.on(device)"
        )


def _is_captured() -> bool:
    return not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


def _check_logits(logits: Any, targets: Any) -> None:
    _refuse_transforms()
    check_tensor("logits", logits, {"T": None, "V": None}, LOGIT_DTYPES, None)
    if logits.shape[1] == 0:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want V >= 1")
    check_tensor("targets", targets, {"T": logits.shape[0]}, INTS, logits.device)


def _check_overwritable(logits: Tensor) -> None:
    if logits.requires_grad and logits.is_leaf:
        raise ValueError("inplace: got True for logits that are a leaf that requires grad, want a computed tensor")
    base = None if torch.compiler.is_compiling() else logits._base
    if base is not None and base.requires_grad and base.is_leaf:
        raise ValueError("inplace: got True for a view of a leaf that requires grad, want a computed tensor")
    row_stride, step = logits.stride()
    if (step != 1 and logits.shape[1] > 1) or (row_stride < logits.shape[1] and logits.shape[0] > 1):
        raise ValueError(f"inplace: got True for logits with strides {logits.stride()}, want contiguous disjoint rows")


def _check_linear(hidden: Any, weight: Any, bias: Any, targets: Any) -> None:
    _refuse_transforms()
    check_tensor("hidden", hidden, {"T": None, "H": None}, LOGIT_DTYPES, None)
    _check_part("weight", weight, {"V": None, "H": hidden.shape[1]}, hidden)
    if weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want V >= 1")
    if bias is not None:
        _check_part("bias", bias, {"V": weight.shape[0]}, hidden)
    check_tensor("targets", targets, {"T": hidden.shape[0]}, INTS, hidden.device)


def _check_part(name: str, x: Any, dims: dict[str, int | None], hidden: Tensor) -> None:
    check_tensor(name, x, dims, (hidden.dtype,), hidden.device, dtype_hint=f"; pass {name}.to(hidden.dtype)")


def _check_head(targets: Tensor, vocab: int, temperature: float, softcap: float | None, entropy: bool) -> None:
    check_number("temperature", temperature, 0, above=True)
    check_number("softcap", softcap, 0, above=True, optional=True)
    check_bool("entropy", entropy)
    if reads_values(targets):
        check_range("targets", targets, 0, vocab - 1, reason="; put any id in [0, V) in rows that you don't need")


def _check_chunk(chunk_tokens: int | None) -> None:
    if chunk_tokens is None:
        return
    if isinstance(chunk_tokens, bool) or not isinstance(chunk_tokens, int):
        raise TypeError(f"chunk_tokens: got {type(chunk_tokens).__name__}, want an int >= 1 or None")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens: got {chunk_tokens}, want an int >= 1 or None")


def _is_wide(logits_dtype: str | None, hidden: Tensor) -> bool:
    check_choice("logits_dtype", logits_dtype, (None, "float32"))
    return logits_dtype == "float32" and hidden.dtype in (torch.bfloat16, torch.float16)


def _check_rows(rows: Tensor, hidden: Tensor) -> Tensor:
    check_tensor("rows", rows, {"R": None}, (torch.int64,), hidden.device)
    if reads_values(rows):
        check_range("rows", rows, 0, hidden.shape[0] - 1)
        if not (rows.diff() > 0).all():
            raise ValueError("rows: got indices that do not ascend, want each row once, in order")
    return rows


def _unpack(outputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, Tensor]:
    return outputs[0] if len(outputs) == 1 else (outputs[0], outputs[1])
