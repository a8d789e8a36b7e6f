"""What an implementation is, which ones can run here, and which one `impl="auto"` takes.

Letters: T packed tokens, R rows to compute, H hidden, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
    """The operations of api.py on checked arguments, differentiable as they are there. The module `reference` is one;
    triton, cuda and cpu are three more, each made of row kernels."""

    def refuses(self, device: torch.device, dtype: torch.dtype, vocab: int) -> str | None:
        """Why it can't take such logits, in a line, or None. Plain Python that torch.compile can trace."""

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
        """The same of `hidden @ weight.T + bias`, of which no more than [chunk, V] is ever held; `wide_logits`: in
        float32 or wider."""

    def policy_loss(
        self, logits_TV: Tensor, targets_T: Tensor, inputs: LossInputs, spec: LossSpec, inplace: bool
    ) -> PolicyLoss:
        """`inplace`: where a gradient is wanted it takes the place of the logits."""

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
        """`rows_R`: int64, the rows to compute; outside of them the weights are 0."""


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
    """The implementations that can run here, and why the others can't."""
    built: dict[str, Implementation] = {"reference": reference}
    missing = {}
    makers: dict[str, Callable[[], RowKernels]] = {"triton": _triton, "cuda": _cuda, "cpu": CpuRows}
    for name, make in makers.items():
        try:
            built[name] = FusedImplementation(make())
        except OSError as error:
            missing[name] = str(error)
        except Exception as error:  # another Triton than the kernels are written for: the rest must be importable
            missing[name] = f"{type(error).__name__}: {error}"
    return built, missing


BUILT, MISSING = _build()

NAMES = ("reference", "triton", "cuda", "cpu")
"""A constant: torch.compile traces `choose`, and could not trace `status`, which calls the driver and Triton."""

AUTO = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
"""`auto` by device type: the first that is built and takes the tensors. Other devices run on `reference`."""


def status() -> dict[str, str]:
    """ "available" or the reason why not, for each implementation.

    >>> status()["reference"]
    'available'
    """
    return {name: _missing(name) or "available" for name in NAMES}


def _missing(name: str) -> str | None:
    if name in MISSING or name in ("reference", "cpu") or (name == "triton" and _interpreted()):
        return MISSING.get(name)
    # Called here and not at the import, which must leave the driver alone: a process may still fork.
    if not torch.cuda.is_available():
        return "no CUDA device"
    return BUILT[name].refuses(torch.device("cuda"), torch.float32, 1)


def choose(impl: str, device: torch.device, dtype: torch.dtype, vocab: int) -> Implementation:
    """The implementation to run on logits like these. A named one that can't raises RuntimeError with the reason."""
    check_choice("impl", impl, ("auto", *NAMES))
    if impl == "auto":
        order = [BUILT[name] for name in AUTO.get(device.type, ("reference",)) if name in BUILT]
        return next(each for each in order if each.refuses(device, dtype, vocab) is None)
    reason = BUILT[impl].refuses(device, dtype, vocab) if impl in BUILT else MISSING[impl]
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}")
    return BUILT[impl]
