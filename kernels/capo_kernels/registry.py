"""The interface of an implementation, the ones that can run here, and the choice of `impl="auto"`.

Letters: T packed tokens, R rows to compute, H hidden, V vocabulary.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from . import reference
from .checks import check_choice
from .fused.autograd import FusedImplementation
from .fused.native import CpuRows, CudaRows
from .rows import RowKernels
from .spec import Head, LossInputs, LossSpec, PolicyLoss


class Implementation(Protocol):
    """The operations of api.py on checked arguments, differentiable as there. The module `reference` is one;
    triton, cuda and cpu are three more, each built on row kernels."""

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        """One-line reason why it can't take such logits, or None. Plain Python that torch.compile can trace."""

    def logprobs(self, logits_TV: Tensor, targets_T: Tensor, head: Head, entropy: bool) -> tuple[Tensor, ...]:
        """(logp [T],), with `entropy` (logp [T], entropy [T])."""

    def linear_logprobs(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        head: Head,
        entropy: bool,
        chunk: int | None,
        wide_logits: bool,
    ) -> tuple[Tensor, ...]:
        """The same for `hidden @ weight.T + bias`; at most [chunk, V] of the logits is in memory. `wide_logits`: logits
        in float32 or wider."""

    def policy_loss(
        self, logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec, inplace: bool
    ) -> PolicyLoss:
        """`inplace`: the gradient, if one is wanted, overwrites the logits."""

    def linear_policy_loss(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        inputs: LossInputs,
        spec: LossSpec,
        rows_R: Tensor | None,
        chunk: int | None,
        wide_logits: bool,
    ) -> PolicyLoss:
        """`rows_R`: int64, the rows to compute; the weights of other rows are 0."""


def _triton() -> RowKernels:
    if torch.version.cuda is None and not _interpreted():
        raise OSError("this torch has no CUDA (TRITON_INTERPRET=1 runs it, slowly, on a CPU)")
    from .fused.triton_rows import TritonRows  # Triton may be missing, and is slow to import

    return TritonRows()


def _cuda() -> RowKernels:
    if torch.version.cuda is None:
        raise OSError("this torch has no CUDA")
    return CudaRows()


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _build() -> tuple[dict[str, Implementation], dict[str, str]]:
    """The implementations that can run here, and for each other one the reason."""
    built: dict[str, Implementation] = {"reference": reference}
    missing = {}
    makers: dict[str, Callable[[], RowKernels]] = {"triton": _triton, "cuda": _cuda, "cpu": CpuRows}
    for name, make in makers.items():
        try:
            built[name] = FusedImplementation(make())
        except OSError as error:
            missing[name] = str(error)
        except Exception as error:  # an unsupported Triton version: the rest must still be importable
            missing[name] = f"{type(error).__name__}: {error}"
    return built, missing


BUILT, MISSING = _build()

NAMES = ("reference", "triton", "cuda", "cpu")
"""A constant: torch.compile traces `choose`, and could not trace `status`, which calls the driver and Triton."""

AUTO = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
"""Order of `auto` by device type: the first that is built and takes the tensors, else `reference`."""


def status() -> dict[str, str]:
    """ "available" or the reason why not, for each implementation.

    >>> status()["reference"]
    'available'
    """
    return {name: _missing(name) or "available" for name in NAMES}


def _missing(name: str) -> str | None:
    if name in MISSING or name in ("reference", "cpu") or (name == "triton" and _interpreted()):
        return MISSING.get(name)
    # Called here and not at import, which must not initialise the driver: a process may still fork.
    if not torch.cuda.is_available():
        return "no CUDA device"
    return BUILT[name].refuses(torch.device("cuda"), torch.float32, 1)


def choose(impl: str, device: torch.device, dtype: torch.dtype, vocab: int) -> Implementation:
    """The implementation to run on logits like these. Raises RuntimeError with the reason if a named one can't run."""
    check_choice("impl", impl, ("auto", *NAMES))
    if impl == "auto":
        return _automatic(device, dtype, vocab)
    reason = BUILT[impl].refuses(device, dtype, vocab) if impl in BUILT else MISSING[impl]
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}")
    return BUILT[impl]


def _automatic(device: torch.device, dtype: torch.dtype, vocab: int) -> Implementation:
    order = AUTO.get(device.type, ())
    for name in order:
        if name in BUILT and BUILT[name].refuses(device, dtype, vocab) is None:
            return BUILT[name]
    if dtype != torch.float64 and any(name in MISSING for name in order):  # none of them takes float64
        reasons = [f"{name}: {MISSING.get(name) or BUILT[name].refuses(device, dtype, vocab)}" for name in order]
        _warn_of_fallback(device.type, "; ".join(reasons))
    return BUILT["reference"]


@cache
def _warn_of_fallback(device: str, reasons: str) -> None:
    """Warns once. Raises RuntimeError if CAPO_CPU_ISA names what can't run."""
    if device == "cpu" and os.environ.get("CAPO_CPU_ISA"):
        raise RuntimeError(f"impl='auto' with CAPO_CPU_ISA={os.environ['CAPO_CPU_ISA']!r} cannot run: {reasons}")
    warnings.warn(
        f"impl='auto' runs 'reference', plain PyTorch and several times slower, since no other can run ({reasons}). "
        "Mend that and install again, or pass impl='reference'",
        stacklevel=5,  # the caller of the public function
    )
