"""Which implementations there are, which can run here, and which one `impl="auto"` takes."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from . import reference
from .checks import check_choice

BUILT: dict[str, ModuleType] = {"reference": reference}
"""An implementation is a module with the functions of reference.py and `refuses(x)`: why it can't take tensors like
x, or None."""

NOT_BUILT = {
    name: f"not built: this version of capo_kernels has no {name} implementation" for name in ("triton", "cuda", "cpu")
}

AUTO = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
"""`auto` by device type: the first that is built and takes the tensor. Other devices run on `reference`."""


def status() -> dict[str, str]:
    """ "available" or the reason why not, for each implementation.

    >>> status()["reference"]
    'available'
    """
    return {"reference": "available", **NOT_BUILT}


def choose(impl: str, x: Tensor) -> ModuleType:
    """The implementation to run on tensors like x. A named one that can't raises RuntimeError with the reason."""
    check_choice("impl", impl, ("auto", *status()))
    if impl == "auto":
        order = [BUILT[name] for name in AUTO.get(x.device.type, ("reference",)) if name in BUILT]
        return next(module for module in order if module.refuses(x) is None)
    reason = BUILT[impl].refuses(x) if impl in BUILT else status()[impl]
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}")
    return BUILT[impl]
